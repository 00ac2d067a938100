"""Layouts that were found, as rules of ``ckpt edit``: which are taken, and how they are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final, Literal

from ckpt_surgery.edits.rule_texts import captured
from ckpt_surgery.edits.value_rules import ValueRule
from ckpt_surgery.errors import PlanError, UsageError
from ckpt_surgery.fit.decided import Decided
from ckpt_surgery.matching.layout_shapes import Step
from ckpt_surgery.matching.layouts import Layout
from ckpt_surgery.names import Rule
from ckpt_surgery.names.fold import fold_names
from ckpt_surgery.startup.lazy_dataclass import dataclass

_HOWS: Final = ("transposed", "as-is")
_FORM: Final = "'GLOB=transposed', 'GLOB=as-is' or 'GLOB=heads:N'"
_MOST_SAID: Final = 8


@dataclass(frozen=True, slots=True)
class LayoutAnswer:
    """What the user says of the tensors of the checkpoint that `glob` matches.

    `heads` is for parts that lie head by head: their number.
    """

    text: str
    glob: str
    how: Literal["transposed", "as-is"]
    heads: int | None = None

    def matches(self, layout: Layout) -> bool:
        """Return whether it is about one of the tensors that would change."""
        rule = Rule("glob", self.glob)
        return any(rule.matches(name) for name in layout.sources)


def parse_layout_answers(texts: Sequence[str]) -> tuple[LayoutAnswer, ...]:
    """Return the answers of ``--layout 'h.*.c_proj.weight=transposed'``, ``qkv.weight=heads:8``.

    Raises `UsageError` for a text of another form.
    """
    return tuple(map(_parse, texts))


def _parse(text: str) -> LayoutAnswer:
    glob, equals, how = text.rpartition("=")
    name, _, number = how.partition(":")
    if equals and glob and name == "heads" and number.isdecimal() and int(number) > 0:
        return LayoutAnswer(text, glob, "as-is", int(number))
    for known in _HOWS:
        if equals and glob and how == known:
            return LayoutAnswer(text, glob, "transposed" if known == "transposed" else "as-is")
    raise UsageError(f"'layout {text}' says no layout", hint=f"write {_FORM}", fields=("layout",))


def require_about_some(answers: Sequence[LayoutAnswer], found: Sequence[Layout]) -> None:
    """Raise `UsageError` for an answer that is about none of the layouts."""
    for answer in answers:
        if not any(answer.matches(layout) for layout in found):
            raise UsageError(
                f"'layout {answer.text}' is about no tensor that would fit in another layout",
                hint="the report lists those, with the checkpoint's names",
                fields=("layout",),
            )


def decide(found: Sequence[Layout], answers: Sequence[LayoutAnswer]) -> tuple[Decided, ...]:
    """Return what is to be done about each layout, as far as it is certain or was answered.

    Raises `UsageError` for an answer that a layout cannot have.
    """
    return tuple(_decided(layout, answers) for layout in found)


def _decided(layout: Layout, answers: Sequence[LayoutAnswer]) -> Decided:
    answer = next((each for each in answers if each.matches(layout)), None)
    if answer is None:
        return Decided(layout, layout.ways[0].steps if layout.is_certain else None)
    way = next((way for way in layout.ways if way.name == answer.how), None)
    if answer.heads is not None and not (way and _is_regrouped(way.steps)):
        raise _cannot(answer, layout, "it is neither split nor joined")
    if way is None:
        if answer.how == "as-is" and not _is_regrouped(layout.ways[0].steps):
            return Decided(layout, ())  # it stays what it is, and takes initial values
        raise _cannot(answer, layout, f"its shapes leave only '{layout.ways[0].name}'")
    steps = way.steps
    if answer.heads is not None:
        heads = f":heads={answer.heads}"
        steps = tuple(
            replace(s, value=s.value + heads) if s.option in ("split", "concat") else s
            for s in steps
        )
    return Decided(layout, steps)


def _is_regrouped(steps: Sequence[Step]) -> bool:
    return any(step.option in ("split", "concat") for step in steps)


def _cannot(answer: LayoutAnswer, layout: Layout, why: str) -> UsageError:
    return UsageError(
        f"'layout {answer.text}' is not possible for '{layout.sources[0]}': {why}",
        fields=("layout",),
    )


def require_decided(decided: Sequence[Decided]) -> None:
    """Raise `PlanError` if it is not certain what is to be done about one."""
    open_ones = [each.layout for each in decided if each.steps is None]
    if not open_ones:
        return
    shown = [f"'{fold.pattern}'" for fold in fold_names(n for x in open_ones for n in x.sources)]
    more = f" and {len(shown) - _MOST_SAID} more" if len(shown) > _MOST_SAID else ""
    first = open_ones[0]
    ways = " or ".join(f"--layout '{first.sources[0]}={way.name}'" for way in first.ways)
    heads = f" or --layout '{first.sources[0]}=heads:N'" if first.by_heads else ""
    raise PlanError(
        f"the layout of {', '.join(shown[:_MOST_SAID])}{more} is ambiguous: {first.doubt}",
        hint=f"say which it is: {ways}{heads}; a glob answers for many",
    )


def rules_of(decided: Sequence[Decided], names: Sequence[str]) -> tuple[ValueRule, ...]:
    """Return the rules that carry out what is decided on a state dict that has `names`.

    Steps that are alike in numbered layers are one rule with stars, if these match nothing else.
    """
    groups: dict[tuple[object, ...], list[tuple[Step, ...]]] = {}
    for each in decided:
        if each.steps:
            groups.setdefault(tuple(map(_form, each.steps)), []).append(each.steps)
    current = dict.fromkeys(names)
    rules: list[ValueRule] = []
    for members in groups.values():
        for alike in zip(*members, strict=True):
            rules += _rules_of_alike(alike, list(current))
            for step in alike:
                for name in step.sources if step.made else ():
                    current.pop(name, None)
                current.update(dict.fromkeys(step.made))
    return tuple(rules)


def _form(step: Step) -> tuple[object, ...]:
    sources, made = tuple(map(_starred, step.sources)), tuple(map(_starred, step.made))
    return step.option, sources, made, step.value


def _starred(name: str) -> str:
    return ".".join("*" if segment.isdecimal() else segment for segment in name.split("."))


def _numbers(name: str) -> list[str]:
    return [segment for segment in name.split(".") if segment.isdecimal()]


def _rules_of_alike(alike: Sequence[Step], names: Sequence[str]) -> Iterator[ValueRule]:
    first = alike[0]
    globs = tuple(map(_starred, first.sources))
    matched = [name for glob in globs for name, _ in captured(glob, names)]
    wanted = [name for step in alike for name in step.sources]
    agree = all(_numbers(n) == _numbers(s.sources[0]) for s in alike for n in (*s.sources, *s.made))
    if len(alike) > 1 and agree and sorted(matched) == sorted(wanted):
        yield ValueRule(first.option, _text(first, globs, tuple(map(_starred, first.made))))
        return
    for step in alike:
        made = tuple(_new_name(step.sources[0], name) for name in step.made)
        yield ValueRule(step.option, _text(step, step.sources, made))


def _new_name(old: str, new: str) -> str:
    """Return what a rule says to make `new` of `old`: its end, if as many segments are before."""
    ours, theirs = old.split("."), new.split(".")
    if len(ours) != len(theirs):
        return f"name:{new}"
    same = 0
    while same < len(ours) - 1 and ours[same] == theirs[same]:
        same += 1
    return ".".join(theirs[same:])


def _text(step: Step, sources: tuple[str, ...], made: tuple[str, ...]) -> str:
    """Return the text of a rule: ``a.*.qkv.weight=a.*.q.weight,…``, ``a.*.conv.weight=64,-1``."""
    if step.option in ("split", "concat"):
        return f"{','.join(sources)}={','.join(made)}{step.value}"
    return f"{sources[0]}={step.value}" if step.value else sources[0]
