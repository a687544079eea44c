"""Whole heads (T1, 2 mm): brain masks and regions beside antspyx's SyN with a majority vote.

    python benchmarks/whole_head.py [--data DIR] [--engines mask,whole_head_t1,human_brain_t1,antspyx] [--loo]
        [--only IXI057,...] [--out FILE]

`mask` is `atlasseg.organ_mask.find_organ`, recipes are those that come with atlasseg, `antspyx` registers each atlas by
`SyN` with default settings and takes the label that most atlases have, per voxel. The atlases are the 15 of
`whole_head/atlases`, the targets the 12 of `whole_head/targets`; with `--loo` each atlas is a target of the 14 others,
which is how settings were chosen. Mask Dice: of all that is labelled. Regions: mean Dice over the labels of the target.
Seconds are wall time and CPU time of the call, without reading; they are from a machine that did other work as well.
"""

from __future__ import annotations

import argparse
import csv
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import mean_dice

from atlasseg.atlases.library import read_library
from atlasseg.fusion import majority
from atlasseg.organ_mask import find_organ
from atlasseg.pipeline import segment
from atlasseg.recipe import read_recipe
from atlasseg.registration import syn
from atlasseg.resampling import resample
from atlasseg.volume import Atlas, Image

FIELDS = ("target", "engine", "mask_dice", "regions_dice", "seconds", "cpu_seconds")


def mask_dice(labels: np.ndarray, reference: np.ndarray) -> float:
    return float(2 * ((labels != 0) & (reference != 0)).sum() / ((labels != 0).sum() + (reference != 0).sum()))


def vote(scan: Image, atlases: Sequence[Atlas]) -> np.ndarray:
    """The label that most atlases have after SyN; the smallest on a tie."""
    transforms = syn.register(scan, [atlas.image for atlas in atlases])
    carried = [
        Atlas(atlas.id, scan, resample(atlas.segmentation, scan.grid, transform, interpolation="nearest"))
        for atlas, transform in zip(atlases, transforms, strict=True)
    ]
    return majority.fuse(scan, carried).mode


def run(engine: str, target: Atlas, atlases: Sequence[Atlas]) -> dict[str, object]:
    """One row of the table."""
    wall, cpu = time.perf_counter(), time.process_time()
    if engine == "mask":
        labels = find_organ(target.image, atlases).mask.array.astype(np.int32)
    elif engine == "antspyx":
        labels = vote(target.image, atlases)
    else:
        labels = segment(target.image, atlases, read_recipe(engine)).labels.array
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    reference = target.segmentation.array
    regions = "" if engine == "mask" else f"{mean_dice(labels, reference):.4f}"
    values = (target.id, engine, f"{mask_dice(labels, reference):.4f}", regions, f"{wall:.1f}", f"{cpu:.1f}")
    return dict(zip(FIELDS, values, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--engines", default="mask,whole_head_t1")
    parser.add_argument("--loo", action="store_true")
    parser.add_argument("--only", help="ids of targets, by commas")
    parser.add_argument("--out", type=Path, help="table (CSV) to which rows are added")
    given = parser.parse_args()
    logging.disable(logging.WARNING)  # two labels are not in the label table
    library = read_library(given.data / "whole_head" / "atlases")
    atlases = [library.read(id_) for id_ in library.ids]
    if given.loo:
        targets = atlases
    else:
        others = read_library(given.data / "whole_head" / "targets")
        targets = [others.read(id_) for id_ in others.ids]
    if given.only:
        targets = [target for target in targets if target.id in given.only.split(",")]
    rows = []
    for target in targets:
        for engine in given.engines.split(","):
            rows.append(run(engine, target, [atlas for atlas in atlases if atlas.id != target.id]))
            print(rows[-1], flush=True)
            if given.out:
                fresh = not given.out.exists()
                with given.out.open("a", newline="") as file:
                    writer = csv.DictWriter(file, FIELDS)
                    if fresh:
                        writer.writeheader()
                    writer.writerow(rows[-1])
    print("\n| engine | heads | mask Dice | worst | regions Dice | worst | s a head | CPU s a head |")
    print("|---|---|---|---|---|---|---|---|")
    for engine in given.engines.split(","):
        mine = [row for row in rows if row["engine"] == engine]
        masks = [float(str(row["mask_dice"])) for row in mine]
        regions = [float(str(row["regions_dice"])) for row in mine if row["regions_dice"]]
        told = f"{np.mean(regions):.3f} | {min(regions):.3f}" if regions else "– | –"
        seconds, cpu = (np.median([float(str(row[key])) for row in mine]) for key in ("seconds", "cpu_seconds"))
        print(
            f"| {engine} | {len(mine)} | {np.mean(masks):.4f} | {min(masks):.4f} | {told} | {seconds:.0f} | {cpu:.0f} |"
        )


if __name__ == "__main__":
    main()
