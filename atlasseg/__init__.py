"""Atlas-based 3-D segmentation of medical images.

Give it a scan and a library of labelled scans (atlases); it registers, propagates, fuses, evaluates and reports.

Everything here is loaded when it is first used: functions (`register`, `propagate`, `fuse`, `refine`, `segment`,
`tissue`, `evaluate`, `compare`, `run`), data types (`Image`, `LabelMap`, `Atlas`, ...), readers and writers, and the
subpackages (``atlasseg.fusion.joint``).
"""

import lazy_loader as _lazy

from atlasseg.version import __version__ as __version__

__getattr__, _dir, _names = _lazy.attach_stub(__name__, __file__)  # the names of __init__.pyi
__all__ = sorted([*_names, "__version__"])


def __dir__() -> list[str]:
    return __all__
