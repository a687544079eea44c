"""Registration of all atlases of a target together on a CUDA GPU: seconds, memory, share of the memory bandwidth.

    python benchmarks/gpu.py --data DIR [--set human_brain] [--atlases N] [--device cuda|cpu]

The affine registrations run on the CPU, the diffeomorphic ones in one tensor. The share of the bandwidth is the bytes
that the tensor operations read and write (counted operation by operation) over the time, against the speed of a plain
copy on the same device. On a machine without a GPU, ``--device cpu`` runs the same code through torch on the CPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from atlasseg import io
from atlasseg.registration._engine import dense, dense_torch
from atlasseg.registration._engine.batch import each, pairs, schedule_of
from atlasseg.registration._engine.linear import register_linear


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
    parser.add_argument("--iterations", default="60,60,60,50")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no CUDA device; --device cpu runs the same code on the CPU")
    files = sorted((given.data / given.set / "atlases" / "images").glob("*.nii.gz"))
    fixed, moving = io.read_image(files[0]), [io.read_image(path) for path in files[1 : given.atlases + 1]]
    prepared = pairs(fixed, moving, None, None, None)
    shrinks, counts = schedule_of(prepared[0].fixed, (), tuple(int(n) for n in given.iterations.split(",")))
    sigmas = (0.7, 0.7, 0.5, 0.4)[-len(shrinks) :]

    def affine(pair: Any) -> Any:
        return register_linear(pair.fixed, pair.moving, "affine", None, known=False)[0]

    each(prepared[:1], affine, bytes_needed=1)  # compiled before it is timed
    matrices, linear_seconds = timed(lambda: each(prepared, affine, bytes_needed=2**28), "cpu")

    def solve(iterations: tuple[int, ...]) -> Any:
        schedule = dense.Schedule(shrinks, iterations, 2, 1.7, sigmas, 1.0, 1e-4)
        return dense_torch.solve(
            prepared[0].fixed,
            [pair.moving for pair in prepared],
            matrices,
            [None] * len(prepared),
            schedule,
            known=[False] * len(prepared),
            device=given.device,
        )

    first = (*(0 for _ in shrinks[1:]), 1)
    with Traffic() as one:
        solve(first)
    some = (*(0 for _ in shrinks[1:]), 6)
    with Traffic() as six:
        solve(some)
    _, one_seconds = timed(lambda: solve(first), given.device)
    _, six_seconds = timed(lambda: solve(some), given.device)
    moved = (six.bytes - one.bytes) / max(six_seconds - one_seconds, 1e-9)
    if given.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found, seconds = timed(lambda: solve(counts), given.device)
    peak = torch.cuda.max_memory_allocated() / 2**30 if given.device == "cuda" else float("nan")
    speed = copy_speed(given.device)
    name = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    print(
        "| device | torch | atlases | affine on the CPU, s | deformable, s | s an iteration, finest "
        "| peak, GiB | of a copy's speed | similarity |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    mean = sum(value for _, value in found) / len(found)
    print(
        f"| {name} | {torch.__version__} | {len(moving)} | {linear_seconds:.2f} | {seconds:.2f} "
        f"| {(six_seconds - one_seconds) / 5:.4f} | {peak:.2f} | {moved / speed:.0%} | {mean:.3f} |"
    )


if __name__ == "__main__":
    main()
