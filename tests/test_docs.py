"""The site's generated pages are complete, links between files lead somewhere, and CI finds the README's command."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from atlasseg import methods

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def extension():
    """The Sphinx extension that generates pages; its folder is no package of the library."""
    pytest.importorskip("sphinx")
    sys.path.insert(0, str(ROOT / "docs"))
    yield importlib.import_module("_extension")
    sys.path.remove(str(ROOT / "docs"))


def test_every_method_has_a_page_with_its_parameters(extension):
    pages = {str(path): text for path, text in extension.method_pages.pages().items()}
    for stage in methods.STAGES:
        for name in methods.names(stage):
            text = pages[f"methods/{stage}/{name}.rst"]
            missing = [p.name for p in methods.get(stage, name).parameters if p.name not in text]
            assert not missing, f"{stage}/{name}: {missing}"


def test_terminal_texts_of_methods_hold_no_markup_of_equations():
    for stage in methods.STAGES:
        for name in methods.names(stage):
            method = methods.get(stage, name)
            for text in (method.summary, *(p.description for p in method.parameters), *method.references):
                assert ":math:" not in text and "\\" not in text, f"{stage}/{name}: {text}"


def test_links_between_pages_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        if {"_build", "generated", "gallery"} & set(page.parts):
            continue
        text = page.read_text("utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            made = any(part in target for part in ("generated/", "gallery/"))  # by the build, which checks them
            assert made or (page.parent / target).exists(), f"{page.name} links to {target}"


def test_ci_finds_the_test_command_in_the_readme():
    readme = (ROOT / "README.md").read_text("utf-8")
    command = readme.partition("<!-- the test command -->\n```sh\n")[2].partition("\n```")[0]
    assert command.startswith("python3 -m venv") and "pytest" in command and "\n" not in command
