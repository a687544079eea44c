"""Registration of all atlases of a target together on a CUDA GPU: seconds, memory, share of the memory bandwidth.

    python benchmarks/gpu.py --data DIR [--set human_brain] [--atlases N] [--metrics A,B] [--device cuda|cpu]

Affine, then free-form and diffeomorphic from there, each with every atlas in one tensor, in float32 and in mixed
precision. The share of the bandwidth is the bytes
that the tensor operations read and write (valid operation by operation) over the time, against the speed of a plain
copy on the same device. On a machine without a GPU, ``--device cpu`` runs the same code through torch on the CPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from atlasseg import io
from atlasseg.registration._engine import (
    dense,
    dense_torch,
    freeform,
    freeform_torch,
    linear,
    linear_torch,
)
from atlasseg.registration._engine.batch import Pair, choose_schedule, prepare_pairs
from atlasseg.similarity import SimilarityMetric, create_metric


class Traffic(TorchDispatchMode):
    """Counts the bytes of the tensors that go in and come out of every operation that is not a view."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            for leaf in _pytree.tree_leaves((args, kwargs, out)):
                if isinstance(leaf, torch.Tensor):
                    self.bytes += leaf.numel() * leaf.element_size()
        return out


def timed(work: Callable[[], Any], device: str) -> tuple[Any, float]:
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - begin


def copy_speed(device: str) -> float:
    """Bytes a second, read and written, of a plain copy."""
    source = torch.zeros(2**28 if device == "cuda" else 2**24, device=device)
    into = torch.empty_like(source)
    into.copy_(source)
    _, seconds = timed(lambda: [into.copy_(source) for _ in range(10)], device)
    return 10 * 2 * source.numel() * 4 / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--set", default="human_brain")
    parser.add_argument("--atlases", type=int, default=14)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--iterations", default="60,60,60,50", help="of the deformable methods")
    parser.add_argument("--metrics", default="local_correlation,mutual_information")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no CUDA device; --device cpu runs the same code on the CPU")
    files = sorted((given.data / given.set / "atlases" / "images").glob("*.nii.gz"))
    fixed, moving = io.read_image(files[0]), [io.read_image(path) for path in files[1 : given.atlases + 1]]
    prepared = prepare_pairs(fixed, moving, None, None, None)
    target = prepared[0].fixed
    shrinks, counts = choose_schedule(target, (), tuple(int(n) for n in given.iterations.split(",")))
    few = [tuple(n if at == len(shrinks) - 1 else 0 for at in range(len(shrinks))) for n in (1, 6)]

    def affine(similarity: SimilarityMetric) -> list[Pair]:
        def steps(pair: Pair) -> linear.Search[Any]:
            return linear.search(pair.fixed, pair.moving, "affine", None, finest=2, iterations=30)

        finest = linear.choose_levels(target, 2)[1][-1]
        found = linear_torch.run_search(prepared, steps, similarity, device=given.device, finest=finest)
        return [replace(pair, matrix_mm=matrix) for pair, (matrix, _) in zip(prepared, found, strict=True)]

    def ffd(begun: list[Pair], similarity: SimilarityMetric, iterations: tuple[int, ...], mixed: bool) -> Any:
        schedule = freeform.Schedule(shrinks, iterations, 4.0, similarity, 0.1, 0.02, 0.25, 1e-4, mixed)
        return freeform_torch.solve(begun, schedule, fixed.grid, device=given.device)

    def diffeomorphic(begun: list[Pair], similarity: SimilarityMetric, iterations: tuple[int, ...], mixed: bool) -> Any:
        sigmas = (0.7, 0.7, 0.5, 0.4)[-len(shrinks) :]
        schedule = dense.Schedule(shrinks, iterations, similarity, 1.7, sigmas, 1.0, 1e-4, mixed)
        return dense_torch.solve(begun, schedule, device=given.device)

    name = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {len(moving)} atlases of {given.set} onto one target\n")
    print(
        "| metric | method | precision | all atlases, s | s an iteration, finest | of a copy's speed | peak, GiB "
        "| mean similarity |"
    )
    print("|---|---|---|---|---|---|---|---|")
    speed = copy_speed(given.device)
    for metric in given.metrics.split(","):
        similarity = create_metric(metric)
        affine(similarity)  # the levels are made and the kernels loaded before it is timed
        begun, seconds = timed(lambda chosen=similarity: affine(chosen), given.device)
        print(f"| {metric} | affine | single | {seconds:.2f} | | | {peak_gib(given.device):.2f} | |", flush=True)
        for method, mixed in ((ffd, False), (ffd, True), (diffeomorphic, False), (diffeomorphic, True)):
            taken, moved = [], []
            for iterations in few:
                with Traffic() as traffic:
                    method(begun, similarity, iterations, mixed)
                _, took = timed(lambda: method(begun, similarity, iterations, mixed), given.device)  # noqa: B023
                taken.append(took)
                moved.append(traffic.bytes)
            share = (moved[1] - moved[0]) / max(taken[1] - taken[0], 1e-9) / speed
            found, seconds = timed(lambda: method(begun, similarity, counts, mixed), given.device)  # noqa: B023
            mean = sum(value for _, value in found) / len(found)
            print(
                f"| {metric} | {method.__name__} | {'mixed' if mixed else 'single'} | {seconds:.2f} "
                f"| {(taken[1] - taken[0]) / 5:.4f} | {share:.0%} | {peak_gib(given.device):.2f} | {mean:.3f} |",
                flush=True,
            )


def peak_gib(device: str) -> float:
    """Of the GPU's memory since last asked."""
    if device != "cuda":
        return float("nan")
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return float(peak)


if __name__ == "__main__":
    main()
