"""Statistical models of intensities: Gaussian mixtures, Markov random fields and Markov chains.

Pure functions on plain arrays: `values` are (N, C), with one row per voxel of the region and one column per modality;
probabilities are (N, K), with one column per class.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
