"""Finding the transform from a fixed image to each moving one. A file with a function `register` is a method."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
