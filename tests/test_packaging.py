"""What stands beside the code: citation, descriptor of the BIDS-App, hooks, workflow, changelog. All are checked."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer

import atlasseg
from atlasseg import resources
from atlasseg.cli import app

ROOT = Path(__file__).parents[1]
DESCRIPTOR = ROOT / "containers/atlasseg.boutiques.json"


def program(name, *words, cwd=ROOT):
    """Exit status and output of a program of this environment."""
    path = Path(sys.executable).with_name(name)
    done = subprocess.run([path, *map(str, words)], cwd=cwd, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["dynamic"] == ["version"] and "version" not in project["project"]
    source = (ROOT / project["tool"]["hatch"]["version"]["path"]).read_text("utf-8")
    assert f'__version__ = "{atlasseg.__version__}"' in source
    newest = re.search(r"(?m)^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"))[1]
    assert newest == atlasseg.__version__


def test_the_citation_is_valid_and_of_this_version(tmp_path):
    text = (ROOT / "CITATION.cff").read_text("utf-8")
    check = "check-jsonschema", "--builtin-schema", "vendor.citation-file-format"
    status, output = program(*check, "CITATION.cff")
    assert status == 0, output
    assert f"\nversion: {atlasseg.__version__}\n" in text
    (tmp_path / "CITATION.cff").write_text(text.replace("authors:", "writers:"))
    assert program(*check, tmp_path / "CITATION.cff")[0] == 1


def test_the_workflow_is_valid_and_runs_what_is_run_here():
    for schema in ("vendor.github-workflows", "custom.github-workflows-require-timeout"):
        status, output = program("check-jsonschema", "--builtin-schema", schema, ".github/workflows/ci.yml")
        assert status == 0, output
    text = (ROOT / ".github/workflows/ci.yml").read_text("utf-8")
    assert "run: bash .ci/run" in text
    assert "os: [ubuntu-latest, macos-latest, windows-latest]" in text
    named = set(re.findall(r'"(3\.\d+)"', text))
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["classifiers"]
    assert named == {each.rpartition(" ")[2] for each in classifiers if re.search(r":: 3\.\d+$", each)}


def test_the_hooks_are_valid_and_those_of_ci():
    status, output = program("pre-commit", "validate-config")
    assert status == 0, output
    hooks = set(re.findall(r"entry: (.+)", (ROOT / ".pre-commit-config.yaml").read_text("utf-8")))
    ci = (ROOT / ".ci/run").read_text("utf-8")
    for words in re.findall(r'(?m)^"\$bin/(ruff|mypy|lint-imports)"(.*)$', ci):
        command = " ".join((words[0], *words[1].split()[:1]))
        assert any(hook.startswith(command) for hook in hooks), command


def boutiques():
    """The script that writes the descriptor."""
    spec = importlib.util.spec_from_file_location("make_descriptor", ROOT / "containers/boutiques.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_the_descriptor_of_the_bids_app_says_what_the_command_takes():
    assert DESCRIPTOR.read_text("utf-8") == boutiques().text(), "run python containers/boutiques.py"


def test_the_descriptor_of_the_bids_app_is_valid(tmp_path):
    status, output = program("bosh", "validate", DESCRIPTOR)
    assert status == 0, output
    broken = json.loads(DESCRIPTOR.read_text("utf-8"))
    broken["inputs"][0].pop("type")
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    assert program("bosh", "validate", tmp_path / "broken.json")[0] != 0


def test_a_command_line_made_from_the_descriptor_is_read_as_it_was_meant(tmp_path):
    given = {
        "bids_dir": str(tmp_path),
        "out_dir": "out",
        "level": "participant",
        "atlases": ["one", "two"],
        "participant_label": ["01", "02"],
        "settings": ["fusion.method=joint", "fusion.beta=3"],
        "nprocs": 2,
        "mem_gb": 3.5,
        "no_xfm": True,
        "probseg": True,
        "device": "cpu",
    }
    (tmp_path / "given.json").write_text(json.dumps(given))
    status, output = program("bosh", "exec", "simulate", DESCRIPTOR, "-i", tmp_path / "given.json", cwd=tmp_path)
    assert status == 0, output
    words = re.search(r"atlasseg bids (.+)", output)[1].split()
    command = typer.main.get_command(app).commands["bids"]
    read = command.make_context("bids", words).params
    assert read["bids_dir"] == tmp_path and read["atlases"] == [Path("one"), Path("two")]
    assert read["participant_label"] == ["01", "02"] and read["settings"] == given["settings"]
    assert (read["nprocs"], read["mem_gb"], read["probseg"], read["xfm"]) == (2, 3.5, True, False)
    assert (read["level"].value, read["device"].value) == ("participant", "cpu")


def test_what_comes_with_the_package_is_found_in_a_checkout_and_in_an_installation(tmp_path, monkeypatch):
    assert resources.sample_data() == ROOT / "sample_data"
    installed = tmp_path / "site-packages/atlasseg"
    (installed / "_data/pipelines").mkdir(parents=True)
    (tmp_path / "site-packages/pipelines").mkdir()  # of another package, as it were
    monkeypatch.setattr(resources, "_PACKAGE", installed)
    assert resources.resource("pipelines") == installed / "_data/pipelines"
    with pytest.raises(FileNotFoundError, match="sample_data: expected a folder that comes with atlasseg"):
        resources.sample_data()


def test_a_recipe_describes_itself_in_its_first_line():
    for path in resources.shipped_recipes().values():
        text = resources.describe_recipe(path)
        assert text.endswith((".", ")")) and 20 < len(text) < 120
