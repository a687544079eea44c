"""Sphinx extension of this site: pages generated from the live package, and four small conveniences.

`method_pages`, `recipe_pages`, `api_pages`, `command_pages` and `repository_pages` each return pages: a mapping from a
path under ``docs/generated`` to its text. They are written before Sphinx looks for sources; a page whose text did not
change is not touched, so that a second build is quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from . import api_pages, command_pages, defaults, mathjax, method_pages, recipe_pages, references, repository_pages

GENERATORS = (method_pages, recipe_pages, api_pages, command_pages, repository_pages)


def write_pages(app: Sphinx) -> None:
    """Write the generated pages, and remove those that are no longer generated."""
    folder = Path(app.srcdir) / "generated"
    pages = {folder / path: text for generator in GENERATORS for path, text in generator.pages().items()}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path not in pages:
            path.unlink()
    for path, text in pages.items():
        if not path.exists() or path.read_text("utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("builder-inited", write_pages, priority=100)
    references.setup(app)
    defaults.setup(app)
    mathjax.setup(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
