"""Places where `mutation.py` can change the code, with the operators of cosmic-ray.

Not drawn, since such mutants cannot change a result:

- annotations, except the metadata of ``Annotated``, which are checked at run time; blocks of ``TYPE_CHECKING``;
- decorators that change speed or types only (`SPEED`), and the options of ``njit``;
- ``frozen``, ``slots`` and ``strict`` (of ``zip``), ``assert``: they guard against faults of the program itself;
- ``copy=False``, and constants that only set how much is done at a time (`PORTIONS`);
- the text of log records and of exceptions;
- ``is`` for ``==`` and back, which differ for no value that is used here.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import parso
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

SPEED = ("njit", "cache", "lru_cache", "overload", "no_grad", "override")
PORTIONS = re.compile(r"CHUNK|BUFFER|BLOCK_BYTES|TILE|PIECE|THREADS|GZIP_LEVEL|PENDING|HELD")
SAME = ("Eq_Is", "Is_Eq", "NotEq_IsNot", "IsNot_NotEq")

TYPES = {
    "core/ReplaceBinaryOperator": ("operator",),
    "core/ReplaceComparisonOperator": ("comparison",),
    "core/ReplaceUnaryOperator": ("factor", "not_test"),
}
"""Types of the nodes that the operators with many variants change: looking at all of them takes minutes."""

Position = tuple[int, int]
"""Line, counted from 1, and column."""


@dataclass(frozen=True)
class Mutant:
    """A change of one place in one module."""

    number: int
    room: str
    path: str
    operator: str
    occurrence: int
    line: int
    column: int


def sites(path: Path) -> dict[tuple[Position, str], list[tuple[str, int]]]:
    """Mutations, as operator and occurrence, of each place and kind of change in a module."""
    code = path.read_text()
    excluded = list(_excluded(ast.parse(code)))
    found = defaultdict(list)
    nodes = list(ast_nodes(parso.parse(code)))
    for name in operator_names():
        operator_class = get_operator(name)
        if operator_class.arguments() or name.endswith(SAME):
            continue
        operator = operator_class()
        kind = name.split("_")[0]
        looked_at = [node for node in nodes if node.type in TYPES[kind]] if kind in TYPES else nodes
        positions = [start for node in looked_at for start, _ in operator.mutation_positions(node)]
        for occurrence, start in enumerate(positions):
            if not any(first <= start < last for first, last in excluded):
                found[start, kind].append((name, occurrence))
    return dict(found)


def mutate(code: str, mutant: Mutant) -> str:
    """Code of the module with the change of a mutant."""
    changed = mutate_code(code, get_operator(mutant.operator)(), mutant.occurrence)
    if changed is None:
        raise ValueError(f"{mutant.path}: no place {mutant.occurrence} for {mutant.operator}. Draw the mutants anew.")
    return changed.replace("CosmicRayTestingException", "StopAsyncIteration")  # a class that nothing raises here


def _excluded(tree: ast.Module) -> Iterator[tuple[Position, Position]]:
    """Ranges of the code that are not mutated."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            arguments = node.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            for annotation in [node.returns, *(a.annotation for a in every if a)]:
                yield from _types(annotation)
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            for decorator in node.decorator_list:
                if _name(decorator) in SPEED:
                    first, last = _range(decorator)
                    yield (first[0], 0), (last[0], last[1] + 1)
        if isinstance(node, ast.AnnAssign):
            yield from _types(node.annotation)
        if isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name) and target.id.isupper() and PORTIONS.search(target.id):
                    yield _range(node)
                if isinstance(target, ast.Name) and isinstance(node.value, ast.BinOp) and _is_type(node.value):
                    yield _range(node)
        if (isinstance(node, ast.If) and _name(node.test) == "TYPE_CHECKING") or isinstance(node, ast.Assert):
            yield _range(node)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield from (_range(text) for text in node.exc.args)
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and _name(node.func.value) in ("log", "warnings"):
                yield from (_range(text) for text in node.args[:1])
            for keyword in node.keywords:
                guard = keyword.arg in ("frozen", "slots") or (keyword.arg == "strict" and _name(node) == "zip")
                if guard or (keyword.arg == "copy" and isinstance(keyword.value, ast.Constant)):
                    yield _range(keyword.value)


def _types(annotation: ast.expr | None) -> Iterator[tuple[Position, Position]]:
    """Ranges of an annotation, without the metadata of ``Annotated``."""
    if annotation is None:
        return
    if isinstance(annotation, ast.Subscript) and _name(annotation.value) == "Annotated":
        if isinstance(annotation.slice, ast.Tuple):
            yield from _types(annotation.slice.elts[0])
    else:
        yield _range(annotation)


def _is_type(value: ast.BinOp) -> bool:
    """Whether an expression is a union of types: names that begin with a capital letter, joined by ``|``."""
    sides = (value.left, value.right)
    return isinstance(value.op, ast.BitOr) and all(
        _is_type(side) if isinstance(side, ast.BinOp) else (_name(side)[:1].isupper() and not _name(side).isupper())
        for side in sides
    )


def _name(node: ast.expr) -> str:
    """Last part of the name of a decorator, function or variable."""
    if isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _range(node: ast.expr | ast.stmt) -> tuple[Position, Position]:
    return (node.lineno, node.col_offset), (node.end_lineno or node.lineno, node.end_col_offset or 0)
