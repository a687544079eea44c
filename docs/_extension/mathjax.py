"""MathJax from the site itself, so that equations are drawn without internet."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from sphinx.application import Sphinx

WANTED = ("tex-chtml.js", "output/chtml/fonts/woff-v2")


def copy_files(app: Sphinx, exception: Exception | None) -> None:
    """Copy the script and its fonts from the package sphinx-mathjax-offline (Apache licence)."""
    if exception is not None or app.builder.format != "html":
        return
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise RuntimeError("sphinx-mathjax-offline is not installed: pip install 'atlasseg[docs]'")
    source = Path(spec.origin).parent / "static/mathjax"
    target = Path(app.outdir) / "_static/mathjax"
    for name in WANTED:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)


def setup(app: Sphinx) -> None:
    """Point Sphinx to the copy."""
    app.config.mathjax_path = "mathjax/tex-chtml.js"
    app.connect("build-finished", copy_files)
