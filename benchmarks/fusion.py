"""Fusion methods side by side on the same warped atlases: Dice, seconds, memory; peers beside them.

    python benchmarks/fusion.py --data DIR [--sets hippocampus mouse_brain human_brain] [--targets N [N ...]]
                                [--methods all | majority joint staple] [--peers] [--out benchmarks/results/fusion.tsv]

Registers once for each target as the set's recipe says (kept in ``--cache``), then fuses every way, each in a process
of its own, after a run on a small crop so that compilation is not timed. Peers are given the same arrays and the same
parameters: ``ants_joint`` is antspyx's joint_label_fusion (closed-form weights, radii 2 and 3, alpha 0.1, beta 2,
correlation) on the voxels that joint fuses too, ``itk_staple`` is SimpleITK's MultiLabelSTAPLE. A peer's ratio of time
is against our method of the same name in the same run. Threads: set NUMBA_NUM_THREADS and
ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS.

With ``--out`` every run is a line of that file as soon as it is done, what is there already is not run again, and the
tables are of all that it holds: they are written beside it, as Markdown. A method that takes longer than ``--limit`` or
fails is a line without a figure.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import pickle
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from atlasseg import methods, pipeline
from atlasseg.atlases.library import read_library
from atlasseg.evaluation import overlap
from atlasseg.files import atomic_write
from atlasseg.fusion._encoded_votes import find_disagreement
from atlasseg.recipe import read_recipe
from atlasseg.store.cache import Cache
from atlasseg.volume import Atlas, Image, LabelMap

PEERS = {"ants_joint": "joint", "itk_staple": "staple"}
RECIPES = {"hippocampus": "hippocampus", "mouse_brain": "mouse_brain", "human_brain": "human_brain_t1"}
PIPELINES = Path(__file__).parents[1] / "pipelines"
COLUMNS = ["set", "target", "method", "hard", "atlases", "dice", "seconds", "peak_gb", "note"]

Case = tuple[Image, list[Atlas], LabelMap]


def targets_of(root: Path, name: str) -> list[str]:
    """Targets of a set, as its README splits it: those of its own, else leave-one-out over its atlases."""
    folder = root / name / ("targets" if (root / name / "targets").is_dir() else "atlases")
    return sorted(path.name.removesuffix(".nii.gz") for path in (folder / "images").glob("*.nii.gz"))


def aligned(root: Path, name: str, target: str, cache: Path) -> Path:
    """File with the target, its candidates and its reference; registered once, and found kept after that."""
    recipe = read_recipe(PIPELINES / f"{RECIPES[name]}.toml")
    own = root / name / "targets"
    library = read_library(root / name / "atlases")
    case = (read_library(own) if own.is_dir() else library).read(target)
    atlases = [library.read(each) for each in library.ids if own.is_dir() or each != target]
    path = cache / f"{name}_{target}.pickle"
    alignment = pipeline.align(case.image, atlases, recipe, mask=case.mask, executor=Cache(cache))
    box = np.array(alignment.start), np.array(alignment.start) + alignment.target.shape
    kept = [candidate.atlas for candidate in alignment.candidates if candidate.qc.keep]
    with atomic_write(path) as aside:
        aside.write_bytes(pickle.dumps((alignment.target, kept, case.segmentation.cropped(*box))))
    print(f"registered {name} {target}: {alignment.seconds['register']:.1f} s", flush=True)
    return path


def ants_joint(target: Image, candidates: Sequence[Atlas]) -> np.ndarray:
    """Labels by antspyx."""
    import ants

    certain, disagreement = find_disagreement(candidates)
    mask = ndimage.binary_dilation(disagreement, np.ones((5, 5, 5), bool))

    def image(array: np.ndarray) -> object:
        return ants.from_numpy(np.ascontiguousarray(array, np.float32))

    with tempfile.TemporaryDirectory() as folder:
        fused = ants.joint_label_fusion(
            image(target.array),
            image(mask),
            [image(atlas.image.array) for atlas in candidates],
            label_list=[image(atlas.segmentation.array) for atlas in candidates],
            beta=2,
            rho=0.1,
            rad=2,
            r_search=3,
            usecor=True,
            output_prefix=f"{folder}/fused",
        )
        votes = np.stack([each.numpy() for each in fused["probabilityimages"]])
    labels = np.array([0, *(int(label) for label in fused["segmentation_numbers"])])
    background = np.maximum(1 - votes.sum(axis=0), 0)  # it gives no probability of background
    best = labels[np.argmax(np.concatenate([background[None], votes]), axis=0)]
    return np.where(disagreement, best, certain)


def itk_staple(target: Image, candidates: Sequence[Atlas]) -> np.ndarray:
    """Labels by SimpleITK; undecided voxels take the vote of the majority."""
    import SimpleITK as sitk

    values = np.unique(np.concatenate([atlas.segmentation.values for atlas in candidates]))
    codes = [np.searchsorted(values, atlas.segmentation.array).astype(np.uint8) for atlas in candidates]
    fused = sitk.GetArrayFromImage(
        sitk.MultiLabelSTAPLE([sitk.GetImageFromArray(code) for code in codes], labelForUndecidedPixels=255)
    )
    votes = np.stack([(np.array(codes) == value).sum(axis=0) for value in range(values.size)]) if 255 in fused else None
    return values[fused if votes is None else np.where(fused == 255, votes.argmax(axis=0), fused)]


def fuse_by(method: str, target: Image, candidates: Sequence[Atlas]) -> np.ndarray:
    """Labels by one of our methods, or by a peer."""
    peers: dict[str, Callable[[Image, Sequence[Atlas]], np.ndarray]] = {
        "ants_joint": ants_joint,
        "itk_staple": itk_staple,
    }
    if method in peers:
        return peers[method](target, candidates)
    labels: np.ndarray = importlib.import_module(f"atlasseg.fusion.{method}").fuse(target, candidates).mode
    return labels


def measured(job: tuple[str, Path, bool]) -> tuple[int, float, float, float]:
    """Atlases, mean Dice, seconds and peak GB of one method on one case: to be run in a process of its own."""
    method, path, hard = job
    target, candidates, reference = pickle.loads(path.read_bytes())
    if hard:
        candidates = [Atlas(a.id, a.image, a.segmentation, a.mask, a.not_annotated) for a in candidates]
    middle = np.array(target.shape) // 2
    box = np.maximum(middle - 8, 0), np.minimum(middle + 8, target.shape)
    small = [
        Atlas(a.id, a.image.cropped(*box), a.segmentation.cropped(*box), a.mask and a.mask.cropped(*box))
        for a in candidates
    ]
    if method not in PEERS:
        fuse_by(method, target.cropped(*box), small)
    began = time.perf_counter()
    labels = fuse_by(method, target, candidates)
    seconds = time.perf_counter() - began
    dice = float(np.nanmean(overlap.dice(overlap.count(labels, reference.array))))
    return len(candidates), dice, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def run(job: tuple[str, Path, bool], limit_s: float) -> dict[str, object]:
    """`measured` in a process of its own, or why there is nothing to show."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            return dict(zip(COLUMNS[4:8], pool.apply_async(measured, (job,)).get(limit_s), strict=True))
        except multiprocessing.TimeoutError:
            return {"note": f"more than {limit_s:.0f} s"}
        except Exception as error:
            return {"note": f"{type(error).__name__}: {error}".replace("\n", " ")}


def tables(found: pd.DataFrame) -> str:
    """All runs in Markdown: a table a set, best first, of the targets that every method of it was run on."""
    parts = []
    for name, every in found.groupby("set", sort=False):
        done = every[every.dice.notna()]
        shared = set.intersection(*(set(part.target) for _, part in done.groupby("method")))
        lines = [
            f"\n{name}, targets {', '.join(sorted(shared))}, {int(done.atlases.max())} atlases:\n",
            "| method | mean Dice | lowest | s a target | peak GB |\n|---|---|---|---|---|",
        ]
        mean = done[done.target.isin(shared)].groupby("method")
        for method in mean.dice.mean().sort_values(ascending=False).index:
            part = mean.get_group(method)
            lines.append(
                f"| {method} | {part.dice.mean():.4f} | {part.dice.min():.4f} | {part.seconds.mean():.2f} "
                f"| {part.peak_gb.max():.2f} |"
            )
        lost = every[every.dice.isna()]
        lines += [f"\n{row.method} on {row.target}: {row.note}" for row in lost.itertuples()]
        for peer, ours in PEERS.items():
            both = done[done.method == peer].merge(done[done.method == ours], on="target")
            if len(both):
                ratio = both.seconds_x.sum() / both.seconds_y.sum()
                gain = both.dice_y.mean() - both.dice_x.mean()
                lines.append(f"\n{ours} is {ratio:.1f} times as fast as {peer}, Dice {gain:+.4f}")
        parts.append("\n".join(lines))
    return "\n".join(parts) + "\n"


def main() -> None:
    """Measure what the command line asks for, and print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", nargs="+", choices=RECIPES, default=["hippocampus", "mouse_brain"])
    parser.add_argument(
        "--targets", type=int, nargs="+", default=[None], help="the first so many of each set, or of all"
    )
    parser.add_argument("--methods", nargs="+", default=["all"])
    parser.add_argument("--peers", action="store_true", help="antspyx and SimpleITK too")
    parser.add_argument("--peer-targets", type=int, default=1, help="targets that peers are run on")
    parser.add_argument("--hard", action="store_true", help="candidates' most probable labels instead of fractions")
    parser.add_argument("--limit", type=float, default=1800, help="seconds that one method may take on one target")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "atlasseg_benchmark")
    parser.add_argument("--out", type=Path, default=None, help="TSV of every run")
    given = parser.parse_args()

    chosen = list(methods.names("fusion")) if given.methods == ["all"] else given.methods
    found = pd.DataFrame(columns=COLUMNS)
    if given.out and given.out.exists():
        found = pd.read_csv(given.out, sep="\t", dtype={"target": str})
    done = set(found[["set", "target", "method", "hard"]].itertuples(index=False, name=None))
    numbers = given.targets if len(given.targets) == len(given.sets) else given.targets[:1] * len(given.sets)
    for name, number in zip(given.sets, numbers, strict=True):
        for n, target in enumerate(targets_of(given.data, name)[:number]):
            peers = [peer for peer, ours in PEERS.items() if ours in chosen and given.peers]
            for method in chosen + (peers if n < given.peer_targets else []):
                hard = given.hard or method in PEERS
                if (name, target, method, hard) in done:
                    continue
                path = aligned(given.data, name, target, given.cache)
                row = {"set": name, "target": target, "method": method, "hard": hard}
                row |= run((method, path, hard), given.limit)
                print(row, flush=True)
                found = pd.DataFrame([*found.to_dict("records"), row], columns=COLUMNS)
                if given.out:
                    found.to_csv(given.out, sep="\t", index=False)
                    given.out.with_suffix(".md").write_text(tables(found), encoding="utf-8")
    print(tables(found))


if __name__ == "__main__":
    main()
