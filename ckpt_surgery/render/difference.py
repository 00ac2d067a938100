"""What `diff` found, for people."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from math import sqrt
from typing import TYPE_CHECKING, Final, TextIO

from ckpt_surgery.names.fold import fold
from ckpt_surgery.render.color import WARNING
from ckpt_surgery.render.screen import Screen
from ckpt_surgery.render.text import count, nbytes, printable, shape, visible
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    from ckpt_surgery.compute.distances import Distance
    from ckpt_surgery.reports.difference import (
        DiffedFile,
        DiffReport,
        Facts,
        StateDictDiff,
        TensorChange,
        TreeChange,
    )

_SAME_NUMBERS: Final = "equal numbers of other bits (zeros or NaN)"
_MOST_LINES: Final = 40  # of one kind, on a terminal
_MOST_FOLDED: Final = 5000  # names that are folded
_BAR: Final = 30  # cells of the longest bar
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True)
class DiffView:
    """How much is shown: `stat` only numbers, `fold` repeated layers as one, all lines or not."""

    stat: bool = False
    fold: bool = False
    most: int | None = _MOST_LINES


def write_names(report: DiffReport, stream: TextIO) -> None:
    """Return every name that differs, one a line; a line break within one is escaped."""
    stream.writelines(f"{visible(name)}\n" for name in report.names)


def show(report: DiffReport, view: DiffView, screen: Screen) -> None:
    """Say of each state dict, and of what lies beside them, what differs."""
    if not report.differs:
        equal = sum(each.equal for each in report.state_dicts)
        screen.line(f"no difference: {count(equal, 'tensor')} equal{_close(report)}", "green")
    else:
        screen.line(f"a: {_file(report.a)}", "bold")
        screen.line(f"b: {_file(report.b)}", "bold")
    for each in report.state_dicts:
        if each.differs or any(change.distance for change in each.changed):
            _show_state_dict(each, view, screen)
    if report.others and view.stat:
        screen.line(f"other entries: {count(len(report.others), 'difference')}")
    elif report.others:
        screen.line("other entries:")
        _show_lines(map(_tree_line, report.others), view, screen)
    for warning in report.warnings:
        screen.line(f"warning: {printable(warning, 500)}", WARNING)


def _file(file: DiffedFile) -> str:
    return f"{printable(file.file)} ({file.format}, {nbytes(file.size)})"


def _close(report: DiffReport) -> str:
    close = sum(len(each.changed) for each in report.state_dicts)
    return f", {close:,} close" if close else ""


def _show_state_dict(found: StateDictDiff, view: DiffView, screen: Screen) -> None:
    screen.line(_title(found) + ":")
    if view.stat:
        screen.line(f"  {_counts(found)}")
    else:
        _show_lists(found, view, screen)
    _show_bars(found, view, screen)


def _title(found: StateDictDiff) -> str:
    paths = [found.path_a, found.path_b]
    if None in paths:
        which, path = ("b", found.path_b) if found.path_a is None else ("a", found.path_a)
        return f"{_path(path)}, only in {which}"
    title = " -> ".join(dict.fromkeys(map(_path, paths)))
    prefixes = [found.prefix_a, found.prefix_b]
    if any(prefixes):
        title += f", names without {' and '.join(repr(p) for p in prefixes if p)}" + (
            " of a" if not found.prefix_b else " of b" if not found.prefix_a else ""
        )
    return title + (", names without wrappers" if found.wrappers else "")


def _path(path: str | None) -> str:
    return printable(path or "") or "top level"


def _counts(found: StateDictDiff) -> str:
    numbers = {
        "removed": len(found.removed),
        "added": len(found.added),
        "renamed": len(found.renamed),
        "changed": sum(change.differs for change in found.changed),
        "close": sum(not change.differs for change in found.changed),
        "ties": len(found.ties_added) + len(found.ties_removed),
        "metadata": len(found.metadata),
        "entries": len(found.entries),
        "equal": found.equal,
    }
    return ", ".join(f"{number:,} {what}" for what, number in numbers.items() if number)


def _show_lists(found: StateDictDiff, view: DiffView, screen: Screen) -> None:
    for title, items in (("only in a", found.removed), ("only in b", found.added)):
        _show_list(title, [(name, _form(facts)) for name, facts in items], view, screen)
    if found.renamed:
        screen.line(f"  renamed, with the same bytes: {len(found.renamed):,}")
        pairs = (f"{printable(old)} -> {printable(new)}" for old, new in found.renamed)
        _show_lines((f"  {pair}" for pair in pairs), view, screen)
    changes = [(change.name, _what(change)) for change in found.changed]
    _show_list("changed", changes, view, screen)
    for title, groups in (
        ("tied only in a", found.ties_removed),
        ("tied only in b", found.ties_added),
    ):
        for names in groups:
            screen.line(f"  {title}: {' = '.join(map(printable, names))}")
    for title, tree in (("entries", found.entries), ("metadata", found.metadata)):
        if tree:
            screen.line(f"  {title}: {len(tree):,}")
            _show_lines((f"  {_tree_line(each)}" for each in tree), view, screen)
    equal = f"  equal: {count(found.equal, 'tensor')}"
    screen.line(equal + (f", {found.by_checksum:,} by checksum" if found.by_checksum else ""))


def _show_list(
    title: str, items: Sequence[tuple[str, Hashable]], view: DiffView, screen: Screen
) -> None:
    if not items:
        return
    screen.line(f"  {title}: {len(items):,}")
    if view.fold and len(items) <= _MOST_FOLDED:
        folded = fold(items)
        names = [(f.pattern + (f" ({f.count:,})" if f.count > 1 else ""), f.value) for f in folded]
    else:
        names = list(items)
    _show_lines((f"  {printable(name)}: {what}" for name, what in names), view, screen)


def _show_lines(lines: Iterable[str], view: DiffView, screen: Screen) -> None:
    listed = list(lines)
    for line in listed[: view.most]:
        screen.line(f"  {line}")
    if view.most is not None and len(listed) > view.most:
        screen.line(f"  … and {len(listed) - view.most:,} more")


def _form(facts: Facts) -> str:
    return f"{facts.dtype} {shape(facts.shape)}"


def _what(change: TensorChange) -> str:
    a, b = change.a, change.b
    parts = []
    if "shape" in change.kinds:
        parts.append(f"shape {shape(a.shape)} -> {shape(b.shape)}")
    if "dtype" in change.kinds:
        parts.append(f"type {a.dtype} -> {b.dtype}")
    if "layout" in change.kinds:
        parts.append(f"layout {a.layout} -> {b.layout}")
    if "device" in change.kinds:
        parts.append(f"device {printable(a.device)} -> {printable(b.device)}")
    if "requires_grad" in change.kinds:
        parts.append(f"requires_grad {a.requires_grad} -> {b.requires_grad}")
    if "class" in change.kinds:
        names = ["a parameter" if each.is_parameter else "a tensor" for each in (a, b)]
        parts.append(" -> ".join(names))
    if change.distance is not None and change.distance.changed:
        parts.append(_distance(change.distance, close=change.status == "close"))
    elif change.distance is not None and change.status == "differs":
        parts.append(_SAME_NUMBERS)
    elif "values" in change.kinds:
        parts.append("values differ" if change.status != "unknown" else "values not compared")
    return ", ".join(parts)


def _distance(found: Distance, *, close: bool) -> str:
    share = found.changed / found.numbers
    what = "close" if close else f"{share:.2%} of values differ"
    cosine = "" if found.cosine is None else f", cosine {found.cosine:.6f}"
    return (
        f"{what}, by at most {found.max_abs:.3g} ({found.max_rel:.3g} relative), "
        f"norm {found.norm_change:.3g} ({found.relative_change:.2%}){cosine}"
    )


def _tree_line(change: TreeChange) -> str:
    path = printable(change.path) or "(top level)"
    old, new = (_value(value) for value in (change.old, change.new))
    if change.change == "added":
        return f"{path}: only in b ({new})"
    if change.change == "removed":
        return f"{path}: only in a ({old})"
    return f"{path}: {old} -> {new}" if old != new else f"{path}: other values ({old})"


def _value(value: object) -> str:
    return printable(value) if isinstance(value, str) else repr(value)


def _show_bars(found: StateDictDiff, view: DiffView, screen: Screen) -> None:
    """Return how much of its norm each layer has changed by, as bars."""
    layers = list(_layers(found.changed))
    if not layers:
        return
    screen.line("  change by layer, as a share of its norm:")
    longest = max(share for _, share in layers) or 1.0
    width = max(len(printable(name)) for name, _ in layers)
    lines = (
        f"  {printable(name).ljust(width)} {share:>8.2%} {_bar(share / longest)}"
        for name, share in layers
    )
    _show_lines(lines, view, screen)


def _layers(changes: Iterable[TensorChange]) -> Iterator[tuple[str, float]]:
    """Yield each module whose own tensors were measured, and its change as a share of the
    larger norm.
    """
    sums: dict[str, list[float]] = {}
    for change in changes:
        if change.distance is not None:
            found = sums.setdefault(change.name.rpartition(".")[0] or change.name, [0.0, 0.0, 0.0])
            found[0] += change.distance.square_change
            found[1] += change.distance.square_a
            found[2] += change.distance.square_b
    for name, (square, a, b) in sums.items():
        yield name, sqrt(square / max(a, b)) if max(a, b) else 0.0


def _bar(share: float) -> str:
    eighths = round(share * _BAR * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
