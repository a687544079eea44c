"""Registration engines side by side: mean Dice of single atlases, seconds a pair, folding, memory.

    python benchmarks/registration.py --data DIR [--sets hippocampus,mouse,human] [--targets N] [--pairs N]
                                      [--only ID,ID] [--methods affine,ffd,recipe] [--peers syn,greedy,elastix]

`recipe` is what the set's recipe in pipelines/ does: its preprocessing, masks and registration steps. Ours register
all atlases of a target in one call; a peer registers pair by pair with its default settings (greedy: affine, then NCC
2x2x2, 100x50x20). Only the registration is timed, after a run on one pair of hippocampus crops, so that compilation is
not; labels are then warped by each engine's own tool. Each engine runs in a process of its own, whose peak memory is
given. The ratio is of the seconds a pair against greedy's in the same run. A peer that is not installed is left out,
by name. Threads: set NUMBA_NUM_THREADS and ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atlasseg import io
from atlasseg.pipeline import preprocess_scans
from atlasseg.pipeline import register as by_steps
from atlasseg.recipe import read_recipe
from atlasseg.registration.quality import measure_quality
from atlasseg.resampling import resample
from atlasseg.volume import Atlas, Mask

SETS = {"hippocampus": ("hippocampus", 6), "mouse": ("mouse_brain", 2), "human": ("human_brain", 3)}
"""Folder of a set, and how many targets are registered by default."""

RECIPES = {"hippocampus": "hippocampus", "mouse_brain": "mouse_brain", "human_brain": "human_brain_t1"}
"""Recipe of a folder."""

PEERS = {"syn": ("ants", "antspyx"), "greedy": ("picsl_greedy", "picsl-greedy"), "elastix": ("itk", "itk-elastix")}
"""Module and distribution of each peer."""

Result = list[tuple[np.ndarray, float | None]]
"""Per pair: the warped labels, and the share of folded voxels where it is known."""


def dice(labels: np.ndarray, reference: np.ndarray) -> float:
    """Mean over the reference's labels."""
    size = int(max(labels.max(), reference.max())) + 1
    ours, theirs = np.bincount(labels.ravel(), minlength=size), np.bincount(reference.ravel(), minlength=size)
    both = np.bincount(reference[labels == reference].ravel(), minlength=size)
    present = np.flatnonzero(theirs)[1:] if theirs[0] else np.flatnonzero(theirs)
    return float(np.mean(2 * both[present] / (ours[present] + theirs[present])))


def ours(method: str, target: Path, atlases: Sequence[Path]) -> tuple[Result, float]:
    """Register all atlases at once by a method of the stage."""
    register = importlib.import_module(f"atlasseg.registration.{method}").register
    fixed = io.read_image(target)
    moving = [io.read_image(path) for path in atlases]
    begin = time.perf_counter()
    transforms = register(fixed, moving)
    seconds = time.perf_counter() - begin
    out: Result = []
    for transform, path in zip(transforms, atlases, strict=True):
        warped = resample(io.read_label_map(labels_of(path)), fixed.grid, transform)
        out.append((warped.array, measure_quality(transform, fixed.grid).folded_share))
    return out, seconds


def by_recipe(target: Path, atlases: Sequence[Path]) -> tuple[Result, float]:
    """Register all atlases at once as the set's recipe does; preprocessing is not timed."""
    name = next(RECIPES[part] for part in target.parts[::-1] if part in RECIPES)
    recipe = read_recipe(Path(__file__).parents[1] / "pipelines" / f"{name}.toml")
    scans = preprocess_scans(
        io.read_image(target),
        [Atlas(a.name, io.read_image(a), io.read_label_map(labels_of(a)), mask_of(a)) for a in atlases],
        mask_of(target),
        recipe.preprocessing,
    )
    begin = time.perf_counter()
    registered = by_steps(scans, recipe)
    seconds = time.perf_counter() - begin
    out: Result = []
    for transform, atlas in zip(registered.transforms, scans.atlases, strict=True):
        warped = resample(atlas.segmentation, scans.target.grid, transform)
        out.append((warped.array, measure_quality(transform, scans.target.grid).folded_share))
    return out, seconds


def mask_of(image: Path) -> Mask | None:
    path = image.parents[1] / "masks" / image.name
    return io.read_mask(path) if path.exists() else None


def one_by_one(pair: Callable[[Path, Path], tuple[np.ndarray, float]]) -> Callable[..., tuple[Result, float]]:
    def register(target: Path, atlases: Sequence[Path]) -> tuple[Result, float]:
        done = [pair(target, atlas) for atlas in atlases]
        return [(labels, None) for labels, _ in done], sum(seconds for _, seconds in done)

    return register


def syn(target: Path, atlas: Path) -> tuple[np.ndarray, float]:
    """ANTs SyN through antspyx, its default settings."""
    ants = importlib.import_module("ants")
    fixed, moving, labels = (ants.image_read(str(p)) for p in (target, atlas, labels_of(atlas)))
    begin = time.perf_counter()
    found = ants.registration(fixed, moving, "SyN")
    seconds = time.perf_counter() - begin
    warped = ants.apply_transforms(fixed, labels, found["fwdtransforms"], interpolator="genericLabel")
    for path in {*found["fwdtransforms"], *found["invtransforms"]}:
        Path(path).unlink(missing_ok=True)
    return np.rint(warped.numpy()).astype(np.int32), seconds


def greedy(target: Path, atlas: Path) -> tuple[np.ndarray, float]:
    """PICSL's greedy: affine, then NCC 2x2x2 with 100x50x20 iterations."""
    engine: Any = importlib.import_module("picsl_greedy").Greedy3D()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        affine, warp, out = (folder / n for n in ("affine.mat", "warp.nii.gz", "labels.nii.gz"))
        with Path(os.devnull).open("w") as nowhere:
            begin = time.perf_counter()
            start = f"-d 3 -V 0 -m NCC 2x2x2 -i {target} {atlas}"
            engine.execute(f"{start} -a -ia-image-centers -n 100x50x10 -o {affine}", out=nowhere, err=nowhere)
            engine.execute(f"{start} -it {affine} -n 100x50x20 -o {warp}", out=nowhere, err=nowhere)
            seconds = time.perf_counter() - begin
            reslice = f"-d 3 -V 0 -rf {target} -ri LABEL 0.2vox -rm {labels_of(atlas)} {out} -r {warp} {affine}"
            engine.execute(reslice, out=nowhere, err=nowhere)
        return io.read_label_map(out).array, seconds


def elastix(target: Path, atlas: Path) -> tuple[np.ndarray, float]:
    """Elastix: its default affine and bspline parameters."""
    itk = importlib.import_module("itk")
    fixed, moving, labels = (itk.imread(str(p), itk.F) for p in (target, atlas, labels_of(atlas)))
    parameters = itk.ParameterObject.New()
    for stage in ("affine", "bspline"):
        parameters.AddParameterMap(parameters.GetDefaultParameterMap(stage))
    begin = time.perf_counter()
    _, found = itk.elastix_registration_method(fixed, moving, parameter_object=parameters, log_to_console=False)
    seconds = time.perf_counter() - begin
    for index in range(found.GetNumberOfParameterMaps()):
        found.SetParameter(index, "FinalBSplineInterpolationOrder", "0")
    warped = itk.transformix_filter(labels, found, log_to_console=False)
    return np.rint(np.asarray(warped)).astype(np.int32).transpose(2, 1, 0), seconds


def labels_of(image: Path) -> Path:
    return image.parents[1] / "labels" / image.name


def runner(engine: str) -> Callable[..., tuple[Result, float]]:
    peers = {"syn": syn, "greedy": greedy, "elastix": elastix}
    if engine in peers:
        return one_by_one(peers[engine])
    if engine == "recipe":
        return by_recipe
    return lambda target, atlases: ours(engine, target, atlases)


def measure(engine: str, jobs: Sequence[tuple[Path, Sequence[Path]]], warm_up: tuple[Path, Path], answer: Any) -> None:
    """In a process of its own: Dice of every pair, seconds, folding, peak memory."""
    run = runner(engine)
    run(warm_up[0], [warm_up[1]])
    scores, folded, seconds = [], [], 0.0
    for target, atlases in jobs:
        results, took = run(target, atlases)
        seconds += took
        reference = io.read_label_map(labels_of(target)).array
        scores += [dice(labels, reference) for labels, _ in results]
        folded += [share for _, share in results if share is not None]
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    answer.put((scores, seconds, folded, peak_gib))


def images(folder: Path) -> list[Path]:
    return sorted((folder / "images").glob("*.nii.gz"))


def version(engine: str) -> str:
    distribution = PEERS[engine][1] if engine in PEERS else "atlasseg"
    try:
        return f"{distribution} {importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return distribution


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--targets", type=int, help="targets a set")
    parser.add_argument("--pairs", type=int, help="atlases a target")
    parser.add_argument("--only", default="", help="these atlases alone, by id")
    parser.add_argument("--methods", default="affine,ffd,recipe")
    parser.add_argument("--peers", default=",".join(PEERS))
    given = parser.parse_args()
    peers = [p for p in given.peers.split(",") if p]
    for peer in [p for p in peers if importlib.util.find_spec(PEERS[p][0]) is None]:
        print(f"{peer} is left out: pip install {PEERS[peer][1]}")
        peers.remove(peer)
    crops = given.data / "hippocampus"
    warm_up = images(crops / "targets")[0], images(crops / "atlases")[0]
    context = multiprocessing.get_context("spawn")
    print("| set | engine | version | pairs | Dice, mean +- sd | s a pair | of greedy's | folded, % | peak, GiB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in given.sets.split(","):
        folder, default = SETS[name]
        atlases = images(given.data / folder / "atlases")
        own = given.data / folder / "targets"
        targets = (images(own) if own.is_dir() else atlases)[: given.targets or default]
        wanted = [a for a in atlases if not given.only or a.name.split(".")[0] in given.only.split(",")]
        jobs = [(t, [a for a in wanted if a != t][: given.pairs]) for t in targets]
        rows, greedy_seconds = [], float("nan")
        for engine in [*peers, *(m for m in given.methods.split(",") if m)]:
            answer = context.Queue()
            process = context.Process(target=measure, args=(engine, jobs, warm_up, answer))
            process.start()
            while process.is_alive() and answer.empty():
                process.join(1)
            if answer.empty():
                rows.append((engine, None))
                continue
            rows.append((engine, answer.get()))
            process.join()
            if engine == "greedy":
                greedy_seconds = rows[-1][1][1] / len(rows[-1][1][0])
        for engine, result in rows:
            if result is None:
                print(f"| {name} | {engine} | {version(engine)} | failed | | | | | |", flush=True)
                continue
            scores, seconds, folded, peak_gib = result
            a_pair = seconds / len(scores)
            folds = f"{100 * np.mean(folded):.4f}" if folded else ""
            print(
                f"| {name} | {engine} | {version(engine)} | {len(scores)} "
                f"| {np.mean(scores):.4f} +- {np.std(scores):.4f} "
                f"| {a_pair:.2f} | {a_pair / greedy_seconds:.3f} | {folds} | {peak_gib:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
