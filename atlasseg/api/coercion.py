"""What a user gives, as the data types: paths, images of other libraries, pairs, libraries, names of methods.

Whatever cannot be used is refused here, by an `InputError` that names the argument, what was expected and what was
given; nothing further inside has to ask.
"""

from __future__ import annotations

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
from atlasseg.transforms import Transform
from atlasseg.volume import Atlas, Grid, Image, LabelMap, Mask, ProbabilityMap

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


def given(value: object) -> str:
    """What was given, in a few words, for messages."""
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
    """The error for an argument `what` that is none of what is `expected`."""
    if isinstance(value, np.ndarray) and not advice:
        advice = (
            "An array has no place in space: give atlasseg.Image(array, affine) or atlasseg.LabelMap(array, affine), "
            "where the (4, 4) affine takes voxel indices to RAS+ mm"
        )
    return InputError(f"{what}: expected {expected}, got {given(value)}." + (f" {advice}." if advice else ""))


# ----------------------------------------------------------------------------------------------------------- volumes


def as_image(value: Any, *, what: str = "image") -> Image:
    """An image from a path, from an image of nibabel, SimpleITK or ANTs, or from an atlas.

    Parameters
    ----------
    value : path, Image, Atlas or image of another library
        The path of a volume or of the folder of a DICOM series. Components of an image of SimpleITK or ANTs are
        channels; a fourth axis of one of nibabel is refused, since it may be time (`Image.from_nibabel` takes it).
    what : str
        What messages call it.

    Returns
    -------
    Image

    Raises
    ------
    InputError
        It is none of these, or cannot be read.

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
    if interop.image_library(value) == "nibabel" and [n for n in value.shape[3:] if n != 1]:
        advice = "If its fourth axis holds channels, give atlasseg.Image.from_nibabel(image)"
        raise InputError(f"{what}: expected a 3-D image, got one of nibabel with shape {value.shape}. {advice}.")
    found = _from_library(Image, value, what)
    if found is not None:
        return found
    advice = ""
    if isinstance(value, LabelMap | Mask):
        advice = "If its numbers are intensities, give atlasseg.Image(volume.array, volume.affine)"
    raise refuse(value, what, IMAGE, advice)


def as_label_map(value: Any, *, what: str = "labels") -> LabelMap:
    """A label map from a path, an image of nibabel, SimpleITK or ANTs, or a type that holds labels.

    Parameters
    ----------
    value : path, LabelMap, ProbabilityMap, Mask, Atlas, Segmentation or image of another library
        Of probabilities the most probable label is taken, of a mask 1 inside. Of an image of another library the values
        must be whole.
    what : str
        What messages call it.

    Returns
    -------
    LabelMap

    Raises
    ------
    InputError
        It is none of these, cannot be read, or has a value that is no label.
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
    """A mask from a path, an image of nibabel, SimpleITK or ANTs, or a label map: inside is where it is not 0.

    Parameters
    ----------
    value : path, Mask, LabelMap or image of another library
    what : str
        What messages call it.

    Returns
    -------
    Mask

    Raises
    ------
    InputError
        It is none of these, or cannot be read.
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
        advice = "Say which intensities are inside: atlasseg.Mask(image.array > 0, image.affine)"
    raise refuse(value, what, MASK, advice)


def as_probability_map(value: Any, *, what: str = "probabilities") -> ProbabilityMap:
    """Label probabilities from a path, a label map (which is certain), an atlas, or a segmentation.

    Parameters
    ----------
    value : path, ProbabilityMap, LabelMap, Atlas or Segmentation
        A path is that of a 4-D file of probabilities whose labels are known: see `read_probability_map`.
    what : str
        What messages call it.

    Returns
    -------
    ProbabilityMap

    Raises
    ------
    InputError
        It is none of these, or cannot be read.
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
    """Where voxels lie: a grid, or that of any volume.

    Parameters
    ----------
    value : Grid, path, image, label map, mask, probabilities or atlas
    what : str
        What messages call it.

    Returns
    -------
    Grid

    Raises
    ------
    InputError
        It is none of these, or cannot be read.
    """
    if isinstance(value, Grid):
        return value
    if isinstance(value, Image | LabelMap | Mask | ProbabilityMap):
        return value.grid
    return as_image(value, what=what).grid


def as_transform(value: Any, *, what: str = "transform") -> Transform:
    """A transform from a path, a transform of SimpleITK, or the result of a registration.

    Parameters
    ----------
    value : path, Transform, SimpleITK.Transform, PairwiseRegistration or Candidate
    what : str
        What messages call it.

    Returns
    -------
    Transform

    Raises
    ------
    InputError
        It is none of these, or cannot be read.
    """
    if isinstance(value, Transform):
        return value
    if isinstance(getattr(value, "transform", None), Transform):
        found: Transform = value.transform
        return found
    if is_path(value):
        return io.read_transform(as_path(value, what=what, expected=TRANSFORM))
    if interop.is_sitk_transform(value):
        return _about(what, lambda: transform_from_sitk(value))
    advice = ""
    if isinstance(value, np.ndarray):
        advice = "If it is a (4, 4) matrix that takes RAS+ mm to RAS+ mm, give atlasseg.Affine(matrix)"
    raise refuse(value, what, TRANSFORM, advice)


def as_label_table(value: Any, *, what: str = "table") -> LabelTable:
    """A label table, or one from a path.

    Raises
    ------
    InputError
        It is neither, or cannot be read.
    """
    if isinstance(value, LabelTable):
        return value
    if is_path(value):
        return io.read_label_table(as_path(value, what=what, expected=TABLE))
    raise refuse(value, what, TABLE)


# ----------------------------------------------------------------------------------------------------------- atlases


def as_atlas(value: Any, *, what: str = "atlas", id: str = "") -> Atlas:
    """An atlas, or one from a pair (image, labels) or a triple (image, labels, mask).

    Parameters
    ----------
    value : Atlas, tuple, PairwiseRegistration or Candidate
        Labels may be a label map or probabilities, on the grid of the image. A registration of an atlas gives the
        atlas on the grid of the fixed image.
    what : str
        What messages call it.
    id : str
        The id of an atlas that comes as a pair; by default the name of its image.

    Returns
    -------
    Atlas

    Raises
    ------
    InputError
        It is none of these, or a part of it cannot be used.
    GeometryError
        The labels are not on the grid of the image.
    """
    if isinstance(value, Atlas):
        return value
    carried = _carried(value)
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
            advice = "It is the registration of an image without labels: register an atlas, or (image, labels)"
        elif is_path(value) or isinstance(value, Image | LabelMap) or interop.image_library(value):
            advice = "Give the image and its labels together: (image, labels)"
        raise refuse(value, what, ATLAS, advice)
    image = as_image(value[0], what=f"{what}, image")
    labels_ = value[1]
    found = labels_ if isinstance(labels_, ProbabilityMap) else as_label_map(labels_, what=f"{what}, labels")
    mask_ = None if len(value) == 2 or value[2] is None else as_mask(value[2], what=f"{what}, mask")
    return _about(what, lambda: Atlas(id or image.name or what, image, found, mask_))


def as_atlases(value: Any, *, what: str = "atlases") -> list[Atlas]:
    """Atlases from a library or its folder, from atlases, or from pairs (image, labels).

    Parameters
    ----------
    value : AtlasLibrary, path, Atlas, tuple or iterable of these
        A tuple (image, labels) or (image, labels, mask) is one atlas; a list holds several. A path is the folder of a
        library, see `read_library`; a list of folders is one library.
    what : str
        What messages call them.

    Returns
    -------
    list of Atlas
        In the order given, those of a library ascending by id; ids are unique.

    Raises
    ------
    InputError
        It is none of these, a file cannot be read, there is no atlas, or two have one id.
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
    return with_unique_ids(found, items, what)


def with_unique_ids(atlases: Sequence[Atlas], items: Sequence[Any], what: str) -> list[Atlas]:
    """The atlases, those that came as pairs of one name numbered; ids that a user gave are never changed."""
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
    """Candidates of a fusion: as `as_atlases`, and label maps alone for a method that looks at no intensities.

    Raises
    ------
    InputError
        As `as_atlases`; or a label map comes alone, and the method compares intensities.
    """
    if not isinstance(value, list) or method.needs.compares_intensities:
        try:
            return as_atlases(value, what=what)
        except InputError as error:
            if isinstance(value, list) and any(isinstance(v, LabelMap | ProbabilityMap) for v in value):
                raise InputError(
                    f"{what}: expected atlases or pairs (image, labels), since the method {method.name!r} compares "
                    "intensities; got labels alone. Give the images too, or choose a method that needs none "
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
                f"{name}: expected labels on the grid of the target ({target.grid.described()}), got "
                f"{labels.grid.described()}. Carry them over by atlasseg.register and its warp."
            )
        image = Image(np.zeros(target.shape, np.float32), target.affine)  # which such a method does not look at
        found.append(Atlas(labels.name or f"candidate{number}", image, replace(labels, affine=target.affine)))
    return with_unique_ids(found, items, what)


# -------------------------------------------------------------------------------------------------- paths and methods


def is_path(value: object) -> bool:
    """Whether a value is a path: text or a path-like object."""
    return isinstance(value, str | os.PathLike)


def as_path(value: Any, *, what: str, expected: str) -> Path:
    """A path that is not empty."""
    if not is_path(value) or not str(value).strip():
        raise refuse(value, what, expected)
    return Path(value)


def as_step(stage: str, method: Any, parameters: Mapping[str, Any]) -> Step:
    """A method of a stage, by its name or as `list_methods` gives it, with its parameters checked.

    Raises
    ------
    InputError
        There is no such method or parameter, or a value has not the right type.
    """
    name = method.name if isinstance(method, Method) and method.stage == stage else method
    if not isinstance(name, str):
        raise refuse(method, "method", f"the name of a {stage} method (see atlasseg.list_methods({stage!r}))")
    return make_step(stage, name, parameters)


def is_many(value: object) -> bool:
    """Whether a value holds several volumes: a library, a folder of one, or a list."""
    if isinstance(value, AtlasLibrary | list | set | frozenset):
        return True
    if is_path(value):
        return bool(str(value).strip()) and (Path(str(value)) / "images").is_dir()
    return not isinstance(value, str | tuple | Mapping | np.ndarray | Transform) and _iterates(value)


def _iterates(value: object) -> bool:
    """Whether a value is a generator, a dictionary's view or the like, and no volume."""
    return isinstance(value, Iterable) and interop.image_library(value) is None and not hasattr(value, "affine")


def _carried(value: object) -> Atlas | None:
    """The atlas of a registration on the grid of its fixed image, or of a candidate of an alignment."""
    for name in ("candidate", "atlas"):
        found = getattr(value, name, None)
        if isinstance(found, Atlas):
            return found
    return None


def _is_pair(value: object) -> bool:
    """Whether a tuple is an image with its labels, and not several atlases or folders of libraries."""
    if not isinstance(value, tuple) or any(isinstance(v, Atlas | AtlasLibrary | tuple) for v in value):
        return False
    return not all(is_path(v) and (Path(v) / "images").is_dir() for v in value)


def _items(value: Any, what: str, expected: str) -> list[Any]:
    """The members of a list or another iterable; at least one."""
    if value is None or isinstance(value, str | Mapping | np.ndarray) or not _iterates(value):
        raise refuse(value, what, expected)
    items = list(value)
    if not items:
        raise InputError(f"{what}: expected at least one, got an empty {type(value).__name__}.")
    return items


def as_list(value: Any, what: str, expected: str) -> tuple[list[Any], bool]:
    """The members of a list, or the value as the only one; and whether it was a list."""
    if is_many(value):
        return _items(value, what, expected), True
    return [value], False


def one_each(value: Any, count: int, what: str) -> list[Any]:
    """`count` values: of a list as many, of one value (or None) the same each time.

    Raises
    ------
    InputError
        A list has another length.
    """
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise InputError(f"{what}: expected one, or one each of {count}, got {len(value)}.")
    return list(value)


def _from_library(kind: type[V], value: Any, what: str) -> V | None:
    """A volume from an image of another library; None where it is of none."""
    library = interop.image_library(value)
    if library is None:
        return None
    make: Callable[[Any], V] = getattr(kind, _FROM_LIBRARY[library])
    return _about(what, lambda: make(value))


T = TypeVar("T")


def _about(what: str, make: Callable[[], T]) -> T:
    """What `make` makes; where it refuses, the message begins with the name of the argument."""
    try:
        return make()
    except AtlasSegError as error:
        raise type(error)(f"{what}: {error}") from error
