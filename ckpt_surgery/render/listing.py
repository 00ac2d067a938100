"""The entries of an inspected file as rows: numbered, sorted, folded, summed into a tree."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

from ckpt_surgery.names.fold import fold as fold_names
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    from ckpt_surgery.checkpoint.description import Entry, StateDict
    from ckpt_surgery.reports.inspection import InspectReport

_Sort = Literal["name", "size", "file"]

_DEEPEST: Final = 64  # levels of a tree; what lies below stays one name


def in_sequence(report: InspectReport, sort: _Sort) -> InspectReport:
    """Return the report with the entries of each state dict by name, or largest first, or as is."""
    if sort == "file":
        return report
    return replace(
        report,
        state_dicts=tuple(
            replace(each, entries=tuple(_sorted(each.entries, sort))) for each in report.state_dicts
        ),
    )


def _sorted(entries: Iterable[Entry], sort: _Sort) -> list[Entry]:
    if sort == "name":
        return sorted(entries, key=lambda entry: entry.name)
    return sorted(entries, key=lambda entry: -(entry.tensor.nbytes if entry.tensor else 0))


@dataclass(frozen=True, slots=True)
class Folded:
    """Entries alike but for numbers in their names: ``layers.{0..31}.weight``."""

    name: str
    entries: tuple[Entry, ...]


def fold(entries: Sequence[Entry]) -> list[Folded]:
    """Return entries of one form whose names differ in a number between dots, as one."""
    folds = fold_names((entry.name, _kind(entry)) for entry in entries)
    return [Folded(f.pattern, tuple(entries[index] for index in f.indices)) for f in folds]


def _kind(entry: Entry) -> Hashable:
    tensor = entry.tensor
    if tensor is None:
        return None
    return tensor.shape, tensor.dtype.name, tensor.described_layout, tensor.device


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
    """Return the entries as a tree of their dotted names, `depth` levels deep (None: all)."""
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
