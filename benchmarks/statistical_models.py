"""Statistical models: how fast they are, and how well they find tissues, beside antspyx and k-means.

    python benchmarks/statistical_models.py iterations brain phantoms fusion [--data DIR] [--noise 1 3 5 7 9]
        [--bias 0 20 40] [--seeds N] [--targets N]

``iterations``: one of forward-backward and one of mean field (26 neighbours), 4 classes, for a million voxels.
``brain``: the models of tissue (3 classes, bias field) beside antspyx's N4 and Atropos ``kmeans[3]`` with 5 iterations,
on one skull-stripped brain in one run. ``phantoms``: Dice of each tissue over noise and bias, on seeds not used for
choosing.
``fusion``: tissue Dice on human brains, whose structures are grouped to tissues as `tissues_of` says, within what is
labelled; and the statistical fusions beside majority and joint on hippocampus (`atlasseg compare`). Every method of a
table runs in the same call.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from atlasseg.atlases.library import read_library
from atlasseg.phantoms import tissue
from atlasseg.preprocessing.foreground import foreground
from atlasseg.recipe import read_recipe
from atlasseg.statistics import kmeans, mean_field
from atlasseg.statistics._field import dense_field
from atlasseg.statistics.curves import scan_order
from atlasseg.statistics.markov_chain import posterior
from atlasseg.tissues import chain, field, mixture
from atlasseg.volume import Image, Mask

SEEDS = (101, 102)
"""Of the phantoms that are reported; parameters were chosen on other ones."""
SHAPE = (60, 74, 52)
MODELS = {"mixture": mixture.classify, "chain": chain.classify, "field": field.classify}
VENTRICLES_AND_FLUID = (4, 11, 46, 49, 50, 51, 52)
WHITE_MATTER = (35, 40, 41, 44, 45, 61, 62, 69)
"""Neuromorphometrics: brain stem, cerebellum, cerebrum, ventral diencephalon, optic chiasm; the rest is grey matter."""


def tissues_of(labels: np.ndarray) -> np.ndarray:
    """1 fluid, 2 grey, 3 white matter, 0 not labelled."""
    out = np.where(labels > 0, 2, 0)
    out[np.isin(labels, VENTRICLES_AND_FLUID)] = 1
    out[np.isin(labels, WHITE_MATTER)] = 3
    return out


def dice(found: np.ndarray, truth: np.ndarray) -> list[float]:
    known = truth > 0
    a, b = found[known], truth[known]
    return [2 * float(((a == k) & (b == k)).sum()) / max(int((a == k).sum() + (b == k).sum()), 1) for k in (1, 2, 3)]


def n4_and_atropos(image: Image, mask: Mask, *, iterations: int = 5) -> np.ndarray:
    """Labels by antspyx: N4 with its defaults, then Atropos from k-means with its usual field."""
    import ants

    given = ants.from_numpy(image.array.astype(np.float32), spacing=image.spacing_mm.tolist())
    inside = ants.from_numpy(mask.array.astype(np.float32), spacing=image.spacing_mm.tolist())
    corrected = ants.n4_bias_field_correction(given, mask=inside)
    found = ants.atropos(a=corrected, x=inside, i="kmeans[3]", m="[0.2,1x1x1]", c=f"[{iterations},0]")
    return found["segmentation"].numpy().astype(int)


def by_kmeans(image: Image, mask: Mask) -> np.ndarray:
    out = np.zeros(image.shape, int)
    out[mask.array] = kmeans.cluster(image.channels[mask.array].astype(float), classes=3).assigned + 1
    return out


def every_way(image: Image, mask: Mask) -> Iterator[tuple[str, np.ndarray, float]]:
    """Name, labels and seconds of each."""
    ways: dict[str, Callable[[], Any]] = {
        name: lambda classify=classify: classify(image, mask).labels.array for name, classify in MODELS.items()
    }
    ways |= {"N4 + Atropos": lambda: n4_and_atropos(image, mask), "k-means": lambda: by_kmeans(image, mask)}
    for name, way in ways.items():
        began = time.perf_counter()
        labels = way()
        yield name, labels, time.perf_counter() - began


def iterations(given: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    inside = np.ones((100, 100, 100), bool)
    logs = rng.normal(size=(inside.sum(), 4))
    transitions = np.full((4, 4), 0.1 / 3) + np.eye(4) * (0.9 - 0.1 / 3)
    _, starts = scan_order(inside)
    rows = []
    began = time.perf_counter()
    scan_order(inside)
    rows.append(("curve, found again", time.perf_counter() - began))
    rows.append(
        (
            "forward-backward, an iteration",
            best(lambda: posterior(logs, initial=np.full(4, 0.25), transitions=transitions, starts=starts)),
        )
    )
    costs = dense_field(-logs, inside, np.eye(3), beta=0.2, neighbours=26)
    beliefs = costs.independent()
    rows.append(("mean field, 26 neighbours, an iteration", best(lambda: mean_field.iterate(costs, beliefs))))
    print("\n| for a million voxels, 4 classes | s |\n|---|---|")
    for name, seconds in rows:
        print(f"| {name} | {seconds:.3f} |", flush=True)


def brain(given: argparse.Namespace) -> None:
    library = read_library(given.data / "human_brain/atlases")
    image = library.read(library.ids[0]).image
    mask = foreground(image)
    small = tissue((30, 34, 26))
    field.classify(small.image, small.mask)  # compiles
    print(f"\n| {library.ids[0]}, {mask.array.sum()} voxels | s |\n|---|---|")
    for name, _, seconds in every_way(image, mask):
        print(f"| {name} | {seconds:.1f} |", flush=True)


def best(call: Callable[[], object], repeats: int = 3) -> float:
    call()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return min(taken)


def phantoms(given: argparse.Namespace) -> None:
    print("\n| noise, % | bias, % | way | fluid | grey matter | white matter | least against Atropos |\n|" + "---|" * 7)
    for bias in given.bias:
        for noise in given.noise:
            scores: dict[str, list[list[float]]] = {}
            for seed in SEEDS[: given.seeds]:
                made = tissue(SHAPE, noise_percent=noise, bias_percent=bias, seed=seed)
                for name, labels, _ in every_way(made.image, made.mask):
                    scores.setdefault(name, []).append(dice(labels, made.truth.array))
            means = {name: np.mean(values, axis=0) for name, values in scores.items()}
            for name, of_tissues in means.items():
                apart = (of_tissues - means["N4 + Atropos"]).min()
                print(
                    f"| {noise:g} | {bias:g} | {name} | " + " | ".join(f"{d:.4f}" for d in of_tissues)
                    + f" | {apart:+.4f} |", flush=True,
                )  # fmt: skip


def fusion(given: argparse.Namespace) -> None:
    library = read_library(given.data / "human_brain/atlases")
    print("\n| human brain | way | fluid | grey matter | white matter | s |\n|---|---|---|---|---|---|")
    for id_ in library.ids[: given.targets]:
        atlas = library.read(id_)
        truth = tissues_of(atlas.segmentation.array)
        for name, labels, seconds in every_way(atlas.image, foreground(atlas.image)):
            row = " | ".join(f"{d:.4f}" for d in dice(labels, truth))
            print(f"| {id_} | {name} | {row} | {seconds:.1f} |", flush=True)
    from atlasseg.app.compare import compare

    data = given.data.resolve() / "hippocampus"
    with tempfile.TemporaryDirectory() as out:
        recipe = read_recipe(
            Path(__file__).parent.parent / "pipelines/hippocampus.toml",
            overrides=[f'data.atlases="{data}/atlases"', f'data.targets="{data}/targets"', f'data.out="{out}/out"'],
        )
        found = compare(recipe, FUSIONS)
    print(f"\nhippocampus, {len(found.scores)} targets, {len(read_library(data / 'atlases').ids)} atlases\n")
    print(found.overview().to_string(index=False))
    print(found.tests.to_string(index=False), flush=True)


FUSIONS = ("majority", "joint", "gaussian_mixture", "markov_chain", "markov_field")
PARTS = {"iterations": iterations, "brain": brain, "phantoms": phantoms, "fusion": fusion}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=list(PARTS))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--noise", nargs="+", type=float, default=[1, 3, 5, 7, 9])
    parser.add_argument("--bias", nargs="+", type=float, default=[0, 20, 40])
    parser.add_argument("--seeds", type=int, default=1, help="phantoms averaged")
    parser.add_argument("--targets", type=int, default=3, help="the first so many human brains")
    given = parser.parse_args()
    for part in given.parts:
        PARTS[part](given)


if __name__ == "__main__":
    main()
