"""Rules of ``ckpt edit``: one option each, from its text to the edits that it means."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from math import isfinite
from typing import Final

from ckpt_surgery.checkpoint.description import StateDict
from ckpt_surgery.dtypes import named
from ckpt_surgery.edits.arithmetic import Add, Fill, Scale
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.cast import Cast, require_no_scale
from ckpt_surgery.edits.fold_rules import FOLD_RULES
from ckpt_surgery.edits.layers import Layers
from ckpt_surgery.edits.parts import Concat, Split
from ckpt_surgery.edits.rearrange import (
    Flip,
    Pad,
    Permute,
    Repeat,
    Reshape,
    Slice,
    Squeeze,
    Take,
    Transpose,
    Unsqueeze,
)
from ckpt_surgery.edits.rename import Rename, RenameModule
from ckpt_surgery.edits.rule_texts import captured, selection_rule, target_name
from ckpt_surgery.edits.share import Copy, Tie, Untie
from ckpt_surgery.errors import UsageError
from ckpt_surgery.names.suggest import near_hint
from ckpt_surgery.startup.lazy_dataclass import dataclass

_NUMBER: Final = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class ValueRule:
    """One rule: the option without its dashes, and its text."""

    option: str
    text: str
    seed: int = 0

    def edits(self, state_dict: StateDict) -> list[Edit]:
        """Return the edits of one state dict; none if the rule matches nothing in it.

        Raises `UsageError` for a text that says no rule.
        """
        try:
            return list(_RULES[self.option](self, state_dict))
        except ValueError as error:
            raise self.wrong(str(error)) from error

    def wrong(self, why: str) -> UsageError:
        """Return the error for a text that is no rule."""
        return UsageError(f"'--{self.option} {self.text}': {why}", hint=_FORMS[self.option])

    def unmatched(self, names: Sequence[str]) -> UsageError:
        """Return the error for a rule that matches nothing."""
        wanted = self.text.partition("=")[0].partition(":")[2] or self.text.partition("=")[0]
        hint = near_hint(wanted, names) or "'ckpt inspect --keys' lists every name"
        return UsageError(f"'--{self.option} {self.text}' matches nothing", hint=hint)

    def to_dict(self) -> dict[str, object]:
        """Return the rule as reports have it."""
        return {"rule": self.option, "text": self.text}


def _selected(state_dict: StateDict, text: str) -> Iterator[str]:
    chosen = selection_rule(text, state_dict.names)
    tensors = {name for name, _ in state_dict.tensors}
    yield from (name for name in state_dict.names if name in tensors and chosen.matches(name))


def _parts(rule: ValueRule, default: str | None = None) -> tuple[str, str]:
    """Return the selection and the value of ``SELECTION=VALUE``; a value holds no ``=``."""
    selection, equals, value = rule.text.rpartition("=")
    if equals:
        return selection, value
    if default is None:
        raise ValueError("there is no '='")
    return rule.text, default


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"'{text}' is no whole number") from None


def _integers(text: str) -> tuple[int, ...]:
    return tuple(_integer(part) for part in re.split(r"[,x]", text.strip("()[] ")))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"'{text}' is no number") from None


def _finite(text: str) -> float:
    if not isfinite(number := _number(text)):
        raise ValueError(f"'{text}' is no finite number")
    return number


def _fields(value: str, least: int, most: int) -> list[str]:
    """Return what stands between the colons of a value."""
    fields = value.split(":")
    if not least <= len(fields) <= most:
        raise ValueError(f"'{value}' is not of that form")
    return fields


def _each(
    make: Callable[[str, str, str], Edit], default: str | None = None
) -> Callable[[ValueRule, StateDict], Iterator[Edit]]:
    """Return a rule that makes one edit of each selected name and the value."""

    def rule_of(rule: ValueRule, state_dict: StateDict) -> Iterator[Edit]:
        selection, value = _parts(rule, default)
        make(state_dict.path, "", value)  # so that a wrong value is said of before no match is
        for name in _selected(state_dict, selection):
            yield make(state_dict.path, name, value)

    return rule_of


def _transpose(path: str, name: str, value: str) -> Edit:
    dims = _integers(value)
    if len(dims) != 2:
        raise ValueError("two axes are exchanged")
    return Transpose(path, name, (dims[0], dims[1]))


def _take(path: str, name: str, value: str) -> Edit:
    dim, indices = _fields(value, 2, 2)
    return Take(path, name, _integer(dim), _integers(indices))


def _slice(path: str, name: str, value: str) -> Edit:
    dim, *ends = _fields(value, 3, 3)
    start, stop = (_integer(end) if end else None for end in ends)
    return Slice(path, name, _integer(dim), start, stop)


def _pad(path: str, name: str, value: str) -> Edit:
    dim, size, *fill = _fields(value, 2, 3)
    return Pad(path, name, _integer(dim), _integer(size), *map(_number, fill))


def _repeat(path: str, name: str, value: str) -> Edit:
    dim, times, *mean = _fields(value, 2, 3)
    if mean not in ([], ["mean"]):
        raise ValueError(f"'{':'.join(mean)}' is no way to repeat")
    return Repeat(path, name, _integer(dim), _integer(times), mean=bool(mean))


def _fill(rule: ValueRule, state_dict: StateDict) -> Iterator[Edit]:
    selection, value = _parts(rule)
    how, _, number = value.partition(":")
    known = {"zeros": 0.0, "ones": 1.0}
    for name in _selected(state_dict, selection):
        if how in known and not number:
            yield Fill(state_dict.path, name, "constant", known[how])
        elif how == "constant" and number:
            yield Fill(state_dict.path, name, "constant", _number(number))
        elif how == "normal":
            deviation, _, seed = number.partition(":")
            drawn = _integer(seed) if seed else rule.seed
            yield Fill(state_dict.path, name, "normal", _finite(deviation or "1"), drawn)
        else:
            raise ValueError(f"'{value}' is no way to fill")


def _options(text: str) -> tuple[str, dict[str, str]]:
    """Return what stands before ``:key=value`` options, and those."""
    first, *rest = re.split(r":(?=(?:heads|sizes|dim)=)", text)
    return first, dict(part.split("=", 1) for part in rest)


def _split(rule: ValueRule, state_dict: StateDict) -> Iterator[Edit]:
    text, options = _options(rule.text)
    source, equals, parts = text.partition("=")
    if not equals:
        raise ValueError("there is no '='")
    for name, groups in captured(source, state_dict.names):
        names = tuple(target_name(name, part.strip(), groups) for part in parts.split(","))
        yield Split(
            state_dict.path,
            name,
            names,
            _integer(options.get("dim", "0")),
            _integers(options["sizes"]) if "sizes" in options else (),
            _integer(options["heads"]) if "heads" in options else None,
        )


def _concat(rule: ValueRule, state_dict: StateDict) -> Iterator[Edit]:
    text, options = _options(rule.text)
    sources, equals, target = text.partition("=")
    if not equals:
        raise ValueError("there is no '='")
    found: dict[tuple[str, ...], list[str]] = {}
    alternatives = _alternatives(sources)
    for alternative in alternatives:
        for name, groups in captured(alternative, state_dict.names):
            found.setdefault(groups, []).append(name)
    for groups, names in found.items():
        if len(names) != len(alternatives):
            raise ValueError(f"of what is joined there is only '{names[0]}'")
        yield Concat(
            state_dict.path,
            tuple(names),
            target_name(names[0], target, groups),
            _integer(options.get("dim", "0")),
            _integer(options["heads"]) if "heads" in options else None,
        )


def _alternatives(text: str) -> list[str]:
    """Return the texts that ``a.{q,k}.w`` stands for, in order, and those of a list ``a,b``."""
    match = re.fullmatch(r"([^{}]*)\{([^{}]*)\}([^{}]*)", text)
    if match:
        return [f"{match[1]}{each}{match[3]}" for each in match[2].split(",")]
    return text.split(",")


def _pairs(
    make: Callable[[str, str, str], Edit],
) -> Callable[[ValueRule, StateDict], Iterator[Edit]]:
    def rule_of(rule: ValueRule, state_dict: StateDict) -> Iterator[Edit]:
        old, equals, new = rule.text.partition("=")
        if not equals:
            raise ValueError("there is no '='")
        for name, groups in captured(old, state_dict.names):
            full = "*" in new or re.search(r"\\\d", new)
            yield make(state_dict.path, name, target_name(name, new, groups) if full else new)

    return rule_of


def _tie(rule: ValueRule, state_dict: StateDict) -> Iterator[Edit]:
    name, equals, to = rule.text.partition("=")
    if not equals:
        raise ValueError("there is no '='")
    if to in state_dict.names:
        yield Tie(state_dict.path, name, to)


def _untie(rule: ValueRule, state_dict: StateDict) -> Iterator[Edit]:
    for name in _selected(state_dict, rule.text):
        yield Untie(state_dict.path, name)


def _cast(rule: ValueRule, state_dict: StateDict) -> Iterator[Edit]:
    selection, value = _parts(rule)
    dtype = named(value)
    if dtype is None:
        raise ValueError(f"there is no element type '{value}'")
    tensors, names = dict(state_dict.tensors), set(state_dict.names)
    for name in _selected(state_dict, selection):
        require_no_scale(state_dict.path, name, tensors[name], names, "--cast")
        yield Cast(state_dict.path, name, dtype.name)


def _layers(rule: ValueRule, state_dict: StateDict) -> Iterator[Edit]:
    """Stack layers anew: ``model.layers=0-11,12-23,12-23,24-35``."""
    prefix, value = _parts(rule)
    order: list[int] = []
    for part in value.split(","):
        first, dash, last = part.strip().partition("-")
        numbers = range(_integer(first), _integer(last if dash else first) + 1)
        if not numbers:
            raise ValueError(f"'{part}' is no range from the smaller to the larger number")
        order += numbers
    found = Layers(state_dict.path, prefix.removesuffix(".*").removesuffix("."), tuple(order))
    if any(found.number_of(name) is not None for name in state_dict.names):
        yield found


def _renumber(rule: ValueRule, state_dict: StateDict) -> Iterator[Edit]:
    """Rename ``layers.5.…`` so that the numbers at the star have no gaps."""
    prefix, star, rest = rule.text.partition("*")
    if not star or rest:
        raise ValueError("the star comes last: 'layers.*'")
    numbered: dict[str, str] = {}
    for name in state_dict.names:
        number = name.removeprefix(prefix).partition(".")[0] if name.startswith(prefix) else ""
        if _NUMBER.fullmatch(number):
            numbered[name] = number
    order = {number: i for i, number in enumerate(sorted(set(numbered.values()), key=int))}
    for name, number in numbered.items():
        new = f"{prefix}{order[number]}{name[len(prefix) + len(number) :]}"
        if new != name:
            yield Rename(state_dict.path, name, new)
    for module in state_dict.metadata or ():
        number = module.removeprefix(prefix).partition(".")[0] if module.startswith(prefix) else ""
        if number in order and str(order[number]) != number:
            new = f"{prefix}{order[number]}{module[len(prefix) + len(number) :]}"
            yield RenameModule(state_dict.path, module, new)


def _fold(rule: ValueRule, state_dict: StateDict) -> Iterator[Edit]:
    return FOLD_RULES[rule.option](rule.text, state_dict)


_RULES: Final[dict[str, Callable[[ValueRule, StateDict], Iterator[Edit]]]] = {
    "cast": _cast,
    "transpose": _each(_transpose, "0,1"),
    "permute": _each(lambda path, name, value: Permute(path, name, _integers(value))),
    "reshape": _each(lambda path, name, value: Reshape(path, name, _integers(value))),
    "squeeze": _each(lambda path, name, value: Squeeze(path, name, _integer(value))),
    "unsqueeze": _each(lambda path, name, value: Unsqueeze(path, name, _integer(value))),
    "flip": _each(lambda path, name, value: Flip(path, name, _integer(value))),
    "take": _each(_take),
    "slice": _each(_slice),
    "pad": _each(_pad),
    "repeat": _each(_repeat),
    "scale": _each(lambda path, name, value: Scale(path, name, _finite(value))),
    "add": _each(lambda path, name, value: Add(path, name, _finite(value))),
    "fill": _fill,
    "split": _split,
    "concat": _concat,
    "copy": _pairs(Copy),
    "tie": _tie,
    "untie": _untie,
    "clone": _untie,
    "layers": _layers,
    "renumber": _renumber,
    "fold-batch-norm": _fold,
    "fold-weight-norm": _fold,
    "fold-spectral-norm": _fold,
    "fold-repvgg": _fold,
}
_FORMS: Final = {
    "cast": "--cast SELECTION=TYPE: float16, bfloat16, float32, …",
    "transpose": "--transpose SELECTION, or SELECTION=0,1",
    "permute": "--permute SELECTION=4,0,1,2,3",
    "reshape": "--reshape SELECTION=256,-1",
    "squeeze": "--squeeze SELECTION=DIM",
    "unsqueeze": "--unsqueeze SELECTION=DIM",
    "flip": "--flip SELECTION=DIM",
    "take": "--take SELECTION=DIM:2,1,0",
    "slice": "--slice SELECTION=DIM:START:STOP",
    "pad": "--pad SELECTION=DIM:SIZE, or DIM:SIZE:FILL",
    "repeat": "--repeat SELECTION=DIM:N, or DIM:N:mean",
    "scale": "--scale SELECTION=FACTOR",
    "add": "--add SELECTION=AMOUNT",
    "fill": "--fill SELECTION=zeros, ones, constant:V or normal:STD[:SEED]",
    "split": "--split '*.qkv.weight=q.weight,k.weight,v.weight', then :heads=N, :sizes=A,B, :dim=D",
    "concat": "--concat 'blocks.*.{q,k,v}.weight=qkv.weight', then :heads=N, :dim=D",
    "copy": "--copy OLD=NEW",
    "tie": "--tie NAME=TO",
    "untie": "--untie SELECTION",
    "clone": "--clone SELECTION",
    "layers": "--layers 'model.layers=0-11,12-23,12-23,24-35'",
    "renumber": "--renumber 'layers.*'",
    "fold-batch-norm": "--fold-batch-norm CONV=NORM, then :eps=1e-3, :dim=1",
    "fold-weight-norm": "--fold-weight-norm SELECTION, such as '**'",
    "fold-spectral-norm": "--fold-spectral-norm SELECTION, then :dim=1",
    "fold-repvgg": "--fold-repvgg SELECTION of blocks, then :eps=1e-3",
}
