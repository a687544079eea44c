"""Check the links of a built site without a network: every page, picture and anchor that a page names must exist.

python .ci/links.py docs/_build
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links and the anchors of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what an element links to, and what it can be reached by."""
        for name, value in attrs:
            if value and (name == "id" or (name == "name" and tag == "a")):
                self.anchors.add(value)
            elif value and name in ("href", "src"):
                self.links.append(value)


def broken_links(root: Path) -> Iterator[str]:
    """Every link of the site at `root` that leads nowhere, as a message."""
    found = (path for path in sorted(root.rglob("*.html")) if "_static" not in path.relative_to(root).parts)
    pages = {path: Page(path.read_text("utf-8")) for path in found}  # without templates of the theme
    for path, page in pages.items():
        for link in dict.fromkeys(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.is_file():
                yield f"{path.relative_to(root)}: expected a file at {link}, got none. Mend the link."
            elif anchor and target in pages and anchor not in pages[target].anchors:
                yield f"{path.relative_to(root)}: expected an anchor at {link}, got none. Mend the link."


def main(folder: str) -> int:
    """Print the broken links of the site in `folder`; 1 where there are any."""
    root = Path(folder).resolve()
    if not (root / "index.html").is_file():
        print(f"{folder}: expected a built site, got no index.html. Build it with python -m sphinx docs {folder}.")
        return 1
    found = list(broken_links(root))
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
