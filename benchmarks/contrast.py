"""Fusions where the target's contrast is another than the atlases': Dice, warnings and predicted Dice, beside ANTs.

    python benchmarks/contrast.py [--data DIR] [--sets hippocampus mouse_brain human_brain] [--targets N [N ...]]
        [--methods majority joint ...] [--chain] [--peers N] [--cache DIR]

Each target is registered with its atlases as the set's recipe says (human brains at 2 mm), in the contrast that it has;
then its intensities are replaced, and the same warped atlases are fused. `--chain` registers the changed target anew.
Hippocampi are fused from `atlases` onto `targets`; the others each from the rest. `ants_joint` is antspyx's
joint_label_fusion with the parameters of joint, on the first `--peers` targets of each set.

Contrasts, of the foreground's intensities (those above the least):

- inverted: the largest minus the intensity.
- T2-like: the means of three classes (k-means) become 1.0, 0.55 and 0.35, linear between and beyond, so that
  dark becomes bright.
- random: each label's mean becomes a random one, its deviations from the mean are multiplied by a random number from
  -1 to 1, and noise of a twentieth of the range is added. The seed is the target's number in its set.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from common import coarsened
from fusion import PIPELINES, RECIPES, ants_joint, targets_of
from scipy.cluster.vq import kmeans2

from atlasseg import methods, pipeline
from atlasseg.atlases.library import read_library
from atlasseg.evaluation import overlap
from atlasseg.evaluation.prediction import expected_dice
from atlasseg.recipe import Recipe, Step, read_recipe
from atlasseg.store.cache import Cache
from atlasseg.volume import Atlas, Image, LabelMap

SPACING_MM = {"human_brain": 2.0}
FUSIONS = ["majority", "joint", "local_weighted", "global_weighted", "nearest_patches", "generative"]

Change = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def inverted(values: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(values.max() - values)


def t2_like(values: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    start = np.percentile(values, [10, 50, 90])[:, None]
    means = np.sort(kmeans2(values[:, None].astype(np.float64), start, minit="matrix")[0].ravel())
    slopes = np.array([0.45 / (means[1] - means[0]), 0.2 / (means[2] - means[1])])
    darker = values < means[1]
    return np.asarray(0.55 - (values - means[1]) * np.where(darker, *slopes))


def random_by_label(values: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    _, codes = np.unique(labels, return_inverse=True)
    sizes = np.bincount(codes)
    means = np.bincount(codes, values) / sizes
    spread = np.ptp(values)
    out = rng.uniform(0, spread, sizes.size)[codes] + rng.uniform(-1, 1, sizes.size)[codes] * (values - means[codes])
    return np.asarray(out + rng.normal(0, spread / 20, values.size))


CHANGES: dict[str, Change] = {
    "same": lambda values, labels, rng: values,
    "inverted": inverted,
    "T2-like": t2_like,
    "random": random_by_label,
}


def changed(image: Image, labels: LabelMap, change: Change, number: int) -> Image:
    """The image with other intensities in its foreground."""
    inside = image.array > image.array.min()
    array = np.zeros(image.shape, np.float32)
    array[inside] = change(image.array[inside], labels.array[inside], np.random.default_rng(number))
    if change is not CHANGES["same"]:
        array[inside] -= array[inside].min() - 0.05 * np.ptp(array[inside])
    return image.with_array(array) if change is not CHANGES["same"] else image


def subjects(root: Path, name: str, target: str) -> tuple[Atlas, list[Atlas]]:
    """A target and its atlases."""
    own = root / name / "targets"
    library = read_library(root / name / "atlases")
    case = (read_library(own) if own.is_dir() else library).read(target)
    atlases = [library.read(each) for each in library.ids if own.is_dir() or each != target]
    spacing = SPACING_MM.get(name)
    if spacing is None:
        return case, atlases
    return coarsened(case, spacing), [coarsened(atlas, spacing) for atlas in atlases]


class Warnings(logging.Handler):
    """Collects the messages of a block of code."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message."""
        self.messages.append(record.getMessage())


def measure(
    alignment: pipeline.Alignment, fusions: list[str], recipe: Recipe, reference: LabelMap, peer: bool
) -> list[dict[str, object]]:
    """Dice of every fusion, what it predicts, and whether it says that the contrasts differ."""
    rows: list[dict[str, object]] = []
    for name in fusions:
        method = methods.get("fusion", name)
        told = Warnings()
        logging.getLogger("atlasseg").addHandler(told)
        step = recipe.fusion.method if recipe.fusion.method.name == name else Step(method, {})
        result = pipeline.fuse(alignment, step)
        logging.getLogger("atlasseg").removeHandler(told)
        dice = overlap.dice(overlap.count(result.labels.array, reference.array))
        predicted = expected_dice(result.probabilities)
        rows.append(
            {
                "method": name,
                "dice": float(np.nanmean(dice)),
                "predicted": float(np.nanmean([v for label, v in predicted.items() if label])),
                "told": any("contrast" in message for message in told.messages),
            }
        )
    if peer:
        voters = [candidate.atlas for candidate in alignment.candidates if candidate.qc.keep]
        start = alignment.start
        box = tuple(slice(a, a + n) for a, n in zip(start, alignment.target.shape, strict=True))
        whole = np.zeros(alignment.grid.shape, np.int32)
        whole[box] = ants_joint(alignment.target, voters)
        dice = overlap.dice(overlap.count(whole, reference.array))
        rows.append({"method": "ants_joint", "dice": float(np.nanmean(dice)), "predicted": np.nan, "told": False})
    return rows


def table(found: pd.DataFrame) -> str:
    """A row a method, a column a contrast: mean Dice (least), predicted Dice, targets that got a warning of it."""
    lines = []
    for (name, chain), part in found.groupby(["set", "registered"], sort=False):
        contrasts = list(dict.fromkeys(part.contrast))
        lines.append(f"\n{name}, {part.target.nunique()} targets, registered in {chain} contrast:\n")
        lines.append("| method | " + " | ".join(contrasts) + " |\n|---|" + "---|" * len(contrasts))
        for method, rows in part.groupby("method", sort=False):
            cells = []
            for contrast in contrasts:
                each = rows[rows.contrast == contrast]
                cell = f"{each.dice.mean():.3f} ({each.dice.min():.3f})" if len(each) else ""
                if len(each) and method != "ants_joint":
                    cell += f", predicted {each.predicted.mean():.2f}, warned {each.told.sum()}/{len(each)}"
                elif len(each):
                    cell += f", {len(each)} targets"
                cells.append(cell)
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure what the command line asks for, and print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--sets", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--targets", type=int, nargs="+", default=[20, 6, 3], help="the first so many of each set")
    parser.add_argument("--methods", nargs="+", default=FUSIONS)
    parser.add_argument("--contrasts", nargs="+", choices=CHANGES, default=list(CHANGES))
    parser.add_argument("--chain", action="store_true", help="register the changed target too")
    parser.add_argument("--peers", type=int, default=0, help="targets of each set that ANTs fuses too")
    parser.add_argument("--cache", type=Path, help="folder where registrations are kept")
    given = parser.parse_args()
    executor = Cache(given.cache) if given.cache else pipeline.call_directly
    found: list[dict[str, object]] = []
    numbers = given.targets if len(given.targets) == len(given.sets) else given.targets[:1] * len(given.sets)
    for name, most in zip(given.sets, numbers, strict=True):
        recipe = read_recipe(PIPELINES / f"{RECIPES[name]}.toml")
        for number, target in enumerate(targets_of(given.data, name)[:most]):
            case, atlases = subjects(given.data, name, target)
            own = pipeline.align(case.image, atlases, recipe, mask=case.mask, executor=executor)
            stop = [a + n for a, n in zip(own.start, own.target.shape, strict=True)]
            for contrast in given.contrasts:
                change = CHANGES[contrast]
                scan = changed(case.image, case.segmentation, change, number)
                if given.chain and contrast != "same":
                    aligned, registered = (
                        pipeline.align(scan, atlases, recipe, mask=case.mask, executor=executor),
                        "its",
                    )
                else:
                    aligned = own
                    registered = "its" if given.chain else "the atlases'"
                    if contrast != "same":
                        treated = pipeline.preprocess(scan, recipe.preprocessing.steps)
                        aligned = replace(own, target=treated.cropped(own.start, stop))
                for row in measure(aligned, given.methods, recipe, case.segmentation, number < given.peers):
                    row = {"set": name, "target": target, "contrast": contrast, "registered": registered, **row}
                    print(row, flush=True)
                    found.append(row)
    print(table(pd.DataFrame(found)))


if __name__ == "__main__":
    main()
