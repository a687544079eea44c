"""A library prepared once against registering every atlas: seconds a target, Dice of single atlases and after fusion.

    python benchmarks/prepared.py --data DIR [--sets mouse_brain human_brain hippocampus] [--targets N] [--atlases N]
                                  [--fusion majority joint] [--refine 30 30 8] [--starts] [--cache DIR]

Leave-one-out where a set has no targets of its own: the template is made without the target. The prepared library is
kept in ``--cache`` by set and left-out scan, since it is made once for any number of targets; its seconds are printed.
``direct`` registers every atlas (affine, then `diffeomorphic` with its defaults). ``--starts`` compares direct
registration with and without the coarse search of `coupled_convex` as its start instead. CPU seconds are
comparable only with NUMBA_NUM_THREADS=1, since threads that wait count too.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from atlasseg.atlases.library import AtlasLibrary, read_library
from atlasseg.evaluation import overlap
from atlasseg.preparation import PreparedLibrary, prepare, read_prepared, register_prepared, write_prepared
from atlasseg.propagation import propagate
from atlasseg.registration import affine, coupled_convex, diffeomorphic
from atlasseg.registration.quality import quality
from atlasseg.transforms import Transform
from atlasseg.volume import Atlas


def dice(labels: np.ndarray, reference: Atlas) -> float:
    return float(np.nanmean(overlap.dice(overlap.count(labels, reference.segmentation.array))))


def prepared_for(library: AtlasLibrary, folder: Path) -> PreparedLibrary:
    if not folder.exists():
        began = time.perf_counter()
        write_prepared(prepare(library, progress=print), folder)
        print(f"prepared {len(library)} atlases in {time.perf_counter() - began:.1f} s: {folder}", flush=True)
    prepared = read_prepared(folder)
    prepared.check(library)
    return prepared


def measured(
    target: Atlas, atlases: Sequence[Atlas], transforms: Sequence[Transform], fusions: Sequence[str]
) -> dict[str, float]:
    candidates = [propagate(a, t, target.image.grid) for a, t in zip(atlases, transforms, strict=True)]
    folded = max(quality(t, target.image.grid, mask=target.mask).folded_share for t in transforms)
    row = {"single": float(np.mean([dice(c.segmentation.array, target) for c in candidates])), "folded": folded}
    for name in fusions:
        fused = importlib.import_module(f"atlasseg.fusion.{name}").fuse(target.image, candidates)
        row[name] = dice(fused.mode, target)
    return row


def timed(register: Callable[[], list[Transform]]) -> tuple[list[Transform], float, float]:
    began, cpu = time.perf_counter(), time.process_time()
    return register(), time.perf_counter() - began, time.process_time() - cpu


def ways_of(
    target: Atlas, library: AtlasLibrary, atlases: Sequence[Atlas], cache: Path, given: argparse.Namespace
) -> Iterator[tuple[str, tuple[list[Transform], float, float]]]:
    images = [a.image for a in atlases]
    masks: dict[str, Any] = {"fixed_mask": target.mask, "moving_masks": [a.mask for a in atlases]}
    if given.starts:
        begin = affine.register(target.image, images, **masks)

        def searched(nodes: tuple[float, ...]) -> list[Transform]:
            start = begin
            if nodes:
                start = coupled_convex.register(target.image, images, initial=begin, node_voxels=nodes, **masks)
            return diffeomorphic.register(target.image, images, initial=start, **masks)

        for way, nodes in (("affine start", ()), ("coarse search", (6.0,)), ("two searches", (6.0, 4.0))):
            yield way, timed(partial(searched, nodes))
        return
    prepared = prepared_for(library, cache)
    refine = {"refine_iterations": tuple(given.refine), "ids": library.ids}
    diffeomorphic.register(target.image, images[:1], iterations=(1,), shrink_factors=(8,))  # compiles
    yield "prepared", timed(partial(register_prepared, target.image, prepared, images, **refine, **masks))
    yield "direct", timed(partial(diffeomorphic.register, target.image, images, **masks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", nargs="+", default=["mouse_brain", "human_brain", "hippocampus"])
    parser.add_argument("--targets", type=int, default=3, help="the first so many of each set")
    parser.add_argument("--atlases", type=int, default=None, help="the first so many of each set")
    parser.add_argument("--fusion", nargs="+", default=["majority", "joint"])
    parser.add_argument("--refine", nargs="+", type=int, default=[30, 30, 8], help="iterations, coarse to fine")
    parser.add_argument("--starts", action="store_true")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "atlasseg_prepared")
    parser.add_argument("--out", type=Path, default=None, help="TSV of every run")
    given = parser.parse_args()

    rows: list[dict[str, object]] = []
    for name in given.sets:
        whole = read_library(given.data / name / "atlases")
        own = given.data / name / "targets"
        targets = read_library(own) if own.is_dir() else whole
        for target_id in targets.ids[: given.targets]:
            target = targets.read(target_id)
            library = whole if own.is_dir() else whole.without(target_id)
            library = library.only(library.ids[: given.atlases])
            atlases = [library.read(each) for each in library.ids]
            cache = given.cache / f"{name}_{'whole' if own.is_dir() else 'without_' + target_id}_{len(library)}"
            for way, (transforms, seconds, cpu_s) in ways_of(target, library, atlases, cache, given):
                row = {"set": name, "target": target_id, "way": way, "atlases": len(atlases)}
                row |= {"seconds": seconds, "cpu_s": cpu_s, **measured(target, atlases, transforms, given.fusion)}
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
