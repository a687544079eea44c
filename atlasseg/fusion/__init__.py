"""Fusion: candidates (atlases on the target's grid) become one map of label probabilities.

Every file here whose name has no leading underscore is a method:
``fuse(target, candidates, *, ...) -> ProbabilityMap``.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
