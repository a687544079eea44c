"""What makes a fused segmentation better: a file that defines ``refine(target, fused, *, ...) -> ProbabilityMap``."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
