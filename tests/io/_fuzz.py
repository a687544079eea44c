"""Read thousands of damaged files in one process of bounded memory; run by ``test_fuzz.py``.

``python _fuzz.py FOLDER FIRST LAST`` damages and reads the files of the numbers FIRST to LAST, prints a line of JSON
about them, and ends with status 1 at the first one that was neither read rightly nor refused by an InputError.
"""

import gzip
import json
import logging
import resource
import signal
import sys
import traceback
import warnings
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from atlasseg import io
from atlasseg.errors import InputError
from atlasseg.io import _promise
from atlasseg.itk import LPS
from atlasseg.labels import Label, LabelTable, format_label_table
from atlasseg.transforms import Affine, DisplacementField
from atlasseg.volume import Image, LabelMap

MEMORY = 300 << 20  # beyond what the libraries take
HANGS_S = 300  # a reader that is so long at one file is caught in a loop
SHAPE = (6, 5, 4)
SCAN = np.random.default_rng(4).integers(0, 900, SHAPE).astype(np.int16)
LABELS = (SCAN % 4).astype(np.int16)
AFFINE = np.array([[-1.4, -0.35, 0, 12], [-0.43, 1.12, -0.4, -30], [0, 0.23, 1.96, 7], [0, 0, 0, 1.0]])
AFFINE[:3, :3] = np.linalg.svd(AFFINE[:3, :3])[0] @ np.diag([-1.5, 1.2, 2.0])


# ------------------------------------------------------------------------------------------- the files to be damaged


def nifti(folder, name, *, version=1, array=SCAN, slope=None):
    kind = {1: nib.Nifti1Image, 2: nib.Nifti2Image}[version]
    image = kind(array, AFFINE)
    image.header.set_qform(AFFINE, 1)
    image.header.set_sform(AFFINE, 2)
    if slope:
        image.header.set_slope_inter(slope, 1)
    nib.save(image, folder / name)


def series(folder, name):
    (folder / name).mkdir(exist_ok=True)
    for k in range(3):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MRImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = f"1.2.3.{k + 1}"
        dataset.SeriesInstanceUID, dataset.Modality, dataset.SeriesDescription = "1.2.3", "MR", "T1"
        dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = "1.2.4", "1.2.5"
        dataset.SeriesNumber, dataset.InstanceNumber = 1, k + 1
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [1, 2, 3 + 2 * k], [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.SliceThickness = [1.5, 1.2], 2
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 5, 6, 1
        dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.RescaleSlope, dataset.RescaleIntercept = 15, 2, -k
        dataset.PixelData = np.ascontiguousarray(SCAN[..., k].T).astype("<u2").tobytes()
        dataset.save_as(folder / name / f"{k}.dcm", enforce_file_format=True)


def segmentation(folder, name):
    header = (
        "NRRD0005\ntype: unsigned char\ndimension: 4\nspace: left-posterior-superior\nsizes: 2 6 5 4\n"
        "space directions: none (1.5,0,0) (0,1.2,0) (0,0,2)\nkinds: list domain domain domain\nencoding: gzip\n"
        "space origin: (10,20,30)\nSegment0_Name:=a\nSegment0_LabelValue:=1\nSegment0_Layer:=0\n"
        "Segment1_Name:=b\nSegment1_LabelValue:=1\nSegment1_Layer:=1\n\n"
    )
    layers = np.stack([LABELS == 1, LABELS == 2]).astype(np.uint8)
    (folder / name).write_bytes(header.encode() + gzip.compress(layers.tobytes(order="F")))


def make(folder):
    """Every kind of file; gives its readers, the file to damage, and whether its values have a checksum."""
    image = Image(SCAN, AFFINE)
    labels = LabelMap(LABELS, AFFINE)
    volumes = (io.read_image, io.read_label_map, io.read_mask)
    kinds = {}

    def add(name, readers, *, damaged=None, checked=False, weight=1):
        kinds[name] = (readers, damaged or name, checked, weight)

    for name, version, slope in (("a.nii", 1, None), ("b.nii", 2, None), ("c.nii", 1, 0.5)):
        nifti(folder, name, version=version, slope=slope)
        add(name, volumes if slope is None else (io.read_image,), weight=3)
    for name, version in (("a.nii.gz", 1), ("b.nii.gz", 2)):
        nifti(folder, name, version=version)
        add(name, volumes, checked=True, weight=2)
        # the header damaged within a whole gzip file
        add(f"in:{name}", volumes, damaged=name, weight=3)
    nib.save(nib.Nifti1Pair(SCAN, AFFINE), folder / "pair.img")
    add("pair.hdr", volumes, damaged="pair.hdr")
    nib.save(nib.Spm2AnalyzeImage(SCAN, np.diag([-1.0, 1, 1, 1])), folder / "analyze.img")
    add("analyze.hdr", volumes)
    for name in ("a.mgh", "a.mgz"):
        nib.save(nib.MGHImage(SCAN, AFFINE), folder / name)
        add(name, volumes, checked=name.endswith("z"))
    add("in:a.mgz", volumes, damaged="a.mgz")
    theirs = sitk.GetImageFromArray(SCAN.T)
    for name, packed in (("a.nrrd", False), ("b.nrrd", True), ("a.mha", False), ("b.mha", True), ("a.nhdr", False)):
        sitk.WriteImage(theirs, str(folder / name), useCompression=packed)
        add(name, volumes, checked=packed, weight=2)
    sitk.WriteImage(theirs, str(folder / "a.mhd"), useCompression=True)
    add("a.mhd", volumes)
    add("two.mhd", volumes, damaged="a.zraw", checked=True)
    segmentation(folder, "x.seg.nrrd")
    add("x.seg.nrrd", (io.read_label_map, io.read_label_table))
    series(folder, "series")
    add("series", (io.read_image,), damaged="series/1.dcm", weight=2)
    add("one.dcm", (io.read_image, io.read_label_map), damaged="series/1.dcm", weight=1)
    scan = io.read_image(folder / "series")
    for name, form in (("rs.dcm", "rtstruct"), ("sg.dcm", "dicomseg")):
        io.write_label_map(LabelMap(LABELS[..., : scan.shape[2]], scan.affine), folder / name, like=scan, format=form)
        add(name, (lambda path: io.read_label_map(path, reference=scan.grid), io.read_label_table), weight=2)
    io.write_transform(Affine(AFFINE), folder / "t.tfm")
    io.write_transform(Affine(AFFINE), folder / "t.mat")
    io.write_transform(DisplacementField(np.ones((*SHAPE, 3), np.float32), AFFINE), folder / "f.nii.gz")
    for name in ("t.tfm", "t.mat", "in:f.nii.gz"):
        add(name, (io.read_transform,), damaged=name.removeprefix("in:"), weight=2)
    probabilities = np.stack([n == LABELS for n in range(4)], -1).astype(np.float32)
    nifti(folder, "p.nii.gz", array=probabilities)
    add("in:p.nii.gz", (lambda path: io.read_probability_map(path, labels=[0, 1, 2, 3]),), damaged="p.nii.gz")
    table = LabelTable((Label(1, "one", (1, 2, 3)), Label(2, "two", (4, 5, 6), group="g"), Label(17, "three")))
    for form, name in (("bids", "t.tsv"), ("csv", "t.csv"), ("itk-snap", "snap.txt"), ("freesurfer", "fs.txt")):
        (folder / name).write_text(format_label_table(table, form))
        add(name, (io.read_label_table,), weight=2)
    io.write_json({"LabelMap": [0, 1, 2], "a": {"b": [1.5, None, True, "x"]}}, folder / "a.json")
    add("a.json", (io.read_json,))
    io.write_image(image, folder / "unused.nii.gz")
    io.write_label_map(labels, folder / "unused_labels.nii.gz")
    return kinds


# -------------------------------------------------------------------------------------------------------- the damage

NUMBERS = [b"0", b"-1", b"1e9", b"99999999999", b"nan", b"inf", b"1.5", b"", b"4294967296", b"1e-300", b"-0.0"]


def damage(content, random):
    """Flip, insert, delete, cut, or write another number; headers more often than values."""
    content = bytearray(content)
    for _ in range(int(random.choice([1, 1, 1, 2, 4, 8]))):
        if not content:
            break
        reach = len(content) if random.random() < 0.3 else min(len(content), 420)
        at = int(random.integers(reach))
        how = random.random()
        if how < 0.35:
            content[at] = int(random.integers(256))
        elif how < 0.5:
            content[at] ^= 1 << int(random.integers(8))
        elif how < 0.65:
            width = int(random.choice([2, 4, 8]))
            value = random.choice([0, 1, 2**15 - 1, 2**31 - 1, 2**40, -1, -(2**15), 2**62])
            content[at : at + width] = int(value).to_bytes(16, "little", signed=True)[:width]
        elif how < 0.75:
            content[at:at] = bytes(random.integers(0, 256, int(random.integers(1, 20)), dtype=np.uint8))
        elif how < 0.85:
            del content[at : at + int(random.integers(1, 20))]
        elif how < 0.95:
            end = at
            while end < len(content) and chr(content[end]) in "0123456789.-+e":
                end += 1
            content[at:end] = NUMBERS[int(random.integers(len(NUMBERS)))]
        else:
            del content[at:]
    return bytes(content)


# --------------------------------------------------------------------------------------------------------- the check


def place_of(path, found):
    """Where an independent reader puts the voxels; None where there is none to ask."""
    if path.name.endswith((".nrrd", ".nhdr")) and not path.name.endswith(".seg.nrrd"):
        theirs = sitk.ReadImage(str(path))
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(theirs.GetDirection(), (3, 3)) * theirs.GetSpacing()
        affine[:3, 3] = theirs.GetOrigin()
        return LPS @ affine, sitk.GetArrayFromImage(theirs).T
    if path.name.endswith((".nii", ".nii.gz", ".mgh", ".mgz")):
        theirs = nib.load(path)
        header = theirs.header
        if isinstance(theirs, nib.MGHImage):
            affine = theirs.affine
        else:
            scale = {"meter": 1e3, "micron": 1e-3}.get(_unit(header), 1)
            forms = [header.get_sform(coded=True)[0]]
            try:
                forms.append(header.get_qform(coded=True)[0])
            except (ValueError, nib.spatialimages.HeaderDataError):
                forms.append(None)
            usable = [form for form in forms if form is not None and _is_usable(form)]
            if not usable:
                return None
            affine = np.diag([scale] * 3 + [1]) @ usable[0]
        return affine, np.asarray(theirs.dataobj).reshape(found.shape)
    return None


def _unit(header):
    try:
        return header.get_xyzt_units()[0]
    except KeyError:
        return "unknown"


def _is_usable(form):
    edges = form[:3, :3]
    return np.isfinite(form).all() and abs(np.linalg.det(edges)) > 1e-9 * np.prod(np.linalg.norm(edges, axis=0))


def check(path, found, original, *, checked):
    """Fail where what was read is wrong, as far as can be known of a damaged file."""
    if hasattr(found, "affine") and hasattr(found, "grid"):
        assert np.isfinite(found.affine).all() and np.linalg.det(found.affine[:3, :3]) != 0
    if isinstance(found, Affine):
        assert np.isfinite(found.matrix).all()
    if not isinstance(found, (Image, LabelMap)):
        return
    assert np.isfinite(found.array).all()
    held = sum(part.stat().st_size for part in path.parent.iterdir() if part.is_file()) if path.is_file() else 10**6
    assert found.array.size <= held * _promise.DEFLATE_RATIO
    if checked and found.shape == original.shape:  # the checksum holds: the values are those that were written
        np.testing.assert_array_equal(found.array, original.array)
    theirs = place_of(path, found) if isinstance(found, Image) else None
    if theirs is not None:
        np.testing.assert_allclose(found.affine, theirs[0], rtol=1e-5, atol=1e-5 * max(1, np.abs(theirs[0]).max()))
        with np.errstate(all="ignore"):
            values = np.asarray(theirs[1], np.float64).astype(np.float32)
        same = np.isfinite(values)
        np.testing.assert_allclose(found.array[same], values[same], rtol=1e-5)


def run(folder, first, last):
    folder = Path(folder)
    kinds = make(folder)
    names = [name for name, (*_, weight) in kinds.items() for _ in range(weight)]
    contents = {name: (folder / damaged).read_bytes() for name, (_, damaged, _, _) in kinds.items()}
    originals = {}
    for name, (readers, *_) in kinds.items():
        path = folder / name.removeprefix("in:")
        path = folder / "a.mhd" if name == "two.mhd" else path
        if path.exists():
            originals[name] = [reader(path) for reader in readers]
    outcomes = {"read": 0, "refused": 0}
    for number in range(first, last):
        random = np.random.default_rng(number)
        name = names[number % len(names)]
        readers, damaged, checked, _ = kinds[name]
        content = contents[name]
        inner = name.startswith("in:")
        content = damage(gzip.decompress(content) if inner else content, random)
        content = gzip.compress(content, 1) if inner else content
        target = folder / damaged
        path = folder / name.removeprefix("in:")
        if name == "one.dcm":
            target = path = folder / "apart" / "one.dcm"
            target.parent.mkdir(exist_ok=True)
        elif name == "two.mhd":
            path = folder / "a.mhd"
        before = target.read_bytes() if target.exists() else None
        target.write_bytes(content)
        signal.alarm(HANGS_S)
        try:
            for k, reader in enumerate(readers):
                try:
                    found = reader(path)
                except InputError as error:
                    outcomes["refused"] += 1
                    if str(folder) not in str(error):
                        raise AssertionError(f"the message names no file: {error}") from error
                else:
                    outcomes["read"] += 1
                    original = originals.get(name, [None] * len(readers))[k]
                    check(path, found, original, checked=checked and original is not None)
        except BaseException:
            kept = folder.parent / f"damaged_{number}_{Path(damaged).name}"
            kept.write_bytes(content)
            print(json.dumps({"number": number, "kind": name, "kept": str(kept)}))
            traceback.print_exc()
            raise SystemExit(1) from None
        finally:
            signal.alarm(0)
            if before is not None:
                target.write_bytes(before)
    status = Path("/proc/self/status").read_text().splitlines()
    outcomes["peak_mb"] = int(next(line.split()[1] for line in status if line.startswith("VmHWM"))) // 1024
    print(json.dumps(outcomes))


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", ResourceWarning)  # of the readers that are asked beside ours
    logging.disable(logging.CRITICAL)
    sitk.ProcessObject.GlobalWarningDisplayOff()
    zlib.crc32(b"")
    make(Path(sys.argv[1]))
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
