"""References to Python objects: the default role, and names that are documented elsewhere than where they are defined.

Docstrings write parameters and objects alike in single backticks. With ``py:obj`` as the default role a nitpicky build
would warn of every parameter; the role `soft` links where there is such an object and shows code elsewhere.
"""

from __future__ import annotations

import importlib
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole
from sphinx.environment import BuildEnvironment

import atlasseg


class SoftRole(PyXRefRole):
    """A reference to a Python object that may lead nowhere."""

    def process_link(
        self, env: BuildEnvironment, refnode: Any, has_explicit_title: bool, title: str, target: str
    ) -> tuple[str, str]:
        """Mark the reference as one that need not resolve."""
        title, target = super().process_link(env, refnode, has_explicit_title, title, target)
        refnode["soft"] = True
        refnode["reftype"], refnode["refdomain"] = "obj", "py"
        return title, target


def resolve_elsewhere(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> Any:
    """Find an object at the place where it is documented; keep the text of a soft reference that leads nowhere."""
    if node.get("refdomain") != "py":
        return None
    domain = env.domains.python_domain
    name = documented_name(node)
    if name is not None:
        found = domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, content)
        if found is not None:
            return found
    if node.get("soft"):
        return content
    named_so = [full for full in domain.objects if full.endswith(f".{node['reftarget']}")]
    if named_so:
        return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", min(named_so, key=len), node, content)
    return None


def documented_name(node: pending_xref) -> str | None:
    """The name under ``atlasseg`` of an object that a module below defines."""
    target = node["reftarget"]
    for prefix in (node.get("py:module"), ""):
        module, _, name = (f"{prefix}.{target}" if prefix else target).rpartition(".")
        try:
            thing = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError):
            continue
        for public in atlasseg.__all__:
            if getattr(atlasseg, public) is thing:
                return f"atlasseg.{public}"
    return None


def keep_public_bases(app: Sphinx, name: str, thing: type, options: Any, bases: list[type]) -> None:
    """Show only base classes that have a page."""
    bases[:] = [base for base in bases if str(getattr(base, "__module__", "")).startswith("atlasseg")]
    bases[:] = [base for base in bases if not getattr(base, "__name__", "_").startswith("_")]


def setup(app: Sphinx) -> None:
    """Register the role and the handlers."""
    app.add_role("soft", SoftRole(innernodeclass=nodes.literal))
    app.connect("missing-reference", resolve_elsewhere)
    app.connect("autodoc-process-bases", keep_public_bases)
