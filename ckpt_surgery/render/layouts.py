"""What fits in another layout, for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ckpt_surgery.fit.decided import Decided
from ckpt_surgery.matching.layouts import Layout
from ckpt_surgery.names.fold import fold
from ckpt_surgery.render.lists import below
from ckpt_surgery.render.text import count, printable, shape
from ckpt_surgery.reports.fitting import Matched


def match_layout_lines(each: Matched, most: int) -> Iterator[str]:
    """Yield how many keys would match in another layout, and which they are."""
    sure = [layout for layout in each.layouts if layout.is_certain]
    if sure:
        keys = count(sum(len(layout.targets) for layout in sure), "more key")
        yield f"would match after 'ckpt fit --adapt layout': {keys}"
        yield from below(_lines(sure), most)
    yield from _doubtful([layout for layout in each.layouts if layout.doubt], most)


def fit_layout_lines(decided: Sequence[Decided], most: int) -> Iterator[str]:
    """Yield what was put into the layout of the target, what would be, and what is ambiguous."""
    if done := [each for each in decided if each.is_applied]:
        tensors = count(sum(len(each.layout.sources) for each in done), "tensor")
        yield f"put into the target's layout: {tensors} of the checkpoint"
        yield from below(_folded((each.layout, _done(each)) for each in done), most)
        return
    if sure := [each.layout for each in decided if each.layout.is_certain]:
        keys = count(sum(len(layout.targets) for layout in sure), "tensor")
        yield f"would fit in another layout, with --adapt layout: {keys} of the target"
        yield from below(_lines(sure), most)
    yield from _doubtful([each.layout for each in decided if each.layout.doubt], most)


def _doubtful(layouts: Sequence[Layout], most: int) -> Iterator[str]:
    if layouts:
        yield "ambiguous, so that --layout NAME=HOW has to say it:"
        yield from below(_lines(layouts), most)


def _lines(layouts: Sequence[Layout]) -> Iterator[str]:
    return _folded((layout, _what(layout)) for layout in layouts)


def _folded(said: Iterable[tuple[Layout, str]]) -> Iterator[str]:
    for each in fold((layout.sources[0], what) for layout, what in said):
        times = f" ({each.count:,})" if each.count > 1 else ""
        yield f"{printable(each.pattern)}{times}: {each.value}"


def _done(decided: Decided) -> str:
    """Say of a layout what was decided about it."""
    by_name = _is_by_name(decided.layout)
    return f"{_shapes(decided.layout)} by {decided.how}" + (", as others of its name" * by_name)


def _what(layout: Layout) -> str:
    """``(96, 32) -> q.weight, k.weight, v.weight by split``."""
    what = f"{_shapes(layout)} by {layout.how}"
    if _is_by_name(layout):
        return f"{what}, as others of its name"
    heads = ", or heads:N" if layout.by_heads else ""
    ways = " or ".join(way.name for way in layout.ways) + heads
    return what + (f"; {layout.doubt}: {ways}" if layout.doubt else "")


def _is_by_name(layout: Layout) -> bool:
    """Return whether only others of its name say what became of it."""
    is_one = len(layout.sources) == len(layout.targets) == 1
    return is_one and layout.from_shapes == layout.to_shapes and not layout.doubt


def _shapes(layout: Layout) -> str:
    old, new = layout.from_shapes, layout.to_shapes
    if len(layout.sources) > 1:
        more = ", ".join(_end(name) for name in layout.sources[1:])
        return f"and {more}, {shape(old[0])} -> {_end(layout.targets[0])} {shape(new[0])}"
    if len(layout.targets) > 1:
        made = ", ".join(_end(name) for name in layout.targets)
        return f"{shape(old[0])} -> {made} of {', '.join(dict.fromkeys(map(shape, new)))}"
    return f"{shape(old[0])} -> {shape(new[0])}"


def _end(name: str) -> str:
    """Return the last two segments of a name, which tell it from its like."""
    return printable(".".join(name.split(".")[-2:]))
