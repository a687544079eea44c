"""The errors that a user of atlasseg can cause, and can mend."""

__all__ = [
    "AtlasSegError",
    "ClusterError",
    "GeometryError",
    "InputError",
    "MissingLibraryError",
    "OutputError",
    "TrainingError",
]


class AtlasSegError(Exception):
    """Base of every error that atlasseg raises on purpose."""


class InputError(AtlasSegError, ValueError):
    """What was given cannot be used: the message says what it was, what was wanted, and where."""


class GeometryError(InputError):
    """Volumes that must share a grid or overlap in space do not."""


class MissingLibraryError(AtlasSegError, ImportError):
    """An optional library is not installed: the message names the extra that brings it."""


class OutputError(AtlasSegError, OSError):
    """A result cannot be written (no space, no permission): the message names the file and the reason."""


class ClusterError(AtlasSegError):
    """The machines that the work was given to were lost."""


class TrainingError(AtlasSegError, ArithmeticError):
    """A training went astray: the message names the step and what it was learning from."""
