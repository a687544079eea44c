"""Recipes to start from: complete, valid, and with the defaults that the code has."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from atlasseg import methods
from atlasseg.cli import app
from atlasseg.recipe import SECTIONS, parse_recipe, read_recipe
from atlasseg.recipe.defaults import FUSIONS, default_recipe, default_tables
from atlasseg.recipe.template import WIDTH, example, format_template
from atlasseg.resources import shipped_recipes

KEY = re.compile(r"# ([a-z_]\w*(?:\.\w+)?) = (.+)")
FULL = format_template(default_tables("multi"), title="A recipe.")
TISSUE = format_template({"tissue": {"method": "field"}}, title="A recipe.")


def same(one, other):
    """Whether two recipes say the same, whatever their text."""
    plain = [dataclasses.replace(each, text="", base=None, name="") for each in (one, other)]
    return plain[0] == plain[1]


@pytest.mark.parametrize("kind", FUSIONS)
@pytest.mark.parametrize("brief", [False, True])
def test_the_template_of_the_default_recipe_is_that_recipe(kind, brief):
    text = format_template(default_tables(kind), title="A recipe.", brief=brief)
    assert same(parse_recipe(tomllib.loads(text)), parse_recipe(default_tables(kind)))


@pytest.mark.parametrize("name", shipped_recipes())
def test_the_template_of_a_recipe_that_is_shipped_is_that_recipe(name, tmp_path):
    out = tmp_path / "recipe.toml"
    done = CliRunner().invoke(app, ["init", name, "--out", str(out)])
    assert done.exit_code == 0, done.output
    made, origin = read_recipe(out), read_recipe(name)
    for section in set(SECTIONS) - {"data", "refinement"}:
        assert getattr(made, section) == getattr(origin, section), section
    assert (made.refinement.method is None) == (origin.refinement.method is None)
    assert made.data.atlases == origin.data.atlases and made.data.out == tmp_path / origin.data.out


def test_every_key_of_every_table_and_method_is_there_with_its_default():
    tables = {"": FULL, "tissue": TISSUE}
    for section, kind in SECTIONS.items():
        text = tables.get(section, FULL)
        body = re.split(rf"(?m)^(?:# )?\[{section}\]$", text)[1].split("\n[")[0]
        keys = dict(re.findall(r"(?m)^(?:# )?([a-z_]\w*(?:\.\w+)?) = (.+)$", body))
        for field in dataclasses.fields(kind):
            assert field.name in keys, (section, field.name)
        for name in methods.names(section) if section in methods.STAGES else ():
            for parameter in methods.get(section, name).parameters:
                value = tomllib.loads(f"x = {keys[f'{name}.{parameter.name}']}")["x"]
                if not parameter.required and parameter.default is not None:
                    default = parameter.default
                    assert value == (list(default) if isinstance(default, tuple) else default)


@pytest.mark.parametrize("text", [FULL, TISSUE], ids=["run", "tissue"])
def test_each_comment_that_holds_a_key_is_valid_where_it_stands(text):
    lines = text.splitlines()
    at = [n for n, line in enumerate(lines) if KEY.fullmatch(line)]
    assert len(at) > 30
    section = ""
    for n, line in enumerate(lines):
        section = re.sub(r"^(?:# )?\[(\w+)\]$", r"\1", line) if re.fullmatch(r"(# )?\[\w+\]", line) else section
        if n in at:
            changed = [*lines]
            changed[n] = line.removeprefix("# ")
            if f"# [{section}]" in changed:
                changed[changed.index(f"# [{section}]")] = f"[{section}]"
            parse_recipe(tomllib.loads("\n".join(changed)), where=line)


def test_all_keys_together_are_valid():
    switched = re.sub(r"(?m)^# \[regions\]$", "[regions]", FULL).replace("# prepared =", "# no prepared =")
    switched = re.sub(r'(?m)^# method = "combined"$', "# no localisation", switched)  # initial excludes it
    parse_recipe(tomllib.loads(KEY.sub(r"\1 = \2", switched)))


def test_a_default_that_is_written_out_changes_nothing():
    """Keys that are not set by default stay comments, and so does [regions]."""
    before, _, rest = FULL.partition("# [regions]\n")
    lines, note = [], ""
    for line in (before + rest[rest.index("\n[") :]).splitlines():
        is_key = KEY.fullmatch(line) is not None
        unset = re.search("Not set|Required", re.sub(r"\s+", " ", note))
        lines.append(line.removeprefix("# ") if is_key and not unset else line)
        note = note + line.removeprefix("#") if line.startswith("#") and not is_key else ""
    made = parse_recipe(tomllib.loads("\n".join(lines)))
    assert made.registration.steps[0].arguments["iterations"] == 30
    for section in ("selection", "propagation", "evaluation", "output", "refiner", "training", "augmentation"):
        assert getattr(made, section) == getattr(default_recipe("multi"), section)


@pytest.mark.parametrize("text", [FULL, TISSUE], ids=["run", "tissue"])
def test_comments_are_plain_text_of_a_readable_width(text):
    for line in text.splitlines():
        assert "`" not in line and ":math:" not in line
        assert len(line) <= WIDTH or KEY.fullmatch(line)


def test_init_replaces_nothing_unasked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["init"]).exit_code == 0
    whole = Path("recipe.toml").read_text()
    done = CliRunner().invoke(app, ["init", "quickstart"])
    assert done.exit_code == 2 and "recipe.toml: expected a new file, got an existing one" in done.output
    assert Path("recipe.toml").read_text() == whole
    assert CliRunner().invoke(app, ["init", "--brief", "--force"]).exit_code == 0
    assert len(Path("recipe.toml").read_text()) < len(whole) / 3


def test_examples_are_within_the_limits():
    from typing import Annotated, Literal

    from annotated_types import Ge, Gt, Le, Lt

    assert example(Annotated[int, Ge(3), Le(7)] | None) == 3
    assert 0 < example(Annotated[float, Gt(0), Lt(0.5)]) < 0.5
    assert example(tuple[Annotated[int, Ge(1)], ...]) == [1]
    assert example(Literal["a", "b"]) == "a"
