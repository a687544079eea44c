"""Pictures of the gallery: figures of pyplot, and figures that a function of atlasseg returned."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst, matplotlib_scraper


def scrape_figures(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Save the pictures of one block of an example.

    pyplot keeps its figures by number. A figure that was made without pyplot is the value of the block's last line.
    """
    text: str = matplotlib_scraper(block, block_vars, gallery_conf, bbox_inches="tight")
    last = block_vars["example_globals"].get("___")
    if isinstance(last, Figure) and not hasattr(last, "_shown_in_gallery"):
        last._shown_in_gallery = True  # type: ignore[attr-defined]
        path = next(block_vars["image_path_iterator"])
        last.savefig(path, dpi=110, bbox_inches="tight")
        text += figure_rst([path], gallery_conf["src_dir"])
    return text
