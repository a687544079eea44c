"""Recommended recipes against the best of a full grid of the same settings, on scans that were not used to choose.

    python benchmarks/recommend.py --data DIR [--set hippocampus] [--atlases 8] [--targets 4] [--minutes 5]
                                   [--spacing-mm 0.3]

``atlasseg.recommend`` chooses on the atlases alone. The grid, all registrations with all fusions, is measured on the
targets, each segmented from the atlases. Hippocampus: atlases onto targets. The other sets: persons in turn go to the
atlases and to the targets. With ``--spacing-mm`` all scans are resampled to coarser cubic voxels first. Prints the Dice
of the recommended pair, of the best pair of the grid and of the default, and their ratios.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from common import coarsened

import atlasseg
from atlasseg.app.recommend import _Trial
from atlasseg.recommendation import describe_properties, list_fusions, list_registrations
from atlasseg.store.cache import open_cache
from atlasseg.volume import Atlas

PERSONS = {"sc_10062Ses2": "sc_10062Ses1", "sc_9709Ses2": "sc_9709Ses1"}
"""Second scans of a person in the set of spinal cords."""


def split(root: Path, name: str, atlases: int, targets: int) -> tuple[list[Atlas], list[Atlas]]:
    """Atlases and held-out targets of a set."""

    def read(folder: Path) -> list[Atlas]:
        library = atlasseg.read_library(folder)
        return [library.read(id_) for id_ in library.ids]

    if name == "hippocampus":
        related = {"hippocampus_020", "hippocampus_033", "hippocampus_046", "hippocampus_224"}
        held = [atlas for atlas in read(root / name / "targets") if atlas.id not in related]
        return read(root / name / "atlases")[:atlases], held[:targets]
    folder = root / name / "atlases"
    every = read(folder if folder.is_dir() else root / name)
    persons = sorted({PERSONS.get(atlas.id, atlas.id) for atlas in every})
    first = set(persons[::2])
    chosen = [atlas for atlas in every if PERSONS.get(atlas.id, atlas.id) in first]
    held = [atlas for atlas in every if PERSONS.get(atlas.id, atlas.id) not in first]
    return chosen[:atlases], held[:targets]


def main() -> None:
    """Choose, measure the grid, and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", default="hippocampus")
    parser.add_argument("--atlases", type=int, default=8)
    parser.add_argument("--targets", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--spacing-mm", type=float)
    parser.add_argument("--cache", type=Path, default=Path("/tmp/atlasseg_recommend"))
    given = parser.parse_args()
    atlases, targets = split(given.data, given.set, given.atlases, given.targets)
    if given.spacing_mm:
        atlases, targets = ([coarsened(each, given.spacing_mm) for each in part] for part in (atlases, targets))
    begun = time.perf_counter()
    found = atlasseg.recommend(atlases, minutes=given.minutes, cache=given.cache)
    seconds = time.perf_counter() - begun
    print(found, flush=True)
    known = describe_properties(atlases, persons=len(atlases))
    registrations = {each.name: each for each in list_registrations(known)}
    fusions = {each.name: each for each in list_fusions(known)}
    persons = list(range(1 + len(atlases)))
    grid: dict[tuple[str, str], list[float]] = {}
    for n, target in enumerate(targets):
        trial = _Trial(
            [target, *atlases], persons, registrations, fusions,
            open_cache(given.cache, None), np.inf, lambda text: None,
        )  # fmt: skip
        for name in registrations:
            for fusion, (dice, _) in trial.measure(name, 0, list(fusions)).items():
                grid.setdefault((name, fusion), []).append(dice)
        means = {pair: float(np.mean(values)) for pair, values in grid.items()}
        best = max(means, key=means.__getitem__)
        words = next(remark for remark in found.remarks if remark.startswith("Chosen: "))
        pair = next(p for p in means if words.startswith(f"Chosen: registration {p[0]}, fusion {p[1]}."))
        print(
            f"{given.set}, {len(atlases)} atlases, {n + 1} targets: recommended {pair} {means[pair]:.4f} "
            f"(expected {found.expected_dice:.4f}, {seconds:.0f} s), best of {len(means)} {best} {means[best]:.4f}, "
            f"ratio {means[pair] / means[best]:.4f}; default {next(iter(means.values())):.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
