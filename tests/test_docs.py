"""The site's generated pages are complete, links between files lead somewhere, and CI finds the README's command."""

import dataclasses
import importlib
import inspect
import re
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import atlasseg
from atlasseg import methods, recipe

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


def test_every_key_of_a_recipe_has_a_meaning_and_an_example_that_is_valid(extension):
    text = extension.recipe_pages.EXAMPLES.read_text("utf-8")
    examples = tomllib.loads(text)
    for title, kind in recipe.SECTIONS.items():
        meanings = methods.described_parameters(inspect.getdoc(kind))
        keys = [field.name for field in dataclasses.fields(kind)]
        assert [key for key in keys if not meanings.get(key)] == [], f"[{title}]: keys without a meaning"
        assert set(examples[title]) == set(keys), f"[{title}]: one example for each key"
    apart = {"tissue": examples.pop("tissue")}  # these exclude others
    given = {key: examples["registration"].pop(key) for key in ("initial", "channel_weights")}  # not with `prepared`
    initial = {"registration": given, "fusion": examples["fusion"]}
    localised = {"localisation": examples.pop("localisation"), "fusion": examples["fusion"]}
    for tables in (examples, apart, initial, localised):
        recipe.parse_recipe(tables)


def test_every_public_name_is_on_a_page_of_the_reference(extension):
    pages = "\n".join(extension.api_pages.pages().values())
    missing = [name for name in atlasseg.__all__ if not name.startswith("__") and f"atlasseg.{name}" not in pages]
    assert not missing


def list_own_methods(path: str) -> list[str]:
    """The public methods of a class, without those that a base class of the package describes."""
    module, _, name = path.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    bases = [base for base in kind.__mro__[1:] if base.__module__.startswith("atlasseg")]
    return [
        f"{path}.{method}"
        for method, thing in vars(kind).items()
        if not method.startswith("_") and inspect.isfunction(getattr(thing, "__func__", thing))
        if not any(method in vars(base) for base in bases)
    ]


def test_every_object_on_the_pages_of_the_api_describes_its_parameters_and_results(extension):
    validate = pytest.importorskip("numpydoc.validate").validate
    pages = "\n".join(extension.api_pages.pages().values())
    documented = re.findall(r"^\.\. auto(function|class):: (\S+)$", pages, flags=re.M)
    assert len(documented) > 200
    paths = [path for _, path in documented]
    paths += [method for kind, path in documented if kind == "class" for method in list_own_methods(path)]
    codes = {"GL08", "PR01", "PR02", "PR07", "RT01"}  # docstring, parameters with text, result
    wrong = []
    for path in paths:
        found = validate(path)
        elsewhere = re.search(r"^    (As for|See) ", found["docstring"], flags=re.M)  # the types are there
        wrong += [
            f"{path}: {text}" for code, text in found["errors"] if code in codes or (code == "PR04" and not elsewhere)
        ]
    assert not wrong, "\n".join(wrong)


def test_every_command_has_a_page_with_its_options(extension):
    pages = {str(path): text for path, text in extension.command_pages.pages().items()}
    assert "`--atlases" in pages["commands/run.md"] and "commands/atlases_average.md" in pages
    assert "atlasseg run [RECIPE] [OPTIONS]\n" in pages["commands/run.md"]
    assert "`--device auto|cpu|cuda`" in pages["commands/run.md"] and "default: auto]" in pages["commands/run.md"]
    assert "`--jobs, -j JOBS`" in pages["commands/run.md"] and "default: 0]" in pages["commands/run.md"]


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


@pytest.fixture(scope="module")
def links():
    """The script of CI that checks a built site."""
    spec = importlib.util.spec_from_file_location("links", ROOT / ".ci/links.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_broken_links_of_a_built_site_are_found(links, tmp_path, capsys):
    (tmp_path / "guide").mkdir()
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static/template.html").write_text('<link href="{{ theme }}">')
    (tmp_path / "picture one.png").touch()
    (tmp_path / "guide/data.html").write_text('<h2 id="labels"></h2><a name="old"></a><a href="../index.html#top">')
    sound = (
        '<p id="top"><a href="guide/data.html#labels"><a href="guide/data.html#old"><a href="#top"><a href="#">'
        '<img src="picture%20one.png"><a href="https://example.org/none#x"><a href="mailto:x@example.org">'
    )
    (tmp_path / "index.html").write_text(sound)
    assert links.main(tmp_path) == 0 and not capsys.readouterr().out
    (tmp_path / "index.html").write_text(
        sound + '<a href="guide/none.html"><a href="guide/data.html#none"><a href="#none"><img src="none.png">'
    )
    assert links.main(tmp_path) == 1
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[5].rstrip(",") for line in told] == [
        "guide/none.html",
        "guide/data.html#none",
        "#none",
        "none.png",
    ]


def test_a_folder_without_a_site_is_refused_by_the_check_of_links(links, tmp_path, capsys):
    assert links.main(tmp_path) == 1
    assert "index.html" in capsys.readouterr().out


def test_addresses_elsewhere_are_well_formed():
    """CI has no internet, so only their form is checked; ``sphinx -b linkcheck`` asks the sites."""
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/guide").glob("*.md"), *(ROOT / "docs/examples").glob("*")]
    found = [
        (page.name, url) for page in pages for url in re.findall(r"https?:[^\s)>\]`\"']+", page.read_text("utf-8"))
    ]
    assert found
    for name, url in found:
        parts = urlsplit(url)
        local = parts.hostname in ("127.0.0.1", "localhost")
        assert parts.hostname and (local or (parts.scheme == "https" and "." in parts.hostname)), f"{name}: {url}"


def test_ci_finds_the_test_command_in_the_readme():
    readme = (ROOT / "README.md").read_text("utf-8")
    command = readme.partition("<!-- the test command -->\n```sh\n")[2].partition("\n```")[0]
    assert command.startswith("python3 -m venv") and "pytest" in command and "\n" not in command
