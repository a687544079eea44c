"""Regions: seconds and memory on a large phantom, against scikit-image, and what the stage changes after joint fusion.

    python benchmarks/regions.py speed [--size 256]
    python benchmarks/regions.py peer [--size 20]
    python benchmarks/regions.py stage --data DIR [--sets SET ...] [--targets N] [--cache DIR]

`speed` cuts a noisy phantom (three nested ellipsoids and twelve balls, 5 to 18 noise deviations apart), each criterion
in a process of its own, after a small volume so that compilation is not timed. Seconds are of the wall, with those of
the processors in parentheses; memory is the growth of the process's resident peak, over the voxels (Linux).
`peer` gives scikit-image's rag_mean_color and merge_hierarchical the same start, one region a
voxel, and the same threshold, and compares the partitions. `stage` registers and fuses every target with `joint` by the
recipe of its set (kept in the cache), and measures the segmentation before and after: paired Wilcoxon tests over the
targets. Threads: set NUMBA_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import multiprocessing
import pickle
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from atlasseg.regions import split_and_merge
from atlasseg.regions.adjacency_graph import adjacency_graph
from atlasseg.regions.consistency import VOTING_THRESHOLD, Partition, make_consistent
from atlasseg.regions.merging import merge
from atlasseg.regions.octree import split
from atlasseg.volume import Image, LabelMap, ProbabilityMap

CRITERIA = ("ward", "mean_difference", "mumford_shah")
SETS = {
    "hippocampus": ("hippocampus", "targets", 1, 0.3),
    "mouse_brain": ("mouse_brain", "atlases", 1, 0.0),
    "hippocampus_tuning": ("hippocampus", "more_atlases", 3, 0.3),
}
"""Recipe, folder of the targets, which of them, and the stage's field weight; the last set is what it was chosen on."""

BELOW = {"dice": -1, "hausdorff_95_mm": 1, "average_surface_distance_mm": 1}
"""Measures that are compared, and whether smaller (1) or larger (-1) is better."""


def phantom(size: int, seed: int = 0) -> np.ndarray:
    """(size, size, size) float32, noise of standard deviation 5."""
    rng = np.random.default_rng(seed)
    i, j, k = np.ogrid[:size, :size, :size]
    x = np.zeros((size,) * 3, np.float32)
    middle = size / 2
    for radius, value in ((0.45, 40), (0.36, 90), (0.25, 60)):
        r = radius * size
        inside = (
            ((i - middle) / r) ** 2 + ((j - middle * 1.02) / (0.8 * r)) ** 2 + ((k - middle * 0.97) / (0.9 * r)) ** 2
        )
        x[inside < 1] = value
    for _ in range(12):
        c = rng.uniform(0.3, 0.7, 3) * size
        radius = rng.uniform(0.02, 0.06) * size
        x[(i - c[0]) ** 2 + (j - c[1]) ** 2 + (k - c[2]) ** 2 < radius**2] = rng.uniform(20, 120)
    for plane in x:
        plane += rng.normal(0, 5, plane.shape).astype(np.float32)
    return x


def _in_process(job: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(job, arguments)


def _status(name: str) -> int:
    """Bytes that Linux gives for this process under `name`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _steps(path: Path, criterion: str) -> dict[str, Any]:
    """Seconds of each step and of compilation."""
    small = Image(phantom(24), np.eye(4))
    begun = time.perf_counter()
    graph = adjacency_graph(small, split(small))
    merge(graph, criterion=criterion, threshold=30.0, noise_sd=(5.0,))
    found: dict[str, Any] = {"compile": time.perf_counter() - begun}
    image = Image(np.load(path), np.eye(4))

    def timed(name: str, job: Callable[[], Any]) -> Any:
        begun = time.perf_counter(), time.process_time()
        result = job()
        found[name] = f"{time.perf_counter() - begun[0]:.2f} ({time.process_time() - begun[1]:.2f})"
        return result

    blocks = timed("split", lambda: split(image))
    graph = timed("graph", lambda: adjacency_graph(image, blocks))
    threshold = split_and_merge.default_threshold(criterion, image.affine)
    merges = timed("merge", lambda: merge(graph, criterion=criterion, threshold=threshold, noise_sd=(5.0,)))
    return {**found, "blocks": merges.count, "edges": len(graph.edges), "regions": merges.count - merges.kept.size}


def _memory(path: Path, criterion: str) -> dict[str, float]:
    """Growth of the peak by the whole partition, in bytes a voxel."""
    split_and_merge.partition(Image(phantom(24), np.eye(4)), criterion=criterion)
    image = Image(np.load(path), np.eye(4))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew, so that compilation does not count
    before = _status("VmRSS")
    split_and_merge.partition(image, criterion=criterion)
    return {"bytes a voxel": (_status("VmHWM") - before) / image.array.size}


def speed(size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "phantom.npy"
        np.save(path, phantom(size))
        rows = [{"criterion": c, **_in_process(_steps, path, c), **_in_process(_memory, path, c)} for c in CRITERIA]
    print(f"\nphantom {size}^3, numba threads as set\n")
    print(_markdown(pd.DataFrame(rows)))


def peer(size: int) -> None:
    from skimage.graph import merge_hierarchical, rag_mean_color

    def move(graph, src, dst) -> None:  # type: ignore[no-untyped-def]
        graph.nodes[dst]["total color"] += graph.nodes[src]["total color"]
        graph.nodes[dst]["pixel count"] += graph.nodes[src]["pixel count"]
        graph.nodes[dst]["mean color"] = graph.nodes[dst]["total color"] / graph.nodes[dst]["pixel count"]

    def weight(graph, src, dst, n):  # type: ignore[no-untyped-def]
        return {"weight": np.linalg.norm(graph.nodes[dst]["mean color"] - graph.nodes[n]["mean color"])}

    volume = np.repeat(phantom(size)[..., None], 3, axis=-1)  # its graph always holds three channels
    image = Image(volume, np.eye(4))
    labels = np.arange(1, size**3 + 1, dtype=np.int32).reshape((size,) * 3)
    threshold = 12.0
    merge(adjacency_graph(Image(volume[:4], np.eye(4)), LabelMap(labels[:4], np.eye(4))), threshold=1.0)
    begun = time.perf_counter()
    graph = adjacency_graph(image, LabelMap(labels, np.eye(4)))
    graphed = time.perf_counter()
    merges = merge(graph, criterion="mean_difference", threshold=threshold)
    ours = merges.cut(merges.count - merges.kept.size)
    ours_seconds = graphed - begun, time.perf_counter() - graphed
    begun = time.perf_counter()
    rag = rag_mean_color(volume.astype(np.float64), labels, connectivity=1)
    graphed = time.perf_counter()
    theirs = merge_hierarchical(labels, rag, threshold, False, True, move, weight).reshape(-1)
    theirs_seconds = graphed - begun, time.perf_counter() - graphed
    pairs = np.unique(np.stack([ours, theirs]), axis=1).shape[1]
    rows = [
        {"": "atlasseg", "graph s": ours_seconds[0], "merge s": ours_seconds[1], "regions": np.unique(ours).size},
        {"": "scikit-image", "graph s": theirs_seconds[0], "merge s": theirs_seconds[1],
         "regions": np.unique(theirs).size},
    ]  # fmt: skip
    print(f"\n{size}^3 voxels, each a region at first, mean difference up to {threshold:g}\n")
    print(_markdown(pd.DataFrame(rows)))
    print(f"\n{sum(theirs_seconds) / sum(ours_seconds):.0f} times faster; partitions are the same: "
          f"{pairs == np.unique(ours).size == np.unique(theirs).size}")  # fmt: skip


def _fused(data: Path, name: str, target: str, cache: Path) -> tuple[Image, ProbabilityMap, LabelMap]:
    """A target with its joint fusion and its reference."""
    path = cache / f"{name}_{target}_joint.pickle"
    if not path.exists():
        from atlasseg.atlases.library import read_library
        from atlasseg.pipeline import segment
        from atlasseg.recipe import read_recipe

        chain, folder, *_ = SETS[name]
        recipe = read_recipe(
            Path(__file__).parent.parent / "pipelines" / f"{chain}.toml", overrides=["fusion.method=joint"]
        )
        library = read_library(data / chain / "atlases")
        case = read_library(data / chain / folder).read(target)
        atlases = [library.read(id_) for id_ in library.ids if id_ != target]
        fused = segment(case.image, atlases, recipe, mask=case.mask).probabilities
        cache.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps((case.image, fused, case.segmentation)))
    loaded: tuple[Image, ProbabilityMap, LabelMap] = pickle.loads(path.read_bytes())
    return loaded


def stage(data: Path, sets: list[str], targets: int | None, cache: Path) -> None:
    from scipy.stats import wilcoxon

    fine = partial(split_and_merge.partition, merge_threshold=VOTING_THRESHOLD)
    for name in sets:
        chain, part, every, weight_there = SETS[name]
        folder = data / chain / part
        ids = sorted(p.name.removesuffix(".nii.gz") for p in (folder / "images").glob("*.nii.gz"))[::every][:targets]
        ways: dict[
            str, tuple[Partition | None, float, float, float]
        ] = {  # method, exponent, field weight, island share
            "islands": (None, 0.0, 0.0, 0.02),
            "intensity": (None, 0.2, 0.0, 0.0),
            "intensity, votes": (fine, 0.2, 0.0, 0.0),
            "votes with neighbours": (fine, 0.0, 0.3, 0.0),
            "intensity, votes with neighbours": (fine, 0.2, 0.3, 0.0),
            "the stage": (fine, 0.2, weight_there, 0.02),
        }
        cases = [_fused(data, name, target, cache) for target in ids]
        before = pd.DataFrame([_measured(fused.label_map(), reference) for _, fused, reference in cases])
        rows = [{"way": "joint", **before.mean().to_dict()}]
        for way, (method, exponent, weight, share) in ways.items():
            begun = time.perf_counter()
            results = [
                make_consistent(
                    i, f, method=method, intensity_exponent=exponent, field_weight=weight, min_component_fraction=share
                )
                for i, f, _ in cases
            ]
            seconds = (time.perf_counter() - begun) / len(cases)
            after = pd.DataFrame([_measured(r.labels, c[2]) for r, c in zip(results, cases, strict=True)])
            row: dict[str, object] = {"way": way, **after.mean().to_dict()}
            for measure, sign in BELOW.items():
                gain = sign * (before[measure] - after[measure])
                p = wilcoxon(before[measure], after[measure]).pvalue if (gain != 0).any() else 1.0
                row[f"{measure} better/worse, p"] = f"{(gain > 0).sum()}/{(gain < 0).sum()}, {p:.3g}"
            row["voxels changed"] = float(np.mean([r.voxels_changed for r in results]))
            rows.append({**row, "s a target": seconds})
        print(f"\n{name}, {len(ids)} targets, means over labels and targets\n")
        print(_markdown(pd.DataFrame(rows)), flush=True)


def _measured(labels: LabelMap, reference: LabelMap) -> dict[str, float]:
    from atlasseg.evaluation import evaluate, mean_over_labels

    means = mean_over_labels(evaluate(labels, reference))
    return {measure: means[measure] for measure in BELOW}


def _markdown(table: pd.DataFrame) -> str:
    def cell(value: object) -> str:
        return "" if value != value else f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = [list(table.columns), ["---"] * table.shape[1], *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(cell(v) for v in line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("speed").add_argument("--size", type=int, default=256)
    commands.add_parser("peer").add_argument("--size", type=int, default=20)
    staged = commands.add_parser("stage")
    staged.add_argument("--data", type=Path, required=True)
    staged.add_argument("--sets", nargs="+", choices=SETS, default=["hippocampus", "mouse_brain"])
    staged.add_argument("--targets", type=int)
    staged.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "atlasseg_regions")
    given = parser.parse_args()
    if given.command == "stage":
        stage(given.data, given.sets, given.targets, given.cache)
    else:
        {"speed": speed, "peer": peer}[given.command](given.size)


if __name__ == "__main__":
    main()
