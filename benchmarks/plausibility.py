"""How often a run's plausibility checks warn: of scans that are well, and of scans with a seeded fault.

    python benchmarks/plausibility.py --data DIR [--sets brain,hippocampus,mouse,heads] [--targets 15]

Each target of a data set is registered (`affine`, defaults) with the other subjects of the set, brains and heads at
3 mm, and checked against them: as it is, and with one fault at a time, after a registration of its own:

- header x10: the voxel size in the header ten times too large
- mirrored: left and right exchanged in the array and not in the header
- upside down: the header turned by 180 degrees about the left-right axis, registration from the header alone
- other organ: a scan of the next data set in its place

The table gives the share of targets with a warning, and which kinds of warning there were.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from common import Kept, coarsened

from atlasseg import io
from atlasseg.errors import AtlasSegError
from atlasseg.plausibility import check
from atlasseg.registration import affine
from atlasseg.transforms import Affine
from atlasseg.volume import Atlas, Image

FOLDERS = {
    "brain": ("human_brain/atlases", 3.0),
    "hippocampus": ("hippocampus/atlases", None),
    "mouse": ("mouse_brain/atlases", None),
    "cord": ("spinal_cord_gm", None),
    "heads": ("whole_head/targets", 3.0),
    "other_heads": ("whole_head/atlases", 3.0),
    "more_hippocampi": ("hippocampus/more_atlases", None),
    "further_hippocampi": ("hippocampus/further_atlases", None),
}
ATLASES = 8
"""Atlases that each target is registered with, spread over the others."""


def read_set(folder: Path, spacing_mm: float | None) -> list[Atlas]:
    """The subjects of a data set; labels are not needed, so one map of the first serves all."""
    out = []
    for path in sorted((folder / "images").iterdir()):
        image, labels = io.read_image(path), io.read_label_map(folder / "labels" / path.name)
        covered = folder / "masks" / path.name
        mask = io.read_mask(covered) if covered.exists() else None
        atlas = Atlas(path.name.split(".")[0], image, labels, mask=mask)
        out.append(coarsened(atlas, spacing_mm) if spacing_mm else atlas)
    return out


def magnified(image: Image) -> Image:
    return Image(image.array, np.diag([10.0, 10, 10, 1]) @ image.affine, image.name)


def exchanged(image: Image) -> Image:
    """Left and right exchanged along the array's axis that lies nearest to it, the header as it was."""
    axis = int(np.abs(image.affine[0, :3]).argmax())
    return Image(np.flip(image.array, axis).copy(), image.affine, image.name)


def upside_down(image: Image) -> Image:
    centre = image.grid.centre_mm
    turn = np.diag([1.0, -1, -1, 1])
    turn[:3, 3] = centre - turn[:3, :3] @ centre
    return Image(image.array, turn @ image.affine, image.name)


FAULTS: dict[str, Callable[[Image], Image]] = {
    "none": lambda image: image,
    "header x10": magnified,
    "mirrored": exchanged,
    "upside down": upside_down,
}


def cases(
    sets: dict[str, list[Atlas]], most: int, faults: list[str]
) -> Iterator[tuple[str, str, Image, list[Atlas], list[Atlas]]]:
    """Set, fault, target, atlases that are registered, and the library."""
    names = list(sets)
    for n, name in enumerate(names):
        subjects = sets[name]
        other = sets[names[(n + 1) % len(names)]]
        for k, subject in enumerate(subjects[:most]):
            library = subjects[:k] + subjects[k + 1 :]
            used = [library[round(i)] for i in np.linspace(0, len(library) - 1, min(ATLASES, len(library)))]
            for fault in faults:
                if fault == "other organ":
                    if other is not subjects:
                        yield name, fault, other[k % len(other)].image, used, library
                else:
                    yield name, fault, FAULTS[fault](subject.image), used, library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--sets", default="brain,hippocampus,mouse,heads")
    parser.add_argument("--faults", default=",".join([*FAULTS, "other organ"]))
    parser.add_argument("--targets", type=int, default=100, help="most targets of each set")
    given = parser.parse_args()
    sets = {name: read_set(given.data / FOLDERS[name][0], FOLDERS[name][1]) for name in given.sets.split(",")}
    keep = Kept()
    found: dict[tuple[str, str], list[Counter[str]]] = {}
    for name, fault, target, used, library in cases(sets, given.targets, given.faults.split(",")):
        kinds: Counter[str] = Counter()
        try:
            moving = [atlas.image for atlas in used]
            initial = [Affine(np.eye(4))] * len(moving) if fault == "upside down" else None
            transforms = affine.register(target, moving, initial=initial)
            kinds.update(each.kind for each in check(target, used, transforms, library=library, executor=keep))
        except AtlasSegError as error:
            kinds["error"] += 1
            print(f"{name}, {fault}, {target.name}: {error}", flush=True)
        found.setdefault((name, fault), []).append(kinds)
        print(name, fault, target.name, dict(kinds), flush=True)
    print("\n| set | fault | targets | warned | kinds |\n|---|---|---|---|---|")
    for (name, fault), each in found.items():
        total = sum(each, Counter())
        listed = ", ".join(f"{kind} {count}" for kind, count in total.most_common())
        print(f"| {name} | {fault} | {len(each)} | {sum(bool(k) for k in each)} | {listed} |")


if __name__ == "__main__":
    main()
