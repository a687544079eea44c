"""Three-plane viewer of a page: scan, labels, uncertainty and candidates, drawn by NiiVue in the browser.

The page contains all data and NiiVue itself, gzipped and in base64. It works from a file and loads nothing.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.labels import LabelTable
from atlasseg.report import figures
from atlasseg.templating import render_macro
from atlasseg.volume import Grid, Image, LabelMap

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["Candidate", "viewer"]

MOST_VOXELS = 10_000_000
"""Maximum number of voxels shown. A larger scan is cropped around its labels and subsampled by an integer factor."""
CANDIDATE_BYTES = 6_000_000
"""Maximum size of all candidates in a page. Candidates that exceed it are left out, the last ones first."""
ENTROPY_STEP_BITS = 0.01
"""Step in which uncertainty is stored, up to 2.55 bits."""

_LABEL_INTENT = 1002  # NIfTI's NIFTI_INTENT_LABEL: NiiVue then reads values as names, and does not blend them


@dataclass(frozen=True, eq=False)
class Candidate:
    """Another label map of the same scan: labels of a registered atlas, a reference, or the result of another method.

    Parameters
    ----------
    name : str
        Name in the list of the viewer.
    labels : LabelMap
        On the scan's grid, or on a part of it.
    start : (3,) int
        First voxel of that part in the scan.
    note : str
        Remark shown after the name, for example ``similarity 0.91``.
    """

    name: str
    labels: LabelMap
    start: tuple[int, int, int] = (0, 0, 0)
    note: str = ""


@dataclass(frozen=True, eq=False)
class _Part:
    """The part of the scan that is shown."""

    box: tuple[slice, slice, slice]
    grid: Grid

    def of(self, array: NDArray[Any]) -> NDArray[Any]:
        """The shown part of an array on the scan's grid."""
        return array[self.box]

    def placed(self, array: NDArray[Any], start: Sequence[int], shape: tuple[int, int, int]) -> NDArray[Any]:
        """The shown part of an array that begins at voxel `start` of the scan's grid of `shape`; 0 elsewhere."""
        if array.shape == shape:
            return self.of(array)
        whole = np.zeros(shape, array.dtype)
        whole[tuple(slice(a, a + n) for a, n in zip(start, array.shape, strict=True))] = array
        return self.of(whole)


def viewer(
    image: Image,
    labels: LabelMap,
    *,
    table: LabelTable,
    entropy: NDArray[np.floating[Any]] | None = None,
    candidates: Sequence[Candidate] = (),
    convention: figures.Convention = "radiological",
) -> Markup:
    """Make the viewer section of a page, with the volumes that it shows.

    Parameters
    ----------
    image : Image
        The scan. If it has several channels, the first is shown.
    labels : LabelMap
        On the scan's grid.
    table : LabelTable
        Names and colours.
    entropy : (I, J, K), optional
        Uncertainty in bits.
    candidates : sequence of Candidate
        Other label maps, in order of preference.
    convention : str
        ``radiological`` or ``neurological``.

    Returns
    -------
    Markup
        HTML. The page must contain `script` once, after it.
    """
    part = _shown_part(image, labels)
    values = np.unique(np.concatenate([labels.values, *(c.labels.values for c in candidates), [0]]))
    kind: Any = np.uint8 if values.size <= 256 else np.uint16

    def numbered(array: NDArray[Any]) -> NDArray[Any]:
        return np.searchsorted(values, array).astype(kind)

    volumes = {
        "scan": _nifti(figures.grey(part.of(image.channels[..., 0])), part.grid),
        "labels": _nifti(numbered(part.of(labels.array)), part.grid, intent=_LABEL_INTENT),
    }
    if entropy is not None and entropy.any():
        steps = np.rint(np.minimum(part.of(entropy) / ENTROPY_STEP_BITS, 255)).astype(np.uint8)
        volumes["entropy"] = _nifti(steps, part.grid, slope=ENTROPY_STEP_BITS)
    taken, kept = 0, 0
    for candidate in candidates:
        shown = part.placed(numbered(candidate.labels.array), candidate.start, image.shape)
        packed = _packed(shown.tobytes(order="F"))
        if taken + len(packed) > CANDIDATE_BYTES:
            break
        volumes[f"candidate-{kept}"], taken, kept = packed, taken + len(packed), kept + 1
    facts = {
        "affine": part.grid.affine.tolist(),
        "shape": part.grid.shape,
        "radiological": convention == "radiological",
        "values": values.tolist(),
        "names": ["background" if v == 0 else table.name(int(v)) for v in values],
        "colors": [figures.drawn_color(table.color(int(v))) for v in values],
    }
    return render_macro(
        "viewer.html.j2",
        "viewer",
        facts=facts,
        volumes=volumes,
        convention=convention,
        every=part.box[0].step,
        left_out=len(candidates) - kept,
        candidates=candidates[:kept],
        structures=[(n, int(v), table.name(int(v))) for n, v in enumerate(values) if v],
    )


@cache
def script() -> Markup:
    """Scripts of the viewer with NiiVue, compressed, for the end of a page."""
    bundle = (files("atlasseg.report") / "vendor" / "niivue" / "niivue.umd.js").read_bytes()
    return render_macro("viewer.html.j2", "scripts", niivue=_packed(bundle))


def _shown_part(image: Image, labels: LabelMap) -> _Part:
    """Choose the box around the labels and the subsampling so that at most `MOST_VOXELS` are shown."""
    box = figures.box_around(labels.array != 0, image.spacing_mm)
    size = np.array([b.stop - b.start for b in box])
    step = 1
    while np.prod(-(-size // step)) > MOST_VOXELS:
        step += 1
    grid = image.grid.cropped([b.start for b in box], [b.stop for b in box])
    scaled = grid.affine @ np.diag([step, step, step, 1.0])
    i, j, k = (int(n) for n in -(-size // step))
    a, b, c = (slice(each.start, each.stop, step) for each in box)
    return _Part((a, b, c), Grid((i, j, k), scaled))


def _nifti(array: NDArray[Any], grid: Grid, *, intent: int = 0, slope: float = 1.0) -> str:
    """Compress the array as a NIfTI file."""
    import nibabel

    image = nibabel.Nifti1Image(array, grid.affine)
    image.header.set_intent(intent, allow_unknown=True)
    image.header.set_xyzt_units("mm")
    raw = bytearray(image.to_bytes())
    raw[112:120] = np.array([slope, 0], "<f4").tobytes()  # scl_slope, scl_inter; nibabel would scale the array
    return _packed(bytes(raw))


def _packed(raw: bytes) -> str:
    """Compress by gzip, without a time stamp, and encode as base64."""
    return base64.b64encode(gzip.compress(raw, 6, mtime=0)).decode()
