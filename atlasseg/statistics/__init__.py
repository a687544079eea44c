"""Statistical models of intensities: classes, their Gaussians, and how voxels come to belong to them.

Pure functions on plain arrays: `values` are (N, C), one row a voxel of the region and one column a modality, and
probabilities are (N, K), one column a class.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
