"""No module imports, at once or later, one that imports it; and none is long."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from module_names import PACKAGE, modules

_MOST_LINES = 450


def _imports(tree: ast.Module) -> Iterator[str]:
    """Yield what a module imports anywhere: also in functions, and for type checkers alone."""
    known = modules()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in known else node.module for name in names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_import_goes_in_a_circle() -> None:
    graph = {
        name: [found for found in _imports(module.tree) if found in modules() and found != name]
        for name, module in modules().items()
    }
    assert sum(map(len, graph.values())) > 1000
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("folder", [PACKAGE, PACKAGE.parent / "scripts"])
def test_no_file_is_long(folder: Path) -> None:
    lengths = {
        str(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in folder.rglob("*")
        if path.is_file()
        and (path.suffix == ".py" or folder.name == "scripts")
        and "__pycache__" not in path.parts
    }
    assert len(lengths) > 10
    assert {path: count for path, count in lengths.items() if count > _MOST_LINES} == {}
