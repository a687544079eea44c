"""Markov random field: neighbouring voxels tend to have the same class (mean field within a Gaussian mixture)."""

from __future__ import annotations

import numpy as np
from numba import njit

from atlasseg.errors import InputError
from atlasseg.methods import method
from atlasseg.statistics.markov_field import dense_field
from atlasseg.threads import run_slices
from atlasseg.tissues._classes import Tissues, assemble_tissues, check_prior_map, fit_classes, nonnegative_intensities
from atlasseg.volume import Float64, Image, Mask


@method("tissue")
def classify(
    image: Image,
    inside: Mask,
    prior: Float64 | None = None,
    *,
    classes: int = 3,
    beta: float = 0.2,
    bias_order: int = 3,
    bias_stiffness: float = 3.0,
    partial_volume: bool = True,
    max_iterations: int = 15,
) -> Tissues:
    r"""Classify the voxels of a region by a Gaussian mixture whose classes are a Markov random field.

    The mixture is that of the model `mixture`, with its bias field [1]_ and partial volume [2]_. In each iteration
    the log prior of class :math:`k` at voxel :math:`n` is increased by the neighbours' expected fractions :math:`f` of
    the previous iteration, the mean field of a Potts model [3]_:

    .. math::

        \log \pi_{nk} \leftarrow \log \pi_{nk} + \sum_{m \sim n} w_{nm} f_{mk}, \qquad
        w_{nm} = \beta \frac{d_{\min}}{d_{nm}}

    over the 26 neighbours :math:`m`, with :math:`d` the distance of two voxels and :math:`d_{\min}` the shortest edge
    of a voxel. A mixed voxel counts with its fractions.

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
    beta : float
        Strength of the field, 0 or more.
    bias_order : int
        Highest order of the polynomials of the bias field; 0: no correction.
    bias_stiffness : float
        Penalty on the bending of the bias field, 0 or more. Noisy scans with a small field of view need more.
    partial_volume : bool
        Whether a voxel may contain two classes. Otherwise each voxel has one class, with a probability.
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
    .. [3] Zhang, J. (1992). The mean field theory in EM procedures for Markov random fields. IEEE Transactions on
       Signal Processing 40(10), 2570-2583.
    """
    if not (np.isfinite(beta) and beta >= 0):
        raise InputError(f"beta: expected 0 or more, got {beta}")
    given = check_prior_map(prior, classes, inside.array)
    values, shift = nonnegative_intensities(image, inside)
    lattice = dense_field(np.zeros((len(values), 1)), inside.array, image.affine[:3, :3], beta=beta, neighbours=26)

    def pull(parts: Float64) -> Float64:
        out = np.zeros_like(parts)
        run_slices(_add_pull, len(parts), parts, lattice.neighbours, lattice.weights, out)
        return out

    found = fit_classes(
        values,
        inside,
        given,
        classes=classes,
        bias_order=bias_order,
        bias_stiffness=bias_stiffness,
        partial_volume=partial_volume,
        field=pull,
        max_iterations=max_iterations,
    )
    return assemble_tissues(image, inside, shift, found.fractions, found.bias, found.corrected, found.gaussians)


@njit(cache=True, nogil=True)
def _add_pull(start, stop, parts, neighbours, weights, out):  # type: ignore[no-untyped-def]
    """Add the weighted sum (N, K) of the neighbours' fractions to `out`."""
    for n in range(start, stop):
        for d in range(weights.size):
            m = neighbours[n, d]
            if m >= 0:
                for k in range(parts.shape[1]):
                    out[n, k] += weights[d] * parts[m, k]
