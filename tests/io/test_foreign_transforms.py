"""Transforms of FSL, FreeSurfer, SPM and NiftyReg, against fslpy, nitransforms and what their formats define."""

import nibabel as nib
import numpy as np
import pytest

from atlasseg import io
from atlasseg.errors import InputError
from atlasseg.phantoms import tilted_grid
from atlasseg.transforms import Affine
from atlasseg.volume import Grid

RNG = np.random.default_rng(4)
MATRIX = np.array([[0.98, 0.06, -0.1, 3.0], [-0.05, 1.03, 0.08, -2.0], [0.11, -0.02, 0.95, 1.5], [0, 0, 0, 1]])
LEFT = tilted_grid((12, 10, 9), spacing_mm=(2.0, 2.5, 3.0), axes="LAS")  # radiological: a negative determinant
RIGHT = tilted_grid((11, 13, 8), spacing_mm=(1.5, 2.0, 2.5), axes="RAS")  # neurological
EXACT_MM, FLOAT32_MM = 1e-6, 1e-4


def image(grid, path):
    nib.save(nib.Nifti1Image(np.zeros(grid.shape, np.float32), grid.affine), path)
    return path


def write_vectors(path, vectors, affine, *, intent=1007, name="", description="", five=True, **parameters):
    shape = (*vectors.shape[:3], 1, 3) if five else vectors.shape
    made = nib.Nifti1Image(vectors.reshape(shape).astype(np.float32), affine)
    made.header["intent_code"], made.header["intent_name"], made.header["descrip"] = intent, name, description
    for key, value in parameters.items():
        made.header[key] = value
    nib.save(made, path)
    return path


def positions(grid):
    voxels = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    return voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def inner(grid, count=40):
    voxels = RNG.uniform(0.5, np.array(grid.shape) - 1.5, (count, 3))
    return voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def smooth(grid, size_mm=2.0):
    """A displacement that changes slowly."""
    phase = positions(grid) / 15
    return size_mm * np.stack([np.sin(phase[..., 1]), np.cos(phase[..., 2]), np.sin(phase[..., 0])], -1)


# ------------------------------------------------------------------------------------------------------------- FLIRT


@pytest.mark.parametrize("source", [LEFT, RIGHT], ids=["source LAS", "source RAS"])
@pytest.mark.parametrize("reference", [LEFT, RIGHT], ids=["reference LAS", "reference RAS"])
def test_flirt_against_fslpy_and_nitransforms(tmp_path, source, reference):
    from fsl.data.image import Image
    from fsl.transform.flirt import fromFlirt
    from nitransforms.io.fsl import FSLLinearTransform

    files = [image(source, tmp_path / "s.nii"), image(reference, tmp_path / "r.nii")]
    np.savetxt(tmp_path / "flirt.mat", MATRIX)
    found = io.read_transform(tmp_path / "flirt.mat", flirt_source=files[0], flirt_reference=files[1])
    push = fromFlirt(MATRIX, Image(str(files[0])), Image(str(files[1])), "world", "world")
    np.testing.assert_allclose((~found).matrix, push, atol=1e-5)  # the headers' float32
    other = FSLLinearTransform.from_string((tmp_path / "flirt.mat").read_text()).to_ras(
        moving=str(files[0]), reference=str(files[1])
    )
    np.testing.assert_allclose(found.matrix, other, atol=1e-5)
    by_grid = io.read_transform(tmp_path / "flirt.mat", flirt_source=source, flirt_reference=reference)
    np.testing.assert_allclose(by_grid.matrix, found.matrix, atol=1e-5)


def test_flirt_by_hand(tmp_path):
    """A shift by 3 mm along FSL's first axis, which runs to the left in both kinds of storage."""
    (tmp_path / "shift.mat").write_text("1 0 0 3  \n0 1 0 0  \n0 0 1 0  \n0 0 0 1  \n")
    for sign in (1, -1):
        affine = np.diag([sign * 2.0, 2, 2, 1])
        affine[0, 3] = -11 * (sign - 1)  # both cover x from 0 to 22 mm
        grid = Grid((12, 10, 9), affine)
        found = io.read_transform(tmp_path / "shift.mat", flirt_source=grid, flirt_reference=grid)
        np.testing.assert_allclose(found([5, 6, 7]), [8, 6, 7], atol=EXACT_MM)  # reference 5 comes from source 8


def test_a_matrix_without_its_images_says_what_to_add(tmp_path):
    np.savetxt(tmp_path / "flirt.mat", MATRIX)
    with pytest.raises(InputError, match=r"flirt\.mat: .*no source and no reference. Add --flirt-source"):
        io.read_transform(tmp_path / "flirt.mat")
    with pytest.raises(InputError, match=r"got no reference"):
        io.read_transform(tmp_path / "flirt.mat", flirt_source=LEFT)
    plain = io.read_transform(tmp_path / "flirt.mat", convention="ras")
    np.testing.assert_array_equal(plain.matrix, MATRIX)


def test_a_header_on_which_fsl_would_differ_is_refused(tmp_path):
    np.savetxt(tmp_path / "flirt.mat", MATRIX)
    two = nib.Nifti1Image(np.zeros(LEFT.shape, np.float32), LEFT.affine)
    two.header["pixdim"][1:4] = 4
    nib.save(two, tmp_path / "two.nii")
    micron = nib.Nifti1Image(np.zeros(LEFT.shape, np.float32), LEFT.affine)
    micron.header.set_xyzt_units("micron")
    nib.save(micron, tmp_path / "micron.nii")
    for name, reason in (("two.nii", "expected one voxel size"), ("micron.nii", "expected a header in mm")):
        with pytest.raises(InputError, match=reason):
            io.read_transform(tmp_path / "flirt.mat", flirt_source=tmp_path / name, flirt_reference=LEFT)


# ------------------------------------------------------------------------------------------------------------- FNIRT


@pytest.mark.parametrize("source", [LEFT, RIGHT], ids=["source LAS", "source RAS"])
@pytest.mark.parametrize("reference", [LEFT, RIGHT], ids=["reference LAS", "reference RAS"])
@pytest.mark.parametrize("absolute", [False, True])
def test_fnirt_fields_against_fslpy(tmp_path, source, reference, absolute):
    from fsl.data.image import Image
    from fsl.transform.fnirt import readFnirt

    files = [image(source, tmp_path / "s.nii.gz"), image(reference, tmp_path / "r.nii.gz")]
    vectors = smooth(reference)
    if absolute:
        voxels = np.stack(np.meshgrid(*map(np.arange, reference.shape), indexing="ij"), -1).astype(float)
        if reference is RIGHT:
            voxels[..., 0] = reference.shape[0] - 1 - voxels[..., 0]
        vectors = vectors + voxels * reference.spacing_mm
    path = write_vectors(tmp_path / "warp.nii.gz", vectors, reference.affine, intent=2006, five=False)
    found = io.read_transform(path, flirt_source=files[0])
    oracle = readFnirt(str(path), Image(str(files[0])), Image(str(files[1])))
    assert oracle.deformationType == ("absolute" if absolute else "relative")
    voxels = RNG.integers(0, np.array(reference.shape), (40, 3))  # fslpy takes the nearest vector, we interpolate
    points = voxels @ reference.affine[:3, :3].T + reference.affine[:3, 3]
    np.testing.assert_allclose(found(points), oracle.transform(points, "world", "world"), atol=FLOAT32_MM)
    other = "fnirt-relative" if absolute else "fnirt-absolute"
    misread = io.read_transform(path, flirt_source=files[0], convention=other)
    assert np.abs(misread(points) - found(points)).max() > 5
    with pytest.raises(InputError, match=r"warp\.nii\.gz: a warp field of FNIRT.*Add --flirt-source"):
        io.read_transform(path)


def write_coefficients(path, reference, knots, *, start=MATRIX, intent=2007):
    shape = [int(np.ceil((n + 1) / k)) + 2 for n, k in zip(reference.shape, knots, strict=True)]
    made = nib.Nifti1Image(RNG.normal(0, 2, (*shape, 3)).astype(np.float32), None)
    made.header.set_sform(start, 1)
    made.header["qform_code"], made.header["intent_code"] = 0, intent
    made.header["pixdim"][1:4] = knots
    for n in range(3):
        made.header[f"intent_p{n + 1}"] = reference.spacing_mm[n]
    nib.save(made, path)
    return path


@pytest.mark.parametrize("source", [LEFT, RIGHT], ids=["source LAS", "source RAS"])
def test_fnirt_coefficients_against_fslpy(tmp_path, source):
    from fsl.data.image import Image
    from fsl.transform.fnirt import readFnirt

    files = [image(source, tmp_path / "s.nii.gz"), image(LEFT, tmp_path / "r.nii.gz")]
    path = write_coefficients(tmp_path / "coefficients.nii.gz", LEFT, (4, 3, 2))
    found = io.read_transform(path, flirt_source=files[0], flirt_reference=files[1])
    oracle = readFnirt(str(path), Image(str(files[0])), Image(str(files[1])))
    voxels = RNG.integers(0, np.array(LEFT.shape), (60, 3))
    points = voxels @ LEFT.affine[:3, :3].T + LEFT.affine[:3, 3]
    np.testing.assert_allclose(found(points), oracle.transform(points, "world", "world"), atol=FLOAT32_MM)
    with pytest.raises(InputError, match="Add --flirt-source and --flirt-reference"):
        io.read_transform(path, flirt_source=files[0])
    with pytest.raises(InputError, match="first axis runs to the left"):
        io.read_transform(path, flirt_source=files[0], flirt_reference=RIGHT)


@pytest.mark.parametrize(("intent", "said"), [(2008, "cosines"), (2009, "quadratic"), (2016, "TOPUP")])
def test_other_files_of_fsl_are_refused_by_name(tmp_path, intent, said):
    path = write_coefficients(tmp_path / "c.nii.gz", LEFT, (4, 3, 2), intent=intent)
    with pytest.raises(InputError, match=rf"c\.nii\.gz: .*{said}.*fnirtfileutils"):
        io.read_transform(path, flirt_source=LEFT, flirt_reference=LEFT)


# --------------------------------------------------------------------------------------------------------------- LTA


def lta(kind, matrix, source, destination, *, valid=1):
    def geometry(grid):
        axes = grid.affine[:3, :3] / grid.spacing_mm
        centre = grid.affine[:3, :3] @ (np.array(grid.shape) / 2) + grid.affine[:3, 3]
        rows = {"xras": axes[:, 0], "yras": axes[:, 1], "zras": axes[:, 2], "cras": centre}
        return "\n".join(
            [
                f"valid = {valid}  # volume info valid",
                "filename = /data/a.mgz",
                f"volume = {' '.join(map(str, grid.shape))}",
                f"voxelsize = {' '.join(map(repr, grid.spacing_mm.tolist()))}",
                *(f"{key}   = {' '.join(map(repr, row.tolist()))}" for key, row in rows.items()),
            ]
        )

    numbers = "\n".join(" ".join(map(repr, row)) for row in matrix.tolist())
    return (
        f"# transform file /data/x.lta\n# created by someone\n\ntype      = {kind} # a comment\nnxforms   = 1\n"
        f"mean      = 0.0000 0.0000 0.0000\nsigma     = 1.0000\n1 4 4\n{numbers}\n"
        f"src volume info\n{geometry(source)}\ndst volume info\n{geometry(destination)}\nsubject x\nfscale 0.15\n"
    )


def tk_ras(grid):
    (i, j, k), (x, y, z) = grid.shape, grid.spacing_mm
    return np.array([[-x, 0, 0, x * i / 2], [0, 0, z, -z * k / 2], [0, -y, 0, y * j / 2], [0, 0, 0, 1]])


def test_lta_of_each_type(tmp_path):
    """One transform, from RAS mm of the source to those of the destination, written in three ways."""
    from nitransforms.io.lta import FSLinearTransform

    inverse = np.linalg.inv
    ways = {
        1: MATRIX,
        0: inverse(RIGHT.affine) @ MATRIX @ LEFT.affine,
        21: tk_ras(RIGHT) @ inverse(RIGHT.affine) @ MATRIX @ LEFT.affine @ inverse(tk_ras(LEFT)),
    }
    for kind, matrix in ways.items():
        path = tmp_path / f"{kind}.lta"
        path.write_text(lta(kind, matrix, LEFT, RIGHT))
        found = io.read_transform(path)
        np.testing.assert_allclose(found.matrix, inverse(MATRIX), atol=1e-9)
        if kind < 2:
            text = path.read_text().split("subject")[0].replace(" # a comment", "")
            np.testing.assert_allclose(found.matrix, FSLinearTransform.from_string(text).to_ras(), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.replace("type      = 0", "type      = 14"), r"type 0 \(voxels\).*14 \(REGISTER_DAT\)"),
        (lambda t: t.replace("nxforms   = 1", "nxforms   = 2"), "expected one transform, got 2"),
        (lambda t: t.replace("valid = 1", "valid = 0"), "geometry of both volumes.*src as not valid"),
        (lambda t: t[: t.index("dst volume")], "expected one section 'dst volume info'"),
        (lambda t: t[: t.index("src volume") - 30], "four lines after the line '1 4 4'|4 numbers"),
        (lambda t: t.replace("0.0\n", "nan\n", 1) if "0.0\n" in t else t.replace("1.0\n", "nan\n", 1), "4 numbers"),
        (lambda t: "hello", "a whole number as type"),
    ],
)
def test_a_faulty_lta_is_refused(tmp_path, change, reason):
    (tmp_path / "x.lta").write_text(change(lta(0, np.eye(4), LEFT, RIGHT)))
    with pytest.raises(InputError, match=rf"x\.lta: .*({reason})"):
        io.read_transform(tmp_path / "x.lta")


# ----------------------------------------------------------------------------------------------------- SPM and fields


def test_the_identity_of_spm_moves_nothing(cases):
    path = cases.parent / "methods" / "transforms" / "y_identity_spm.nii"
    found = io.read_transform(path)
    points = inner(found.grid)
    np.testing.assert_allclose(found(points), points, atol=FLOAT32_MM)


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("y_scan.nii", {}),
        ("iy_scan.nii", {}),
        ("warp.nii", {"name": "Mapping"}),
        ("warp.nii.gz", {"description": "Deformation"}),
        ("cpp.nii.gz", {"name": "NREG_TRANS", "intent_p1": 0}),
    ],
)
def test_fields_of_positions(tmp_path, name, header):
    vectors = positions(RIGHT) + smooth(RIGHT)
    found = io.read_transform(write_vectors(tmp_path / name, vectors, RIGHT.affine, **header))
    np.testing.assert_allclose(found(positions(RIGHT)), vectors, atol=FLOAT32_MM)
    assert np.abs(found(positions(RIGHT)) - positions(RIGHT)).max() < 3


def test_fields_of_displacements(tmp_path):
    moved = smooth(RIGHT)
    itk = io.read_transform(write_vectors(tmp_path / "0Warp.nii.gz", moved * [-1, -1, 1], RIGHT.affine))
    np.testing.assert_allclose(itk(positions(RIGHT)), positions(RIGHT) + moved, atol=FLOAT32_MM)
    path = write_vectors(tmp_path / "disp.nii.gz", moved, RIGHT.affine, name="NREG_TRANS", intent_p1=1)
    np.testing.assert_allclose(io.read_transform(path)(positions(RIGHT)), positions(RIGHT) + moved, atol=FLOAT32_MM)
    with pytest.raises(InputError, match="splines or of velocities"):
        io.read_transform(write_vectors(tmp_path / "v.nii", moved, RIGHT.affine, name="NREG_TRANS", intent_p1=3))


def test_what_cannot_be_known_says_what_to_add(tmp_path):
    nameless = write_vectors(tmp_path / "warp.nii.gz", positions(RIGHT) + smooth(RIGHT), RIGHT.affine)
    with pytest.raises(InputError, match=r"warp\.nii\.gz: .*follow the positions.*Add --convention: itk"):
        io.read_transform(nameless)
    found = io.read_transform(nameless, convention="spm")
    np.testing.assert_allclose(found(positions(RIGHT)), positions(RIGHT) + smooth(RIGHT), atol=FLOAT32_MM)
    lps = write_vectors(tmp_path / "lps.nii.gz", (positions(RIGHT) + smooth(RIGHT)) * [-1, -1, 1], RIGHT.affine)
    with pytest.raises(InputError, match="follow the positions"):
        io.read_transform(lps)
    misnamed = write_vectors(tmp_path / "y_warp.nii.gz", smooth(RIGHT), RIGHT.affine)
    with pytest.raises(InputError, match=r"do not follow the positions.*its name is that of a deformation of SPM"):
        io.read_transform(misnamed)
    io.read_transform(misnamed, convention="itk")
    bare = write_vectors(tmp_path / "bare.nii.gz", smooth(RIGHT), RIGHT.affine, intent=0, five=False)
    with pytest.raises(InputError, match="NIfTI intent 0, which says nothing of vectors"):
        io.read_transform(bare)
    slice_ = Grid((9, 8, 1), RIGHT.affine)
    with pytest.raises(InputError, match="follow the positions"):
        io.read_transform(write_vectors(tmp_path / "slice.nii", positions(slice_), slice_.affine))
    flow = write_vectors(tmp_path / "u_rc1scan_Template.nii", smooth(RIGHT), RIGHT.affine)
    with pytest.raises(InputError, match="got velocities"):
        io.read_transform(flow)


def test_unknown_positions_of_spm_move_as_the_nearest_known(tmp_path, caplog):
    shift = np.array([1.0, 2.0, -1.0])
    vectors = positions(RIGHT) + shift
    vectors[:3] = np.nan
    found = io.read_transform(write_vectors(tmp_path / "y_a.nii", vectors, RIGHT.affine))
    np.testing.assert_allclose(found(positions(RIGHT)), positions(RIGHT) + shift, atol=FLOAT32_MM)
    assert f"{3 * 13 * 8} of {11 * 13 * 8} positions are NaN" in caplog.text
    nothing = write_vectors(tmp_path / "y_b.nii", np.full_like(vectors, np.nan), RIGHT.affine)
    with pytest.raises(InputError, match=r"NaN alone"):
        io.read_transform(nothing)


# -------------------------------------------------------------------------------------------------------------- lists


def test_a_list_of_ants_with_inversion_flags(tmp_path):
    first, second = Affine(MATRIX), Affine(np.linalg.inv(MATRIX) @ np.diag([1.1, 1, 1, 1]))
    io.write_transform(first, tmp_path / "a.mat")
    io.write_transform(second, tmp_path / "b.tfm")
    found = io.read_ants_transforms([f"[{tmp_path / 'a.mat'},1]", f"[ {tmp_path / 'b.tfm'} , 0 ]"])
    point = np.array([3.0, -4.0, 5.0])
    np.testing.assert_allclose(found(point), second((~first)(point)), atol=EXACT_MM)
    for bad in ("[a.mat,2]", "[a.mat]", "[,1]"):
        with pytest.raises(InputError, match=r"expected \[FILE,1\]"):
            io.read_ants_transforms([bad])


def test_a_list_takes_the_images_of_each_matrix_of_fsl(tmp_path):
    middle = tilted_grid((8, 9, 10), spacing_mm=(3.0, 2.0, 2.0), axes="LPS")
    np.savetxt(tmp_path / "a.mat", MATRIX)
    np.savetxt(tmp_path / "b.mat", np.linalg.inv(MATRIX))
    io.write_transform(Affine(MATRIX), tmp_path / "c.mat")
    files = [tmp_path / "a.mat", tmp_path / "c.mat", tmp_path / "b.mat"]
    found = io.read_ants_transforms(files, flirt_source=[middle, LEFT], flirt_reference=[RIGHT, middle])
    one = io.read_transform(files[0], flirt_source=middle, flirt_reference=RIGHT)
    last = io.read_transform(files[2], flirt_source=LEFT, flirt_reference=middle)
    np.testing.assert_allclose(found.matrix, (last @ Affine(MATRIX) @ one).matrix, atol=EXACT_MM)
    with pytest.raises(InputError, match="one for each of 2 transforms of FSL, got 3"):
        io.read_ants_transforms(files, flirt_source=[LEFT] * 3, flirt_reference=LEFT)


@pytest.mark.parametrize("name", ["a.lta", "flirt.mat", "y_a.nii", "warp.nii", "coefficients.nii"])
def test_damaged_files_are_read_or_refused_by_our_own_error(tmp_path, name):
    path = tmp_path / name
    {
        "a.lta": lambda: path.write_text(lta(0, MATRIX, LEFT, RIGHT)),
        "flirt.mat": lambda: np.savetxt(path, MATRIX),
        "y_a.nii": lambda: write_vectors(path, positions(RIGHT) + smooth(RIGHT), RIGHT.affine),
        "warp.nii": lambda: write_vectors(path, smooth(RIGHT), RIGHT.affine, intent=2006, five=False),
        "coefficients.nii": lambda: write_coefficients(path, LEFT, (4, 3, 2)),
    }[name]()
    content, rng, refused = path.read_bytes(), np.random.default_rng(7), []
    for number in range(60):
        damaged = bytearray(content)
        for at in rng.integers(0, min(len(content), 400), rng.integers(1, 6)):
            damaged[at] = int(rng.integers(256))
        path.write_bytes(damaged[: len(content) if number % 4 else int(rng.integers(len(content)))])
        try:
            found = io.read_transform(path, flirt_source=LEFT, flirt_reference=LEFT)
            assert np.isfinite(found([1.0, 2, 3])).all()
        except InputError as error:
            refused.append(str(error))
    assert len(refused) > 5 and all(str(path) in told for told in refused)
