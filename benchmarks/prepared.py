"""A library prepared once against registering every atlas: seconds a target, Dice of single atlases and after fusion.

    python benchmarks/prepared.py --data DIR [--sets mouse_brain human_brain hippocampus] [--targets N] [--atlases N]
                                  [--fusion majority joint] [--starts] [--cache DIR]

``direct`` does what `atlasseg run` does by the set's recipe, ``prepared`` what it does with ``--prepared``; both after
the recipe's preprocessing. Leave-one-out where a set has no targets of its own: the template is made without the
target. The prepared library is kept in ``--cache`` by set and left-out scan, since it is made once for any number of
targets; its seconds are printed. ``--starts`` compares direct registration with and without the coarse search of
`coupled_convex` as its start instead. CPU seconds are comparable only with NUMBA_NUM_THREADS=1, since threads that
wait count too.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from atlasseg.app.registrar import make_registrar
from atlasseg.atlases.library import AtlasLibrary, read_library
from atlasseg.atlases.prepared import engine_of, prepare, write_prepared
from atlasseg.evaluation import overlap
from atlasseg.pipeline import Scans, preprocess, preprocess_scans
from atlasseg.propagation import propagate
from atlasseg.recipe import Recipe, read_recipe
from atlasseg.registration import affine, coupled_convex, diffeomorphic
from atlasseg.registration.quality import measure_quality
from atlasseg.transforms import Transform
from atlasseg.volume import Atlas

RECIPES = {"hippocampus": "hippocampus", "mouse_brain": "mouse_brain", "human_brain": "human_brain_t1"}
"""Recipe of a set."""


def dice(labels: np.ndarray, reference: Atlas) -> float:
    return float(np.nanmean(overlap.dice(overlap.count(labels, reference.segmentation.array))))


def make_prepared(library: AtlasLibrary, recipe: Recipe, folder: Path) -> None:
    if not folder.exists():
        began = time.perf_counter()
        steps = recipe.preprocessing.steps
        engine = engine_of(recipe.registration.steps)
        made = prepare(library, preprocess=partial(preprocess, steps=steps), engine=engine, progress=print)
        write_prepared(made, folder)
        print(f"prepared {len(library)} atlases in {time.perf_counter() - began:.1f} s: {folder}", flush=True)


def measured(
    scans: Scans, reference: Atlas, transforms: Sequence[Transform], fusions: Sequence[str]
) -> dict[str, float]:
    grid = scans.target.grid
    candidates = [propagate(a, t, grid) for a, t in zip(scans.atlases, transforms, strict=True)]
    folded = max(measure_quality(t, grid, mask=scans.target_mask).folded_share for t in transforms)
    row = {"single": float(np.mean([dice(c.segmentation.array, reference) for c in candidates])), "folded": folded}
    for name in fusions:
        fused = importlib.import_module(f"atlasseg.fusion.{name}").fuse(scans.target, candidates)
        row[name] = dice(fused.mode, reference)
    return row


def timed(register: Callable[[], Sequence[Transform]]) -> tuple[Sequence[Transform], float, float]:
    began, cpu = time.perf_counter(), time.process_time()
    return register(), time.perf_counter() - began, time.process_time() - cpu


def ways_of(
    scans: Scans, library: AtlasLibrary, recipe: Recipe, cache: Path, given: argparse.Namespace
) -> Iterator[tuple[str, tuple[Sequence[Transform], float, float]]]:
    diffeomorphic.register(scans.target, scans.images[:1], iterations=(1,), shrink_factors=(8,))  # compiles
    if given.starts:
        images, masks = scans.images, {"fixed_mask": scans.target_mask, "moving_masks": scans.atlas_masks}
        begin = affine.register(scans.target, images, **masks)

        def searched(nodes: tuple[float, ...]) -> list[Transform]:
            start = begin
            if nodes:
                start = coupled_convex.register(scans.target, images, initial=begin, node_voxels=nodes, **masks)
            return diffeomorphic.register(scans.target, images, initial=start, **masks)

        for way, nodes in (("affine start", ()), ("coarse search", (6.0,)), ("two searches", (6.0, 4.0))):
            yield way, timed(partial(searched, nodes))
        return
    make_prepared(library, recipe, cache)
    for way, folder in (("prepared", cache), ("direct", None)):
        register = make_registrar(replace(recipe, registration=replace(recipe.registration, prepared=folder)), library)
        yield way, timed(lambda register=register: register(scans).transforms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", nargs="+", default=["mouse_brain", "human_brain", "hippocampus"])
    parser.add_argument("--targets", type=int, default=3, help="the first so many of each set")
    parser.add_argument("--atlases", type=int, default=None, help="the first so many of each set")
    parser.add_argument("--fusion", nargs="+", default=["majority", "joint"])
    parser.add_argument("--starts", action="store_true")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "atlasseg_prepared")
    parser.add_argument("--out", type=Path, default=None, help="TSV of every run")
    given = parser.parse_args()

    rows: list[dict[str, object]] = []
    for name in given.sets:
        recipe = read_recipe(Path(__file__).parents[1] / "pipelines" / f"{RECIPES[name]}.toml")
        whole = read_library(given.data / name / "atlases")
        own = given.data / name / "targets"
        targets = read_library(own) if own.is_dir() else whole
        for target_id in targets.ids[: given.targets]:
            target = targets.read(target_id)
            library = whole if own.is_dir() else whole.without(target_id)
            library = library.only(library.ids[: given.atlases])
            atlases = [library.read(each) for each in library.ids]
            scans = preprocess_scans(target.image, atlases, target.mask, recipe.preprocessing)
            cache = given.cache / f"{name}_{'whole' if own.is_dir() else 'without_' + target_id}_{len(library)}"
            for way, (transforms, seconds, cpu_s) in ways_of(scans, library, recipe, cache, given):
                row = {"set": name, "target": target_id, "way": way, "atlases": len(atlases)}
                row |= {"seconds": seconds, "cpu_s": cpu_s, **measured(scans, target, transforms, given.fusion)}
                rows.append(row)
                print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)

    table = pd.DataFrame(rows)
    if given.out:
        table.to_csv(given.out, sep="\t", index=False)
    print("\n| set | way | atlases | s a target | CPU s | single | " + " | ".join(given.fusion) + " | folded |")
    print("|---" * (7 + len(given.fusion)) + "|")
    for (name, way), mean in table.groupby(["set", "way"], sort=False).mean(numeric_only=True).iterrows():
        fused = " | ".join(f"{mean[each]:.4f}" for each in given.fusion)
        print(
            f"| {name} | {way} | {mean.atlases:.0f} | {mean.seconds:.1f} | {mean.cpu_s:.1f} | {mean.single:.4f} "
            f"| {fused} | {100 * mean.folded:.4f} % |"
        )


if __name__ == "__main__":
    main()
