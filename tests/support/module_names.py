"""The names of the package's modules, from their source: what is public, and who uses it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import ckpt_surgery

PACKAGE = Path(str(ckpt_surgery.__file__)).parent


@dataclass
class Module:
    """A module of the package: its tree, and the names of other modules that it uses."""

    name: str
    tree: ast.Module
    imported: set[tuple[str, str]] = field(default_factory=set)

    def defined(self) -> Iterator[str]:
        """The names that it binds at its top level, imports aside."""
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield node.name
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                yield from (target.id for target in targets if isinstance(target, ast.Name))

    def handed_out(self) -> set[str]:
        """Its classes in signatures, bases and fields of what is public in it; no protocols."""
        found: set[str] = set()
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                found |= _signature(node)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                found |= _words(node)  # a table of classes
        return found & {
            node.name
            for node in self.tree.body
            if isinstance(node, ast.ClassDef)
            and not any("Protocol" in _words(b) for b in node.bases)
        }


def _signature(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    if isinstance(node, ast.FunctionDef):
        arguments = [a for a in ast.walk(node.args) if isinstance(a, ast.arg)]
        parts = [a.annotation for a in arguments] + [node.returns]
        return {word for part in parts if part is not None for word in _words(part)}
    found = {word for base in node.bases for word in _words(base)}
    for inner in node.body:
        if isinstance(inner, ast.AnnAssign):
            found |= _words(inner.annotation)
        elif isinstance(inner, ast.FunctionDef):
            found |= _signature(inner)
    return found


def _words(node: ast.AST) -> set[str]:
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
    return names.union(*(re.findall(r"\w+", t) for t in texts if isinstance(t, str)))


@cache
def modules() -> dict[str, Module]:
    """Every module by its dotted name, with what it imports from the others."""
    found: dict[str, Module] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        found[name] = Module(name, ast.parse(path.read_text(encoding="utf-8")))
    for module in found.values():
        module.imported = set(_imports(module.tree, found))
    return found


def _imports(tree: ast.Module, known: dict[str, Module]) -> Iterator[tuple[str, str]]:
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                yield node.module, alias.name
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            aliases.update({a.asname: a.name for a in node.names if a.asname})
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # a row of a registry
            yield from re.findall(r"^([\w.]+):(\w+)$", node.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = aliases.get(node.value.id)
            if module in known:
                yield module, node.attr


def public() -> list[tuple[str, str]]:
    """The public names that `ckpt_surgery` does not export, each with its module."""
    return [
        (module.name, name)
        for module in modules().values()
        for name in module.defined()
        if not name.startswith("_") and name not in ckpt_surgery.__all__
    ]


def used_elsewhere() -> set[tuple[str, str]]:
    """The names that another module uses, each with the module that it is from."""
    used = {place for module in modules().values() for place in module.imported}
    # A room's `__init__` hands names on.
    rooms = [m for m in modules().values() if (PACKAGE.parent / m.name.replace(".", "/")).is_dir()]
    handed = {(room.name, name): (at, name) for room in rooms for at, name in room.imported}
    return used | {handed[place] for place in used if place in handed}


def lines() -> int:
    """Lines of the package."""
    return sum(len(p.read_text(encoding="utf-8").splitlines()) for p in PACKAGE.rglob("*.py"))
