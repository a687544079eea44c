"""The three-plane viewer of a page: scan, labels, uncertainty and candidates, drawn by NiiVue in the reader's browser.

The page holds all of it, gzipped and in base64, NiiVue included: it works from a file, and nothing is fetched.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.labels import LabelTable
from atlasseg.report import figures
from atlasseg.volume import Grid, Image, LabelMap

MOST_VOXELS = 10_000_000
"""A larger scan, cropped around its labels, is shown by every second voxel, or third, and so on."""
CANDIDATE_BYTES = 6_000_000
"""What the candidates may take of a page; those that do not fit are left out, the last first."""
ENTROPY_STEP_BITS = 0.01
"""Uncertainty is held in steps of this, up to 2.55 bits."""

_KEYS = (
    ("\u2190 \u2192", "sagittal slices"),
    ("\u2191 \u2193", "coronal slices"),
    ("Page\u00a0Up, Page\u00a0Down", "axial slices"),
    ("L", "labels on or off"),
    ("O", "outlines or filled"),
)
_UNSURE_KEYS = (("U", "uncertainty on or off"),)
_STEP_KEYS = (("[ ]", "candidate before or after"),)
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
) -> str:
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
    str
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
    unsure = "entropy" in volumes
    facts = {
        "affine": part.grid.affine.tolist(),
        "shape": part.grid.shape,
        "radiological": convention == "radiological",
        "values": values.tolist(),
        "names": ["background" if v == 0 else table.name(int(v)) for v in values],
        "colors": [figures.drawn_color(table.color(int(v))) for v in values],
    }
    held = "".join(
        f'<script type="application/gzip" id="held-{name}">{packed}</script>\n' for name, packed in volumes.items()
    )
    told = json.dumps(facts, ensure_ascii=True)
    for mark in "<>&":
        told = told.replace(mark, f"\\u{ord(mark):04x}")
    stage, choices = _stage(convention, unsure=unsure, steps=kept > 0), _choices(candidates[:kept], unsure)
    remark = "".join(_remarks(part, len(candidates) - kept))
    return (
        '<section id="viewer" aria-labelledby="viewer-title" data-state="waiting">'
        '<h2 id="viewer-title">Look through</h2>\n'
        f"<p>Click into a plane, use the sliders, or focus the picture and use the keys below it.{remark}</p>\n"
        f'<div class="looker">\n{stage}{choices}'
        f"{_list(values, table)}</div>\n"
        f'<script type="application/json" id="viewer-facts">{told}</script>\n{held}</section>\n'
    )


@cache
def script() -> str:
    """NiiVue, packed, and what shows the viewer with it: to be put at the end of a page."""
    here = files("atlasseg.report")
    bundle = _packed((here / "vendor" / "niivue" / "niivue.umd.js").read_bytes())
    return (
        f'<script type="application/gzip" id="held-niivue">{bundle}</script>\n'
        f"<script>\n{(here / 'viewer.js').read_text('utf-8')}</script>\n"
    )


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


def _remarks(part: _Part, left_out: int) -> Iterator[str]:
    step = part.box[0].step
    if step > 1:
        ordinal = {2: "second", 3: "third"}.get(step, f"{step}th")
        yield f" To keep the page small it holds every {ordinal} voxel along each axis."
    if left_out:
        yield f" The last {left_out} candidates are left out to keep the page small."


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


def _stage(convention: figures.Convention, *, unsure: bool, steps: bool) -> str:
    sliders = "".join(
        f'<label class="slide"><span>{plane.capitalize()}</span>'
        f'<input type="range" min="0" max="1" value="0" data-axis="{axis}" disabled>'
        f'<output data-mm="{axis}"></output></label>\n'
        for axis, plane in enumerate(reversed(figures.PLANES))
    )
    known = _KEYS + (_UNSURE_KEYS if unsure else ()) + (_STEP_KEYS if steps else ())
    keys = "".join(f"<div><dt><kbd>{key}</kbd></dt><dd>{said}</dd></div>" for key, said in known)
    whose = "right" if convention == "radiological" else "left"
    return (
        '<div class="stage">\n'
        '<div class="canvas"><canvas tabindex="0" role="application" aria-roledescription="three-plane viewer" '
        f"aria-label=\"Axial, coronal and sagittal slice of the scan with its labels; the body's {whose} is on the "
        'left" aria-describedby="viewer-where viewer-keys"></canvas>'
        '<p class="wait" role="status">Drawing\u2026</p></div>\n'
        '<p class="where" id="viewer-where" aria-live="polite"></p>\n'
        f'<div class="planes">{sliders}</div>\n<dl class="keys" id="viewer-keys">{keys}</dl>\n</div>\n'
    )


def _choices(candidates: Sequence[Candidate], unsure: bool) -> str:
    step = ""
    if candidates:
        options = "".join(
            f'<option value="candidate-{n}">{escape(f"{c.name}, {c.note}" if c.note else c.name)}</option>'
            for n, c in enumerate(candidates)
        )
        step = (
            '<div class="step"><label for="viewer-candidate">Labels of</label>'
            '<button type="button" data-step="-1" aria-label="Candidate before">\u2039</button>'
            f'<select id="viewer-candidate"><option value="labels">the segmentation</option>{options}</select>'
            '<button type="button" data-step="1" aria-label="Candidate after">\u203a</button></div>\n'
        )
    switches = (
        '<label><input type="checkbox" id="viewer-labels" checked>labels</label>'
        '<label class="slide">opacity<input type="range" id="viewer-opacity" min="0" max="100" value="45"></label>'
        '<label><input type="checkbox" id="viewer-outlines">outlines only</label>'
    )
    if unsure:
        switches += (
            '<label><input type="checkbox" id="viewer-uncertainty">uncertainty</label>'
            '<label class="slide">its opacity<input type="range" id="viewer-veil" min="0" max="100" value="70"></label>'
        )
    return f'<div class="choices">\n{step}<fieldset class="show"><legend>Show</legend>{switches}</fieldset>\n</div>\n'


def _list(values: NDArray[Any], table: LabelTable) -> str:
    entries = "".join(
        f'<li><label><input type="checkbox" data-number="{n}" checked>'
        f'<span class="swatch l{v}" aria-hidden="true"></span>{escape(table.name(int(v)))}</label>'
        f'<button type="button" data-find="{n}" aria-label="Go to {escape(table.name(int(v)))}">go to</button></li>\n'
        for n, v in enumerate(values)
        if v != 0
    )
    return (
        '<fieldset class="list"><legend>Structures</legend>\n'
        '<div class="tools"><input type="search" id="viewer-filter" placeholder="Find a structure" '
        'aria-label="Find a structure"><button type="button" data-all="true">all</button>'
        '<button type="button" data-all="false">none</button></div>\n'
        f"<ul>\n{entries}</ul></fieldset>\n"
    )
