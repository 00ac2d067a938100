"""Put a checkpoint into the layouts of a target before it is fitted, by edits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal

from ckpt_surgery.checkpoint.description import Checkpoint, StateDict
from ckpt_surgery.checkpoint.select import choose_state_dicts
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.plan import Plan, Planned
from ckpt_surgery.edits.settle import Settle
from ckpt_surgery.edits.value_rules import ValueRule
from ckpt_surgery.errors import UsageError, about_file
from ckpt_surgery.fit.decided import Decided
from ckpt_surgery.fit.layouts import (
    decide,
    parse_layout_answers,
    require_about_some,
    require_decided,
    rules_of,
)
from ckpt_surgery.fit.request import LAYOUT, FitRequest
from ckpt_surgery.matching.layouts import Layout, layouts_of
from ckpt_surgery.matching.maps import check_map
from ckpt_surgery.matching.target_source import Aim, describe
from ckpt_surgery.names.rewrite import MapNames
from ckpt_surgery.ops.edit import EditRequest
from ckpt_surgery.ops.rename import RenameRequest
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.training.documents import OptimizerChange
from ckpt_surgery.writing.output import Output
from ckpt_surgery.writing.target import for_output

_NO_LAYOUT: Final = "names and shapes show no tensor that is transposed, fused, split or reshaped"


@dataclass(frozen=True, slots=True)
class Arranged:
    """A checkpoint in the layouts of the target, as far as that was asked for, and the rest to do.

    `asked` is what is left of the request; `edits` were applied already. `decided` are the layouts
    of each state dict by its path; `rules` are those of ``ckpt edit`` that put it into them, also
    where that was not asked for, and `renames` what is to be renamed before.
    """

    checkpoint: Checkpoint
    asked: FitRequest
    decided: Mapping[str, tuple[Decided, ...]]
    rules: tuple[ValueRule, ...] = ()
    renames: Mapping[str, str] | None = None
    edits: tuple[Edit, ...] = ()
    warnings: tuple[str, ...] = ()
    optimizers: tuple[OptimizerChange, ...] = ()


def arrange(asked: FitRequest, checkpoint: Checkpoint, aim: Aim) -> Arranged:
    """Find the layouts of a target, and put a checkpoint into them if `asked` says so.

    Raises `UsageError` if that is asked for and there are none, and `PlanError` if it is not
    certain which they are.
    """
    chosen = choose_state_dicts(checkpoint, asked.at)
    with about_file(checkpoint.file.name):
        found = {each.path: _found(each, asked, aim) for each in chosen}
        answers = parse_layout_answers(asked.layout)
        require_about_some(answers, [layout for each in found.values() for layout in each])
        decided = {path: decide(each, answers) for path, each in found.items()}
        rules = _common_rules(chosen, decided, asked)
    if not asked.in_layouts:
        return Arranged(checkpoint, asked, decided, rules, asked.renames)
    with about_file(checkpoint.file.name):
        if not any(decided.values()):
            raise UsageError("'--adapt layout' applies to nothing", hint=_NO_LAYOUT)
        require_decided([each for listed in decided.values() for each in listed])
    edits: list[Edit] = []
    warnings: list[str] = []
    optimizers: list[OptimizerChange] = []
    done = for_output(checkpoint, Output(dry_run=True))
    for plan_step in _steps(asked, rules):
        with about_file(checkpoint.file.name):
            planned = plan_step(done)
            done = Plan((*planned.plan.edits, Settle())).apply(done)
        edits += (*planned.plan.edits, Settle())
        warnings += planned.warnings
        optimizers += planned.optimizers
    return Arranged(
        done,
        replace(asked, renames=None, layout=(), adapt=[a for a in asked.adapt if a != LAYOUT]),
        {p: tuple(replace(x, is_applied=bool(x.steps)) for x in d) for p, d in decided.items()},
        rules,
        asked.renames,
        tuple(edits),
        tuple(warnings),
        tuple(optimizers),
    )


def optimizer_of(asked: FitRequest) -> Literal["auto", "reset", "keep", "drop"]:
    """Return what `edit` is told about optimizers; they need not follow weights that go alone."""
    if asked.state_dict_only:
        return "keep"
    return "auto" if asked.optimizer == "resize" else asked.optimizer


def _found(state_dict: StateDict, asked: FitRequest, aim: Aim) -> tuple[Layout, ...]:
    """Return the layouts of a state dict, whose names are read as the map says."""
    described = describe(state_dict)
    renames, old = asked.renames or {}, [spec.name for spec in described.specs]
    names = [renames.get(name, name) for name in old]
    if len(set(names)) < len(names):  # it is said when they are paired
        return ()
    specs = tuple(replace(s, name=n) for s, n in zip(described.specs, names, strict=True))
    described = replace(described, specs=specs)
    found = layouts_of(described, aim, asked.level, asked_for=asked.in_layouts)
    if asked.in_layouts:
        fused = (name for layout in found for name in layout.sources)
        check_map(renames, old, [*aim.target.names, *fused])
    return found


def _common_rules(
    chosen: Sequence[StateDict], decided: Mapping[str, tuple[Decided, ...]], asked: FitRequest
) -> tuple[ValueRule, ...]:
    """Return the rules for all state dicts.

    Raises `UsageError` if they are asked for, and one state dict would take others than another.
    """
    renames = asked.renames or {}
    rules = {
        each.path: rules_of(decided[each.path], [renames.get(n, n) for n in each.names])
        for each in chosen
    }
    several = [each for each in dict.fromkeys(rules.values()) if each]
    differ = any(
        rule.edits(state_dict)
        for state_dict in chosen
        for each in several
        if each != rules[state_dict.path]
        for rule in each
    )
    if not differ:  # what is meant for one state dict matches nothing in another
        return tuple(rule for each in several for rule in each)
    if asked.in_layouts:
        raise UsageError(
            "the state dicts differ in what has to be put into another layout",
            hint="--at chooses one of them",
        )
    return ()


def _steps(
    asked: FitRequest, rules: Sequence[ValueRule]
) -> Iterator[Callable[[Checkpoint], Planned]]:
    """Yield what plans each step: names as the map says, then the rules."""
    choice = optimizer_of(asked)
    if asked.renames and rules:
        renaming = [MapNames(asked.renames)]
        follow = "auto" if choice == "reset" else choice
        yield RenameRequest(renaming, at=asked.at, optimizer=follow).plan
    if rules:
        yield EditRequest(rules, at=asked.at, optimizer=choice).plan
