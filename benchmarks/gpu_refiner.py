"""The refiner on a GPU, or on the processor: a training step, how much of it is loading, and a human brain refined.

    python benchmarks/gpu_refiner.py [--device cuda|cpu] [--labels 139] [--shape 150 190 160] [--gpu-memory 8GB]
                                     [--steps 50] [--width W --levels L --patch P P P]

Volumes are made up (their content does not matter for time and memory): a scan at 1 mm whose fused map is in doubt
between neighbouring labels everywhere inside. The network is planned under the budget, or as given. Memory on the
processor is the peak of the whole process. The training on hippocampus is
``python benchmarks/refiner.py --device cuda --minutes 10 --sizes 95``.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import torch

from atlasseg.recipe.training import Augmentation, Refiner, Training
from atlasseg.refinement.examples import Example
from atlasseg.refinement.network.cases import Case, case_of, encode_labels
from atlasseg.refinement.network.model import RefinerModel
from atlasseg.refinement.network.networks import build, weights_of, zero_init_head
from atlasseg.refinement.unet import refined
from atlasseg.training.budget import budget, parse_bytes
from atlasseg.training.correcting import Job
from atlasseg.training.fitting import Member, fit
from atlasseg.training.planning import plan
from atlasseg.volume import Image, LabelMap, ProbabilityMap


def made_up(shape: tuple[int, int, int], labels: int) -> Example:
    """An ellipsoid cut into so many labels, each in doubt with the next near its border."""
    rng = np.random.default_rng(0)
    index = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"), -1)
    inside = (np.linalg.norm(index, axis=-1) < 0.93).reshape(-1)
    sites = rng.uniform(-0.9, 0.9, (labels - 1, 3))
    from scipy.spatial import KDTree

    apart, nearest = KDTree(sites).query(index.reshape(-1, 3)[inside], k=2)
    share = np.clip(0.5 + 4 * (apart[:, 1] - apart[:, 0]), 0.5, 1).astype(np.float32)
    voxels = np.flatnonzero(inside)
    entries = np.concatenate([voxels, voxels]), np.concatenate([nearest[:, 0], nearest[:, 1]]) + 1
    fused = ProbabilityMap.from_entries(
        np.zeros(shape, np.int32), np.eye(4), *entries, np.concatenate([share, 1 - share]), label_values=range(labels)
    )
    scan = rng.standard_normal(shape).astype(np.float32) + fused.mode
    return Example("made up", Image(scan, np.eye(4), "made up"), fused, LabelMap(fused.mode, np.eye(4)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--labels", type=int, default=139)
    parser.add_argument("--shape", type=int, nargs=3, default=(150, 190, 160))
    parser.add_argument("--gpu-memory", default=None)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--width", type=int, default=None)
    parser.add_argument("--levels", type=int, default=None)
    parser.add_argument("--patch", type=int, nargs=3, default=None)
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no CUDA device; --device cpu runs the same code on the CPU")
    example = made_up(tuple(given.shape), given.labels)
    coding = encode_labels([example.fused], range(given.labels), channels=12)
    case: Case = case_of(example.target, example.fused, coding, candidates=4, example=example)
    memory, flops = budget(given.device, parse_bytes(given.gpu_memory) if given.gpu_memory else None)
    if given.patch:
        memory = flops = float("inf")
    settings = Refiner(
        width=given.width, levels=given.levels, patch_voxels=tuple(given.patch) if given.patch else None, candidates=4
    )
    planned = plan(
        settings,
        inputs=1 + coding.channels,
        outputs=len(coding),
        sizes=[case.frame.size],
        batch=2,
        memory_bytes=memory,
        flops=flops,
    )
    name = torch.cuda.get_device_name() if given.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}\n{planned.text()}", flush=True)
    if given.steps:
        few = made_up((48, 56, 40), given.labels)
        small = case_of(few.target, few.fused, coding, candidates=4, example=few)
        spent = []
        for steps in (3, 3, 3 + given.steps):  # the first warms up
            training = Training(steps=steps, validate_every=steps)
            member = fit(Job(0, planned, coding, "residual", training, Augmentation(), (case,), (small,), given.device))
            spent.append(member.scores["seconds"])
        share = 100 * member.scores["loading_share"]
        print(f"a training step: {(spent[2] - spent[1]) / given.steps:.3f} s; loading {share:.0f} % of it", flush=True)
    else:
        torch.manual_seed(0)
        network = build(planned.form)
        zero_init_head(network, planned.form)  # as probable a map as the fused one
        member = Member(weights_of(network), 1.0, (), {})
    model = RefinerModel(planned.form, coding, "residual", 4, planned.patch_voxels, 1, (1.0, 1.0, 1.0), (), (member,))
    if given.device == "cuda":
        refined(example.target, example.fused, model, overlap=given.overlap, device=given.device)
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    refined(example.target, example.fused, model, overlap=given.overlap, device=given.device)
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    gpu = f", {torch.cuda.max_memory_allocated() / 2**30:.2f} GB of the GPU" if given.device == "cuda" else ""
    shape = " x ".join(map(str, given.shape))
    print(f"refine {shape}, {given.labels} labels: {seconds:.1f} s, peak {peak:.2f} GB of the process{gpu}")


if __name__ == "__main__":
    main()
