"""What the tensors around one tell about its layout, where its own shape does not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal

from ckpt_surgery.matching.layout_shapes import Way
from ckpt_surgery.models.target import Shape
from ckpt_surgery.startup.lazy_dataclass import dataclass

_Told = Literal["yes", "no", "mixed"]
"""Whether what is around is transposed."""

_DEEPEST: Final = 32  # segments of a name that are looked at
_UNTOLD: Final = "its parts are square"


@dataclass(frozen=True, slots=True)
class Votes:
    """Of the matrices that are no squares: which modules, and which names of modules, have
    transposed ones (True) and others (False).
    """

    by_module: dict[str, set[bool]]
    by_name: dict[str, set[bool]]

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, Shape, Shape]]) -> Votes:
        """Count pairs of a target's name, the checkpoint's shape and the target's."""
        by_module: dict[str, set[bool]] = defaultdict(set)
        by_name: dict[str, set[bool]] = defaultdict(set)
        for name, have, want in pairs:
            is_matrix = len(have) == 2 and have[0] != have[1]
            if not is_matrix or want not in (have, have[::-1]):
                continue
            modules = list(_modules(name))
            for module in modules:
                by_module[module].add(want != have)
            by_name[modules[0].rpartition(".")[2]].add(want != have)
        return cls(by_module, by_name)

    def note(self, name: str, ways: Sequence[Way]) -> None:
        """Count a matrix that is fused or split, if it is transposed, or may well be.

        `name` is one of the target's. Of several ways the usual one, that rows of a linear layer
        stay rows, is no sign; if that is not among them, what is around may be transposed as well.
        """
        told = {way.name == "transposed" for way in ways}
        if True in told and (len(told) == 1 or not _keeps_rows(ways)):
            for module in _modules(name):
                self.by_module.setdefault(module, set()).update(told)

    def around(self, name: str) -> _Told | None:
        """Return what the nearest module around it that tells anything tells.

        Of what lies beside numbered layers (embeddings, a head) another project's layers need not
        be like: that it is transposed only makes this possible.
        """
        within = _layers(name)
        for module in _modules(name):
            if found := self.by_module.get(module):
                is_near = not within or module == within or module.startswith(f"{within}.")
                return _told(found) if is_near else ("mixed" if True in found else None)
        return None

    def of_square(self, name: str) -> _Told | None:
        """Return whether a square matrix is transposed: "yes" by its module's name, "mixed" if
        that may be; None if nothing speaks for it.
        """
        own = self.by_name.get(next(_modules(name)).rpartition(".")[2])
        if own and len(own) == 1:
            return "yes" if True in own else None
        return "mixed" if own or self.around(name) in ("yes", "mixed") else None

    def decide(self, name: str, ways: tuple[Way, ...]) -> tuple[tuple[Way, ...], str]:
        """Return the ways to the tensor `name`, the likeliest first, and the doubt about it."""
        if len(ways) == 1:
            return ways, ""
        told = self.around(name)
        likeliest = "as-is" if told in ("no", None) else "transposed"
        ordered = tuple(sorted(ways, key=lambda way: way.name != likeliest))
        # rows of a linear layer stay rows unless something speaks against it
        is_usual = told is None and _keeps_rows(ordered[:1])
        return ordered, "" if told in ("yes", "no") or is_usual else _UNTOLD


def _keeps_rows(ways: Sequence[Way]) -> bool:
    """Return whether one of the ways leaves all as it is, and takes rows apart or together."""
    return any(
        way.name == "as-is" and not any(":dim=1" in step.value for step in way.steps)
        for way in ways
    )


def _layers(name: str) -> str:
    """Return what holds the outermost numbered modules around a tensor: ``encoder.layers``."""
    segments = name.split(".")
    first = next((place for place, each in enumerate(segments) if each.isdecimal()), 0)
    return ".".join(segments[:first])


def _told(votes: set[bool]) -> _Told:
    return "mixed" if len(votes) > 1 else ("yes" if True in votes else "no")


def _modules(name: str) -> Iterator[str]:
    """Yield the module that owns a tensor, and those around it, up to the root."""
    module = name
    for _ in range(_DEEPEST):
        module = module.rpartition(".")[0]
        yield module
        if not module:
            return
