"""Gaussian mixture: each voxel is classified by its own intensity, with a bias field and an optional prior."""

from __future__ import annotations

import numpy as np

from atlasseg.errors import InputError
from atlasseg.methods import method
from atlasseg.tissues._classes import Tissues, assemble_tissues, check_prior_map, fit_classes, nonnegative_intensities
from atlasseg.volume import Float64, Image, Mask


@method("tissue")
def classify(
    image: Image,
    inside: Mask,
    prior: Float64 | None = None,
    *,
    classes: int = 3,
    bias_order: int = 3,
    bias_stiffness: float = 3.0,
    partial_volume: bool = True,
    relaxation: float = 0.0,
    relaxation_sigma_voxels: float = 2.0,
    max_iterations: int = 15,
) -> Tissues:
    r"""Classify the voxels of a region by a Gaussian mixture.

    Each class has Gaussian intensities :math:`z` with its own mean and covariance. The scan :math:`y` is multiplied by
    a smooth gain, the bias field, whose logarithm :math:`b` is a polynomial:

    .. math::

        y(x) = \exp(b(x)) \, z(x)

    Expectation maximisation estimates both [1]_. With `partial_volume` a voxel may also contain a fraction of one class
    and the rest of the next brighter one [2]_. Probabilities are then the expected fractions: the probability that a
    point of the voxel belongs to the class.

    With `relaxation` :math:`r`, after convergence the prior :math:`\pi` becomes :math:`(1 - r)` times the given one
    plus :math:`r` times the smoothed fractions, and the fit is repeated, a few times [3]_. This reduces the influence
    of a misregistered prior.

    Parameters
    ----------
    image : Image
        The scan; several channels are modalities.
    inside : Mask
        The region, on the scan's grid.
    prior : (N, K) float64, optional
        Probability of each class at the region's voxels, in the order of ``array[inside]``.
    classes : int
        Number of classes, at least 2. With a prior, the number of its classes is used.
    bias_order : int
        Highest order of the polynomials of the bias field; 0: no correction.
    bias_stiffness : float
        Penalty on the bending of the bias field, 0 or more. Noisy scans with a small field of view need more.
    partial_volume : bool
        Whether a voxel may contain two classes. Otherwise each voxel has one class, with a probability.
    relaxation : float
        Fraction r of the prior that is replaced by the smoothed result, from 0 (prior as given) to 1.
    relaxation_sigma_voxels : float
        Standard deviation of that smoothing, in voxels along each axis, 0 or more.
    max_iterations : int
        Maximum number of iterations of the fit.

    Raises
    ------
    InputError
        The region is empty, has fewer distinct intensities than classes or only one, or the prior does not fit.

    References
    ----------
    .. [1] Van Leemput, K., Maes, F., Vandermeulen, D., Suetens, P. (1999). Automated model-based bias field correction
       of MR images of the brain. IEEE Transactions on Medical Imaging 18(10), 885-896.
    .. [2] Van Leemput, K., Maes, F., Vandermeulen, D., Suetens, P. (2003). A unifying framework for partial volume
       segmentation of brain MR images. IEEE Transactions on Medical Imaging 22(1), 105-119.
    .. [3] Cardoso et al. (2011). LoAd: a locally adaptive cortical segmentation algorithm. NeuroImage 56, 1386-1397.
    """
    if relaxation and prior is None:
        raise InputError(f"relaxation: expected a prior to relax, got relaxation of {relaxation} and no prior")
    if not (0 <= relaxation <= 1 and 0 <= relaxation_sigma_voxels < np.inf):
        raise InputError(
            "mixture: expected relaxation of 0 to 1 and relaxation_sigma_voxels of 0 or more, got "
            f"{relaxation} and {relaxation_sigma_voxels}"
        )
    given = check_prior_map(prior, classes, inside.array)
    values, shift = nonnegative_intensities(image, inside)
    found = fit_classes(
        values,
        inside,
        given,
        classes=classes,
        bias_order=bias_order,
        bias_stiffness=bias_stiffness,
        partial_volume=partial_volume,
        relaxation=relaxation,
        relaxation_sigma_voxels=relaxation_sigma_voxels,
        max_iterations=max_iterations,
    )
    return assemble_tissues(image, inside, shift, found.fractions, found.bias, found.corrected, found.gaussians)
