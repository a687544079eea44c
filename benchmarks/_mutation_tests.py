"""Tests of a mutant for `mutation.py`: which ones, in which order, and the process in which they run.

Numba's compiled functions do not show in coverage, so tests are found by names: the tests that mention the changed
function, then those that mention a function that calls it, and so on. The test file of the changed module goes first.
"""

import ast
import json
import os
import signal
import sys
import time
import traceback
import zlib
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path

import psutil
import pytest

OPTIONS = ("-q", "--assert=plain", "--tb=line", "-p", "no:cacheprovider", "--hypothesis-seed=0")

NEAREST_FILES = 8

MOST_HOPS = 4

USERS = (
    "tests/fusion/",
    "tests/refinement/test_markov",
    "tests/regions/",
    "tests/registration/",
    "tests/tissues/",
    "tests/test_",
)
"""Tests of rooms that use others: those of the application are run only where they mention a caller of the code."""

BROKEN = 70
"""Exit status of a process that could not run pytest: no statement about the mutant."""


class Finder:
    """Names that the functions of a tree mention, those of the package and those of the tests."""

    def __init__(self, tree: Path, known: dict[str, int]) -> None:
        self.tree, self.known = tree, known
        self.package = {str(p.relative_to(tree)): p for p in sorted(tree.glob("atlasseg/**/*.py"))}
        self.tests = {str(p.relative_to(tree)): p for p in sorted(tree.glob("tests/**/test_*.py"))}

    @cache  # noqa: B019 - there is one object
    def parse(self, path: str) -> ast.Module:
        """Syntax tree of a file."""
        return ast.parse((self.tree / path).read_text())

    @cache  # noqa: B019
    def units(self, path: str) -> dict[str, tuple[int, int, frozenset[str]]]:
        """First and last line of each top-level function, class or constant, and the names that it mentions."""
        found = {}
        for node in self.parse(path).body:
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            for name in _defined(node):
                found[name] = (first, node.end_lineno or first, frozenset(_mentioned(node)))
        return found

    @cache  # noqa: B019
    def importers(self, path: str) -> list[str]:
        """Modules of the package that import a module, itself left out."""
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        parent, _, name = module.rpartition(".")
        found = []
        for user in self.package:
            imports = [node for node in ast.walk(self.parse(user)) if isinstance(node, ast.ImportFrom)]
            if user != path and any(
                node.module == module or (node.module == parent and name in [a.name for a in node.names])
                for node in imports
            ):
                found.append(user)
        return found

    @cache  # noqa: B019
    def test_names(self, path: str) -> dict[str, frozenset[str]]:
        """Names that each test of a file mentions, itself or by the helpers and fixtures of the file."""
        own = {name: set(names) for name, (_, _, names) in self.units(path).items()}
        for _ in range(3):
            own = {name: names.union(*(own[n] for n in names if n in own)) for name, names in own.items()}
        return {name: frozenset(names) for name, names in own.items() if name.startswith(("test", "Test"))}

    def sources(self) -> dict[str, int]:
        """Checksum of the code of each test, as ``FILE::FUNCTION``."""
        found = {}
        for file, path in self.tests.items():
            lines = path.read_text().splitlines()
            for name, (first, last, _) in self.units(file).items():
                found[f"{file}::{name}"] = zlib.crc32("\n".join(lines[first - 1 : last]).encode())
        return found

    @cache  # noqa: B019
    def is_new(self, test: str) -> bool:
        """Whether a test was written or changed after the mutants were drawn."""
        name = "::".join(test.split("[")[0].split("::")[:2])
        return bool(self.known) and name in self._now and self.known.get(name) != self._now[name]

    @cached_property
    def _now(self) -> dict[str, int]:
        return self.sources()

    def hops(self, path: str, line: int) -> dict[str, int]:
        """Names of the functions that use the code of a line, with the number of calls between."""
        stem = Path(path).stem
        names: dict[str, int] = {}
        queue = [(path, unit, 0) for unit, (first, last, _) in self.units(path).items() if first <= line <= last]
        seen = set()
        while queue:
            module, unit, hop = queue.pop(0)
            if (module, unit) in seen or hop > MOST_HOPS:
                continue
            seen.add((module, unit))
            # the functions of methods have the same name in all modules: they go by the name of the method
            public = Path(module).stem if unit in ("fuse", "register", "refine", "segment") else unit
            names.setdefault(public, hop)
            for user in [module, *self.importers(module)]:
                for other, (_, _, mentioned) in self.units(user).items():
                    if unit in mentioned and (user, other) not in seen:
                        queue.append((user, other, hop + 1))
        return names or {stem: 0}

    def order(self, path: str, line: int) -> dict[str, tuple[bool, bool, bool, int, bool, int]]:
        """Rank of the tests of a line, as ``FILE::FUNCTION``: the most likely ones to notice a change come first."""
        stem, room = Path(path).stem.strip("_"), Path(path).parts[1].removesuffix(".py")
        names = self.hops(path, line)
        ranks = {}
        for file in self.tests:
            here = f"/{room}/" in file or f"_{room}" in file
            for test, mentioned in self.test_names(file).items():
                hop = min((names[n] for n in mentioned if n in names), default=MOST_HOPS + 1)
                hop = -1 if stem in test else 0 if stem in mentioned else hop
                new = here and hop <= MOST_HOPS and self.is_new(f"{file}::{test}")
                own = stem in Path(file).stem
                if hop <= (MOST_HOPS if here or file.startswith(USERS) else 1) or own:
                    ranks[f"{file}::{test}"] = (not new, not here, "contract" in file, hop, not own, len(mentioned))
        if all(rank[1] for rank in ranks.values()):
            near = [file for file in self.tests if f"/{room}/" in file]
            ranks |= {f"{f}::{t}": (True, False, True, 9, True, 0) for f in near for t in self.test_names(f)}
        best: dict[str, tuple] = {}
        for name, rank in ranks.items():
            file = name.split("::")[0]
            best[file] = min(rank, best.get(file, rank))
        near = sorted(best, key=best.__getitem__)[:NEAREST_FILES]
        return {name: rank for name, rank in ranks.items() if name.split("::")[0] in near}


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [t.id for t in targets if isinstance(t, ast.Name)]


def _mentioned(node: ast.stmt) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute):
            yield part.attr
        elif isinstance(part, ast.arg):
            yield part.arg
        elif isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value.isidentifier():
            yield part.value


class Session:
    """Pytest plugin: the order of the tests, an end after some CPU seconds, and the test that failed."""

    def __init__(self, ranks: dict[str, tuple], budget_s: float, skipped: frozenset[str]) -> None:
        self.ranks, self.budget_s, self.skipped = ranks, budget_s, skipped
        self.run, self.failed = 0, []

    def pytest_collection_modifyitems(self, items):
        """Sort the tests, and leave out those that fail on the unchanged code."""
        rank = {id(i): self.ranks.get("::".join(i.nodeid.split("[")[0].split("::")[:2])) for i in items}
        items[:] = [i for i in items if rank[id(i)] is not None and i.nodeid not in self.skipped]
        items.sort(key=lambda item: rank[id(item)])

    def pytest_runtest_logreport(self, report):
        """Count the tests, and note the one that failed."""
        self.run += report.when == "call"
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report):
        """Note a file that can no longer be imported."""
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_runtest_teardown(self, item, nextitem):
        """Stop after the time."""
        if time.process_time() > self.budget_s and nextitem is not None:
            item.session.shouldstop = "time is over"


def run_tests(
    tree: Path, log: Path, ranks: dict[str, tuple], *, budget_s: float, limit_s: float, skipped: frozenset[str]
) -> tuple[str, str, int]:
    """Outcome, failed test and number of tests of a mutant.

    Both limits are CPU seconds: after `budget_s` no further test is begun, at `limit_s` the process is ended.
    """
    session = Session(ranks, budget_s, skipped)
    files = sorted({name.split("::")[0] for name in ranks})
    code, failed, count = _fork(tree, log, [*OPTIONS, "-x", *files], session, limit_s)
    if code is None:
        return "timeout", "", count
    if failed or code not in (0, 2, 5):  # 2: stopped at the end of its time, 5: no test
        return "killed", failed[0] if failed else f"the process ended with {code}", count
    return "survived", "", count


def failing_tests(tree: Path, log: Path, tests: list[str]) -> set[str]:
    """Those of the tests that fail on the unchanged code."""
    files = sorted({name.split("::")[0] for name in tests})
    ranks = {"::".join(name.split("[")[0].split("::")[:2]): () for name in tests}
    session = Session(ranks, float("inf"), frozenset())
    _, failed, _ = _fork(tree, log, [*OPTIONS, *files], session, float("inf")) if tests else (0, [], 0)
    return set(failed) & set(tests)


def _fork(
    tree: Path, log: Path, arguments: list[str], session: Session, limit_s: float
) -> tuple[int | None, list[str], int]:
    """Exit status, failed tests and number of tests of a process that begins with the libraries of this one."""
    note = log.with_suffix(".json")
    note.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(tree)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        status = BROKEN
        try:
            session.budget_s += time.process_time()
            status = int(pytest.main(arguments, plugins=[session]))
            note.write_text(json.dumps([session.failed, session.run]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    process = psutil.Process(child)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if sum(process.cpu_times()[:4]) > limit_s or time.time() - process.create_time() > 10 * limit_s:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None, [], 0
        time.sleep(0.05)
    code = os.waitstatus_to_exitcode(status)
    if code == BROKEN:
        raise RuntimeError(f"{log}: pytest did not run:\n{log.read_text()}")
    failed, count = json.loads(note.read_text()) if note.exists() else ([], 0)
    return code, failed, count
