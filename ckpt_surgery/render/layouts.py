"""What fits in another layout, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    if done := [each.layout for each in decided if each.is_applied]:
        tensors = count(sum(len(layout.sources) for layout in done), "tensor")
        yield f"put into the target's layout: {tensors} of the checkpoint"
        yield from below(_lines(done), most)
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
    for each in fold((layout.sources[0], _what(layout)) for layout in layouts):
        times = f" ({each.count:,})" if each.count > 1 else ""
        yield f"{printable(each.pattern)}{times}: {each.value}"


def _what(layout: Layout) -> str:
    """``(96, 32) -> q.weight, k.weight, v.weight by split``."""
    old, new = layout.from_shapes, layout.to_shapes
    if len(layout.sources) > 1:
        more = ", ".join(_end(name) for name in layout.sources[1:])
        what = f"and {more}, {shape(old[0])} -> {_end(layout.targets[0])} {shape(new[0])}"
    elif len(layout.targets) > 1:
        made = ", ".join(_end(name) for name in layout.targets)
        shapes = ", ".join(dict.fromkeys(map(shape, new)))
        what = f"{shape(old[0])} -> {made} of {shapes}"
    else:
        what = f"{shape(old[0])} -> {shape(new[0])}"
        if old == new and not layout.doubt:
            return f"{what} by {layout.how}, as others of its name"
    heads = ", or heads:N" if layout.by_heads else ""
    ways = " or ".join(way.name for way in layout.ways) + heads
    return f"{what} by {layout.how}" + (f"; {layout.doubt}: {ways}" if layout.doubt else "")


def _end(name: str) -> str:
    """Return the last two segments of a name, which tell it from its like."""
    return printable(".".join(name.split(".")[-2:]))
