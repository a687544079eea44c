"""Affine registration where the target shows a part of the anatomy, or lies turned, beside antspyx's `Affine`.

    python benchmarks/partial_view.py --data DIR [--spacings 3,2,1] [--engines affine,antspyx] [--brains 1000,1001,...]
        [--out DIR]

Halves: of each brain the lower, upper, left, right, front and back half (of the foreground's extent), from the
next one, whole, at each spacing. Turns: each of the first two brains whole, its header turned about its centre by 15
rotations from 10 to 180 degrees about random axes. The engines get images without masks and their default settings; an
engine may be given parameters, as `affine:metric=mutual_information`. Dice is the mean over the labels of the target,
those of the atlas carried over by the nearest voxel. A pair has failed where its Dice is below half of what the best
engine reaches on it; `flagged` is the number of these that `atlasseg.plausibility.check` warns of, `false alarms` that
of the others it warns of. With `--out` each pair's transforms are kept, and a later call goes on from there.

The starts, and the limit of similarity, were chosen with `--brains` 1009,1010,1011,1012,1013,1014,1015,1017,1036.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from common import Kept, coarsened, mean_dice

from atlasseg import io
from atlasseg.plausibility import check
from atlasseg.registration import affine, syn
from atlasseg.resampling import resample
from atlasseg.transforms import Affine
from atlasseg.volume import Atlas, Image, LabelMap

BRAINS = ("1000", "1001", "1002", "1006", "1007", "1008")
"""Those that are reported on; the other nine of the set served to choose starts and limits."""

HALVES = {"lower": (2, -1), "upper": (2, 1), "left": (0, -1), "right": (0, 1), "back": (1, -1), "front": (1, 1)}
"""RAS axis, and which end of it is kept."""

Volume = tuple[Image, LabelMap]


@cache
def read(data: Path, id_: str, spacing_mm: float) -> Volume:
    """A brain and its labels with cubic voxels."""
    folder = data / "human_brain" / "atlases"
    image = io.read_image(folder / "images" / f"{id_}.nii.gz")
    labels = io.read_label_map(folder / "labels" / f"{id_}.nii.gz")
    coarse = coarsened(Atlas(id_, image, labels), spacing_mm)
    return coarse.image, coarse.segmentation


def half(volume: Volume, name: str) -> Volume:
    """One half of the foreground's extent; the grid's axes lie along the RAS axes."""
    image, labels = volume
    axis, end = HALVES[name]
    at = np.argwhere(image.array > image.array.min())[:, axis]
    middle = round((at.min() + at.max() + 1) / 2)
    start, stop = [0, 0, 0], list(image.shape)
    if end * image.affine[axis, axis] > 0:
        start[axis] = middle
    else:
        stop[axis] = middle
    return image.cropped(start, stop), labels.cropped(start, stop)


def turns(count: int = 15) -> Iterator[np.ndarray]:
    """(3, 3) rotations about random axes, by 10 to 180 degrees."""
    rng = np.random.default_rng(11)
    for angle in np.radians(np.linspace(10, 180, count)):
        x, y, z = (lambda v: v / np.linalg.norm(v))(rng.normal(size=3))
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        yield np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def turned(volume: Volume, rotation: np.ndarray) -> Volume:
    """The same voxels, their header turned about the grid's centre."""
    image, labels = volume
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = image.grid.centre_mm - rotation @ image.grid.centre_mm
    return Image(image.array, matrix @ image.affine), LabelMap(labels.array, matrix @ labels.affine)


def ants_affine(fixed: Image, moving: Image) -> np.ndarray:
    """(4, 4) by antspyx's `Affine`, a fixed seed."""
    (found,) = syn.register(fixed, [moving], type_of_transform="Affine")
    assert isinstance(found, Affine)
    return found.matrix


def ours(fixed: Image, moving: Image, parameters: str) -> np.ndarray:
    given = dict(part.split("=") for part in parameters.split(",") if part)
    (found,) = affine.register(fixed, [moving], **given)  # type: ignore[arg-type]
    return found.matrix


def cases(brains: list[str], spacings: list[float]) -> Iterator[tuple[str, str, float, str, str]]:
    """Kind, name, spacing, target and atlas."""
    for spacing in spacings:
        for n, id_ in enumerate(brains):
            for name in HALVES:
                yield "halves", name, spacing, id_, brains[(n + 1) % len(brains)]
        for n, id_ in enumerate(brains[:2]):
            for number in range(15):
                yield "turns", f"turn{number}", spacing, id_, brains[n + 1]


def is_flagged(
    data: Path, brains: list[str], spacing: float, target: str, atlas: str, fixed: Image, transform: Affine
) -> bool:
    """Whether a run with the other brains as its library would warn of this registration."""
    library = [Atlas(id_, *read(data, id_, spacing)) for id_ in brains if id_ != target]
    used = [each for each in library if each.id == atlas]
    return bool(check(fixed, used, [transform], library=library, executor=keep))


keep = Kept()


def report(rows: list[tuple[str, float, str, str, str, float, float, bool]], engines: list[str]) -> None:
    """Print the table, then every pair that failed."""
    reached: dict[tuple[object, ...], float] = {}
    for row in rows:
        reached[row[:2] + row[3:5]] = max(row[5], reached.get(row[:2] + row[3:5], 0))
    print(f"antspyx {importlib.metadata.version('antspyx')}, numpy {np.__version__}\n")
    print("| kind | mm | engine | pairs | mean Dice | least | failed | flagged | false alarms | s a pair |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    failed = []
    for kind, spacing in dict.fromkeys(row[:2] for row in rows):
        for engine in engines:
            mine = [row for row in rows if row[:3] == (kind, spacing, engine)]
            bad = [row for row in mine if row[5] < reached.get(row[:2] + row[3:5], 0) / 2]
            good = [row for row in mine if row not in bad]
            failed += bad
            scores = [row[5] for row in mine]
            print(
                f"| {kind} | {spacing:g} | {engine} | {len(mine)} | {np.mean(scores):.3f} | {min(scores):.3f} "
                f"| {len(bad)} | {sum(row[7] for row in bad)} | {sum(row[7] for row in good)} "
                f"| {np.median([row[6] for row in mine]):.1f} |"
            )
    for _, spacing, engine, target, name, score, _, flagged in failed:
        said = "flagged" if flagged else "NOT FLAGGED"
        print(f"\n{engine}, {spacing:g} mm, {target} {name}: Dice {score:.3f}, {said}", end="")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--spacings", default="3,2,1")
    parser.add_argument("--engines", default="affine,antspyx")
    parser.add_argument("--kinds", default="halves,turns")
    parser.add_argument("--brains", default=",".join(BRAINS))
    parser.add_argument("--out", type=Path, help="folder where transforms are kept")
    given = parser.parse_args()
    engines, brains = given.engines.split(","), given.brains.split(",")
    rows = []
    for kind, name, spacing, target, atlas in cases(brains, [float(s) for s in given.spacings.split(",")]):
        if kind not in given.kinds.split(","):
            continue
        whole = read(given.data, target, spacing)
        fixed = half(whole, name) if kind == "halves" else turned(whole, list(turns())[int(name[4:])])
        moving = read(given.data, atlas, spacing)
        for engine in engines:
            kept = given.out and given.out / f"{engine}_{spacing:g}_{target}_{name}.json"
            if kept and kept.exists():
                matrix, seconds = json.loads(kept.read_text())
            else:
                begin = time.perf_counter()
                if engine == "antspyx":
                    matrix = ants_affine(fixed[0], moving[0])
                else:
                    matrix = ours(fixed[0], moving[0], engine.partition(":")[2].replace(";", ","))
                seconds = time.perf_counter() - begin
                if kept:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    kept.write_text(json.dumps([np.asarray(matrix).tolist(), seconds]))
            transform = Affine(np.array(matrix))
            carried = resample(moving[1], fixed[1].grid, transform, interpolation="nearest")
            score = mean_dice(carried.array, fixed[1].array)
            rows.append(
                (
                    kind,
                    spacing,
                    engine,
                    target,
                    name,
                    score,
                    seconds,
                    is_flagged(given.data, brains, spacing, target, atlas, fixed[0], transform),
                )
            )
    report(rows, engines)


if __name__ == "__main__":
    main()
