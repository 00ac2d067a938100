"""What changes of element types did, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ckpt_surgery.render.lists import below
from ckpt_surgery.render.text import count, printable

if TYPE_CHECKING:
    from ckpt_surgery.compute.casts import Cast


def cast_lines(casts: Sequence[Cast], most: int) -> Iterator[str]:
    """Count what went from which type to which; name what is not just rounded, `most` at most."""
    groups: dict[tuple[str, str], list[Cast]] = {}
    for cast in casts:
        groups.setdefault((cast.source, cast.target), []).append(cast)
    for (source, target), alike in groups.items():
        elements = count(sum(cast.elements for cast in alike), "element")
        errors = [c.count.error for c in alike if c.count is not None and c.count.error is not None]
        error = f", largest relative error {max(errors):.2g}" if errors else ""
        yield f"cast {source} -> {target}: {count(len(alike), 'tensor')}, {elements}{error}"
        yield from below((line for cast in alike for line in _changed(cast)), most)
    if any(cast.count is None for cast in casts):
        yield "what that does to the numbers is counted when they are written"


def _changed(cast: Cast) -> Iterator[str]:
    if cast.count and cast.count.words:
        elements = count(cast.elements, "element")
        yield f"{printable(cast.name)}: of {elements} {cast.count.words}"
