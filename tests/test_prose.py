"""What the package says about itself: docstrings that need not be read twice, names of files."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import module_names

_NO_VERB = re.compile(
    r"(What|Whether|Where|Which|Who|How|When|The|A|An|Every|Each|All|One|Two|Bytes|Names)\b"
)
_PROPERTIES = {"property", "cached_property"}


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for module in module_names.modules().values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef):
                yield f"{module.name}:{node.lineno}", node


def is_property(function: ast.FunctionDef) -> bool:
    return any(
        isinstance(decorator, ast.Name) and decorator.id in _PROPERTIES
        for decorator in function.decorator_list
    )


def test_docstring_of_a_function_begins_with_a_verb() -> None:
    """Properties are named as what they are."""
    found = [
        f"{place}: {(ast.get_docstring(function) or '').splitlines()[0]}"
        for place, function in functions()
        if not is_property(function) and _NO_VERB.match(ast.get_docstring(function) or "")
    ]
    assert found == []


def test_every_file_of_tests_has_a_name_of_its_own() -> None:
    """pytest imports them by it: two of one name are not collected together."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
