"""Configuration of the documentation site: ``python -m sphinx -W docs docs/_build``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]  # the package of this checkout, and `_extension`
# examples run in processes of their own, which find the package the same way
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")])

import atlasseg  # noqa: E402

project = "atlasseg"
author = "The atlasseg developers"
copyright = "The atlasseg developers"
version = release = atlasseg.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "_extension",
]
exclude_patterns = ["_build", "_extension", "examples"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
nitpicky = True
nitpick_ignore_regex = [("py:.*", rf"{name}(\..*)?") for name in ("abc", "logging", "http", "ndarray", "numpy")]
smartquotes = False  # they turn the dashes of --option into one long dash
default_role = "soft"  # `name` in a docstring: a link where there is such an object, code elsewhere

# API reference
autodoc_typehints = "none"  # the types are in the Parameters section
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autosummary_generate = False
add_module_names = False
numpydoc_show_class_members = False
toc_object_entries_show_parents = "hide"

# prose
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_inline"]
myst_heading_anchors = 4
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# gallery
sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "matplotlib_animations": False,
    "image_scrapers": ("_extension.scraper.scrape_figures",),
    "capture_repr": ("_repr_html_",),
    "reset_modules": ("matplotlib",),
    "min_reported_time": 1000,
    "show_memory": False,
    "download_all_examples": False,
    "remove_config_comments": True,
    "abort_on_example_error": True,
    "show_signature": False,
    "write_computation_times": False,
}

# appearance
html_theme = "pydata_sphinx_theme"
html_title = f"atlasseg {release}"
html_static_path = ["_static"]
html_css_files = ["atlasseg.css"]
html_sidebars = {page: [] for page in ("index", "install", "first_steps", "faq")}  # these have no pages below them
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "header_links_before_dropdown": 6,
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}

# The build checks links within the site. `-b linkcheck` checks addresses elsewhere, on a machine with internet.
linkcheck_anchors = False
