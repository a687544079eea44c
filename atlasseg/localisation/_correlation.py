"""Correlation of a template with an image at every translation, where both are known, by the Fourier transform.

The score is the mean of the correlation and of the concordance [2]_, which also asks for the same mean and the same
variance. Correlation alone finds any edge in the scan for a template of two tissues; concordance alone fails where
scanners differ.

References
----------
.. [1] Padfield, D. (2012). Masked object registration in the Fourier domain. IEEE Trans Image Process 21(5), 2706-2718.
.. [2] Lin, L. I.-K. (1989). A concordance correlation coefficient to evaluate reproducibility. Biometrics 45(1),
   255-268.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from atlasseg.volume import Bool, Float32

LEAST_VARIANCE = 1e-3
"""Variance below which there is nothing to correlate, as a fraction of that of the image."""


@dataclass(frozen=True, eq=False)
class CorrelationMap:
    """Image prepared for the correlation with many templates.

    Parameters
    ----------
    image : (I, J, K) float32
        Intensities, of mean 0 and standard deviation 1 where they are known.
    known : (I, J, K) bool
        Where they are known.
    template_shape : (3,) int
        Largest shape of a template.
    """

    image: Float32
    known: Bool
    template_shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        size = tuple(
            int(fft.next_fast_len(n + t - 1, real=True))
            for n, t in zip(self.image.shape, self.template_shape, strict=True)
        )
        known = self.known.astype(np.float32)
        spectra = [fft.rfftn(part, size) for part in (self.image * known, self.image**2 * known, known)]
        object.__setattr__(self, "_size", size)
        object.__setattr__(self, "_spectra", spectra)

    def correlate(self, template: Float32, weight: Float32, *, least_overlap: float) -> Float32:
        """Correlate a template with the image.

        Parameters
        ----------
        template : (A, B, C) float32
            Intensities, scaled as those of the image; odd along each axis. The middle voxel is its place.
        weight : (A, B, C) float32
            Weight of each voxel of the template, 0 or more.
        least_overlap : float
            Where less than this fraction of the weight lies on known voxels, the result is -1.

        Returns
        -------
        (I, J, K) float32
            Mean of correlation and concordance, -1 to 1, with the middle of the template at each voxel.
        """
        size: tuple[int, int, int] = self._size  # type: ignore[attr-defined]
        image, square, known = self._spectra  # type: ignore[attr-defined]
        total = float(weight.sum())
        parts = [np.conj(fft.rfftn(part, size)) for part in (weight, template * weight, template**2 * weight)]

        def inverse(product: NDArray[np.complex64]) -> Float32:
            return np.asarray(fft.irfftn(product, size)[places], np.float32)

        places = np.ix_(
            *((np.arange(n) - t // 2) % m for n, t, m in zip(self.image.shape, template.shape, size, strict=True))
        )
        count = np.maximum(inverse(known * parts[0]), 1e-6 * total)
        mean_image, mean_own = inverse(image * parts[0]) / count, inverse(known * parts[1]) / count
        both = inverse(image * parts[1]) / count - mean_image * mean_own
        var_image = inverse(square * parts[0]) / count - mean_image**2
        var_own = inverse(known * parts[2]) / count - mean_own**2
        varied = (var_image > LEAST_VARIANCE) & (var_own > LEAST_VARIANCE)
        product = np.sqrt(np.maximum(var_image, LEAST_VARIANCE) * np.maximum(var_own, LEAST_VARIANCE))
        sum_of = np.maximum(var_image + var_own, 2 * LEAST_VARIANCE) + (mean_image - mean_own) ** 2
        found = np.where(varied, np.clip(both / product / 2 + both / sum_of, -1, 1), np.float32(0))
        return np.where(count >= least_overlap * total, found, np.float32(-1)).astype(np.float32)
