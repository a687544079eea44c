"""The pages of the methods say what the docstrings say, and the README's commands are those that CI runs."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_pages_of_the_methods_are_up_to_date():
    spec = importlib.util.spec_from_file_location("make", ROOT / "docs/make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    stale = [path.name for path, text in make.pages().items() if not path.exists() or path.read_text("utf-8") != text]
    assert not stale, f"run python docs/make.py: {stale}"


def test_links_between_pages_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text("utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_ci_finds_the_test_command_in_the_readme():
    readme = (ROOT / "README.md").read_text("utf-8")
    command = readme.partition("<!-- the test command -->\n```sh\n")[2].partition("\n```")[0]
    assert command.startswith("python3 -m venv") and "pytest" in command and "\n" not in command
