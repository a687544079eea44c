"""Render HTML from the Jinja2 templates of pages and notebooks, in which numbers are written the same way everywhere.

The templates are in ``report/templates``. They escape every value that is not markup already, and a name that they are
not given is an error. Jinja2 is imported at the first use.
"""

from __future__ import annotations

import math
import os
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

MINUS = "\u2212"


@cache
def environment() -> Environment:
    """Return the Jinja2 environment of all templates.

    Filters: `grouped`, `significant`, `fixed`, `volume`, `duration`, `counted` and `address` of this module. Test:
    ``finite``. Global: ``asset(NAME)``, the text of a style sheet or script in ``report``, as markup.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    made = Environment(
        loader=PackageLoader("atlasseg", "report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    filters = (grouped, significant, fixed, volume, duration, counted, address)
    made.filters.update({each.__name__: each for each in filters})
    made.tests["finite"] = math.isfinite
    made.globals["asset"] = lambda name: Markup((files("atlasseg") / "report" / name).read_text("utf-8"))
    return made


def render(template: str, **data: Any) -> str:
    """Render a whole page.

    Parameters
    ----------
    template : str
        File name in ``report/templates``.
    **data
        Names that the template uses.

    Raises
    ------
    jinja2.UndefinedError
        The template uses a name that is not among them.
    """
    return environment().get_template(template).render(data)


def render_macro(template: str, macro: str, **data: Any) -> Markup:
    """Render one macro of a template, as markup to be put into another template.

    Parameters
    ----------
    template : str
        File name in ``report/templates``.
    macro : str
        Its name there.
    **data
        Its arguments.

    Raises
    ------
    jinja2.UndefinedError
        The macro uses a name that is not among them.
    """
    made: Markup = getattr(environment().get_template(template).module, macro)(**data)
    return made


def address(path: str) -> str:
    """Percent-encode a relative path as the value of ``href``: a name may hold ``#``, ``?``, ``%`` or a space."""
    return quote(os.fsencode(path))


def significant(value: float, digits: int = 3) -> str:
    """Write a number with so many significant digits, without an exponent, thousands separated by thin spaces."""
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])  # of the rounded value: 0.9996 shows as 1.00
    decimals = max(digits - 1 - exponent, 0)
    return fixed(value, min(decimals, 6))


def fixed(value: float, decimals: int) -> str:
    """Write a number with so many decimals, thousands separated by thin spaces."""
    return grouped(f"{value:.{decimals}f}")


def grouped(digits: str) -> str:
    """Separate thousands by thin spaces that do not break, and write a true minus sign."""
    whole, dot, rest = digits.lstrip("-").partition(".")
    parts = [whole[max(n - 3, 0) : n] for n in range(len(whole), 0, -3)][::-1]
    negative = digits.startswith("-") and any(c in "123456789" for c in digits)
    return (MINUS if negative else "") + "\u202f".join(parts) + dot + rest


def volume(mm3: float) -> str:
    """Write a volume in millilitres from 1 ml on, else in cubic millimetres."""
    return f"{significant(mm3 / 1000)} ml" if mm3 >= 1000 else f"{significant(mm3)} mm\u00b3"


def duration(seconds: float) -> str:
    """Write a time in seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def counted(n: int, one: str, many: str | None = None) -> str:
    """Write a number of things: ``1 atlas``, ``2 atlases``."""
    return f"{grouped(str(n))} {one if n == 1 else many or one + 's'}"
