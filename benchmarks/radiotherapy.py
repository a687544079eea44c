"""Round trips of RTSTRUCT and DICOM-SEG against the mask of the same phantom as NIfTI.

    python benchmarks/radiotherapy.py --data ../shared/data/ct_rtstruct --out DIR

Where rt-utils is installed (it is not needed otherwise), it reads and writes the same structures for comparison.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import numpy as np
import pydicom

from atlasseg import io
from atlasseg.labels import Label, LabelTable
from atlasseg.volume import LabelMap


def compare(name: str, found: np.ndarray, truth: np.ndarray, seconds: float) -> None:
    dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    differing = int((found ^ truth).sum())
    print(f"| {name} | {dice:.6f} | {100 * (found.sum() / truth.sum() - 1):+.3f} % | {differing} | {seconds:.2f} s |")


def timed(make):
    start = time.perf_counter()
    return make(), time.perf_counter() - start


def squeeze_rows(series: Path, out: Path, factor: float) -> Path:
    """Copy of a series whose rows are `factor` times as far apart: pixels that are not square."""
    out.mkdir(parents=True, exist_ok=True)
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.PixelSpacing = [dataset.PixelSpacing[0] * factor, dataset.PixelSpacing[1]]
        dataset.save_as(out / file.name)
    return out


def rt_utils_round_trips(series: Path, structures: Path, truth: np.ndarray, out: Path) -> None:
    try:
        from rt_utils import RTStructBuilder
    except ImportError:
        print("rt-utils is not installed: left out")
        return

    def read(path: Path, folder: Path) -> np.ndarray:
        mask = RTStructBuilder.create_from(str(folder), str(path)).get_roi_mask_by_name("GTV-1")
        return crossed(mask)

    def crossed(mask: np.ndarray) -> np.ndarray:
        """Array [y, x] as [x, y] and back; rt-utils swaps the two sizes of a matrix that is not square."""
        out = np.zeros(mask.shape, bool)
        turned = np.transpose(mask, (1, 0, 2))
        size = tuple(map(min, out.shape, turned.shape))
        out[: size[0], : size[1]] = turned[: size[0], : size[1]]
        return out

    try:
        compare("rt-utils reads the RTSTRUCT", *_swap(timed(lambda: read(structures, series)), truth))
    except AttributeError as error:  # it needs the optional reference of each contour to its slice
        print(f"| rt-utils reads the RTSTRUCT | not read: {error} | | | |")
    compare("rt-utils reads ours", *_swap(timed(lambda: read(out / "rtstruct.dcm", series)), truth))
    for what, folder in (("", series), (", pixels of 0.977 x 1.466 mm", squeeze_rows(series, out / "wide", 1.5))):
        path = out / f"rt_utils_{len(what)}.dcm"
        start = time.perf_counter()
        made = RTStructBuilder.create_new(str(folder))
        made.add_roi(mask=crossed(truth), name="GTV-1")
        made.save(str(path))
        seconds = time.perf_counter() - start
        compare(f"rt-utils writes, we read{what}", io.read_label_map(path, reference=folder).array > 0, truth, seconds)
        own = out / f"own_{len(what)}.dcm"
        scan = io.read_image(folder)
        _, seconds = timed(
            lambda own=own, scan=scan: io.write_label_map(
                LabelMap(truth.astype(np.int32), scan.affine), own, like=scan, format="rtstruct"
            )
        )
        compare(f"we write, we read{what}", io.read_label_map(own, reference=folder).array > 0, truth, seconds)


def _swap(timed_mask, truth):
    mask, seconds = timed_mask
    return mask, truth, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/ct_rtstruct"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    series, structures = options.data / "dicom" / "image", next((options.data / "dicom" / "mask").glob("*.dcm"))
    labels = io.read_label_map(options.data / "nifti" / "mask" / "mask.nii.gz")
    truth, scan = labels.array > 0, io.read_image(series)
    table = LabelTable((Label(1, "GTV-1", (0, 230, 0)),))
    print("| step | Dice | volume | voxels that differ | time |\n|---|---|---|---|---|")
    found, seconds = timed(lambda: io.read_label_map(structures))
    compare("RTSTRUCT read", found.array > 0, truth, seconds)
    for name in ("rtstruct", "dicomseg"):
        path = options.out / f"{name}.dcm"
        _, seconds = timed(lambda p=path, n=name: io.write_label_map(labels, p, like=scan, format=n, table=table))
        compare(f"{name} written, read", io.read_label_map(path, reference=scan).array > 0, truth, seconds)
    rt_utils_round_trips(series, structures, truth, options.out)


if __name__ == "__main__":
    main()
