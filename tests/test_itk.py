"""Transforms to ITK's files and back: what SimpleITK and ANTs make of them is what we make of them."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

from atlasseg import io, itk
from atlasseg.errors import InputError, OutputError
from atlasseg.resampling import resample
from atlasseg.transforms import Affine, BSplineField, Chain, DisplacementField, Transform, grid_points
from atlasseg.volume import Grid, Image, LabelMap, Mask

ROUNDING_MM = 1e-9
FLOAT32_MM = 1e-5  # vectors and headers of a NIfTI file are float32, at coordinates of tens of mm
LPS = np.array([-1, -1, 1])


def oblique(shape, spacing, angles=(20, -35, 50), flip=1, shear=0.0):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing * np.array([1, flip, 1])
    affine[0, 1] += shear
    affine[:3, 3] = (13, -25, 9) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


GRID = oblique((11, 13, 9), (1.2, 0.9, 1.7))
LEFT_HANDED = oblique((11, 13, 9), (1.2, 0.9, 1.7), flip=-1)
SHEARED = oblique((11, 13, 9), (1.2, 0.9, 1.7), shear=0.3)
GRIDS = {"oblique": GRID, "left-handed": LEFT_HANDED, "sheared": SHEARED}
SQUEEZE = Affine(np.array([[1.1, 0.1, 0, 1], [0, 0.9, -0.2, -4], [0.05, 0, 1, 2], [0, 0, 0, 1]]))


def spline(grid):
    control = BSplineField.control_grid(grid, 4.0)
    return BSplineField(np.random.default_rng(0).normal(size=(*control.shape, 3)) * 0.8, control.affine)


def field(grid):
    noise = np.random.default_rng(1).normal(size=(*grid.shape, 3))
    return DisplacementField(ndimage.gaussian_filter(noise, (1.5, 1.5, 1.5, 0)) * 4, grid.affine)


def kinds(grid):
    return {
        "affine": SQUEEZE,
        "field": field(grid),
        "spline": spline(grid),
        "chain": SQUEEZE @ spline(grid),
        "long chain": field(grid) @ SQUEEZE @ spline(grid),
    }


KINDS = ["affine", "field", "spline", "chain", "long chain"]


def points_around(grid):
    index = np.random.default_rng(2).uniform(-2, np.array(grid.shape) + 1, (300, 3))
    return index @ grid.affine[:3, :3].T + grid.affine[:3, 3]


@pytest.fixture(scope="module")
def moving():
    """A smooth random image and labels, on a grid of their own."""
    grid = oblique((14, 12, 17), (1.4, 1.6, 1.0), angles=(5, 10, -15))
    noise = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=grid.shape), 1.5)
    return Image(noise * 1000, grid.affine, "moving"), LabelMap((noise > 0) * 614454277, grid.affine)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_in_memory_itk_moves_points_as_we_do(kind, grid):
    transform = kinds(grid)[kind]
    theirs = itk.transform_to_sitk(transform)
    points = points_around(grid)
    moved = np.array([theirs.TransformPoint(tuple(p)) for p in points * LPS]) * LPS
    np.testing.assert_allclose(transform(points), moved, atol=ROUNDING_MM)
    np.testing.assert_allclose(itk.transform_from_sitk(theirs)(points), moved, atol=ROUNDING_MM)


def test_coefficients_go_to_itk_and_back_bit_by_bit():
    bent = spline(GRID)
    back = itk.transform_from_sitk(itk.transform_to_sitk(bent))
    np.testing.assert_array_equal(back.coefficients_mm, bent.coefficients_mm)
    np.testing.assert_allclose(back.affine, bent.affine, atol=1e-13)


@pytest.mark.parametrize("suffix", [".tfm", ".txt", ".mat", ".h5"])
@pytest.mark.parametrize("kind", KINDS)
def test_parameter_files_keep_the_transform(tmp_path, kind, suffix):
    transform, path = kinds(LEFT_HANDED)[kind], tmp_path / f"x{suffix}"
    if suffix == ".mat" and isinstance(transform, Chain):
        with pytest.raises(InputError, match=r"x\.mat: .* one transform"):
            io.write_transform(transform, path)
        assert not list(tmp_path.iterdir())
        return
    io.write_transform(transform, path)
    points = points_around(LEFT_HANDED)
    np.testing.assert_allclose(io.read_transform(path)(points), transform(points), atol=ROUNDING_MM)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd"])
@pytest.mark.parametrize("kind", KINDS)
def test_field_files_keep_the_transform_on_their_voxels(tmp_path, kind, suffix):
    transform, path = kinds(LEFT_HANDED)[kind], tmp_path / f"x{suffix}"
    io.write_transform(transform, path, grid=LEFT_HANDED)
    points = grid_points(LEFT_HANDED)
    np.testing.assert_allclose(io.read_transform(path)(points), transform(points), atol=FLOAT32_MM)


def test_a_nifti_field_has_the_header_that_ants_wants(tmp_path):
    io.write_transform(field(GRID), tmp_path / "x.nii.gz")
    image = nib.load(tmp_path / "x.nii.gz")
    assert image.header["intent_code"] == 1007
    assert image.shape == (11, 13, 9, 1, 3)
    np.testing.assert_allclose(np.squeeze(image.get_fdata()) * LPS, field(GRID).displacement_mm, atol=1e-6)


def test_a_sheared_field_is_written_on_perpendicular_axes(tmp_path):
    smooth = DisplacementField(np.broadcast_to([1.0, -2, 3], (*SHEARED.shape, 3)), SHEARED.affine)
    io.write_transform(smooth, tmp_path / "x.nii.gz")
    read = io.read_transform(tmp_path / "x.nii.gz")
    assert itk.is_orthonormal(read.grid) and not itk.is_orthonormal(SHEARED)
    inner = grid_points(SHEARED.cropped((2, 2, 2), (9, 11, 7)))
    np.testing.assert_allclose(read(inner), smooth(inner), atol=FLOAT32_MM)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_perpendicular_axes_hold_all_corners(grid):
    straight = itk.orthonormal_grid(grid)
    assert itk.is_orthonormal(straight)
    index = (grid.corners_mm - straight.affine[:3, 3]) @ np.linalg.inv(straight.affine[:3, :3]).T
    assert (index >= -1e-6).all() and (index <= np.array(straight.shape) - 1 + 1e-6).all()
    assert (straight.spacing_mm <= grid.spacing_mm + 1e-9).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".h5", ".nii.gz"])
def test_simpleitk_resamples_through_the_file_as_we_do(tmp_path, moving, kind, suffix):
    image, _ = moving
    transform, path = kinds(GRID)[kind], tmp_path / f"x{suffix}"
    io.write_transform(transform, path, grid=GRID)
    if suffix == ".h5":
        theirs = sitk.ReadTransform(str(path))
    else:
        theirs = sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    onto = itk.image_to_sitk(Image(np.zeros(GRID.shape), GRID.affine))
    wanted = sitk.Resample(itk.image_to_sitk(image), onto, theirs, sitk.sitkLinear, -5.0)
    ours = resample(image, GRID, transform, fill=-5.0)
    assert (ours.array != -5).mean() > 0.2
    apart = np.abs(ours.array - itk.image_from_sitk(wanted).array)
    assert (apart > 0.05).sum() <= 1  # intensities of hundreds; one voxel may fall on the border itself


@pytest.mark.parametrize(("kind", "suffix"), [(k, s) for k in KINDS for s in (".h5", ".nii.gz")] + [("affine", ".mat")])
def test_ants_resamples_through_the_file_as_we_do(tmp_path, moving, kind, suffix):
    ants = pytest.importorskip("ants", reason="antspyx is not installed")
    image, _ = moving
    transform, path = kinds(GRID)[kind], tmp_path / f"x{suffix}"
    io.write_transform(transform, path, grid=GRID)
    sitk.WriteImage(itk.image_to_sitk(Image(np.zeros(GRID.shape), GRID.affine)), str(tmp_path / "fixed.nii"))
    sitk.WriteImage(itk.image_to_sitk(image), str(tmp_path / "moving.nii"))
    fixed, source = (ants.image_read(str(tmp_path / f"{name}.nii")) for name in ("fixed", "moving"))
    wanted = ants.apply_transforms(fixed, source, [str(path)], interpolator="linear", defaultvalue=-5).numpy()
    ours = resample(image, GRID, transform, fill=-5.0).array
    assert (ours != -5).mean() > 0.2
    assert (np.abs(ours - wanted) > 0.2).mean() < 0.003  # intensities of hundreds, single precision; the border itself


def test_what_ants_writes_is_read_in_its_order(tmp_path, moving):
    ants = pytest.importorskip("ants", reason="antspyx is not installed")
    image, _ = moving
    bend = resample(image, image.grid, SQUEEZE @ field(GRID), fill=0.0)
    for name, volume in (("fixed", bend), ("moving", image)):
        sitk.WriteImage(itk.image_to_sitk(volume), str(tmp_path / f"{name}.nii"))
    fixed, source = (ants.image_read(str(tmp_path / f"{name}.nii")) for name in ("fixed", "moving"))
    for composite in (False, True):
        found = ants.registration(
            fixed,
            source,
            "SyN",
            outprefix=str(tmp_path / f"{composite}"),
            reg_iterations=(10, 5),
            aff_iterations=(20, 20, 5, 5),
            write_composite_transform=composite,
        )
        files = found["fwdtransforms"]
        wanted = ants.apply_transforms(fixed, source, files, interpolator="linear", defaultvalue=-5).numpy()
        transform = io.read_transform(files) if composite else io.read_ants_transforms(files)
        assert isinstance(transform, Chain)
        ours = resample(image, bend.grid, transform, fill=-5.0).array
        assert (np.abs(ours - wanted) > 0.2).mean() < 0.01  # the border of the moving image, in single precision


@pytest.mark.parametrize(
    "made",
    [
        sitk.TranslationTransform(3, (1.0, 2, -3)),
        sitk.Euler3DTransform((5.0, 6, 7), 0.1, 0.2, -0.3, (1.0, 2, 3)),
        sitk.VersorRigid3DTransform((0.0, 0.6, 0.8), 0.3, (1.0, 2, 3), (9.0, 8, 7)),
        sitk.Similarity3DTransform(1.2, (0.0, 0.6, 0.8), 0.3, (1.0, 2, 3), (9.0, 8, 7)),
        sitk.ScaleTransform(3, (1.0, 2, 0.5)),
        sitk.Transform(3, sitk.sitkIdentity),
    ],
    ids=lambda t: t.GetName(),
)
def test_every_linear_transform_of_itk_is_an_affine(tmp_path, made):
    sitk.WriteTransform(made, str(tmp_path / "x.tfm"))
    ours = io.read_transform(tmp_path / "x.tfm")
    assert isinstance(ours, Affine)
    points = points_around(GRID)[:20]
    moved = np.array([made.TransformPoint(tuple(p)) for p in points * LPS]) * LPS
    np.testing.assert_allclose(ours(points), moved, atol=ROUNDING_MM)


def test_an_inverse_is_written_as_what_it_does_on_a_grid(tmp_path):
    io.write_transform(~(SQUEEZE @ field(GRID)), tmp_path / "x.h5")
    inner = grid_points(GRID.cropped((3, 3, 3), (8, 10, 6)))
    read = io.read_transform(tmp_path / "x.h5")
    np.testing.assert_allclose(read(SQUEEZE(inner)), (~field(GRID))(inner), atol=1e-4)


def test_volumes_go_to_itk_and_back():
    array = np.random.default_rng(0).normal(size=(*LEFT_HANDED.shape, 2)).astype(np.float32)
    there = itk.image_to_sitk(Image(array, LEFT_HANDED.affine))
    assert there.GetSize() == LEFT_HANDED.shape and there.GetNumberOfComponentsPerPixel() == 2
    back = itk.image_from_sitk(there)
    np.testing.assert_array_equal(back.array, array)
    np.testing.assert_allclose(back.affine, LEFT_HANDED.affine, atol=1e-12)
    kept = itk.image_to_sitk(LabelMap(np.full((2, 3, 4), 614454277), np.eye(4)))
    assert kept.GetPixel(1, 2, 3) == 614454277
    assert itk.image_to_sitk(Mask(np.ones((2, 3, 4)), np.eye(4))).GetPixelID() == sitk.sitkUInt8


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("x.tfm", "expected a transform of ITK, got: .+"),
        ("x.mat", "the file is truncated.*expected 20 bytes by its header, got 5"),
        ("x.h5", "expected a transform of ITK in HDF5, got a file that begins b'hello'"),
        ("x.nii.gz", "expected a NIfTI file"),
        ("x.nrrd", "expected a NRRD file"),
    ],
)
def test_a_file_that_is_none_is_named_with_the_cause(tmp_path, name, cause):
    path = tmp_path / name
    with pytest.raises(InputError, match=f"{name}: no such"):
        io.read_transform(path)
    path.write_text("hello")
    with pytest.raises(InputError, match=f"{name}: {cause}"):
        io.read_transform(path)


def test_other_wrong_files(tmp_path):
    with pytest.raises(InputError, match=r"x\.foo: .*\.tfm"):
        io.read_transform(tmp_path / "x.foo")
    sitk.WriteImage(itk.image_to_sitk(Image(np.zeros(GRID.shape), GRID.affine)), str(tmp_path / "scan.nii.gz"))
    with pytest.raises(InputError, match=r"scan\.nii\.gz: .* 3 components, got shape"):
        io.read_transform(tmp_path / "scan.nii.gz")
    sitk.WriteTransform(sitk.AffineTransform(2), str(tmp_path / "flat.tfm"))
    with pytest.raises(InputError, match=r"flat\.tfm: .*3 dimensions"):
        io.read_transform(tmp_path / "flat.tfm")
    sitk.WriteTransform(sitk.BSplineTransform(3, 2), str(tmp_path / "order.tfm"))
    with pytest.raises(InputError, match=r"order\.tfm: .*order 3, got order 2"):
        io.read_transform(tmp_path / "order.tfm")
    with pytest.raises(InputError, match="expected a grid"):
        io.write_transform(SQUEEZE, tmp_path / "x.nii.gz")
    with pytest.raises(InputError, match="expected at least one transform file"):
        io.read_ants_transforms([])


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x.h5"
    io.write_transform(SQUEEZE, path)
    before = path.read_bytes()

    def full(transform: sitk.Transform, name: str) -> None:
        Path(name).write_bytes(b"half")
        raise RuntimeError("ITK ERROR:\n No space left on device")

    monkeypatch.setattr(sitk, "WriteTransform", full)
    with pytest.raises(OutputError, match=r"x\.h5: cannot be written: No space left"):
        io.write_transform(spline(GRID), path)
    with pytest.raises(OutputError, match=r"x\.h5/y\.h5: cannot be written"):
        io.write_transform(SQUEEZE, path / "y.h5")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.h5"]


class _Unknown(Transform):
    def __call__(self, points_mm):
        return np.asarray(points_mm)

    def __invert__(self):
        return self


def test_what_itk_has_no_form_for_wants_a_grid():
    with pytest.raises(InputError, match="_Unknown: expected a grid"):
        itk.transform_to_sitk(_Unknown())
    assert itk.transform_to_sitk(_Unknown(), grid=GRID).GetDimension() == 3


def test_threads_are_put_back_when_all_have_left():
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    with itk.one_thread(), itk.one_thread():
        assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == 1
    assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == before
