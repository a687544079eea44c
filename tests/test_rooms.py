"""Rooms: packages of atlasseg talk to each other by public names alone, and modules do not import in circles."""

import ast
from pathlib import Path

import networkx
import pytest

import atlasseg

ROOT = Path(atlasseg.__file__).parent


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): ast.parse(path.read_text("utf-8")) for path in sorted(ROOT.rglob("*.py"))}


def imports(tree: ast.Module) -> list[tuple[str, str]]:
    """(dotted name, name it is bound to) of all that a module imports from atlasseg, inside functions too."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(a.name, a.asname or a.name) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found += [(f"{node.module}.{a.name}", a.asname or a.name) for a in node.names]
    return [(name, bound) for name, bound in found if name.partition(".")[0] == "atlasseg"]


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def private_uses(module: str, tree: ast.Module) -> set[str]:
    """Private modules and names of other rooms that a module imports or looks up in an imported module."""
    others = {bound: name for name, bound in imports(tree) if room(name) != room(module)}
    found = {name for name in others.values() if any(map(is_private, name.split(".")))}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and isinstance(node.value, ast.Name):
            name = others.get(node.value.id)
            if name in MODULES:
                found.add(f"{name}.{node.attr}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_no_room_uses_what_is_private_in_another(module):
    assert private_uses(module, MODULES[module]) == set()


def test_private_uses_are_found():
    code = (
        "from atlasseg import io\nfrom atlasseg.fusion import _votes, joint\n"
        "from atlasseg.regions._contraction import x\n"
        "def f():\n    from atlasseg.volume import _y\n    return io._z, joint.fuse, io.__name__\n"
    )
    assert private_uses("atlasseg.report.page", ast.parse(code)) == {
        "atlasseg.fusion._votes",
        "atlasseg.regions._contraction.x",
        "atlasseg.volume._y",
        "atlasseg.io._z",
    }
    assert private_uses("atlasseg.fusion.staple", ast.parse("from atlasseg.fusion import _votes")) == set()


def imported_modules(tree: ast.Module) -> set[str]:
    return {name if name in MODULES else name.rpartition(".")[0] for name, _ in imports(tree)}


def test_no_module_imports_itself_by_way_of_others():
    """Also for types alone, and inside functions. The root package offers what all others hold, so it is left out."""
    graph = networkx.DiGraph()
    for module, tree in MODULES.items():
        package = {module.rpartition(".")[0]} if module.count(".") > 1 else set()
        graph.add_edges_from((module, other) for other in imported_modules(tree) - {module, "atlasseg"} - package)
    graph.remove_node("atlasseg")
    circles = [sorted(part) for part in networkx.strongly_connected_components(graph) if len(part) > 1]
    assert circles == []


def test_rooms_do_not_ask_the_root_package():
    """`import atlasseg` leads to every room: one that asked it for a name would stand above itself."""
    asking = [
        m for m, tree in MODULES.items() for name, _ in imports(tree) if name not in MODULES and name.count(".") == 1
    ]
    assert [m for m in asking if m != "atlasseg.__main__"] == []
