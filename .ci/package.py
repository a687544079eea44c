"""Build wheel and sdist, and try the wheel as a user gets it: in a new environment, outside the checkout.

python .ci/package.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ("pipelines/quickstart.toml", "sample_data/atlases/labels.tsv", "sample_data/targets/images/target1.nii.gz")
IMPORTS = """
import atlasseg, importlib, pkgutil
from atlasseg.resources import sample_data, shipped_recipes
assert "site-packages" in atlasseg.__file__, atlasseg.__file__
library = atlasseg.read_library(sample_data() / "atlases")
assert len(library) == 6 and len(shipped_recipes()) >= 6
for name in atlasseg.__all__:
    getattr(atlasseg, name)
for module in pkgutil.iter_modules(atlasseg.__path__):
    if not module.name.startswith("_"):
        importlib.import_module(f"atlasseg.{module.name}")
"""
MADE = (
    "index.html",
    "metrics.tsv",
    "dataset_description.json",
    "target1/target1.html",
    "target1/target1_desc-localweighted_dseg.nii.gz",
    "target2/target2_desc-localweighted_entropy.nii.gz",
)
COMPILED = (".pyc", ".nbi", ".nbc")


def main() -> None:
    """Build, install and run, in a folder that vanishes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "NUMBA"))}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        build = [sys.executable, "-m", "build", "--outdir"]
        run(*build, work / "dist", ROOT, cwd=work, env=environment)  # the wheel from the sdist
        run(*build, work / "direct", "--wheel", ROOT, cwd=work, env=environment)
        (wheel,), (direct,) = (list((work / name).glob("*.whl")) for name in ("dist", "direct"))
        assert contents(wheel) == contents(direct), "the sdist builds another wheel than the checkout"
        held = contents(wheel)
        for name in DATA:
            assert f"atlasseg/_data/{name}" in held, f"the wheel lacks {name}"
        assert not [name for name in held if name.startswith(("tests/", "docs/", "pipelines/"))]

        venv.create(work / "new", with_pip=True)
        bin_ = work / "new" / ("Scripts" if os.name == "nt" else "bin")
        python = bin_ / Path(sys.executable).name
        run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel, cwd=work, env=environment)
        run(python, "-m", "pip", "check", cwd=work, env=environment)
        before = files(work / "new")
        run(python, "-c", IMPORTS, cwd=work, env=environment)
        for words in (("--version",), ("recipes",), ("methods", "fusion"), ("init",), ("run", "quickstart")):
            run(bin_ / "atlasseg", *words, cwd=work, env=environment)
        for name in MADE:
            assert (work / "out" / "quickstart" / name).is_file(), f"atlasseg run quickstart did not write {name}"
        added = [path for path in files(work / "new") - before if path.suffix not in COMPILED]
        assert not added, f"written into the installation: {added}"
    print(f"{wheel.name}: built from checkout and sdist alike, installed and run outside the checkout")


def run(*words: str | Path, cwd: Path, env: dict[str, str]) -> None:
    """Run a program, and fail where it fails."""
    print("+", *words, flush=True)
    subprocess.run(list(map(str, words)), cwd=cwd, env=env, check=True)


def contents(wheel: Path) -> dict[str, int]:
    """Name of each file of a wheel to the checksum of what it holds."""
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename: info.CRC for info in archive.infolist()}


def files(folder: Path) -> set[Path]:
    """All files below a folder."""
    return {path for path in folder.rglob("*") if path.is_file()}


if __name__ == "__main__":
    main()
