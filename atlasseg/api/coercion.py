"""Conversion of user input to the data types: paths, images of other libraries, pairs, libraries, names of methods.

Unsuitable input raises an `InputError` here that names the argument, the expected and the given value, so that the
functions behind the API need not check again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from atlasseg import interop, io
from atlasseg.atlases.library import AtlasLibrary, Target, read_library
from atlasseg.errors import AtlasSegError, GeometryError, InputError
from atlasseg.itk import transform_from_sitk
from atlasseg.labels import LabelTable
from atlasseg.methods import Method
from atlasseg.pipeline import Segmentation
from atlasseg.recipe import Step, make_step
from atlasseg.resampling import stack_channels
from atlasseg.transforms import Transform
from atlasseg.volume import Atlas, Grid, Image, LabelMap, Mask, ProbabilityMap

log = logging.getLogger(__name__)

V = TypeVar("V", Image, LabelMap, Mask)

IMAGE = "an image (a path, an atlasseg.Image, or an image of nibabel, SimpleITK or ANTs)"
LABELS = "a label map (a path, an atlasseg.LabelMap, or an image of nibabel, SimpleITK or ANTs)"
MASK = "a mask (a path, an atlasseg.Mask, or an image of nibabel, SimpleITK or ANTs)"
PROBABILITIES = "label probabilities (a path of a 4-D file, an atlasseg.ProbabilityMap or an atlasseg.LabelMap)"
TRANSFORM = "a transform (a path, one of atlasseg.transforms or SimpleITK, or a result of atlasseg.register)"
ATLAS = "an atlas (an atlasseg.Atlas, or a pair (image, labels))"
ATLASES = "atlases (an AtlasLibrary or its folder, an atlasseg.Atlas, a pair (image, labels), or a list of these)"
TABLE = "a label table (a path or an atlasseg.LabelTable)"

_FROM_LIBRARY: dict[interop.Library, str] = {
    "nibabel": "from_nibabel",
    "SimpleITK": "from_sitk",
    "ANTs": "from_ants",
}


def describe_value(value: object) -> str:
    """Describe a given value in a few words, for messages."""
    if value is None:
        return "None"
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, np.ndarray):
        return f"a NumPy array of shape {value.shape}"
    if isinstance(value, Mapping):
        return "a dictionary"
    if isinstance(value, list | tuple | set | frozenset):
        return f"a {type(value).__name__} of {len(value)}"
    library = interop.image_library(value)
    if library is not None:
        return f"an image of {library}"
    kind = type(value).__name__
    return f"{'an' if kind[:1].upper() in 'AEIOU' else 'a'} {kind}"


def refuse(value: object, what: str, expected: str, advice: str = "") -> InputError:
    """Make the error for an argument `what` that is not what is `expected`."""
    if isinstance(value, np.ndarray) and not advice:
        advice = (
            "An array has no position: give atlasseg.Image(array, affine) or atlasseg.LabelMap(array, affine), "
            "where the (4, 4) affine takes voxel indices to RAS+ mm"
        )
    return InputError(f"{what}: expected {expected}, got {describe_value(value)}." + (f" {advice}." if advice else ""))


# ----------------------------------------------------------------------------------------------------------- volumes


def as_image(value: Any, *, what: str = "image") -> Image:
    """Convert a path, an image of nibabel, SimpleITK or ANTs, or an atlas to an `Image`.

    Parameters
    ----------
    value : path, Image, Atlas or image of another library
        The path of a volume or of the folder of a DICOM series. A list holds the channels of one scan. Components of a
        SimpleITK or ANTs image become channels. A nibabel image with a fourth axis is an error, since the axis may be
        time (`Image.from_nibabel` accepts it).
    what : str
        Name of the argument in messages.

    Returns
    -------
    Image

    Raises
    ------
    InputError
        The value has another type, or cannot be read.

    Examples
    --------
    >>> import SimpleITK as sitk
    >>> as_image(sitk.Image([4, 5, 6], sitk.sitkFloat32)).shape
    (4, 5, 6)
    >>> as_image({"image": "scan.nii.gz"}, what="fixed")
    Traceback (most recent call last):
    ...
    atlasseg.errors.InputError: fixed: expected an image (a path, an atlasseg.Image, or an image of nibabel, SimpleITK
    or ANTs), got a dictionary.
    """
    if isinstance(value, Image):
        return value
    if isinstance(value, Atlas):
        return value.image
    if isinstance(value, Target):
        return value.read()[0]
    if is_path(value):
        return io.read_image(as_path(value, what=what, expected=IMAGE))
    if isinstance(value, list) and value:
        parts = [as_image(part, what=f"{what}, channel {number}") for number, part in enumerate(value, start=1)]
        image, reached = stack_channels(parts)
        if not reached.array.all():
            log.warning("%s: some voxels are outside the field of view of a channel; it is 0 there", image.name or what)
        return image
    if interop.image_library(value) == "nibabel" and [n for n in value.shape[3:] if n != 1]:
        advice = "If its fourth axis holds channels, give atlasseg.Image.from_nibabel(image)"
        raise InputError(f"{what}: expected a 3-D image, got a nibabel image of shape {value.shape}. {advice}.")
    found = _from_library(Image, value, what)
    if found is not None:
        return found
    advice = ""
    if isinstance(value, LabelMap | Mask):
        advice = "If its numbers are intensities, give atlasseg.Image(volume.array, volume.affine)"
    raise refuse(value, what, IMAGE, advice)


def as_label_map(value: Any, *, what: str = "labels") -> LabelMap:
    """Convert a path, an image of nibabel, SimpleITK or ANTs, or a type with labels to a `LabelMap`.

    Parameters
    ----------
    value : path, LabelMap, ProbabilityMap, Mask, Atlas, Segmentation or image of another library
        Probabilities give the most probable label, a mask gives label 1 inside. The values of an image of another
        library must be integers.
    what : str
        Name of the argument in messages.

    Returns
    -------
    LabelMap

    Raises
    ------
    InputError
        The value has another type, cannot be read, or has a value that is not a label.
    """
    if isinstance(value, LabelMap):
        return value
    if isinstance(value, ProbabilityMap):
        return value.label_map()
    if isinstance(value, Atlas):
        return value.segmentation
    if isinstance(value, Segmentation):
        return value.labels
    if isinstance(value, Mask):
        return LabelMap(value.array.astype(np.int32), value.affine, value.name, value.source_header)
    if is_path(value):
        return io.read_label_map(as_path(value, what=what, expected=LABELS))
    found = _from_library(LabelMap, value, what)
    if found is not None:
        return found
    advice = ""
    if isinstance(value, Image):
        advice = "If its intensities are labels, give atlasseg.LabelMap(image.array, image.affine)"
    raise refuse(value, what, LABELS, advice)


def as_mask(value: Any, *, what: str = "mask") -> Mask:
    """Convert a path, an image of nibabel, SimpleITK or ANTs, or a label map to a `Mask` of its voxels that are not 0.

    Parameters
    ----------
    value : path, Mask, LabelMap or image of another library
        What to convert.
    what : str
        Name of the argument in messages.

    Returns
    -------
    Mask

    Raises
    ------
    InputError
        The value has another type, or cannot be read.
    """
    if isinstance(value, Mask):
        return value
    if isinstance(value, LabelMap):
        return Mask(value.array != 0, value.affine, value.name, value.source_header)
    if is_path(value):
        return io.read_mask(as_path(value, what=what, expected=MASK))
    found = _from_library(Mask, value, what)
    if found is not None:
        return found
    advice = ""
    if isinstance(value, Image):
        advice = "Choose the intensities inside the mask: atlasseg.Mask(image.array > 0, image.affine)"
    raise refuse(value, what, MASK, advice)


def as_probability_map(value: Any, *, what: str = "probabilities") -> ProbabilityMap:
    """Convert a path, a label map, an atlas or a segmentation to a `ProbabilityMap`.

    Parameters
    ----------
    value : path, ProbabilityMap, LabelMap, Atlas or Segmentation
        A path must be a 4-D file of probabilities with known labels, see `read_probability_map`. A label map gives
        probabilities of 0 and 1.
    what : str
        Name of the argument in messages.

    Returns
    -------
    ProbabilityMap

    Raises
    ------
    InputError
        The value has another type, or cannot be read.
    """
    if isinstance(value, Segmentation):
        return value.probabilities
    if isinstance(value, Atlas):
        value = value.labels
    if isinstance(value, ProbabilityMap):
        return value
    if isinstance(value, LabelMap):
        return ProbabilityMap.from_labels(value)
    if is_path(value):
        return io.read_probability_map(as_path(value, what=what, expected=PROBABILITIES))
    advice = ""
    if interop.image_library(value) is not None:
        advice = "Give atlasseg.ProbabilityMap.from_nibabel(image, labels=[...]), or from_sitk or from_ants"
    raise refuse(value, what, PROBABILITIES, advice)


def as_grid(value: Any, *, what: str = "grid") -> Grid:
    """Convert a path or a volume to its `Grid`.

    Parameters
    ----------
    value : Grid, path, image, label map, mask, probabilities or atlas
        The grid, or a volume on it.
    what : str
        Name of the argument in messages.

    Returns
    -------
    Grid

    Raises
    ------
    InputError
        The value has another type, or cannot be read.
    """
    if isinstance(value, Grid):
        return value
    if isinstance(value, Image | LabelMap | Mask | ProbabilityMap):
        return value.grid
    return as_image(value, what=what).grid


def as_transform(value: Any, *, what: str = "transform") -> Transform:
    """Convert a path, a SimpleITK transform, or the result of a registration to a `Transform`.

    Parameters
    ----------
    value : path, Transform, SimpleITK.Transform, PairwiseRegistration or Candidate
        What to convert.
    what : str
        Name of the argument in messages.

    Returns
    -------
    Transform

    Raises
    ------
    InputError
        The value has another type, or cannot be read.
    """
    if isinstance(value, Transform):
        return value
    if isinstance(getattr(value, "transform", None), Transform):
        found: Transform = value.transform
        return found
    if is_path(value):
        return io.read_transform(as_path(value, what=what, expected=TRANSFORM))
    if interop.is_sitk_transform(value):
        return _prefix_errors(what, lambda: transform_from_sitk(value))
    advice = ""
    if isinstance(value, np.ndarray):
        advice = "If it is a (4, 4) matrix that takes RAS+ mm to RAS+ mm, give atlasseg.Affine(matrix)"
    raise refuse(value, what, TRANSFORM, advice)


def as_label_table(value: Any, *, what: str = "table") -> LabelTable:
    """Convert a path to a `LabelTable`.

    Raises
    ------
    InputError
        The value is neither a path nor a label table, or cannot be read.
    """
    if isinstance(value, LabelTable):
        return value
    if is_path(value):
        return io.read_label_table(as_path(value, what=what, expected=TABLE))
    raise refuse(value, what, TABLE)


# ----------------------------------------------------------------------------------------------------------- atlases


def as_atlas(value: Any, *, what: str = "atlas", id: str = "") -> Atlas:
    """Convert a pair (image, labels) or a triple (image, labels, mask) to an `Atlas`.

    Parameters
    ----------
    value : Atlas, tuple, PairwiseRegistration or Candidate
        Labels may be a label map or probabilities, on the grid of the image. A registration of an atlas gives the
        atlas on the grid of the fixed image.
    what : str
        Name of the argument in messages.
    id : str
        Id of an atlas given as a pair. Default: the name of its image.

    Returns
    -------
    Atlas

    Raises
    ------
    InputError
        The value has another type, or a part of it is unsuitable.
    GeometryError
        The labels are not on the grid of the image.
    """
    if isinstance(value, Atlas):
        return value
    carried = _propagated_atlas(value)
    if carried is not None:
        return carried
    if isinstance(value, Target) and value.labels is not None:
        scan, mask = value.read()
        labels = value.read_labels(scan)
        assert labels is not None
        return Atlas(value.id, scan, labels, mask)
    if not isinstance(value, tuple) or len(value) not in (2, 3):
        advice = ""
        if isinstance(value, list) and len(value) in (2, 3):
            advice = "A pair is a tuple (image, labels); a list holds several atlases"
        elif isinstance(getattr(value, "transform", None), Transform):
            advice = "This registration has no labels. Register an atlas, or a pair (image, labels)"
        elif is_path(value) or isinstance(value, Image | LabelMap) or interop.image_library(value):
            advice = "Give the image and its labels together: (image, labels)"
        raise refuse(value, what, ATLAS, advice)
    image = as_image(value[0], what=f"{what}, image")
    labels_ = value[1]
    found = labels_ if isinstance(labels_, ProbabilityMap) else as_label_map(labels_, what=f"{what}, labels")
    mask_ = None if len(value) == 2 or value[2] is None else as_mask(value[2], what=f"{what}, mask")
    return _prefix_errors(what, lambda: Atlas(id or image.name or what, image, found, mask_))


def as_atlases(value: Any, *, what: str = "atlases") -> list[Atlas]:
    """Convert a library or its folder, atlases, or pairs (image, labels) to a list of atlases.

    Parameters
    ----------
    value : AtlasLibrary, path, Atlas, tuple or iterable of these
        A tuple (image, labels) or (image, labels, mask) is one atlas; a list holds several. A path is the folder of a
        library, see `read_library`; a list of folders is one library.
    what : str
        Name of the argument in messages.

    Returns
    -------
    list of Atlas
        In the given order; atlases of a library ascending by id. Ids are unique.

    Raises
    ------
    InputError
        The value has another type, a file cannot be read, there is no atlas, or two atlases have the same id.
    """
    if isinstance(value, AtlasLibrary):
        return [value.read(id_) for id_ in value.ids]
    if is_path(value):
        path = as_path(value, what=what, expected=ATLASES)
        if path.exists() and not path.is_dir():
            raise refuse(value, what, ATLASES, "Give the image and its labels together: (image, labels)")
        return as_atlases(read_library(path), what=what)
    if isinstance(value, Atlas | Target) or _is_pair(value):
        return [as_atlas(value, what=what)]
    items = _items(value, what, ATLASES)
    if all(is_path(item) and Path(item).is_dir() for item in items):
        return as_atlases(read_library(items[0], *items[1:]), what=what)
    found: list[Atlas] = []
    for number, item in enumerate(items, start=1):
        name = f"{what}, number {number}"
        if isinstance(item, AtlasLibrary) or (is_path(item) and Path(item).is_dir()):
            found += as_atlases(item, what=name)
        else:
            found.append(as_atlas(item, what=name))
    return make_ids_unique(found, items, what)


def make_ids_unique(atlases: Sequence[Atlas], items: Sequence[Any], what: str) -> list[Atlas]:
    """Number the ids of atlases given as pairs with the same name; ids given by the user are not changed."""
    taken = {item.id for item in items if isinstance(item, Atlas)}
    found: list[Atlas] = []
    for number, atlas in enumerate(atlases, start=1):
        own = any(atlas is item for item in items)
        if not own and atlas.id in taken:
            atlas = replace(atlas, id=f"{atlas.id}_{number}")
        taken.add(atlas.id)
        found.append(atlas)
    ids = [atlas.id for atlas in found]
    twice = sorted({id_ for id_ in ids if ids.count(id_) > 1})
    if twice:
        raise InputError(f"{what}: expected a different id for each atlas, got {twice[0]!r} twice. Rename one.")
    return found


def as_candidates(value: Any, target: Image, method: Method, *, what: str = "candidates") -> list[Atlas]:
    """Convert the candidates of a fusion like `as_atlases`; a method without intensities also takes label maps alone.

    Raises
    ------
    InputError
        As `as_atlases`; or a label map has no image, and the method compares intensities.
    """
    if not isinstance(value, list) or method.needs.compares_intensities:
        try:
            return as_atlases(value, what=what)
        except InputError as error:
            if isinstance(value, list) and any(isinstance(v, LabelMap | ProbabilityMap) for v in value):
                raise InputError(
                    f"{what}: expected atlases or pairs (image, labels), since the method {method.name!r} compares "
                    "intensities; got labels without images. Give the images too, or choose a method that needs none "
                    "(atlasseg.list_methods('fusion'))."
                ) from error
            raise
    items = _items(value, what, ATLASES)
    found = []
    for number, item in enumerate(items, start=1):
        name = f"{what}, number {number}"
        if (
            isinstance(item, Atlas | Target)
            or _is_pair(item)
            or isinstance(getattr(item, "transform", None), Transform)
        ):
            found.append(as_atlas(item, what=name))
            continue
        labels = item if isinstance(item, ProbabilityMap) else as_label_map(item, what=name)
        if not labels.grid.matches(target.grid):
            raise GeometryError(
                f"{name}: expected labels on the grid of the target ({target.grid.describe()}), got "
                f"{labels.grid.describe()}. Resample them with atlasseg.register and its warp."
            )
        image = Image(np.zeros(target.shape, np.float32), target.affine)  # not used by such a method
        found.append(Atlas(labels.name or f"candidate{number}", image, replace(labels, affine=target.affine)))
    return make_ids_unique(found, items, what)


# -------------------------------------------------------------------------------------------------- paths and methods


def is_path(value: object) -> bool:
    """Return whether a value is a path: text or a path-like object."""
    return isinstance(value, str | os.PathLike)


def as_path(value: Any, *, what: str, expected: str) -> Path:
    """Convert text or a path-like object to a path that is not empty."""
    if not is_path(value) or not str(value).strip():
        raise refuse(value, what, expected)
    return Path(value)


def as_step(stage: str, method: Any, parameters: Mapping[str, Any]) -> Step:
    """Look up a method of a stage by its name (or take one of `list_methods`) and check its parameters.

    Raises
    ------
    InputError
        The method or a parameter does not exist, or a value has the wrong type.
    """
    name = method.name if isinstance(method, Method) and method.stage == stage else method
    if not isinstance(name, str):
        raise refuse(method, "method", f"the name of a {stage} method (see atlasseg.list_methods({stage!r}))")
    return make_step(stage, name, parameters)


def is_many(value: object) -> bool:
    """Return whether a value holds several volumes: a library, its folder, or a list."""
    if isinstance(value, AtlasLibrary | list | set | frozenset):
        return True
    if is_path(value):
        return bool(str(value).strip()) and (Path(str(value)) / "images").is_dir()
    return not isinstance(value, str | tuple | Mapping | np.ndarray | Transform) and _iterates(value)


def _iterates(value: object) -> bool:
    """Return whether a value is an iterable, such as a generator, and not a volume."""
    return isinstance(value, Iterable) and interop.image_library(value) is None and not hasattr(value, "affine")


def _propagated_atlas(value: object) -> Atlas | None:
    """Return the atlas of a registration on the grid of its fixed image, or of a candidate of an alignment."""
    for name in ("candidate", "atlas"):
        found = getattr(value, name, None)
        if isinstance(found, Atlas):
            return found
    return None


def _is_pair(value: object) -> bool:
    """Return whether a tuple is an image with its labels, and not several atlases or folders of libraries."""
    if not isinstance(value, tuple) or any(isinstance(v, Atlas | AtlasLibrary | tuple) for v in value):
        return False
    return not all(is_path(v) and (Path(v) / "images").is_dir() for v in value)


def _items(value: Any, what: str, expected: str) -> list[Any]:
    """List the members of an iterable, which must have at least one."""
    if value is None or isinstance(value, str | Mapping | np.ndarray) or not _iterates(value):
        raise refuse(value, what, expected)
    items = list(value)
    if not items:
        raise InputError(f"{what}: expected at least one, got an empty {type(value).__name__}.")
    return items


def as_list(value: Any, what: str, expected: str) -> tuple[list[Any], bool]:
    """Return the members of a list (or the value as its only member) and whether it was a list."""
    if is_many(value):
        return _items(value, what, expected), True
    return [value], False


def repeat_or_check(value: Any, count: int, what: str) -> list[Any]:
    """Repeat a single value (or None) `count` times, or check that a list has `count` values.

    Raises
    ------
    InputError
        The list has another length.
    """
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise InputError(f"{what}: expected one, or a list of {count}, got {len(value)}.")
    return list(value)


def _from_library(kind: type[V], value: Any, what: str) -> V | None:
    """Convert an image of another library to a volume; return None for any other value."""
    library = interop.image_library(value)
    if library is None:
        return None
    make: Callable[[Any], V] = getattr(kind, _FROM_LIBRARY[library])
    return _prefix_errors(what, lambda: make(value))


T = TypeVar("T")


def _prefix_errors(what: str, make: Callable[[], T]) -> T:
    """Call `make` and put the name of the argument before the message of its errors."""
    try:
        return make()
    except AtlasSegError as error:
        raise type(error)(f"{what}: {error}") from error
