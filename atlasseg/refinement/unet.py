"""3-D U-Net that corrects the fused probabilities from scan and probabilities; trained on the library."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Ge, Lt

from atlasseg.device import Device, resolve_device
from atlasseg.errors import GeometryError, InputError
from atlasseg.methods import Data, Workload, method
from atlasseg.refinement.examples import differences, patient_spacing_mm, scan_digests
from atlasseg.version import __version__
from atlasseg.volume import Image, ProbabilityMap

if TYPE_CHECKING:
    import torch

    from atlasseg.refinement.network.model import RefinerModel

__all__ = ["refined"]

log = logging.getLogger(__name__)

SPACING_RATIO = 1.5
"""Maximum ratio of the voxel sizes of scan and training without a warning."""

LEAST_PROBABILITY = 1e-3
"""Minimum probability in the result."""

MOST_LABELS = 8
"""Maximum number of labels per voxel in the result, the most probable ones, so that memory is limited."""


NETWORK_BYTES, VOXEL_BYTES = 400e6, 800
"""Memory of torch with a network, and of a voxel of the target during refinement with 139 labels."""


def memory_bytes(work: Workload) -> float:
    """Estimate the memory of `refine` in bytes; see `atlasseg.methods.Needs`."""
    return NETWORK_BYTES + work.voxels * VOXEL_BYTES


def check(
    *,
    model: Path,
    allow_library_mismatch: bool = False,
    provenance: Mapping[str, Any] | None = None,
    device: Device = "auto",
    **settings: Any,
) -> None:
    """Check that the model exists and was trained on segmentations of the same `provenance`.

    Raises
    ------
    InputError
        As for `refine`.
    """
    from atlasseg.refinement.network.model import read_model

    trained = read_model(model)
    resolve_device(device)
    if provenance is None:
        return
    version = trained.record.get("versions", {}).get("atlasseg", __version__)
    if version != __version__:
        log.warning(
            "%s: trained by atlasseg %s, used by %s; registration and fusion may differ slightly",
            model,
            version,
            __version__,
        )
    stages = [{part: of for part, of in each.items() if part != "atlases"} for each in (trained.provenance, provenance)]
    found = differences(*stages)
    now = set(scan_digests(provenance).values())
    for learned in () if allow_library_mismatch else (trained.atlases, trained.initial_atlases):
        missing = [id_ for id_, digest in learned.items() if digest not in now]
        if missing and len(missing) < len(learned):
            found.append(
                f"it was trained on atlases that are missing here ({', '.join(missing)}), perhaps on the target itself"
            )
    if found:
        raise InputError(
            f"{model}: expected a model for this recipe and library, got another one: {'; '.join(found)}. "
            "Train one for this recipe and library with atlasseg train."
        )
    if set(trained.atlases.values()) != now:
        log.warning("%s: the model was trained on other atlases", model)


@method(
    "refinement",
    libraries=("torch", "monai", "safetensors"),
    install="atlasseg[refiner]",
    model="model",
    memory=memory_bytes,
    check=check,
    renamed={"turned": "test_time_flips", "any_library": "allow_library_mismatch"},
)
def refine(
    target: Image,
    fused: ProbabilityMap,
    *,
    model: Path,
    overlap: Annotated[float, Ge(0), Lt(1)] = 0.5,
    test_time_flips: bool = True,
    mixed_precision: bool = True,
    allow_library_mismatch: bool = False,
    device: Device = "auto",
    provenance: Data[Mapping[str, Any] | None] = None,
) -> ProbabilityMap:
    r"""Correct a fused segmentation by 3-D U-Nets [1]_ that were trained on the errors of the fusion.

    The inputs of the networks are the scan and the fused probabilities :math:`p_l(x)` in overlapping windows along the
    patient's axes. Their output :math:`f_l(x)` is added to the log probabilities:

    .. math::

        q_l(x) = \operatorname*{softmax}_l \frac{\log \max\left(p_l(x),\, 0.02 / (L - 1)\right) + f_l(x)}{T}

    :math:`L` is the number of labels. :math:`T` is the temperature, fitted on scans that the network was not trained
    on. Windows are blended by Gaussian weights. The results of several networks (one per fold [2]_) and of flipped
    inputs are averaged.

    The networks work in the box around all voxels that the fusion does not call certain background, extended by 8
    voxels on each side. Outside it nothing changes. If the model was trained for other labels, the result is the fused
    segmentation, with a warning.

    Parameters
    ----------
    target : Image
        The scan, preprocessed as in training; on the grid of `fused`.
    fused : ProbabilityMap
        Fused label probabilities.
    model : Path
        Folder written by ``atlasseg train``.
    overlap : float
        Overlap of adjacent windows, as a fraction of their width.
    test_time_flips : bool
        Average the output over flips of the axes that were flipped in training.
    mixed_precision : bool
        Compute convolutions in 16 bits on a GPU, and on CPUs where that is faster. Probabilities change by some
        thousandths. Without it, results of different CPUs differ by rounding only.
    allow_library_mismatch : bool
        Also use the model if only some of the atlases that it was trained on are in the library. It is then not checked
        whether the target is one of the others. (A library that shares no atlas with the training gives only a
        warning.)
    device : str
        "auto", "cpu" or "cuda".
    provenance : mapping, optional
        How `fused` was made; it must be the same as in training. The pipeline passes it.

    Returns
    -------
    ProbabilityMap

    Raises
    ------
    InputError
        The model does not exist, is damaged or of another kind, or does not match. The message names the difference.
    GeometryError
        Scan and map lie on different grids.

    References
    ----------
    .. [1] Ronneberger, O., Fischer, P., Brox, T. (2015). U-Net: convolutional networks for biomedical image
       segmentation. MICCAI, 234-241.
    .. [2] Isensee, F., Jaeger, P. F., Kohl, S. A. A., Petersen, J., Maier-Hein, K. H. (2021). nnU-Net: a
       self-configuring method for deep learning-based biomedical image segmentation. Nature Methods 18, 203-211.
    """
    from atlasseg.refinement.network.model import read_model

    check(model=model, allow_library_mismatch=allow_library_mismatch, provenance=provenance, device=device)
    return refined(
        target,
        fused,
        read_model(model),
        overlap=overlap,
        test_time_flips=test_time_flips,
        mixed_precision=mixed_precision,
        device=device,
    )


def refined(
    target: Image,
    fused: ProbabilityMap,
    model: RefinerModel,
    *,
    overlap: float = 0.5,
    test_time_flips: bool = True,
    mixed_precision: bool = True,
    device: Device = "auto",
) -> ProbabilityMap:
    """Refine by a model in memory; see `refine`.

    Memory: L labels times the thickness of a window times the other two axes of the box, and about four windows of L
    labels; not L times the scan.

    Parameters
    ----------
    target, fused, overlap, test_time_flips, mixed_precision, device
        As for `refine`.
    model : RefinerModel
        The model.

    Returns
    -------
    ProbabilityMap
    """
    from atlasseg.refinement.network.cases import case_of
    from atlasseg.refinement.network.precision import autocast_dtype
    from atlasseg.refinement.network.windows import make_predictor, slabs, sparse_entries

    name = target.name or "target"
    if not target.grid.matches(fused.grid):
        raise GeometryError(
            f"{name}: scan and segmentation are on different grids: shapes {target.shape} and {fused.shape}, affines "
            f"{target.affine.tolist()} and {fused.affine.tolist()}"
        )
    if target.channels.shape[3] != model.channels:
        raise InputError(
            f"{name}: expected {model.channels} channels as in the training, got {target.channels.shape[3]}"
        )
    labels = model.coding.labels
    unknown = sorted(set(fused.label_values.tolist()) - set(labels))
    if unknown:
        log.warning(
            "%s: not refined: the model was trained on the labels %s, not on %s; the fused segmentation is kept",
            name,
            ", ".join(map(str, labels)),
            ", ".join(map(str, unknown)),
        )
        return fused
    ratio = np.asarray(patient_spacing_mm(target.affine)) / model.spacing_mm
    if max(ratio.max(), 1 / ratio.min()) > SPACING_RATIO:
        log.warning("%s: expected voxels of the model's training, got %s times their size", name, ratio.round(2))

    where = resolve_device(device)
    case = case_of(target, fused, model.coding, candidates=model.candidates)
    networks = _load_networks(model, where)
    axes = ["RAS".index(axis) for axis in model.flips] if test_time_flips else []
    half = autocast_dtype(where) if mixed_precision else None
    predict = make_predictor(networks, [member.temperature for member in model.members], axes, half)
    voxels, codes, values = [], [], []
    for first, slab in slabs(
        case, model.coding, predict, window=model.patch_voxels, prior=model.prior, overlap=overlap, device=where
    ):
        index, code, value = sparse_entries(slab, LEAST_PROBABILITY, MOST_LABELS)
        index[:, 0] += first
        voxels.append(case.frame.flat(index))
        codes.append(code)
        values.append(value)
    return ProbabilityMap.from_entries(
        fused.mode,
        fused.affine,
        np.concatenate(voxels),
        np.array(labels, np.int32)[np.concatenate(codes)],
        np.concatenate(values),
        label_values=fused.label_values,
        name=fused.name,
    )


def _load_networks(model: RefinerModel, device: str) -> list[torch.nn.Module]:
    """Load the networks of a model on the device, in evaluation mode."""
    import torch

    from atlasseg.refinement.network.networks import build, load_weights

    networks = []
    for member in model.members:
        with torch.random.fork_rng(devices=[]):
            network = build(model.form)
        load_weights(network, member.weights, "model")
        networks.append(network.to(device, memory_format=torch.channels_last_3d).eval())  # type: ignore[call-overload]
    return networks
