"""Registration: the transform from a fixed image to each moving image. One file per method."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
