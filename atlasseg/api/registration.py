"""``atlasseg.register``: register images, and use the result."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike

from atlasseg import io
from atlasseg.api.coercion import (
    ATLASES,
    as_atlas,
    as_atlases,
    as_image,
    as_label_map,
    as_list,
    as_mask,
    as_step,
    as_transform,
    describe_value,
    is_many,
    is_path,
    refuse,
    repeat_or_check,
)
from atlasseg.atlases.library import AtlasLibrary, Target
from atlasseg.errors import InputError
from atlasseg.methods import STAGES, Method
from atlasseg.propagation import propagate
from atlasseg.registration.fit import measure_fit
from atlasseg.registration.quality import RegistrationQuality, measure_quality
from atlasseg.resampling import resample
from atlasseg.templating import render_macro
from atlasseg.transforms import Transform
from atlasseg.volume import Atlas, Float64, Image, LabelMap, Mask, ProbabilityMap, display

Kind = Literal["image", "labels", "mask"]


@dataclass(frozen=True, eq=False, repr=False)
class PairwiseRegistration:
    """Registration of one image to another.

    Parameters
    ----------
    fixed, moving : Image
        Each on its own grid.
    transform : Transform
        Maps points of the fixed image to points of the moving image (`moving_from_fixed`), both in RAS+ mm.
    method : str
        Registration method.
    atlas : Atlas, optional
        The moving image with its labels, if an atlas was registered.

    Examples
    --------
    >>> import numpy as np
    >>> from atlasseg.transforms import Affine
    >>> image = Image(np.arange(24.0).reshape(2, 3, 4), np.eye(4))
    >>> shifted = PairwiseRegistration(image, image, Affine.translation((0, 0, 1)), "by hand")
    >>> shifted.warp(image).array[0, 0]
    array([1., 2., 3., 0.], dtype=float32)
    >>> shifted.transform_points([0, 0, 0])
    array([0., 0., 1.])
    """

    fixed: Image
    moving: Image
    transform: Transform
    method: str
    atlas: Atlas | None = None

    @cached_property
    def warped(self) -> Image:
        """Moving image resampled to the grid of the fixed image."""
        return resample(self.moving, self.fixed.grid, self.transform)

    @cached_property
    def candidate(self) -> Atlas | None:
        """Atlas on the grid of the fixed image, ready for fusion; None if an image without labels was registered."""
        return None if self.atlas is None else propagate(self.atlas, self.transform, self.fixed.grid)

    @overload
    def warp(self, volume: Image, *, kind: None = None, interpolation: str | None = None) -> Image: ...
    @overload
    def warp(self, volume: LabelMap, *, kind: None = None, interpolation: str | None = None) -> LabelMap: ...
    @overload
    def warp(self, volume: Mask, *, kind: None = None, interpolation: str | None = None) -> Mask: ...
    @overload
    def warp(
        self, volume: ProbabilityMap, *, kind: None = None, interpolation: str | None = None
    ) -> ProbabilityMap: ...
    @overload
    def warp(self, volume: Atlas, *, kind: None = None, interpolation: str | None = None) -> Atlas: ...
    @overload
    def warp(self, volume: Any, *, kind: Literal["image"], interpolation: str | None = None) -> Image: ...
    @overload
    def warp(self, volume: Any, *, kind: Literal["labels"], interpolation: str | None = None) -> LabelMap: ...
    @overload
    def warp(self, volume: Any, *, kind: Literal["mask"], interpolation: str | None = None) -> Mask: ...
    def warp(self, volume: Any, *, kind: Kind | None = None, interpolation: str | None = None) -> Any:
        """Warp a volume from the space of the moving image to the grid of the fixed image, by one resampling.

        Parameters
        ----------
        volume : Image, LabelMap, Mask, ProbabilityMap, Atlas, path or image of another library
            In the space of the moving image, on any grid.
        kind : {"image", "labels", "mask"}
            Content of a path or of an image of another library; it decides the interpolation. Not needed for the types
            of atlasseg.
        interpolation : str, optional
            See `atlasseg.resample`. Default: linear, for each label separately.

        Returns
        -------
        Image, LabelMap, Mask, ProbabilityMap or Atlas
            Same type as the given volume, on the grid of the fixed image.

        Raises
        ------
        InputError
            The volume is unsuitable, its kind is unknown, or the interpolation does not exist.
        """
        source = convert_volume(volume, kind)
        options: dict[str, Any] = {} if interpolation is None else {"interpolation": interpolation}
        if isinstance(source, Atlas):
            return propagate(source, self.transform, self.fixed.grid, **options)
        return resample(source, self.fixed.grid, self.transform, **options)

    @property
    def inverse(self) -> PairwiseRegistration:
        """Invert the registration: its `warp` takes volumes to the grid of the moving image.

        The inverse of a deformation has no closed form and is computed point by point, see
        `atlasseg.transforms.Inverse`.
        """
        return PairwiseRegistration(self.moving, self.fixed, ~self.transform, self.method)

    def transform_points(self, points_mm: ArrayLike) -> Float64:
        """Transform points of the fixed image to points of the moving image.

        Parameters
        ----------
        points_mm : (..., 3)
            RAS+ mm.

        Returns
        -------
        (..., 3) float64
            RAS+ mm.
        """
        return self.transform(points_mm)

    @cached_property
    def similarity(self) -> float:
        """Mean local correlation (0 to 1) of the fixed and the warped image, inside both fields of view."""
        bare = Atlas("", self.moving, LabelMap(np.zeros(self.moving.shape, np.int32), self.moving.affine))
        return measure_fit(
            self.fixed, None, propagate(bare, self.transform, self.fixed.grid), self.transform
        ).similarity

    @cached_property
    def quality(self) -> RegistrationQuality:
        """Regularity of the transform on the grid of the fixed image: range of the Jacobian determinant, and folds."""
        return measure_quality(self.transform, self.fixed.grid)

    def write(self, path: str | Path) -> None:
        """Write the transform for ITK, ANTs and Slicer; without a closed form it is sampled on the fixed grid.

        Parameters
        ----------
        path : path
            ``.h5`` for any transform, ``.tfm`` or ``.mat`` for an affine one, ``.nii.gz`` for a displacement field.

        Raises
        ------
        InputError
            The extension is unknown, or the format cannot hold the transform.
        OutputError
            The file cannot be written.
        """
        if not is_path(path):
            raise refuse(path, "path", "a path")
        io.write_transform(self.transform, path, grid=self.fixed.grid)

    def to_sitk(self) -> Any:
        """Convert to a SimpleITK transform of LPS+ mm points; without a closed form it is sampled on the fixed grid.

        Returns
        -------
        SimpleITK.Transform
        """
        return self.transform.to_sitk(grid=self.fixed.grid)

    def __repr__(self) -> str:
        names = f"moving {self.moving.name or 'image'} to fixed {self.fixed.name or 'image'}"
        return f"PairwiseRegistration({names}; method: {self.method}; transform: {type(self.transform).__name__})"

    def _repr_html_(self) -> str:
        images = {"fixed": self.fixed, "warped": self.warped}
        pictures = [(name, display.slices(each.grid, each.channels[..., 0])) for name, each in images.items()]
        return render_macro("notebook.html.j2", "registration", text=repr(self), pictures=pictures)


@overload
def register(
    fixed: Any, moving: list[Any] | AtlasLibrary, method: str | Method = ..., **options: Any
) -> list[PairwiseRegistration]: ...
@overload
def register(fixed: Any, moving: Any, method: str | Method = ..., **options: Any) -> PairwiseRegistration: ...
def register(
    fixed: Any,
    moving: Any,
    method: str | Method = STAGES["registration"].main_default,
    *,
    initial: Any = None,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    **parameters: Any,
) -> Any:
    """Register one or many moving images to a fixed image.

    Parameters
    ----------
    fixed : image
        The target: a path, an `Image`, or an image of nibabel, SimpleITK or ANTs.
    moving : image, atlas, library or list of these
        The moving images. For an `Atlas`, a pair (image, labels) or a library, the result keeps the labels, and the
        masks are used.
    method : str
        Name of a registration method, see ``atlasseg.list_methods("registration")``. "diffeomorphic" includes an
        affine registration.
    initial : transform or list of transforms, optional
        Initial transform: maps points of the fixed image to points of the moving image. One for all, or one per image.
    fixed_mask : mask, optional
        Region of the fixed image in which similarity is measured.
    moving_mask : mask or list of masks, optional
        Regions of the moving images in which similarity is measured.
    **parameters
        Parameters of the method; see ``atlasseg methods registration METHOD`` for names, ranges and defaults.

    Returns
    -------
    PairwiseRegistration, or list of PairwiseRegistration
        One result, or one per moving image in the given order.

    Raises
    ------
    InputError
        An image is unsuitable, or the method or a parameter does not exist.
    MissingLibraryError
        The method needs a library that is not installed.

    See Also
    --------
    segment : preprocessing, registration and fusion by a recipe.

    References
    ----------
    For the source of each method see ``atlasseg methods registration METHOD``.

    Examples
    --------
    >>> import atlasseg
    >>> sample = atlasseg.sample_data()
    >>> found = atlasseg.register(sample / "targets/images/target1.nii.gz", sample / "atlases/images/atlas1.nii.gz",
    ...                           method="affine")
    >>> found
    PairwiseRegistration(moving atlas1 to fixed target1; method: affine; transform: Affine)
    >>> found.warp(sample / "atlases/labels/atlas1.nii.gz", kind="labels").shape
    (48, 56, 42)
    """
    step = as_step("registration", method, parameters)
    target = as_image(fixed, what="fixed")
    members, many = as_list(moving, "moving", ATLASES) if not _is_library(moving) else (as_atlases(moving), True)
    sources = [
        _convert_moving(member, f"moving, number {n}" if many else "moving") for n, member in enumerate(members, 1)
    ]
    images = [source.image if isinstance(source, Atlas) else source for source in sources]
    masks = [
        (source.mask if isinstance(source, Atlas) else None) if mask is None else as_mask(mask, what="moving_mask")
        for source, mask in zip(sources, repeat_or_check(moving_mask, len(sources), "moving_mask"), strict=True)
    ]
    start = None
    if initial is not None:
        start = [as_transform(each, what="initial") for each in repeat_or_check(initial, len(sources), "initial")]
    inside = None if fixed_mask is None else as_mask(fixed_mask, what="fixed_mask")
    transforms = step(target, images, initial=start, fixed_mask=inside, moving_masks=masks)
    results = [
        PairwiseRegistration(target, image, transform, step.name, source if isinstance(source, Atlas) else None)
        for image, transform, source in zip(images, transforms, sources, strict=True)
    ]
    return results if many else results[0]


def _is_library(value: Any) -> bool:
    """Return whether a value is a library or its folder, whose atlases have labels."""
    return isinstance(value, AtlasLibrary) or (is_path(value) and is_many(value))


def _convert_moving(value: Any, what: str) -> Image | Atlas:
    """Convert a moving image, with its labels if they are known."""
    if isinstance(value, tuple):
        return as_atlas(value, what=what)
    if isinstance(value, Target):
        return as_atlas(value, what=what) if value.labels is not None else value.read()[0]
    return value if isinstance(value, Atlas) else as_image(value, what=what)


def convert_volume(volume: Any, kind: Kind | None) -> Image | LabelMap | Mask | ProbabilityMap | Atlas:
    """Convert a volume to warp to its type, by `kind` for a path or an image of another library."""
    if kind not in (None, "image", "labels", "mask"):
        raise InputError(f"kind: expected 'image', 'labels' or 'mask', got {describe_value(kind)}.")
    if kind == "labels":
        return as_label_map(volume, what="volume")
    if kind == "mask":
        return as_mask(volume, what="volume")
    if isinstance(volume, Image | LabelMap | Mask | ProbabilityMap | Atlas):
        if kind == "image" and not isinstance(volume, Image):
            return as_image(volume, what="volume")
        return volume
    if isinstance(volume, tuple):
        return as_atlas(volume, what="volume")
    if kind is None:
        advice = 'Give kind="image", "labels" or "mask", which decides the interpolation'
        raise refuse(volume, "volume", "a volume whose kind is known", advice)
    return as_image(volume, what="volume")
