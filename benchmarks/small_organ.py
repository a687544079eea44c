"""A small organ in a large, variable view: localisation beside ordinary registration, and beside perfect localisation.

    python benchmarks/small_organ.py [--data DIR] [--sets phantoms,heads,cord] [--seeds 0,1,...] [--atlases 8]
        [--methods ordinary,template_search,voting_forest,combined,perfect,antspyx] [--choosing]

Sets of targets that the settings were not chosen on (with `--choosing`: those that they were chosen on):

- phantoms: hearts of `phantoms.small_organ` in thick slices, which move by themselves in variable chests.
- heads: whole heads (`whole_head`, 3 mm) with one small structure as the only label, cut to a random part and turned by
  up to 30 degrees about a random axis, with the voxels of the cut along the turned axes.
- cord: grey and white matter of `spinal_cord_gm`, each scan from those of the other persons.

Every target is segmented by the steps affine and diffeomorphic and joint label fusion. `ordinary` registers the whole
view. `perfect` aligns the atlases as the localisation does, but at the true centre of the target's labels. `ratio` is
the mean Dice over that of `perfect`. `antspyx` is SyN with its defaults and a majority vote.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import coarsened, mean_dice

from atlasseg.atlases.library import read_library
from atlasseg.fusion import majority
from atlasseg.localisation import template_search
from atlasseg.phantoms import small_organ
from atlasseg.phantoms.scanning import turned
from atlasseg.pipeline import segment
from atlasseg.propagation import propagate
from atlasseg.recipe import Recipe, Step, parse_recipe
from atlasseg.registration import syn
from atlasseg.resampling import resample
from atlasseg.volume import Atlas, Grid, LabelMap

Case = tuple[str, Atlas, list[Atlas]]
"""Name, target with its true labels, atlases."""

STRUCTURES = {"choosing": (47, 59, 31), "reporting": (48, 36, 52)}
"""Labels of the heads: hippocampus, thalamus and amygdala (right); left hippocampus, right caudate, left ventricle."""


VARIABLE = {"contrast": 0.35, "noise": 0.08, "off_centre_mm": 60.0}
"""Brightness of tissues, noise and place in the view of the phantoms."""


def phantoms(seeds: Sequence[int], count: int, choosing: bool) -> Iterator[Case]:
    first = 500 if choosing else 0
    library = [small_organ(f"atlas{n}", seed=first + 100 + n, **VARIABLE) for n in range(count)]
    for seed in seeds:
        yield f"phantom {seed}", small_organ(f"target{seed}", seed=first + 200 + seed, **VARIABLE), library


def cut(atlas: Atlas, rng: np.random.Generator, share: float = 0.72, turn_degrees: float = 30.0) -> Atlas:
    """A random part of a scan, on a grid that is turned; it holds all of the labels."""
    where = np.argwhere(atlas.segmentation.array != 0)
    middle = where.mean(axis=0) @ atlas.image.affine[:3, :3].T + atlas.image.affine[:3, 3]
    axis = rng.normal(size=3)
    angles = turn_degrees * rng.uniform(-1, 1) * axis / np.abs(axis).max()
    affine = atlas.image.affine.copy()
    affine[:3, :3] = turned(angles) @ affine[:3, :3]
    shape = np.ceil(share * np.array(atlas.shape)).astype(int)
    room = (shape / 2 - 8) * atlas.image.spacing_mm
    centre = middle + affine[:3, :3] @ (rng.uniform(-0.8, 0.8, 3) * room / atlas.image.spacing_mm)
    affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
    i, j, k = (int(n) for n in shape)
    grid = Grid((i, j, k), affine)
    return Atlas(atlas.id, resample(atlas.image, grid), resample(atlas.segmentation, grid))


def heads(data: Path, seeds: Sequence[int], count: int, choosing: bool) -> Iterator[Case]:
    folder = data / "whole_head"
    atlases, targets = read_library(folder / "atlases"), read_library(folder / "targets")
    ids = atlases.ids[:count]
    turn = np.random.default_rng([7, int(choosing)])
    for label in STRUCTURES["choosing" if choosing else "reporting"]:

        def read(library, id_: str) -> Atlas:  # type: ignore[no-untyped-def]
            whole = library.read(id_)
            only = LabelMap((whole.segmentation.array == label).astype(np.int32), whole.image.affine, id_)  # noqa: B023
            return cut(coarsened(replace(whole, labels=only, mask=None), 3.0), turn)

        library = [read(atlases, id_) for id_ in ids]
        for seed in seeds:
            n = seed + (6 if choosing else 0)
            yield f"head {targets.ids[n]}, label {label}", read(targets, targets.ids[n]), library


def cord(data: Path, seeds: Sequence[int]) -> Iterator[Case]:
    library = read_library(data / "spinal_cord_gm")
    everyone = [library.read(id_) for id_ in library.ids]
    for n in seeds:
        target = everyone[n % len(everyone)]
        person = target.id.partition("Ses")[0]
        yield f"cord {target.id}", target, [a for a in everyone if not a.id.startswith(person)]


def recipe(method: str) -> Recipe:
    tables: dict[str, dict[str, object]] = {
        "preprocessing": {"steps": ["intensity"]},
        "registration": {"steps": ["affine", "diffeomorphic"]},
        "fusion": {"method": "joint"},
    }
    if method != "ordinary":
        tables["localisation"] = {"method": "template_search" if method == "perfect" else method}
    found = parse_recipe(tables)
    if method == "perfect":
        step = found.localisation.method
        assert step is not None
        told = replace(step.method, function=perfectly)
        found = replace(found, localisation=replace(found.localisation, method=Step(told, {})))
    return found


TRUE_CENTRE: dict[str, np.ndarray] = {}


def perfectly(target, atlases, *, target_mask=None, atlas_masks=None):  # type: ignore[no-untyped-def]
    """Localise at the true centre."""
    return template_search.localise_at(
        target, atlases, TRUE_CENTRE[target.name], target_mask=target_mask, atlas_masks=atlas_masks
    )


def ants(target: Atlas, atlases: list[Atlas]) -> LabelMap:
    transforms = syn.register(target.image, [a.image for a in atlases])
    carried = [propagate(a, t, target.image.grid) for a, t in zip(atlases, transforms, strict=True)]
    return majority.fuse(target.image, carried).label_map()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--sets", default="phantoms,heads,cord")
    parser.add_argument("--methods", default="ordinary,template_search,voting_forest,combined,perfect")
    parser.add_argument("--seeds", default="0,1,2,3,4,5")
    parser.add_argument("--atlases", type=int, default=8)
    parser.add_argument("--choosing", action="store_true")
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    methods = given.methods.split(",")
    makers = {
        "phantoms": lambda: phantoms(seeds, given.atlases, given.choosing),
        "heads": lambda: heads(given.data, seeds, given.atlases, given.choosing),
        "cord": lambda: cord(given.data, seeds),
    }
    print("| set | method | targets | mean Dice | worst | ratio | median mm off | s a target |")
    print("|---|---|---|---|---|---|---|---|")
    for name in given.sets.split(","):
        rows: dict[str, list[tuple[float, float, float]]] = {method: [] for method in methods}
        for what, target, atlases in makers[name]():
            image = replace(target.image, name=what)
            where = np.argwhere(target.segmentation.array != 0).mean(axis=0)
            TRUE_CENTRE[what] = where @ image.affine[:3, :3].T + image.affine[:3, 3]
            for method in methods:
                begun = time.perf_counter()
                if method == "antspyx":
                    labels, off = ants(target, atlases), float("nan")
                else:
                    result = segment(image, atlases, recipe(method))
                    labels = result.labels
                    found = result.alignment.localisation
                    off = float("nan")
                    if found is not None and found.found:
                        off = float(np.linalg.norm(np.array(found.places[0].centre_mm) - TRUE_CENTRE[what]))
                dice = mean_dice(labels.array, target.segmentation.array)
                rows[method].append((dice, off, time.perf_counter() - begun))
                print(f"# {what}: {method} {dice:.3f}, {off:.1f} mm, {rows[method][-1][2]:.0f} s", flush=True)
        ideal = np.mean([row[0] for row in rows["perfect"]]) if rows.get("perfect") else float("nan")
        for method in methods:
            dices, offs, seconds = (np.array(column) for column in zip(*rows[method], strict=True))
            off = "" if np.isnan(offs).all() else f"{np.nanmedian(offs):.1f}"
            print(
                f"| {name} | {method} | {len(dices)} | {dices.mean():.3f} | {dices.min():.3f} "
                f"| {dices.mean() / ideal:.3f} | {off} | {np.median(seconds):.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
