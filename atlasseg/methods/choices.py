"""Choices of a parameter that are looked up when they are needed, as the type of the parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from atlasseg.errors import InputError


@dataclass(frozen=True)
class OneOf:
    """Constrains a string to names of a registry: ``metric: Annotated[str, OneOf(metric_names)]``.

    Attributes
    ----------
    names : tuple of str or callable
        The names, or what returns them.
    renamed : mapping of str to str
        Mapping of former names to present ones; the error for a former name gives the present one.
    chosen : callable, optional
        Takes a name and returns what it stands for, a class or a function: kept results depend on its code.
    """

    names: tuple[str, ...] | Callable[[], Iterable[str]]
    renamed: Mapping[str, str] = field(default_factory=dict, hash=False)
    chosen: Callable[[str], Any] | None = None

    @property
    def known(self) -> tuple[str, ...]:
        """The names."""
        return tuple(self.names() if callable(self.names) else self.names)

    def check(self, name: str, what: str = "") -> str:
        """The name, where it is one of them.

        Raises
        ------
        InputError
            It is not. The message begins with `what`, and gives the present name of a former one, or those that exist.
        """
        problem = self.problem(name)
        if problem:
            raise InputError(f"{what}{': ' if what else ''}{problem}, got {name!r}")
        return name

    def problem(self, name: str) -> str:
        """Describe what was expected in place of an unknown name; empty for a known one."""
        if name in self.known:
            return ""
        if self.renamed.get(name) in self.known:
            return f"expected {self.renamed[name]!r}, the present name of {name!r}"
        return f"expected one of {', '.join(self.known)}"

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        def validate(name: str) -> str:
            problem = self.problem(name)
            if problem:
                raise ValueError(problem)
            return name

        return core_schema.no_info_after_validator_function(validate, handler(source))
