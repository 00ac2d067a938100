"""What `match` and `fit` found, for people: many names folded to few lines."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Final

from ckpt_surgery.checkpoint.description import join_path
from ckpt_surgery.compute.casts import Cast
from ckpt_surgery.fit.items import FitItem
from ckpt_surgery.matching.comparison import Comparison, Mismatch
from ckpt_surgery.names.fold import Fold, fold, fold_names
from ckpt_surgery.render.casts import cast_lines
from ckpt_surgery.render.layouts import fit_layout_lines, match_layout_lines
from ckpt_surgery.render.lists import below, in_one_line, show_warnings, written_to
from ckpt_surgery.render.said import OF_FILES, said_of
from ckpt_surgery.render.screen import Screen
from ckpt_surgery.render.text import count, nbytes, printable, shape
from ckpt_surgery.render.training import optimizer_lines
from ckpt_surgery.reports.fitting import FitReport, Fitted, Matched, MatchReport

_MOST_LINES: Final = 40  # of one kind
_MOST_RENAMES: Final = 8  # most are alike; --emit-map and --json list all
_MOST_NAMES: Final = 2000  # that are folded; beyond, the first are shown as they are


def show_match(report: MatchReport, screen: Screen) -> None:
    """For each state dict the counts, then what differs in torch's words."""
    for each in report.matched:
        loads = each.comparison.fits
        screen.line(_verdict(report, each), "green" if loads else "bold")
        for line in _differences(each.comparison, screen.most(_MOST_LINES)):
            screen.line(line)
        for line in match_layout_lines(each, screen.most(_MOST_LINES)):
            screen.line(line)
    show_warnings(report.warnings, screen)


def _verdict(report: MatchReport, each: Matched) -> str:
    found = each.comparison
    where = f" ({printable(each.path)})" if each.path else ""
    absent = len(found.missing) + len(found.tied) + len(found.defaulted)
    wanted = len(found.matched) + len(found.mismatched) + len(found.uncopyable) + absent
    who = printable(report.target)
    if report.class_name != report.target:
        who += f" ({printable(report.class_name)})"
    return (
        f"{printable(report.inputs[0])}{where} for {who}: "
        f"{len(found.matched):,} of {count(wanted, 'key')} match"
    )


def _differences(found: Comparison, most: int) -> Iterator[str]:
    if found.fits:
        yield "<All keys matched successfully>"
    if found.missing:
        yield f"Missing key(s) in state_dict: {len(found.missing):,}"
        yield from below((_pattern(each) for each in _fold_names(found.missing)), most)
    if found.unexpected:
        yield f"Unexpected key(s) in state_dict: {len(found.unexpected):,}"
        yield from below((_pattern(each) for each in _fold_names(found.unexpected)), most)
    mismatched = _fold((m.name, (m.checkpoint, m.model)) for m in found.mismatched)
    texts = (str(Mismatch(_pattern(m), *m.value)) for m in mismatched if isinstance(m.value, tuple))
    for line in below(texts, most):
        yield line.strip()
    if found.uncopyable:
        yield f"tensors that load_state_dict cannot copy: {len(found.uncopyable):,}"
        refused = _fold(
            (u.name, f"{u.checkpoint} in the checkpoint, {u.model} in the model")
            for u in found.uncopyable
        )
        yield from below((f"{_pattern(each)}: {each.value}" for each in refused), most)
    if found.dtype_differences:
        yield "element types differ, which load_state_dict converts:"
        differences = _fold(
            (d.name, f"{d.checkpoint} in the checkpoint, {d.model} in the model")
            for d in found.dtype_differences
        )
        yield from below((f"{_pattern(each)}: {each.value}" for each in differences), most)
    if found.tied:
        yield "not in the file, but tied to what is:"
        yield from below(
            (f"{printable(t.name)} = {printable(t.present)}" for t in found.tied), most
        )
    if found.defaulted:
        yield f"not in the file, and load_state_dict does without: {len(found.defaulted):,}"
    if found.renamed:
        yield f"old spellings that the model renames when it loads: {len(found.renamed):,}"
        yield from below((f"{printable(a)} -> {printable(b)}" for a, b in found.renamed), most)


def _fold_names(names: Sequence[str]) -> list[Fold]:
    return fold_names(names) if len(names) <= _MOST_NAMES else [Fold(n, (n,)) for n in names]


def _fold(pairs: Iterable[tuple[str, Hashable]]) -> list[Fold]:
    listed = list(pairs)
    if len(listed) <= _MOST_NAMES:
        return fold(listed)
    return [Fold(name, (name,), value) for name, value in listed]


def _pattern(each: Fold) -> str:
    """``layer3.{0..5}.conv2.weight (6)``."""
    return printable(each.pattern) + (f" ({each.count:,})" if each.count > 1 else "")


def show_fit(report: FitReport, screen: Screen) -> None:
    """Counts for each state dict, every tensor that is not copied, and what to know."""
    most = screen.most(_MOST_LINES)
    for each in report.fitted:
        where = f" ({printable(each.path)})" if each.path else ""
        screen.line(f"{printable(report.inputs[0])}{where} for {printable(report.target)}:", "bold")
        for line in _fitted(each, _casts_of(report, each), screen):
            screen.line(line)
    if report.carried:
        screen.line(f"carried over: {in_one_line(report.carried, most)}")
    if report.dropped_others:
        screen.line(f"left out beside them: {in_one_line(report.dropped_others, most)}")
    for line in (*optimizer_lines(report.optimizers), *said_of(report.plan, OF_FILES)):
        screen.line(line)
    show_warnings(report.warnings, screen)
    size = f"{nbytes(report.nbytes_before)} -> {nbytes(report.nbytes_after)}"
    if report.output:
        screen.line(f"{written_to(report.output, report.warnings)}, {size}", "bold")
    else:
        screen.line(f"dry run: nothing was written, {size}", "bold")


def _casts_of(report: FitReport, each: Fitted) -> Sequence[Cast]:
    if len(report.fitted) == 1:
        return report.casts
    names = {join_path(each.path, item.name) for item in each.plan.items}
    return [cast for cast in report.casts if cast.name in names]


def _fitted(each: Fitted, casts: Sequence[Cast], screen: Screen) -> Iterator[str]:
    plan, most = each.plan, screen.most(_MOST_LINES)
    yield f"copied {_sum(plan.having('copied'), plan.elements['copied'])}"
    yield from cast_lines(casts, most)
    if renames := each.found.renames:
        ways = dict.fromkeys(p.how for p in each.found.pairs if p.source != p.target)
        yield f"names that differ: {len(renames):,}, paired by {', '.join(map(printable, ways))}"
        listed = [f"{printable(old)} -> {printable(new)}" for old, new in renames.items()]
        yield from below(listed, screen.most(_MOST_RENAMES))
    if untied := [(i.name, i.untied_from) for i in plan.items if i.untied_from]:
        yield "untied, as in the target:"
        yield from below((f"{printable(name)} from {printable(old)}" for name, old in untied), most)
    yield from fit_layout_lines(each.layouts, most)
    if adapted := plan.having("adapted"):
        yield f"adapted {_sum(adapted, plan.elements['adapted'])}:"
        folds = _fold((i.name, _adapted(i)) for i in adapted)
        yield from below((f"{_pattern(f)}: {f.value}" for f in folds), most)
    if initial := plan.having("initial"):
        yield f"initial {_sum(initial, plan.elements['initial'])}:"
        folds = _fold((i.name, _initial(i)) for i in initial)
        yield from below((f"{_pattern(f)}: {f.value}" for f in folds), most)
    if plan.dropped:
        yield f"dropped {_sum(plan.dropped, plan.elements['dropped'])}:"
        dropped = _fold((spec.name, shape(spec.shape)) for spec in plan.dropped)
        yield from below((f"{_pattern(f)} {f.value}" for f in dropped), most)


def _sum(tensors: Sequence[object], elements: int) -> str:
    return f"{count(len(tensors), 'tensor')}, {count(elements, 'element')}"


def _adapted(item: FitItem) -> str:
    rest = " (initial values elsewhere)" if item.is_partly_initial else ""
    return f"{shape(item.source_shape or ())} -> {shape(item.shape)} by {item.adaptation}{rest}"


def _initial(item: FitItem) -> str:
    value = "" if item.fill is None or item.fill.kind == "init" else f", filled by {item.fill}"
    if item.source_shape is None:
        return f"{shape(item.shape)}, {item.reason}{value}"
    if item.would_adapt:
        advice = f"; it would take --adapt {' or '.join(item.would_adapt)}"
    else:
        advice = "; no adaptation carries it over"
    if item.looks_transposed:
        advice = "; it looks transposed"
    if item.source_shape == item.shape:
        return f"{shape(item.shape)}, {item.reason}{value}"
    came = f"the checkpoint's is {shape(item.source_shape)}"
    return f"{shape(item.shape)}, {came}{advice}{value}"
