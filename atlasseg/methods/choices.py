"""Type of a parameter whose choices are the names of a registry, read when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from atlasseg.errors import InputError


@dataclass(frozen=True)
class OneOf:
    """Constrains a string to names of a registry: ``metric: Annotated[str, OneOf(metric_names)]``.

    Parameters
    ----------
    names : tuple of str or callable
        The names, or a function that returns them.
    renamed : mapping of str to str
        Mapping of former names to present ones; the error for a former name gives the present one.
    chosen : callable, optional
        Function that returns the class or function of a name. The keys of cached results include its code.
    """

    names: tuple[str, ...] | Callable[[], Iterable[str]]
    renamed: Mapping[str, str] = field(default_factory=dict, hash=False)
    chosen: Callable[[str], Any] | None = None

    @property
    def known(self) -> tuple[str, ...]:
        """The names."""
        return tuple(self.names() if callable(self.names) else self.names)

    def check(self, name: str, what: str = "") -> str:
        """Check a name.

        Parameters
        ----------
        name : str
            Name to check.
        what : str
            Begin of the error message, for example the key of a recipe.

        Returns
        -------
        str
            The name.

        Raises
        ------
        InputError
            The name is unknown. The message gives the new name of a former one, or the known names.
        """
        problem = self.problem(name)
        if problem:
            raise InputError(f"{what}{': ' if what else ''}{problem}, got {name!r}")
        return name

    def problem(self, name: str) -> str:
        """Describe the expected names for an unknown name.

        Parameters
        ----------
        name : str
            Name to check.

        Returns
        -------
        str
            Text for an error message; empty for a known name.
        """
        if name in self.known:
            return ""
        if self.renamed.get(name) in self.known:
            return f"expected {self.renamed[name]!r}, the new name of {name!r}"
        return f"expected one of {', '.join(self.known)}"

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        def validate(name: str) -> str:
            problem = self.problem(name)
            if problem:
                raise ValueError(problem)
            return name

        return core_schema.no_info_after_validator_function(validate, handler(source))
