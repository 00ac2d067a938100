"""An inspected file for people: tables, a tree, and what lies beside the tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final

from ckpt_surgery.checkpoint.description import Entry, Other, StateDict, join_path
from ckpt_surgery.render.listing import Subtree, fold, tree
from ckpt_surgery.render.lists import below
from ckpt_surgery.render.screen import Column, Grid, Screen
from ckpt_surgery.render.text import LONGEST, count, nbytes, printable, shape
from ckpt_surgery.render.training import average_line, training_lines
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    from ckpt_surgery.compute.stats import TensorStats
    from ckpt_surgery.reports.inspection import InspectReport
    from ckpt_surgery.torch_objects.safe_loading import SafeLoading

_MOST_LINES: Final = 40  # of one kind in the footer
_MOST_NAMES: Final = 8  # of one tie
_MOST_FACTS: Final = 4  # of one kind in the training state
_CPU: Final = "cpu"
_MOST_BLAMED: Final = 2  # entries that torch.load refuses
_MOST_VALUES: Final = 8  # plain values in an entry
_LONGEST_VALUE: Final = 80  # characters
_LONGEST_NOTE: Final = 500
_BARS: Final = "▁▂▃▄▅▆▇█"

_NAME: Final = Column("name", names=True)
_SHAPE: Final = Column("shape", spare=4, style="cyan")
_DTYPE: Final = Column("dtype", spare=7, style="green")
_DEVICE: Final = Column("device", spare=6)
_ELEMENTS: Final = Column("elements", right=True, spare=8)
_BYTES: Final = Column("bytes", right=True, spare=9)
_STATS: Final = (
    *(Column(name, right=True) for name in ("min", "max", "mean")),
    Column("std", right=True, spare=2),
    *(Column(name, right=True) for name in ("NaN", "Inf")),
    Column("zeros", right=True, spare=3),
    Column("histogram", spare=6),
)


@dataclass(frozen=True, slots=True)
class View:
    """How to show the entries: `both_indices`, `folded`, or as a `tree` of some `depth`."""

    both_indices: bool = False
    folded: bool = False
    tree: bool = False
    depth: int | None = None


def show(report: InspectReport, view: View, screen: Screen) -> None:
    """Write every state dict under its path, then the footer."""
    for state_dict in report.state_dicts:
        if len(report.state_dicts) > 1 or state_dict.path:
            screen.line(_heading(report, state_dict), "bold")
        if view.tree:
            screen.grid(_tree_grid(tree(state_dict, view.depth)))
        elif view.folded:
            screen.grid(_folded_grid(state_dict))
        else:
            screen.grid(_grid(report, state_dict, view))
        screen.line()
    for line in _footer(report, screen):
        screen.line(line)


def show_many(reports: Sequence[InspectReport], screen: Screen) -> None:
    """Show several files, one line each, and their sums."""
    columns = (
        Column("file", names=True),
        Column("format", spare=2),
        Column("tensors", right=True),
        Column("elements", right=True, spare=1),
        Column("bytes", right=True),
        Column("beside the tensors", wraps=True, spare=3),
    )
    rows = [
        (
            printable(report.file),
            report.format,
            f"{report.totals.tensors:,}",
            f"{report.totals.numel:,}",
            f"{report.totals.nbytes:,}",
            ", ".join(printable(other.path) or "(top level)" for other in report.others[:8]),
        )
        for report in reports
    ]
    screen.grid(Grid(columns, rows))
    screen.line()
    tensors = sum(report.totals.tensors for report in reports)
    screen.line(
        f"{count(len(reports), 'file')}: {count(tensors, 'tensor')}, "
        f"{_exact_bytes(sum(report.totals.nbytes for report in reports))}"
    )


def _heading(report: InspectReport, state_dict: StateDict) -> str:
    averaged = report.averaged.get(state_dict.path)
    of = "" if averaged is None else f" of {count(averaged, 'model')}"
    return f"{printable(state_dict.path) or '(top level)'} ({state_dict.kind}{of})"


def _grid(report: InspectReport, state_dict: StateDict, view: View) -> Grid:
    columns = [Column("index", right=True, spare=5, style="dim")]
    if view.both_indices:
        columns = [
            Column("state_dict", right=True, style="dim"),
            Column("parameters", right=True, style="dim"),
        ]
    device = _has_devices(state_dict)
    columns += [_NAME, *_fact_columns(device)]
    if report.stats:
        columns += _STATS
    rows = []
    for entry in state_dict.entries:
        key = join_path(state_dict.path, entry.name)
        place = report.places[key]
        parameter = "-" if place.parameter is None else str(place.parameter)
        indices = (str(place.index), parameter) if view.both_indices else (str(place.index),)
        stats = _stats(report.stats.get(key)) if report.stats else ()
        rows.append((*indices, printable(entry.name), *_facts(entry, device), *stats))
    return Grid(columns, rows)


def _has_devices(state_dict: StateDict) -> bool:
    """Return whether any tensor was saved elsewhere than on the CPU."""
    return any(e.tensor is not None and e.tensor.device != _CPU for e in state_dict.entries)


def _fact_columns(device: bool) -> tuple[Column, ...]:
    return (_SHAPE, _DTYPE, *([_DEVICE] if device else []), _ELEMENTS, _BYTES)


def _facts(entry: Entry, device: bool, times: int = 1) -> tuple[str, ...]:
    """Shape, type, device, elements and bytes; of an entry that is no tensor there are none."""
    tensor = entry.tensor
    if tensor is None:
        return ("-", "(no tensor)", *(["-"] if device else []), "-", "-")
    dtype = tensor.dtype.name
    if tensor.layout != "strided":
        dtype += f" {printable(tensor.described_layout)}"
    place = [printable(tensor.device)] if device else []
    counts = (f"{tensor.numel * times:,}", f"{tensor.nbytes * times:,}")
    return (shape(tensor.shape), dtype, *place, *counts)


def _stats(stats: TensorStats | None) -> tuple[str, ...]:
    if stats is None:
        return ("-",) * len(_STATS)
    values = (
        "-" if number is None else f"{number:.4g}"
        for number in (stats.min, stats.max, stats.mean, stats.std)
    )
    highest = max(stats.histogram, default=0) or 1
    bars = (_BARS[-(-n * (len(_BARS) - 1) // highest)] for n in stats.histogram)
    return (*values, f"{stats.nan:,}", f"{stats.inf:,}", f"{stats.zeros:,}", "".join(bars))


def _folded_grid(state_dict: StateDict) -> Grid:
    device = _has_devices(state_dict)
    rows = [
        (
            printable(row.name),
            f"{len(row.entries):,}",
            *_facts(row.entries[0], device, len(row.entries)),
        )
        for row in fold(state_dict.entries)
    ]
    tensors = Column("tensors", right=True, spare=6)
    return Grid((_NAME, tensors, *_fact_columns(device)), rows)


def _tree_grid(root: Subtree) -> Grid:
    columns = (
        _NAME,
        Column("tensors", right=True, spare=3),
        Column("parameters", right=True, spare=1),
        Column("bytes", right=True, spare=2),
    )
    rows = [
        (
            guide + printable(node.name),
            f"{node.tensors:,}",
            f"{node.parameters:,}",
            f"{node.nbytes:,}",
        )
        for guide, node in _walk(root)
    ]
    return Grid(columns, rows)


def _walk(root: Subtree) -> Iterator[tuple[str, Subtree]]:
    """Nodes below `root` with the lines that lead to them. Depth is bounded by the tree's."""
    children = list((root.children or {}).values())
    for child in children:
        last = child is children[-1]
        yield "└── " if last else "├── ", child
        for guide, node in _walk(child):
            yield ("    " if last else "│   ") + guide, node


def _made_by(step: Mapping[str, Any]) -> str:
    """Return a step of the provenance in a line: ``ckpt 0.2.0: strip of 'a.pth', 3 edits``."""
    inputs, plan = step.get("inputs"), step.get("plan")
    listed = inputs if isinstance(inputs, list) else []
    files = [str(each.get("file")) for each in listed if isinstance(each, Mapping)]
    of = f" of {', '.join(map(repr, files))}" if files else ""
    edits = f", {count(len(plan), 'edit')}" if isinstance(plan, list) else ""
    return f"ckpt {step.get('version', '?')}: {step['command']}{of}{edits}"


def _footer(report: InspectReport, screen: Screen) -> Iterator[str]:
    totals, most = report.totals, screen.most(_MOST_LINES)
    shards = f", {count(len(report.files), 'file')}" if report.files else ""
    yield f"{printable(report.file)}: {report.format}{shards}, {_exact_bytes(report.size)}"
    if not report.state_dicts:
        yield "no state dict found"
    if report.declared:
        yield f"architecture: {printable(report.declared)}"
    for path, each in report.architectures.items():
        where = f" ({printable(path)})" if path else ""
        yield f"architecture{where}: {printable(str(each['summary']))}"
    yield (
        f"total: {count(totals.tensors, 'tensor')}, {count(totals.numel, 'element')}, "
        f"{_exact_bytes(totals.nbytes)}"
    )
    for step in report.provenance:
        yield f"made by {printable(_made_by(step))}"
    if totals.unused_nbytes:
        yield f"unused: {_exact_bytes(totals.unused_nbytes)} of storages that no tensor uses"
    yield from _devices(report)
    others = [_other(report, other, screen) for other in report.others]
    yield from _section("other entries:", others, most)
    inner = (e for s in report.state_dicts for e in s.entries if e.tensor is None and e.tensors)
    yield from _section("tensors below entries that are none:", list(map(_hidden, inner)), most)
    averages = [average_line(each) for each in report.averages if each.title or each.counters]
    yield from _section("averages:", averages, most)
    if report.weights_only is not None:
        yield _loading(report.weights_only, screen.most(_MOST_BLAMED))
    yield from _section("ties:", [_tie(names, screen) for names in report.ties], most)
    for note in report.notes[:most]:
        yield f"note: {printable(note, screen.most(_LONGEST_NOTE))}"


def _devices(report: InspectReport) -> Iterator[str]:
    """Say where tensors were saved, those of an optimizer too, if not all were on the CPU."""
    weights = (e for s in report.state_dicts for e in s.entries)
    inside = chain.from_iterable(e.tensors if e.tensor is None else (e.tensor,) for e in weights)
    beside = (tensor for other in report.others for tensor in other.tensors)
    counts = Counter(tensor.device for tensor in chain(inside, beside))
    if set(counts) - {_CPU}:
        listed = (f"{printable(d)} ({count(n, 'tensor')})" for d, n in counts.most_common())
        yield f"devices: {', '.join(listed)}; '--device cpu' writes it for any machine"


def _exact_bytes(number: int) -> str:
    exact = count(number, "byte")
    return exact if number < 1024 else f"{exact} ({nbytes(number)})"


def _section(title: str, lines: Sequence[str], most: int) -> Iterator[str]:
    if lines:
        yield title
        yield from below(lines, most)


def _other(report: InspectReport, other: Other, screen: Screen) -> str:
    """``epoch = 3``, ``optimizer: 2 groups, 110 states, …``, ``args: argparse.Namespace``."""
    path = printable(other.path) or "(top level)"
    if other.value is not None:
        return f"{path} = {_value(other.value, min(screen.most(_LONGEST_VALUE), LONGEST))}"
    values = report.values.get(other.path, {})
    if "" in values:
        shown = _value(values[""], min(screen.most(_LONGEST_VALUE), LONGEST))
        return f"{path} = {shown} ({printable(other.type)})"
    training = None if other.node is None else report.training.get(other.path)
    most = screen.most(_MOST_FACTS)
    facts = list(training_lines(training, most)) if training is not None else []
    if values and not facts:
        facts = _plain_values(values, screen)
    facts = facts or [
        count(number, what.removesuffix("s").replace("entrie", "entry"), what)
        for what, number in report.details.get(other.path, {}).items()
    ]
    if other.tensors:
        facts.append(count(len(other.tensors), "tensor"))
        facts.append(nbytes(sum(tensor.nbytes for tensor in other.tensors)))
    type_name = printable(other.type)
    return f"{path}: {', '.join(facts)}" + (f" ({type_name})" if facts else type_name)


def _plain_values(values: Mapping[str, object], screen: Screen) -> list[str]:
    """``lr = 0.1``, ``optimizer/name = 'sgd'``, …"""
    most = screen.most(_MOST_VALUES)
    longest = min(screen.most(_LONGEST_VALUE), LONGEST)
    shown = [f"{printable(p)} = {_value(v, longest)}" for p, v in islice(values.items(), most)]
    return [*shown, f"… and {len(values) - most:,} more"] if len(values) > most else shown


def _loading(found: SafeLoading, most: int) -> str:
    """``weights_only=True: torch.load refuses args (argparse.Namespace); …``."""
    if found.loads:
        return "weights_only=True: torch.load takes it"
    blamed = [
        f"{printable(path) or 'the whole file'} ({printable(kind)})" for path, kind in found.entries
    ]
    if len(blamed) > most:
        others = f"{len(blamed) - most:,} more"
        blamed = [*blamed[:most], others if found.are_all else f"more than {others}"]
    elif not found.are_all:
        blamed = [*blamed, "and others"]
    what = (
        f"refuses {', '.join(blamed)}" if blamed else f"refuses it: {printable(found.reason or '')}"
    )
    cure = f"; '{printable(found.cure)}' cures that" if found.cure else ""
    return f"weights_only=True: torch.load {what}{cure}"


def _hidden(entry: Entry) -> str:
    """``optimizer: 18 tensors, 400 bytes``, of an entry among the weights."""
    size = nbytes(sum(tensor.nbytes for tensor in entry.tensors))
    return f"{printable(entry.name)}: {count(len(entry.tensors), 'tensor')}, {size}"


def _value(value: object, longest: int) -> str:
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"  # Python refuses to print a huge one
    return printable(f"'{value}'" if isinstance(value, str) else str(value), longest)


def _tie(names: Sequence[str], screen: Screen) -> str:
    shown = names[: screen.most(_MOST_NAMES)]
    more = f" = … {len(names) - len(shown):,} more" if len(names) > len(shown) else ""
    return " = ".join(printable(name) for name in shown) + more
