"""The three-plane viewer of a page: scan, labels, uncertainty and candidates, drawn by NiiVue in the reader's browser.

The page holds all of it, gzipped and in base64, NiiVue included: it works from a file, and nothing is fetched.
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

MOST_VOXELS = 10_000_000
"""A larger scan, cropped around its labels, is shown by every second voxel, or third, and so on."""
CANDIDATE_BYTES = 6_000_000
"""What the candidates may take of a page; those that do not fit are left out, the last first."""
ENTROPY_STEP_BITS = 0.01
"""Uncertainty is held in steps of this, up to 2.55 bits."""

_LABEL_INTENT = 1002  # NIfTI's NIFTI_INTENT_LABEL: NiiVue then reads values as names, and does not blend them


@dataclass(frozen=True, eq=False)
class Candidate:
    """Other labels of the same scan to step to: an atlas carried over, a reference, another method's result.

    Parameters
    ----------
    name : str
        What it is called.
    labels : LabelMap
        On the scan's grid, or on a part of it.
    start : (3,) int
        Voxel of the scan where that part begins.
    note : str
        What is to be said of it, as ``similarity 0.91``.
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
        """An array on the scan's grid, as it is shown."""
        return array[self.box]

    def placed(self, array: NDArray[Any], start: Sequence[int], shape: tuple[int, int, int]) -> NDArray[Any]:
        """An array that is a part of the scan's grid of `shape` from `start` on, as it is shown; 0 elsewhere."""
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
    """A section of a page, and the volumes that it shows.

    Parameters
    ----------
    image : Image
        The scan; of several channels, the first is shown.
    labels : LabelMap
        On the scan's grid.
    table : LabelTable
        Names and colours.
    entropy : (I, J, K), optional
        Uncertainty in bits.
    candidates : sequence of Candidate
        What can be stepped to, the most interesting first.
    convention : str
        ``radiological`` or ``neurological``.

    Returns
    -------
    Markup
        HTML, to be followed by `script` once in the page.
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
    """NiiVue, packed, and what shows the viewer with it: to be put at the end of a page."""
    bundle = (files("atlasseg.report") / "vendor" / "niivue" / "niivue.umd.js").read_bytes()
    return render_macro("viewer.html.j2", "scripts", niivue=_packed(bundle))


def _shown_part(image: Image, labels: LabelMap) -> _Part:
    """Around what is labelled, and no more voxels than a page can hold."""
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
    """A NIfTI file of the array, packed."""
    import nibabel

    image = nibabel.Nifti1Image(array, grid.affine)
    image.header.set_intent(intent, allow_unknown=True)
    image.header.set_xyzt_units("mm")
    raw = bytearray(image.to_bytes())
    raw[112:120] = np.array([slope, 0], "<f4").tobytes()  # scl_slope, scl_inter; nibabel would scale the array
    return _packed(bytes(raw))


def _packed(raw: bytes) -> str:
    """Gzipped, the same every time, as base64."""
    return base64.b64encode(gzip.compress(raw, 6, mtime=0)).decode()
