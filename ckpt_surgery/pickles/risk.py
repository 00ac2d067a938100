"""What a class or function that a pickle names could do when the pickle is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Final, Literal

from ckpt_surgery.pickles.nodes import Global
from ckpt_surgery.pickles.risk_table import DANGEROUS, DOUBTFUL, HARMLESS, HARMLESS_CLASSES
from ckpt_surgery.pickles.weights_only import is_allowed
from ckpt_surgery.startup.lazy_dataclass import dataclass

_Level = Literal["harmless", "unknown", "doubtful", "dangerous"]
_LEVELS: Final[tuple[_Level, ...]] = ("dangerous", "doubtful", "unknown", "harmless")

# Modules of Python 2, which torch's writers name to this day.
_RENAMED: Final = {
    "__builtin__": "builtins",
    "__builtins__": "builtins",
    "copy_reg": "copyreg",
    "cPickle": "pickle",
    "cStringIO": "io",
    "StringIO": "io",
}
_CLASS: Final = re.compile(r"_?[A-Z]\w*")


@dataclass(frozen=True, slots=True)
class Risk:
    """How dangerous a name is, and `what` it does where that is known."""

    name: str
    level: _Level
    what: str | None = None


def _classify(found: Global) -> Risk:
    """Return what is known of a class or function.

    A dotted name is a walk through attributes, ``torch`` and ``os.system``: wherever it could lead
    is looked up, too, and it is never harmless.
    """
    module = _RENAMED.get(found.module, found.module)
    qualified = f"{module}.{found.name}"
    path = f"{found.module}.{found.name}"
    for candidate in (qualified, *_behind(found.name)):
        risk = _look_up(path, candidate)
        if risk is not None and (risk.level != "harmless" or "." not in found.name):
            return risk
    if "." not in found.name and (is_allowed(qualified) or _is_harmless_class(module, found.name)):
        return Risk(path, "harmless")
    return Risk(path, "unknown")


def classify_path(path: str) -> Risk:
    """Return what is known of a name of which it is not known where its module ends."""
    module, _, name = path.rpartition(".")
    return _classify(Global(module, name))


def classify_all(names: Iterable[Global]) -> list[Risk]:
    """Return the risks of names, each once, the most dangerous first."""
    found = {risk.name: risk for risk in map(_classify, names)}
    return sorted(found.values(), key=lambda risk: _LEVELS.index(risk.level))


def _behind(name: str) -> Iterator[str]:
    """Yield what a dotted name leads to: ``os.system`` of ``serialization.os.system``."""
    while "." in name:
        yield name
        name = name.partition(".")[2]


def _look_up(path: str, qualified: str) -> Risk | None:
    """Return the entry of the longest pattern that fits a qualified name."""
    table = _patterns()
    prefix = qualified
    entry = table.get(qualified)
    while entry is None and "." in prefix:
        prefix = prefix.rpartition(".")[0]
        entry = table.get(f"{prefix}.*") or table.get(prefix)
    if entry is None:
        return None
    level, what = entry
    return Risk(path, level, what)


@cache
def _patterns() -> dict[str, tuple[_Level, str | None]]:
    found: dict[str, tuple[_Level, str | None]] = dict.fromkeys(
        HARMLESS.split(), ("harmless", None)
    )
    found.update(_entries("doubtful", DOUBTFUL))
    found.update(_entries("dangerous", DANGEROUS))
    return found


def _entries(level: _Level, table: str) -> Iterator[tuple[str, tuple[_Level, str | None]]]:
    what = None
    for line in table.splitlines():
        if line.startswith(" "):
            yield from ((pattern, (level, what)) for pattern in line.split())
        else:
            what = line


def _is_harmless_class(module: str, name: str) -> bool:
    if not _CLASS.fullmatch(name):
        return False
    return any(module == known or module.startswith(f"{known}.") for known in _class_modules())


@cache
def _class_modules() -> tuple[str, ...]:
    return tuple(HARMLESS_CLASSES.split())
