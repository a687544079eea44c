"""Mutation testing: the share of small faults in the code that the tests notice.

``python benchmarks/mutation.py`` draws mutants of `ROOMS` with the operators of cosmic-ray (a changed operator,
comparison, number, condition, ...), runs for each the tests that execute its line, and writes
``benchmarks/results/mutation.md`` and ``mutation.json``. A run that was broken off goes on where it stopped, with the
code of the commit it began with. ``--again --tests FILE ...`` runs the surviving mutants once more, with new tests;
reasons of those that are left are read from ``mutation_reasons.json``. Remove ``build/mutation`` to begin anew.

Work is done in ``build/mutation``: a copy of the repository, whose files are mutated one at a time; the tests of each
line (coverage with contexts, see ``_mutation_tests.py``); and the compiled code of numba, of which each mutant gets a
copy without the mutated module and without the modules that compile its functions into theirs.

Mutants that cannot change a result are not drawn, by the rules of `_mutation_sites.py`.
"""

import argparse
import ast
import importlib
import io
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path

from _mutation_sites import Mutant, mutate, sites
from _mutation_table import read, render
from _mutation_tests import Finder, failing_tests, run_tests

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "mutation"
TREE = WORK / "tree"
STATE = WORK / "state.json"
UNCHANGED = WORK / "unchanged.json"
COMPILED = WORK / "compiled_mutant"
RESULTS = ROOT / "benchmarks" / "results"

ROOMS = {
    "fusion": "atlasseg/fusion",
    "statistics": "atlasseg/statistics",
    "registration": "atlasseg/registration",
    "resampling": "atlasseg/resampling.py",
    "evaluation": "atlasseg/evaluation",
    "regions": "atlasseg/regions",
    "cache": "atlasseg/store",
    "io": "atlasseg/io",
}

LIBRARIES = (
    *("numpy", "numba", "scipy.ndimage", "scipy.optimize", "scipy.stats", "pandas", "torch", "SimpleITK", "nibabel"),
    *("sklearn.mixture", "skimage.measure", "matplotlib.pyplot", "pydantic", "pydicom", "statsmodels.api"),
    "distributed",
)


def copy_tree(commit: str, new_tests: list[Path]) -> None:
    """Copy the repository at a commit, and tests of the working tree; equal files keep their time stamps."""
    packed = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        files = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
        contents = {name: file.read() for name, file in files.items() if file}
    contents |= {str(path.resolve().relative_to(ROOT)): path.read_bytes() for path in new_tests}
    for name, content in contents.items():
        copy = TREE / name
        if not copy.exists() or copy.read_bytes() != content:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
    shared = WORK / "shared"
    if not shared.exists() and (ROOT.parent / "shared").is_dir():
        shared.symlink_to(ROOT.parent / "shared")


def environment(compiled: Path) -> dict[str, str]:
    """Environment of a test process: the copy is imported, no byte code is left behind by a mutant."""
    return {
        **os.environ,
        "PYTHONPATH": str(TREE),
        "PYTHONDONTWRITEBYTECODE": "1",
        "NUMBA_CACHE_DIR": str(compiled),
        "OMP_NUM_THREADS": "1",
    }


def stale_modules(finder: Finder, path: str) -> set[str]:
    """Modules whose compiled code holds functions or constants of a module."""
    stale, queue = set(), [path]
    while queue:
        module = queue.pop()
        if module not in stale:
            stale.add(module)
            queue += [user for user in finder.importers(module) if "njit" in finder.package[user].read_text()]
    return stale


def run(finder: Finder, mutant: Mutant, skipped: frozenset[str], budget_s: float, limit_s: float) -> dict:
    """Change the file, run the tests, change it back: outcome, failed test, number of tests, seconds."""
    file = TREE / mutant.path
    original, stat = file.read_text(), file.stat()
    ranks = finder.order(mutant.path, mutant.line)
    (WORK / "compiled").mkdir(exist_ok=True)
    shutil.rmtree(COMPILED, ignore_errors=True)
    shutil.copytree(WORK / "compiled", COMPILED, copy_function=os.link)  # numba replaces files, it never changes them
    stale = {(Path(module).parent.name, Path(module).stem) for module in stale_modules(finder, mutant.path)}
    for entry in COMPILED.glob("*/*"):
        if _module(entry) in stale:
            entry.unlink()
    start = time.monotonic()
    UNCHANGED.write_text(json.dumps([mutant.path, original, stat.st_mtime]))
    try:
        file.write_text(mutate(original, mutant))
        os.utime(file, (stat.st_atime, stat.st_mtime + 10 + mutant.number))  # byte code goes by whole seconds
        outcome, failed, count = run_tests(
            TREE, WORK / "output.txt", ranks, budget_s=budget_s, limit_s=limit_s, skipped=skipped
        )
    finally:
        restore()
    for entry in sorted(COMPILED.glob("*/*.nb?")):  # code of unchanged modules that was not compiled before
        if _module(entry) not in stale:
            kept = WORK / "compiled" / entry.relative_to(COMPILED)
            kept.parent.mkdir(exist_ok=True)
            kept.unlink(missing_ok=True)
            os.link(entry, kept)
    return {"outcome": outcome, "by": failed, "tests": count, "seconds": round(time.monotonic() - start, 1)}


def _module(entry: Path) -> tuple[str, str]:
    """Folder and name of the module that a file of compiled code belongs to."""
    return entry.parent.name.rpartition("_")[0], entry.name.split(".")[0]


def restore() -> None:
    """Take a change back, also that of a run which was killed."""
    if UNCHANGED.exists():
        path, text, modified = json.loads(UNCHANGED.read_text())
        (TREE / path).write_text(text)
        os.utime(TREE / path, (modified, modified))
        UNCHANGED.unlink()


def preload() -> None:
    """Import the libraries that tests need, so that the process of each mutant starts with them (it is a fork)."""
    sys.path.remove(str(ROOT / "benchmarks"))  # holds a module ``statistics``
    sys.path.insert(0, str(TREE))
    os.environ.update(environment(COMPILED))
    sys.dont_write_bytecode = True
    for name in LIBRARIES:
        importlib.import_module(name)


def draw(count: int, seed: int) -> dict:
    """Mutants of all rooms: as many of a room as the square root of its places, each at a place of its own."""
    found = {}
    for room, place in ROOMS.items():
        files = sorted((TREE / place).rglob("*.py")) if (TREE / place).is_dir() else [TREE / place]
        found[room] = [(file, where, options) for file in files for where, options in sorted(sites(file).items())]
    weights = {room: len(places) ** 0.5 for room, places in found.items()}
    shares = {room: count * weight / sum(weights.values()) for room, weight in weights.items()}
    counts = {room: int(share) for room, share in shares.items()}
    for room in sorted(shares, key=lambda room: counts[room] - shares[room])[: count - sum(counts.values())]:
        counts[room] += 1
    mutants, rng = [], random.Random(seed)
    for room, places in found.items():
        left = counts[room]
        for file, ((line, column), _), options in rng.sample(places, len(places)):
            if left == 0:
                break
            path, (operator, occurrence) = str(file.relative_to(TREE)), rng.choice(options)
            mutant = Mutant(0, room, path, operator, occurrence, line, column)
            if _is_code(mutate(file.read_text(), mutant)):
                mutants.append(mutant)
                left -= 1
    rng.shuffle(mutants)  # a run that was broken off has mutants of every room
    described = []
    for number, mutant in enumerate(mutants):
        code = (TREE / mutant.path).read_text()
        after = mutate(code, mutant)
        changes = [pair for pair in zip(code.splitlines(), after.splitlines(), strict=False) if pair[0] != pair[1]]
        before, after = changes[0] if changes else ("", "")
        described.append({**asdict(mutant), "number": number, "before": before.strip(), "after": after.strip()})
    places = {room: len(places) for room, places in found.items()}
    return {"seed": seed, "places": places, "mutants": described, "passing": []}


def _is_code(text: str) -> bool:
    """Whether it can be parsed: cosmic-ray takes the star before keyword-only parameters for an operator."""
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=300, help="number of mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=25, help="CPU seconds after which no further test is begun")
    parser.add_argument("--limit", type=float, default=100, help="CPU seconds after which a mutant counts as killed")
    parser.add_argument("--again", action="store_true", help="run the survivors once more")
    parser.add_argument("--tests", type=Path, nargs="*", default=[], help="test files to take from the working tree")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the mutants to run")
    parser.add_argument("--table", action="store_true", help="write the table of what was run so far, and run nothing")
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    restore()
    state = read(STATE) or read(RESULTS / "mutation.json")
    if not state or not (STATE.exists() or unfinished(state) or options.again or options.only or options.table):
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        copy_tree(commit.stdout.strip(), [])
        state = {"commit": commit.stdout.strip(), **draw(options.mutants, options.seed), "failing": []}
    if not options.table:
        copy_tree(state["commit"], [])
        known = Finder(TREE, {}).sources()
        copy_tree(state["commit"], options.tests)
        preload()
        run_all(state, Finder(TREE, known), options)
    (RESULTS / "mutation.json").write_text(json.dumps(state, indent=1) + "\n")
    reasons = read(RESULTS / "mutation_reasons.json")
    (RESULTS / "mutation.md").write_text(render(state, reasons, "python benchmarks/mutation.py", _versions()))


def unfinished(state: dict) -> bool:
    """Whether mutants are left to be run."""
    return any("outcome" not in entry for entry in state["mutants"])


def run_all(state: dict, finder: Finder, options: argparse.Namespace) -> None:
    """Run the mutants that are left, or those asked for, then the tests that noticed them on the unchanged code."""
    STATE.write_text(json.dumps(state, indent=1) + "\n")
    for entry in [state["mutants"][n] for n in options.only or range(len(state["mutants"]))]:
        again = options.again and entry.get("outcome") == "survived"
        if options.only or again or "outcome" not in entry:
            mutant = Mutant(**{field.name: entry[field.name] for field in fields(Mutant)})
            entry |= run(finder, mutant, frozenset(state["failing"]), options.budget, options.limit)
            entry["by_new_test"] = finder.is_new(entry["by"])
            STATE.write_text(json.dumps(state, indent=1) + "\n")
            shutil.copy(WORK / "output.txt", WORK / f"output{mutant.number}.txt")
            print(f"{mutant.number} {mutant.path}:{mutant.line} {entry['after']}", flush=True)
            print(f"  {entry['outcome']}, {entry['seconds']} s, {entry['tests']} tests, {entry['by']}", flush=True)
    shutil.rmtree(COMPILED, ignore_errors=True)
    shutil.copytree(WORK / "compiled", COMPILED)
    noticing = {entry["by"] for entry in state["mutants"] if "::" in entry.get("by", "")} - set(state["passing"])
    wrong = failing_tests(TREE, WORK / "output.txt", sorted(noticing))
    for entry in state["mutants"]:
        if entry.get("by") in wrong:  # to be run again, without that test
            print(f"{entry['by']} fails on the unchanged code", flush=True)
            for key in ("outcome", "by"):
                entry.pop(key)
    state["failing"] = sorted({*state["failing"], *wrong})
    state["passing"] = sorted({*state["passing"], *noticing} - wrong)
    STATE.write_text(json.dumps(state, indent=1) + "\n")


def _versions() -> str:
    names = ("atlasseg", "cosmic_ray", "parso", "pytest", "hypothesis", "numba", "numpy")
    return ", ".join(["python " + platform.python_version(), *(f"{name} {version(name)}" for name in names)])


if __name__ == "__main__":
    main()
