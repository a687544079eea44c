"""Dense volumes: images, masks and label maps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from atlasseg import interop
from atlasseg.errors import GeometryError, InputError
from atlasseg.volume import display
from atlasseg.volume.grid import Bool, Float32, Float64, Grid, Int32, SourceHeader

if TYPE_CHECKING:
    import SimpleITK as sitk


@dataclass(frozen=True, eq=False, repr=False)
class _Volume:
    array: Any
    affine: Float64
    name: str = ""
    source_header: SourceHeader = field(default_factory=SourceHeader)

    def __post_init__(self) -> None:
        grid = Grid(self.array.shape[:3], self.affine)
        object.__setattr__(self, "affine", grid.affine)

    @property
    def grid(self) -> Grid:
        """Voxel grid: shape and affine."""
        return Grid(self.array.shape[:3], self.affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape without channels, (I, J, K)."""
        shape = self.array.shape
        return shape[0], shape[1], shape[2]

    @property
    def spacing_mm(self) -> Float64:
        """Voxel size in mm, (3,)."""
        return self.grid.spacing_mm

    def with_array(self, array: ArrayLike) -> Self:
        """Copy with other values on the same grid."""
        new = replace(self, array=np.asarray(array))
        if new.shape != self.shape:
            raise GeometryError(
                f"{self.name or 'volume'}: expected values of shape {self.shape}, as its grid, got {new.shape}"
            )
        return new

    def cropped(self, start: ArrayLike, stop: ArrayLike) -> Self:
        """Copy of the part ``[start:stop]`` on its own grid; `start` and `stop` are (3,) voxel indices.

        Raises
        ------
        GeometryError
            The part is empty, or is not inside the volume.
        """
        first, end = np.asarray(start, int), np.asarray(stop, int)
        if (first < 0).any() or (end > self.shape).any():
            raise GeometryError(
                f"{self.name or 'volume'}: expected voxels inside shape {self.shape}, got {first} to {end}"
            )
        box = tuple(slice(int(a), int(b)) for a, b in zip(first, end, strict=True))
        affine = self.grid.cropped(start, stop).affine
        return replace(self, array=self.array[box], affine=affine, source_header=self.source_header.cropped(start))

    def reoriented_to(self, grid: Grid) -> Self:
        """Copy with its axes permuted and flipped to match `grid`; values are not resampled.

        Raises
        ------
        GeometryError
            The voxels of `grid` are not those of this volume in another order of axes.

        Examples
        --------
        >>> from_right = [[-1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
        >>> LabelMap(np.array([[[1]], [[2]]]), from_right).reoriented_to(Grid((2, 1, 1), np.eye(4))).array.ravel()
        array([2, 1], dtype=int32)
        """
        if self.grid.matches(grid):
            return self
        steps = np.linalg.inv(self.affine) @ grid.affine  # voxel of `grid` to voxel of this volume
        turn = np.round(steps[:3, :3]).astype(int)
        if (np.abs(turn).sum(axis=0) == 1).all() and (np.abs(turn).sum(axis=1) == 1).all():
            axes = np.abs(turn).argmax(axis=0)  # axis of this volume for each axis of `grid`
            array = np.moveaxis(self.array, axes.tolist(), (0, 1, 2))
            flipped = [n for n in range(3) if turn[axes[n], n] < 0]
            array = np.ascontiguousarray(np.flip(array, flipped))
            if Grid(array.shape[:3], self._reoriented_affine(axes, turn)).matches(grid):
                return replace(
                    self, array=array, affine=grid.affine, source_header=replace(self.source_header, qform=None)
                )
        raise GeometryError(
            f"{self.name or type(self).__name__}: expected the voxels of the given grid in any order of axes, got "
            f"{self.grid.describe()} and {grid.describe()}"
        )

    def _reoriented_affine(self, axes: Int32, turn: Int32) -> Float64:
        """Affine after permuting and flipping the axes by `turn`, a (3, 3) matrix of -1, 0 and 1."""
        affine = self.affine.copy()
        affine[:3, :3] = self.affine[:3, :3] @ turn
        for n, axis in enumerate(axes):
            if turn[axis, n] < 0:
                affine[:3, 3] += self.affine[:3, axis] * (self.shape[axis] - 1)
        return affine

    @classmethod
    def from_nibabel(cls, image: Any, *, name: str = "") -> Self:
        """Convert a nibabel image. Values are scaled as its header says; a fourth axis holds channels.

        Parameters
        ----------
        image : nibabel.spatialimages.SpatialImage
            Image with an affine in RAS+ mm, as usual in nibabel.
        name : str, optional
            Name in messages and results; by default the name of its file.

        Raises
        ------
        InputError
            The class does not allow these values, or the image has no affine.
        """
        found = name or interop.name_from_nibabel(image)
        return cls(interop.array_from_nibabel(image), interop.affine_from_nibabel(image), found)

    @classmethod
    def from_sitk(cls, image: sitk.Image, *, name: str = "") -> Self:
        """Convert a 3-D SimpleITK image; the components of a vector image are channels.

        Raises
        ------
        InputError
            The class does not allow these values, or the image is not 3-D.
        """
        return cls(interop.array_from_sitk(image), interop.affine_from_sitk(image), name)

    @classmethod
    def from_ants(cls, image: Any, *, name: str = "") -> Self:
        """Convert a 3-D ANTs image (antspyx); its components are channels.

        Raises
        ------
        InputError
            The class does not allow these values, or the image is not 3-D.
        """
        return cls(interop.array_from_ants(image), interop.affine_from_ants(image), name)

    def to_nibabel(self) -> Any:
        """Convert to a nibabel NIfTI image in mm, with the sform and qform codes of the source file.

        Returns
        -------
        nibabel.Nifti1Image or nibabel.Nifti2Image
            float32 for an Image (a fourth axis holds channels), int32 for a LabelMap, uint8 (1 inside) for a Mask.
        """
        source = self.source_header
        return interop.array_to_nibabel(
            self._plain(), self.affine, sform_code=source.sform_code, qform_code=source.qform_code
        )

    def to_sitk(self) -> sitk.Image:
        """Convert to a SimpleITK image in LPS+ mm.

        Returns
        -------
        SimpleITK.Image
            float32 for an Image (channels become vector components), int32 for a LabelMap, uint8 (1 inside) for a Mask.
        """
        array = self._plain()
        return interop.array_to_sitk(array, self.affine, vector=array.ndim == 4)

    def to_ants(self) -> Any:
        """Convert to an ANTs image (antspyx) in LPS+ mm.

        Returns
        -------
        ants.ANTsImage
            float32 for an Image (channels become components); uint32 for a LabelMap, or float32 if a label is negative;
            uint8 (1 inside) for a Mask.

        Raises
        ------
        MissingLibraryError
            antspyx is not installed.
        InputError
            Some labels are negative and others above 2^24; no data type of ANTs holds both exactly.
        """
        return interop.array_to_ants(self._plain(), self.affine)

    def _plain(self) -> NDArray[Any]:
        """Values in a data type that other libraries support."""
        return np.asarray(self.array)

    def _values_described(self) -> str:
        raise NotImplementedError

    def __repr__(self) -> str:
        name = f"name: {self.name}; " if self.name else ""
        return f"{type(self).__name__}({name}{self.grid.describe()}; {self._values_described()})"


@dataclass(frozen=True, eq=False, repr=False)
class Image(_Volume):
    """Intensities: float32 of shape (I, J, K), or (I, J, K, C) with C channels (modalities), all finite.

    Parameters
    ----------
    array : (I, J, K) or (I, J, K, C) array
        The intensities, converted to float32.
    affine : (4, 4) array of float
        Voxel to RAS+ mm.
    name : str
        Name in messages; the path of a volume that was read from a file.
    source_header : SourceHeader
        Further fields of the file header, to write results in the same way.

    Raises
    ------
    InputError
        The array is not 3-D or 4-D, or holds NaN or infinity.
    """

    array: Float32

    def __post_init__(self) -> None:
        array = np.asarray(self.array, dtype=np.float32)
        where = f"image {self.name!r}: " if self.name else "image: "
        if array.ndim not in (3, 4):
            raise InputError(f"{where}expected a 3-D volume (channels last), got shape {array.shape}")
        if not np.isfinite(array).all():
            raise InputError(
                f"{where}expected finite intensities, got {int((~np.isfinite(array)).sum())} NaN or infinite"
            )
        object.__setattr__(self, "array", array)
        super().__post_init__()

    def _values_described(self) -> str:
        channels = f"channels: {self.array.shape[3]}; " if self.array.ndim == 4 else ""
        return f"{channels}dtype: {self.array.dtype}; range: {self.array.min():.4g} to {self.array.max():.4g}"

    def _repr_html_(self) -> str:
        return display.html(self, display.slices(self.grid, self.channels[..., 0]))

    @property
    def channels(self) -> Float32:
        """View of shape (I, J, K, C); C is 1 for a 3-D array."""
        return self.array if self.array.ndim == 4 else self.array[..., None]


@dataclass(frozen=True, eq=False, repr=False)
class Mask(_Volume):
    """Region of a volume: bool of shape (I, J, K).

    Parameters
    ----------
    array : (I, J, K) array
        Voxels with values other than 0 are inside.
    affine : (4, 4) array of float
        Voxel to RAS+ mm.
    name : str
        Name in messages; the path of a volume that was read from a file.
    source_header : SourceHeader
        Further fields of the file header, to write results in the same way.
    """

    array: Bool

    def __post_init__(self) -> None:
        array = np.asarray(self.array)
        if array.ndim != 3:
            raise InputError(f"mask {self.name!r}: expected a 3-D volume, got shape {array.shape}")
        if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and not np.isfinite(array).all()):
            raise InputError(f"mask {self.name!r}: expected finite numbers, got NaN, infinity or type {array.dtype}")
        object.__setattr__(self, "array", array.astype(bool))
        super().__post_init__()

    def _plain(self) -> NDArray[Any]:
        return self.array.astype(np.uint8)

    def _values_described(self) -> str:
        inside = int(self.array.sum())
        return f"inside: {inside} voxels ({100 * inside / self.array.size:.3g} %)"

    def _repr_html_(self) -> str:
        return display.html(self, display.slices(self.grid, None, self.array.astype(np.int32)))


@dataclass(frozen=True, eq=False, repr=False)
class LabelMap(_Volume):
    """Label map: one label per voxel, int32 of shape (I, J, K). 0 is background; values need not be contiguous.

    Parameters
    ----------
    array : (I, J, K) array of whole numbers
        The labels, converted to int32.
    affine : (4, 4) array of float
        Voxel to RAS+ mm.
    name : str
        Name in messages; the path of a volume that was read from a file.
    source_header : SourceHeader
        Further fields of the file header, to write results in the same way.

    Raises
    ------
    InputError
        The array is not 3-D, or a value is not a whole number of 32 bits.
    """

    array: Int32

    def __post_init__(self) -> None:
        given = np.asarray(self.array)
        where = f"label map {self.name!r}: " if self.name else "label map: "
        if given.ndim != 3:
            raise InputError(f"{where}expected a 3-D volume, got shape {given.shape}")
        if given.dtype.kind not in "biuf":
            raise InputError(f"{where}expected whole numbers as labels, got values of type {given.dtype}")
        if given.dtype != np.int32:
            if given.dtype.kind == "f":
                off = given != np.round(given)  # NaN differs from itself, so it is caught here too
                if off.any():
                    raise InputError(f"{where}expected whole numbers as labels, got {given[off].flat[0]:g}")
            limits = np.iinfo(np.int32)
            if given.size and (given.min() < limits.min or given.max() > limits.max):
                raise InputError(f"{where}expected labels of 32 bits, got {given.min():.12g} to {given.max():.12g}")
        object.__setattr__(self, "array", given.astype(np.int32, copy=False))
        super().__post_init__()

    @property
    def values(self) -> Int32:
        """Label values that occur, ascending, including background (0)."""
        return np.unique(self.array)

    def _values_described(self) -> str:
        return f"dtype: {self.array.dtype}; {display.format_labels(self.values)}"

    def _repr_html_(self) -> str:
        return display.html(self, display.slices(self.grid, None, self.array))
