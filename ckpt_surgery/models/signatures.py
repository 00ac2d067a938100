"""Recognising architectures in a list of names and shapes, without torch.

Models of torchvision and timm are known by their names and shapes; those of transformers by names
and numbers of axes with the numbers of layers left open, since a configuration chooses how many
layers there are and how wide. ``num_batches_tracked`` is left out: files from before torch 0.4.1
lack it. Tensors whose rows follow the number of classes are listed apart, so that a head of any
size is recognised. `signature_table` keeps what is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace

from ckpt_surgery.models.signature_table import (
    Head,
    Signature,
    Table,
    checksum,
    folded,
    load_table,
    open_checksum,
)
from ckpt_surgery.models.target import Shape
from ckpt_surgery.names.spellings import respellings, unwrapped
from ckpt_surgery.startup.lazy_dataclass import dataclass

_FEWEST = 8
"""Tensors below which a resemblance says nothing."""
_LEAST_AGREEMENT = 0.9
"""Of an architecture's names and shapes, those that a file has to have (docs/commands.md)."""
_LEAST_SHARE = 0.5
"""Of the file's tensors, those that have to be the architecture's."""
_MOST_EXACT = 4096
"""Tensors above which a file is no model whose names and shapes are known one by one."""
_LONGEST_NAME = 512
"""Characters; no architecture has longer names, a hostile file may."""
_DEEPEST_PREFIX = 8
"""Segments that wrappers may have put before the names."""


@dataclass(frozen=True, slots=True)
class Recognition:
    """The architecture that a state dict is, or is nearest to.

    `agreeing` of the architecture's `wanted` tensors are there in the right shape (of transformers:
    with the right number of axes), out of `found` tensors that the state dict has
    (``num_batches_tracked`` is counted nowhere). `also` are architectures that are as near.
    `prefix` is what their names have before the architecture's own, with its dot. `classes` is the
    size of the head, None if the architecture has none, the file lacks it, or sizes are left open.
    """

    name: str
    also: tuple[str, ...]
    prefix: str
    agreeing: int
    wanted: int
    found: int
    classes: int | None
    compares: str = "shapes"

    @property
    def is_complete(self) -> bool:
        """Whether every tensor of the architecture is there."""
        return self.agreeing == self.wanted

    @property
    def is_exact(self) -> bool:
        """Whether there is nothing else, either."""
        return self.is_complete and self.found == self.wanted

    @property
    def fraction(self) -> float:
        """Of the tensors of either side, those that agree."""
        return self.agreeing / (self.wanted + self.found - self.agreeing)

    @property
    def is_near(self) -> bool:
        """Whether enough agrees for the architecture to be named at all."""
        return (
            self.agreeing >= _LEAST_AGREEMENT * self.wanted
            and self.agreeing >= _LEAST_SHARE * self.found
        )

    def to_dict(self) -> dict[str, object]:
        """As the JSON report of ``ckpt inspect`` has it."""
        return {
            "name": self.name,
            "also": list(self.also),
            "prefix": self.prefix,
            "agreeing": self.agreeing,
            "wanted": self.wanted,
            "found": self.found,
            "classes": self.classes,
            "fraction": round(self.fraction, 4),
            "summary": str(self),
        }

    def __str__(self) -> str:
        title = _spoken(self.name)
        if self.is_exact:
            parts = [title, "every key"]
        elif self.is_complete:
            more = self.found - self.wanted
            parts = [f"contains {title}", f"and {more} more {'key' if more == 1 else 'keys'}"]
        else:
            what = "keys and shapes" if self.compares == "shapes" else "keys"
            parts = [f"nearest to {title}", f"{self.agreeing} of its {self.wanted} {what}"]
        if self.classes is not None:
            parts.append(f"{self.classes}-class head")
        if self.prefix:
            parts.append(f"prefix '{self.prefix}'")
        return ", ".join(parts) + self._ties()

    def _ties(self) -> str:
        """Say which architectures the file may be just as well."""
        if not self.also:
            return ""
        others = len(self.also) - 1
        more = f" and {others} more" if others else ""
        what = "names and shapes" if self.compares == "shapes" else "names"
        if self.is_complete:
            same = f"{'have' if others else 'has'} the same {what}"
        else:
            same = f"{'are' if others else 'is'} as near"
        return f"; {_spoken(self.also[0])}{more} {same}"


def _spoken(name: str) -> str:
    return name.replace(":", " ", 1)


@dataclass(frozen=True, slots=True)
class _Below:
    """What a state dict has below a prefix: `shapes` by name, and the checksums of both kinds.

    `exact` maps the checksum of a name and its shape, in each spelling, to that name; `open` that
    of a name without its numbers and its number of axes to how many names are written so.
    """

    prefix: str
    shapes: Mapping[str, Shape]
    exact: frozenset[int]
    open: Mapping[int, int] = field(default_factory=dict)


def recognise(
    tensors: Iterable[tuple[str, Shape]], table: Table | None = None
) -> Recognition | None:
    """Return the architecture whose tensors these are, or the nearest; None if none is near.

    Near means that nine tenths of the architecture's names and shapes are there, and that these
    are at least half of what there is. Wrapper prefixes and old spellings are seen through.
    """
    shapes = {name: tuple(shape) for name, shape in tensors if not _is_counter(name)}
    if len(shapes) < _FEWEST or any(len(name) > _LONGEST_NAME for name in shapes):
        return None
    known = load_table() if table is None else table
    best: list[Recognition] = []
    for below in _views(shapes):
        candidates = (*known.candidates(below.exact), *known.candidates(below.open))
        for signature in candidates:
            found = _compare(signature, below, len(shapes))
            if not found.is_near:
                continue
            if not best or _rank(found) > _rank(best[0]):
                best = [found]
            elif _rank(found) == _rank(best[0]):
                # of one architecture the longest prefix, where wrappers are seen through anyway
                best = [*(other for other in best if other.name != found.name), found]
    if not best:
        return None
    first, *others = best
    also = (*first.also, *(name for each in others for name in (each.name, *each.also)))
    return replace(first, also=also)


def _rank(found: Recognition) -> tuple[float, bool]:
    return found.fraction, found.compares == "shapes"


def _views(shapes: Mapping[str, Shape]) -> Iterator[_Below]:
    """Yield what there is below each prefix that there may be."""
    rows = Counter((folded(name), len(shape)) for name, shape in shapes.items())
    for prefix in _prefixes(shapes):
        below = {}
        if len(shapes) <= _MOST_EXACT:
            below = {
                unwrapped(name.removeprefix(prefix)): shape
                for name, shape in shapes.items()
                if name.startswith(prefix)
            }
        exact = frozenset(
            checksum(spelling, shape)
            for name, shape in below.items()
            for spelling in (name, *respellings(name))
        )
        yield _Below(prefix, below, exact, _open_checksums(rows, folded(prefix)))


def _open_checksums(rows: Mapping[tuple[str, int], int], prefix: str) -> dict[int, int]:
    """Return how many tensors have a name and number of axes, by the checksum of each spelling."""
    found: Counter[int] = Counter()
    for (name, axes), count in rows.items():
        if name.startswith(prefix):
            plain = unwrapped(name.removeprefix(prefix))
            for spelling in (plain, *respellings(plain)):
                found[open_checksum(spelling, axes)] += count
    return found


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"


def _prefixes(names: Iterable[str]) -> list[str]:
    """No prefix, and those that at least half of the names have, with their dots."""
    below: Counter[str] = Counter()
    total = 0
    for name in names:
        total += 1
        segments = name.split(".", _DEEPEST_PREFIX)[:-1]
        below.update(".".join(segments[:n]) + "." for n in range(1, len(segments) + 1))
    return ["", *(prefix for prefix, count in below.items() if 2 * count >= total)]


def _compare(signature: Signature, below: _Below, found: int) -> Recognition:
    if signature.rows:
        agreeing, wanted = _count_open(signature, below.open)
        classes = None
    else:
        sizes = _sizes_of_heads(signature.heads, below.shapes)
        classes, agreeing = sizes[0] if sizes else (None, 0)
        names = signature.checksums
        agreeing += len(below.exact.intersection(names))
        wanted = len(names) + len(signature.heads)
    return Recognition(
        name=signature.name,
        also=signature.also,
        prefix=below.prefix,
        agreeing=agreeing,
        wanted=wanted,
        found=found,
        classes=classes,
        compares="names" if signature.rows else "shapes",
    )


def _sizes_of_heads(heads: Sequence[Head], shapes: Mapping[str, Shape]) -> list[tuple[int, int]]:
    """Return numbers of classes and how many heads have each, the commonest first."""
    sizes = (head.classes(shapes.get(head.name, ())) for head in heads)
    return Counter(size for size in sizes if size is not None).most_common(1)


def _count_open(signature: Signature, found: Mapping[int, int]) -> tuple[int, int]:
    """Return how many tensors are the architecture's, and how many it would have.

    What is missing of every layer is counted once a layer; a tied tensor may be missing.
    """
    layers = Counter[int]()
    agreeing = missing = missing_in_layers = 0
    for row in signature.rows:
        count = found.get(row.checksum, 0)
        agreeing += count
        if count and "#" in row.name:
            layers[count] += 1
        elif not count and not row.is_optional:
            missing_in_layers += "#" in row.name
            missing += "#" not in row.name
    each = layers.most_common(1)[0][0] if layers else 1
    return agreeing, agreeing + missing + missing_in_layers * each
