"""What converting tensors to other element types does to their values, counted while it is done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from math import inf
from threading import Lock
from typing import Any

from ckpt_surgery.errors import LossyEditError, PathLike
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class CastCount:
    """How many elements of a conversion are no longer what they were, beside being rounded.

    `infinite` were finite and are not (a type without infinity has NaN instead), `zero` were not;
    `wrapped` were outside of the integers' range, `nan` are integers that were NaN, `rounded` lost
    a fraction to an integer type, or were integers that a floating-point type does not have.
    `error` is the largest relative error of all others between floating-point types, None where
    it was not measured.
    """

    infinite: int = 0
    zero: int = 0
    wrapped: int = 0
    nan: int = 0
    rounded: int = 0
    error: float | None = None

    def __add__(self, other: CastCount) -> CastCount:
        sums = {name: getattr(self, name) + getattr(other, name) for name in _WHAT}
        errors = [each for each in (self.error, other.error) if each is not None]
        return replace(self, **sums, error=max(errors, default=None))

    @property
    def loss(self) -> float:
        """The largest relative loss: of what became infinite that is infinity, of a zero 1."""
        if self.infinite or self.wrapped or self.nan:
            return inf
        return max(float(bool(self.zero)), self.error or 0.0)

    @property
    def is_lossy(self) -> bool:
        """Whether it takes leave to write the result: all but elements that became zero."""
        return bool(self.infinite or self.wrapped or self.nan or self.rounded)

    def __bool__(self) -> bool:
        return self.is_lossy or self.zero > 0

    @property
    def words(self) -> str:
        """``3 become infinite, 1 becomes zero``."""
        return ", ".join(
            f"{number:,} {_WHAT[name][number != 1]}"
            for name in _WHAT
            if (number := getattr(self, name))
        )

    def to_dict(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}


_WHAT = {
    "infinite": ("becomes infinite", "become infinite"),
    "zero": ("becomes zero", "become zero"),
    "wrapped": ("wraps around", "wrap around"),
    "nan": ("is NaN", "are NaN"),
    "rounded": ("is rounded", "are rounded"),
}


@dataclass(frozen=True, slots=True)
class Cast:
    """A tensor of `elements` that goes from one element type to another.

    `count` says what that did to them, None if nothing was written.
    """

    name: str
    source: str
    target: str
    elements: int
    count: CastCount | None = None

    @property
    def changes_type(self) -> bool:
        """Whether it is a conversion, and not only a result that is rounded to its type."""
        return self.source != self.target

    def to_dict(self) -> dict[str, Any]:
        counts = dict.fromkeys((f.name for f in fields(CastCount)), None)
        return {
            "name": self.name,
            "from": self.source,
            "to": self.target,
            "elements": self.elements,
            **(counts if self.count is None else self.count.to_dict()),
        }


class CastTally:
    """Counts what becomes of a tensor that is computed in an element type, part by part.

    `source` is the type that its numbers had; if that is `target`, they are only rounded to it.
    Whatever is computed again (for a digest, say) takes the place of what was counted before. Parts
    may be counted by several threads.
    """

    def __init__(
        self, name: str, source: str, target: str, elements: int, *, most: float | None = None
    ) -> None:
        self.name = name
        self.most = most
        """The largest relative loss that is allowed, if there is one."""
        self.allow_loss = False
        """Set by whoever writes: a loss is else refused as soon as it is counted."""
        self.path: PathLike | None = None
        """The file that an error names."""
        self._cast = Cast(name, source, target, elements)
        self._parts: dict[int, CastCount] = {}
        self._lock = Lock()

    def add(self, count: CastCount, *, part: int = 0) -> None:
        """Count what became of the part that begins at the element `part`.

        Raises LossyEditError for a loss that is not allowed.
        """
        if count.is_lossy and not self.allow_loss:
            raise LossyEditError(
                f"not all numbers fit the element type {self._cast.target}: {count.words}",
                path=self.path,
                entry=self.name,
                hint="--allow-loss writes them nevertheless; another element type may hold them",
            )
        if self.most is not None and count.loss > self.most:
            raise LossyEditError(
                f"{self._cast.target} changes a number by {_share(count.loss)} of it, "
                f"more than {self.most:g}",
                path=self.path,
                entry=self.name,
                hint="'--max-loss' allows more; another --dtype loses less",
            )
        with self._lock:
            self._parts[part] = count

    @property
    def cast(self) -> Cast:
        """What was counted so far."""
        if not self._parts:
            return self._cast
        return replace(self._cast, count=sum(self._parts.values(), CastCount()))


def tallies_of(sources: Iterable[object]) -> list[CastTally]:
    """Return the tallies of what is computed among the sources of bytes, each once.

    What is made of something computed comes after the tallies of that.
    """
    found: dict[CastTally, None] = {}
    seen: set[int] = set()
    for source in sources:
        waiting = [source]
        lower: list[CastTally] = []
        while waiting:
            each = waiting.pop()
            if id(each) in seen:
                continue
            seen.add(id(each))
            tally = getattr(each, "tally", None)
            if isinstance(tally, CastTally):
                lower.append(tally)
            waiting += _beneath(each)
        found.update(dict.fromkeys(reversed(lower)))
    return list(found)


def _beneath(source: object) -> list[object]:
    """Return the sources of bytes that one reads: what it is a view of, or computed from."""
    storages = (tensor.storage for tensor in getattr(source, "made_of", ()))
    read = [storage.data for storage in storages if storage is not None]
    return [*read, *(getattr(source, each) for each in ("source", "data") if hasattr(source, each))]


def _share(loss: float) -> str:
    return "more than all" if loss == inf else f"{loss:.3g}"
