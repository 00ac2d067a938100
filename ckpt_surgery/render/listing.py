"""The entries of an inspected file as rows: numbered, sorted, folded, summed into a tree."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final, Literal

from ckpt_surgery.checkpoint import Entry, StateDict
from ckpt_surgery.report import InspectReport

Sort = Literal["name", "size", "file"]

_DEEPEST: Final = 64  # levels of a tree; what lies below stays one name
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,7}")  # what comes back as it was from an int


def in_sequence(report: InspectReport, sort: Sort) -> InspectReport:
    """The report with the entries of each state dict by name, or largest first, or as is."""
    if sort == "file":
        return report
    return replace(
        report,
        state_dicts=tuple(
            replace(each, entries=tuple(_sorted(each.entries, sort))) for each in report.state_dicts
        ),
    )


def _sorted(entries: Iterable[Entry], sort: Sort) -> list[Entry]:
    if sort == "name":
        return sorted(entries, key=lambda entry: entry.name)
    return sorted(entries, key=lambda entry: -(entry.tensor.nbytes if entry.tensor else 0))


_Row = tuple[tuple[str, ...], tuple[Entry, ...]]  # a name's segments, and who has it


@dataclass(frozen=True, slots=True)
class Folded:
    """Entries alike but for numbers in their names: ``layers.{0..31}.weight``."""

    name: str
    entries: tuple[Entry, ...]


def fold(entries: Sequence[Entry]) -> list[Folded]:
    """Entries of one shape and type whose names differ in a number between dots, as one."""
    rows: list[_Row] = [(tuple(entry.name.split(".", _DEEPEST)), (entry,)) for entry in entries]
    deepest = min(max((len(segments) for segments, _ in rows), default=0), _DEEPEST)
    for level in range(deepest):
        groups: dict[object, list[_Row]] = {}
        for segments, members in rows:
            groups.setdefault(_fold_key(segments, members, level), []).append((segments, members))
        rows = [_merge(group, level) for group in groups.values()]
    return [Folded(".".join(segments), members) for segments, members in rows]


def _fold_key(segments: tuple[str, ...], members: tuple[Entry, ...], level: int) -> object:
    number = segments[level] if level < len(segments) else ""
    if not _NUMBER.fullmatch(number):
        return segments, id(members)
    tensor = members[0].tensor
    kind = None if tensor is None else (tensor.shape, tensor.dtype.name, tensor.layout)
    return segments[:level], segments[level + 1 :], kind, len(members)


def _merge(group: Sequence[_Row], level: int) -> _Row:
    segments, members = group[0]
    if len(group) == 1:
        return segments, members
    numbers = ranges(int(segments[level]) for segments, _ in group)
    merged = tuple(entry for _, members in group for entry in members)
    return (*segments[:level], f"{{{numbers}}}", *segments[level + 1 :]), merged


def ranges(numbers: Iterable[int]) -> str:
    """Numbers in brief: ``0..3,5,7..8``."""
    runs = []
    for _, group in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        runs.append(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}")
    return ",".join(runs)


@dataclass(slots=True)
class Subtree:
    """What lies at and below a module path: sums over its tensors, and its children in order."""

    name: str
    tensors: int = 0
    parameters: int = 0
    nbytes: int = 0
    children: dict[str, Subtree] | None = None

    def add(self, entry: Entry) -> None:
        """Count a tensor; elements of buffers are no parameters."""
        if entry.tensor is not None:
            self.tensors += 1
            self.nbytes += entry.tensor.nbytes
            if entry.role != "buffer":
                self.parameters += entry.tensor.numel

    def child(self, name: str) -> Subtree:
        if self.children is None:
            self.children = {}
        return self.children.setdefault(name, Subtree(name))


def tree(state_dict: StateDict, depth: int | None = None) -> Subtree:
    """The entries as a tree of their dotted names, `depth` levels deep (None: all)."""
    levels = _DEEPEST if depth is None else min(depth, _DEEPEST)
    root = Subtree(state_dict.path)
    for entry in state_dict.entries:
        # beyond the deepest level a name stays one leaf; beyond what was asked for only sums remain
        segments = entry.name.split(".", _DEEPEST - 1)
        node = root
        node.add(entry)
        for segment in segments[:levels]:
            node = node.child(segment)
            node.add(entry)
    return root
