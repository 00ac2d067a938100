"""What `diff` found between two checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from ckpt_surgery.reports import envelope
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    from ckpt_surgery.compute.distances import Distance

Kind = Literal["shape", "dtype", "values", "layout", "device", "requires_grad", "class"]
Status = Literal["equal", "close", "differs", "unknown"]
Change = Literal["added", "removed", "changed"]
Plain = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a tensor is in one of the files."""

    shape: tuple[int, ...]
    dtype: str
    layout: str
    device: str
    requires_grad: bool
    is_parameter: bool

    def to_dict(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "dtype": self.dtype,
            "layout": self.layout,
            "device": self.device,
            "requires_grad": self.requires_grad,
            "is_parameter": self.is_parameter,
        }


@dataclass(frozen=True, slots=True)
class TensorChange:
    """A tensor that is in both files and not the same. `kinds` says in what it differs.

    `status` is about its values: they are ``unknown`` if they were not compared. `distance` is
    there if they were looked at.
    """

    name: str
    kinds: tuple[Kind, ...]
    a: Facts
    b: Facts
    status: Status
    distance: Distance | None = None

    @property
    def differs(self) -> bool:
        """Whether it is more than a difference within the tolerance."""
        return self.kinds != ("values",) or self.status != "close"

    def mirrored(self) -> TensorChange:
        """Return the same change seen from the other file."""
        distance = self.distance
        if distance is not None:
            distance = replace(distance, square_a=distance.square_b, square_b=distance.square_a)
        return replace(self, a=self.b, b=self.a, distance=distance)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kinds": list(self.kinds),
            "a": self.a.to_dict(),
            "b": self.b.to_dict(),
            "status": self.status,
            "distance": None if self.distance is None else self.distance.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class TreeChange:
    """A value beside the weights, by its path: `old` is that of the first file, `new` the second's.

    What is no plain value is shown by its type.
    """

    path: str
    change: Change
    old: Plain = None
    new: Plain = None

    def mirrored(self) -> TreeChange:
        """Return the same change seen from the other file."""
        turned: dict[Change, Change] = {"added": "removed", "removed": "added"}
        return replace(self, change=turned.get(self.change, "changed"), old=self.new, new=self.old)

    def to_dict(self) -> dict[str, Any]:
        return {"path": self.path, "change": self.change, "old": self.old, "new": self.new}


@dataclass(frozen=True, slots=True)
class StateDictDiff:
    """The differences of two state dicts, or of one that has no counterpart.

    Names are those that both have in common: without `prefix_a` and `prefix_b`, where one file has
    these before all of its names. `renamed` are pairs of names with the same bytes.
    """

    path_a: str | None
    path_b: str | None
    prefix_a: str = ""
    prefix_b: str = ""
    wrappers: bool = False
    added: tuple[tuple[str, Facts], ...] = ()
    removed: tuple[tuple[str, Facts], ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    changed: tuple[TensorChange, ...] = ()
    entries: tuple[TreeChange, ...] = ()
    metadata: tuple[TreeChange, ...] = ()
    ties_added: tuple[tuple[str, ...], ...] = ()
    ties_removed: tuple[tuple[str, ...], ...] = ()
    equal: int = 0
    by_checksum: int = 0

    @property
    def is_moved(self) -> bool:
        """Whether it lies at another path, has another prefix, or other wrappers in its names."""
        if self.path_a is None or self.path_b is None:
            return False
        moved = self.path_a != self.path_b or self.prefix_a != self.prefix_b
        return moved or self.wrappers

    @property
    def differs(self) -> bool:
        """Whether anything differs by more than the tolerance."""
        parts = (
            *(self.added, self.removed, self.renamed, self.entries, self.metadata),
            *(self.ties_added, self.ties_removed),
        )
        lacking = self.path_a is None or self.path_b is None
        return lacking or self.is_moved or any(parts) or any(c.differs for c in self.changed)

    def mirrored(self) -> StateDictDiff:
        """Return the same differences seen from the other file."""
        return replace(
            self,
            path_a=self.path_b,
            path_b=self.path_a,
            prefix_a=self.prefix_b,
            prefix_b=self.prefix_a,
            added=self.removed,
            removed=self.added,
            renamed=tuple((b, a) for a, b in self.renamed),
            changed=tuple(each.mirrored() for each in self.changed),
            entries=tuple(each.mirrored() for each in self.entries),
            metadata=tuple(each.mirrored() for each in self.metadata),
            ties_added=self.ties_removed,
            ties_removed=self.ties_added,
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "path_a": self.path_a,
            "path_b": self.path_b,
            "prefix_a": self.prefix_a,
            "prefix_b": self.prefix_b,
            "wrappers": self.wrappers,
            "added": [{"name": name, **facts.to_dict()} for name, facts in self.added],
            "removed": [{"name": name, **facts.to_dict()} for name, facts in self.removed],
            "renamed": [list(pair) for pair in self.renamed],
            "changed": [each.to_dict() for each in self.changed],
            "entries": [each.to_dict() for each in self.entries],
            "metadata": [each.to_dict() for each in self.metadata],
            "ties_added": [list(names) for names in self.ties_added],
            "ties_removed": [list(names) for names in self.ties_removed],
            "equal": self.equal,
            "by_checksum": self.by_checksum,
        }


@dataclass(frozen=True, slots=True)
class DiffedFile:
    """One of the two files."""

    file: str
    format: str
    size: int

    def to_dict(self) -> dict[str, Any]:
        return {"file": self.file, "format": self.format, "size": self.size}


@dataclass(frozen=True, slots=True)
class DiffReport:
    """All differences of two checkpoints; `others` are those beside the state dicts."""

    a: DiffedFile
    b: DiffedFile
    state_dicts: tuple[StateDictDiff, ...]
    others: tuple[TreeChange, ...]
    warnings: tuple[str, ...] = ()

    @property
    def differs(self) -> bool:
        return bool(self.others) or any(each.differs for each in self.state_dicts)

    @property
    def exit_code(self) -> int:
        return 1 if self.differs else 0

    @property
    def names(self) -> Iterator[str]:
        """Every name that differs: tensors of state dicts, then paths of other entries."""
        for each in self.state_dicts:
            path = each.path_a if each.path_b is None else each.path_b
            prefix = f"{path}/" if path else ""
            found = [name for name, _ in each.removed]
            found += [name for pair in each.renamed for name in pair]
            found += [change.name for change in each.changed if change.differs]
            found += [name for name, _ in each.added]
            found += [change.path for change in each.entries]
            yield from (prefix + name for name in dict.fromkeys(found))
        yield from (change.path for change in self.others)

    def mirrored(self) -> DiffReport:
        """Return the same differences seen from the other file."""
        return replace(
            self,
            a=self.b,
            b=self.a,
            state_dicts=tuple(each.mirrored() for each in self.state_dicts),
            others=tuple(each.mirrored() for each in self.others),
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            **envelope(
                "diff",
                exit_code=self.exit_code,
                inputs=(self.a.file, self.b.file),
                warnings=self.warnings,
            ),
            "a": self.a.to_dict(),
            "b": self.b.to_dict(),
            "pairs": [each.to_dict() for each in self.state_dicts],
            "others": [each.to_dict() for each in self.others],
        }
