"""Base class of similarity metrics, and their registry.

Each metric is a class in its own file. Registration maximises it, atlas selection ranks by it, and fusion weights
votes by it. All use it by name.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
from abc import ABC, abstractmethod
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

import numpy as np

from atlasseg.errors import InputError
from atlasseg.methods import OneOf
from atlasseg.volume import Bool, Float32, Float64

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "METRICS",
    "MetricName",
    "SimilarityMetric",
    "checked_images",
    "create_metric",
    "metric_class",
    "metric_names",
    "register_metric",
    "spread",
    "windowed_metric",
]

log = logging.getLogger(__name__)

ENTRY_POINTS = "atlasseg.similarity"
"""Group of entry points with metrics of other packages."""

RENAMED = {"ssd": "mean_squares", "mattes": "mutual_information", "cc": "local_correlation"}
"""Names of metrics: former names and names of other programs to the present names."""


class SimilarityMetric(ABC):
    """Similarity metric of two images on one grid.

    To add a metric, write a file ``atlasseg/similarity/NAME.py`` with one subclass: a frozen dataclass, decorated by
    `register_metric`, whose fields are its parameters. Only `value_and_gradient` must be written. The other methods
    follow from it; override them if they can be faster, exact or run on a GPU. In another package, use an entry point
    of the group ``atlasseg.similarity`` with the module; in a script, the decorator is sufficient.

    Images are (I, J, K), or (I, J, K, C) with C channels over which a metric averages. `mask` is (I, J, K) bool:
    voxels outside it do not count. If both images have a mask, give the intersection.

    Attributes
    ----------
    name : str
        Name in recipes.
    greater_is_better : bool
        False for a distance, which is 0 for equal images.
    unrelated : float
        Value for unrelated images, for which the weight of a vote is 0.
    """

    name: ClassVar[str] = ""
    greater_is_better: ClassVar[bool] = True
    unrelated: ClassVar[float] = 0.0

    def __str__(self) -> str:
        return self.name.replace("_", " ")

    @abstractmethod
    def value_and_gradient(self, fixed: Float32, warped: Float32, *, mask: Bool | None = None) -> tuple[float, Float32]:
        """Compute the metric in float64, and its derivative in the warped image.

        Parameters
        ----------
        fixed, warped : (I, J, K) or (I, J, K, C) float
            Images on one grid.
        mask : (I, J, K) bool, optional
            Voxels to compare. Default: all.

        Returns
        -------
        value : float
            Mean over the channels.
        gradient : float32, like `warped`
            Derivative of the value in each voxel; 0 outside the mask.

        Raises
        ------
        InputError
            The shapes differ, or the mask is empty.
        """

    def value(self, fixed: Float32, warped: Float32, *, mask: Bool | None = None) -> float:
        """Compute the metric.

        Parameters
        ----------
        fixed, warped, mask
            As for `value_and_gradient`, and so are the errors.

        Returns
        -------
        float
            Mean over the channels.
        """
        return self.value_and_gradient(fixed, warped, mask=mask)[0]

    def score(self, fixed: Float32, warped: Float32, *, mask: Bool | None = None) -> float:
        """Compute the similarity of two images for atlas selection.

        Parameters
        ----------
        fixed, warped, mask
            As for `value_and_gradient`, and so are the errors.

        Returns
        -------
        float
            Greater for more similar images.
        """
        value = self.value(fixed, warped, mask=mask)
        return value if self.greater_is_better else -value

    def vote_weight(self, fixed: Float32, warped: Float32, *, mask: Bool | None = None) -> float:
        """Compute the weight of a candidate's vote.

        Parameters
        ----------
        fixed, warped, mask
            As for `value_and_gradient`, and so are the errors. Intensities have mean 0 and standard deviation 1.

        Returns
        -------
        float
            0 or more.
        """
        if not self.greater_is_better:
            return 1 / max(self.value(fixed, warped, mask=mask), SMALLEST_DISTANCE)
        return max(self.value(fixed, warped, mask=mask) - self.unrelated, 0.0)

    def derivatives(self, fixed: Float32, warped: Float32, weight: Float32) -> tuple[float, Float32, Float32]:
        """Compute the objective of registration and its derivatives, for one channel on the CPU.

        Intensities are about 0 to 1. The value may be scaled and shifted relative to `value`, so that it is greater for
        more similar images, 0 for unrelated ones, and of a scale near 1.

        Parameters
        ----------
        fixed, warped : (I, J, K) float32
            Images on one grid.
        weight : (I, J, K) float32
            1 inside the mask, 0 outside. The mask may be empty.

        Returns
        -------
        value : float
            Objective; 0 for an empty mask.
        gradient : (I, J, K) float32
            Derivative of the value *times the number of voxels in the mask*, in each voxel of `warped`, for a constant
            weight; 0 outside the mask.
        curvature : (I, J, K) float32
            Second derivative of the same by Gauss-Newton with its sign changed, 0 or above. By default one
            number for all voxels: the norm of the gradient over the standard deviation of the warped image. The
            damping of the linear registrations corrects this scale.
        """
        gradient, curvature = np.zeros_like(warped), np.zeros_like(warped)
        mask = weight > 0
        count = int(np.count_nonzero(mask))
        if count == 0:
            return 0.0, gradient, curvature
        value, slope = self.value_and_gradient(fixed, warped, mask=mask)
        sign = 1 if self.greater_is_better else -1
        gradient[mask] = sign * count * slope[mask]
        deviation = float(warped[mask].std())
        if deviation > 0:
            curvature[mask] = float(np.sqrt(np.mean(gradient[mask].astype(np.float64) ** 2))) / deviation
        return sign * (value - self.unrelated), gradient, curvature

    def derivatives_torch(self, fixed: Tensor, warped: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute `derivatives` for many warped images against one fixed image.

        By default the images are copied to the CPU one by one, with a warning in the log.

        Parameters
        ----------
        fixed : (1, 1, I, J, K) float32
            The fixed image.
        warped, weight : (N, 1, I, J, K) float32
            Warped images and their masks, on one device.

        Returns
        -------
        value : (N,) float32
            Objective of each warped image.
        gradient, curvature : (N, 1, I, J, K) float32
            As for `derivatives`.
        """
        import torch

        _tell_slow(type(self))
        images = [x.cpu().numpy() for x in (fixed, warped, weight)]
        found = [self.derivatives(images[0][0, 0], w[0], m[0]) for w, m in zip(images[1], images[2], strict=True)]
        values, *others = zip(*found, strict=True)
        stacked = [torch.from_numpy(np.stack(each)[:, None]).to(warped.device) for each in others]
        return torch.tensor(values, dtype=torch.float32, device=warped.device), stacked[0], stacked[1]


SMALLEST_DISTANCE = 1e-6
"""Minimum distance, so that the weight of a candidate equal to the target is finite."""

Metric = TypeVar("Metric", bound=type)

METRICS: dict[str, type[SimilarityMetric]] = {}
"""Metrics by name whose file was imported; `metric_names` imports all."""


def register_metric(metric: Metric) -> Metric:
    """Decorate a class to register it as a similarity metric.

    Parameters
    ----------
    metric : type
        Subclass of `SimilarityMetric`.

    Returns
    -------
    type
        The same class.

    Raises
    ------
    InputError
        The metric is incomplete, or its name is used already.
    """
    where = f"similarity metric {getattr(metric, 'name', '')!r} ({metric.__module__})"
    if not (inspect.isclass(metric) and issubclass(metric, SimilarityMetric)):
        raise InputError(f"{where}: expected a subclass of SimilarityMetric, got {metric!r}")
    if not metric.name.isidentifier():
        raise InputError(f"{where}: expected a class attribute `name` of letters, digits and underscores")
    if inspect.isabstract(metric):
        missing = ", ".join(sorted(metric.__abstractmethods__))
        raise InputError(f"{where}: expected a definition of {missing}, got none")
    if not metric.__doc__:
        raise InputError(f"{where}: expected a docstring that defines the metric, got none")
    before = METRICS.get(metric.name)
    if before is not None and (before.__module__, before.__qualname__) != (metric.__module__, metric.__qualname__):
        raise InputError(f"{where}: another metric has this name, in {before.__module__}")
    METRICS[metric.name] = metric
    return metric


def metric_names() -> tuple[str, ...]:
    """List the names of all similarity metrics, in alphabetical order.

    Returns
    -------
    tuple of str

    Examples
    --------
    >>> "mutual_information" in metric_names()
    True
    """
    _import_all()
    return tuple(sorted(METRICS))


@cache
def _import_all() -> None:
    package = importlib.import_module(__package__)
    for info in pkgutil.iter_modules(package.__path__):
        if not info.name.startswith("_"):
            importlib.import_module(f"{package.__name__}.{info.name}")
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            loaded = entry.load()
        except InputError:
            raise
        except Exception as error:  # code of others may raise anything
            where = f"entry point {entry.name} = {entry.value} of {ENTRY_POINTS}"
            raise InputError(f"{where}: expected a loadable module, got {type(error).__name__}: {error}") from error
        if inspect.isclass(loaded):
            register_metric(loaded)


def metric_class(name: str) -> type[SimilarityMetric]:
    """Get the class of a metric.

    Parameters
    ----------
    name : str
        Name of the metric.

    Returns
    -------
    type
        Subclass of `SimilarityMetric`.

    Raises
    ------
    InputError
        The name is unknown. The message lists the known ones.
    """
    if name not in METRICS:
        METRIC_NAMES.check(name, "similarity metric")
    return METRICS[name]


def create_metric(name: str, **parameters: Any) -> SimilarityMetric:
    """Create a metric by name.

    Parameters
    ----------
    name : str
        Name of the metric.
    **parameters
        Its parameters, for example ``radius_voxels`` or ``bins``.

    Returns
    -------
    SimilarityMetric

    Raises
    ------
    InputError
        The metric or a parameter is unknown, or a value is out of range.

    Examples
    --------
    >>> create_metric("local_correlation", radius_voxels=3)
    LocalCorrelation(radius_voxels=3)
    """
    found = metric_class(name)
    known = parameters_of(found)
    for parameter in parameters:
        if parameter not in known:
            raise InputError(
                f"similarity metric {name!r}: expected parameters among {', '.join(known) or 'none'}, got {parameter!r}"
            )
    return found(**parameters)


def windowed_metric(name: str, radius_voxels: int) -> SimilarityMetric:
    """Create a metric by name with a given radius of its windows.

    Parameters
    ----------
    name : str
        Name of the metric.
    radius_voxels : int
        Radius of the windows, at least 1. Metrics without windows ignore it.

    Returns
    -------
    SimilarityMetric

    Raises
    ------
    InputError
        The metric is unknown, or the radius is below 1.
    """
    if radius_voxels < 1:
        raise InputError(f"radius_voxels: expected at least 1, got {radius_voxels}")
    has_windows = "radius_voxels" in parameters_of(metric_class(name))
    return create_metric(name, **({"radius_voxels": radius_voxels} if has_windows else {}))


def parameters_of(metric: type[SimilarityMetric]) -> tuple[str, ...]:
    """List the names of the parameters of a metric: its fields."""
    return tuple(f.name for f in fields(metric)) if is_dataclass(metric) else ()


METRIC_NAMES = OneOf(metric_names, renamed=RENAMED, chosen=metric_class)

MetricName = Annotated[str, METRIC_NAMES]
"""Type of a parameter that names a similarity metric."""


@cache
def _tell_slow(metric: type[SimilarityMetric]) -> None:
    log.warning("similarity metric %s: computed on the CPU, since it has no GPU implementation", metric.name)


def checked_images(fixed: Float32, warped: Float32, mask: Bool | None) -> tuple[Float64, Float64, Bool]:
    """Convert both images to (I, J, K, C) float64, and make the mask (I, J, K).

    Parameters
    ----------
    fixed, warped : (I, J, K) or (I, J, K, C) float
        Images on one grid.
    mask : (I, J, K) bool, optional
        Voxels to compare. Default: all.

    Returns
    -------
    fixed, warped : (I, J, K, C) float64
        The images.
    mask : (I, J, K) bool
        The mask.

    Raises
    ------
    InputError
        The shapes differ, or the mask is empty.
    """
    f, w = np.asarray(fixed, np.float64), np.asarray(warped, np.float64)
    if f.shape != w.shape or f.ndim not in (3, 4):
        raise InputError(f"expected two images of one shape (I, J, K) or (I, J, K, C), got {f.shape} and {w.shape}")
    inside = np.ones(f.shape[:3], bool) if mask is None else np.asarray(mask, bool)
    if inside.shape != f.shape[:3]:
        raise InputError(f"mask: expected the shape of the images, {f.shape[:3]}, got {inside.shape}")
    if not inside.any():
        raise InputError(f"mask: expected voxels to compare, got an empty mask of shape {inside.shape}")
    return f.reshape(*f.shape[:3], -1), w.reshape(*f.shape[:3], -1), inside


def spread(gradient: Float64, inside: Bool, like: Float32) -> Float32:
    """Expand derivatives (n, C) of the voxels in the mask to the shape of the image; 0 outside the mask.

    Parameters
    ----------
    gradient : (n, C) float64
        Derivatives at the voxels of the mask.
    inside : (I, J, K) bool
        The mask.
    like : (I, J, K) or (I, J, K, C) float32
        Image whose shape the result has.

    Returns
    -------
    float32
        Derivatives, 0 outside the mask.
    """
    out = np.zeros((*inside.shape, gradient.shape[-1]), np.float32)
    out[inside] = gradient
    return out.reshape(like.shape)
