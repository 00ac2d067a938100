"""The optimizers of a checkpoint that is fitted to a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ckpt_surgery.checkpoint.description import Checkpoint, join_path
from ckpt_surgery.edits.inline_optimizer import inside, refusal
from ckpt_surgery.edits.views import View
from ckpt_surgery.errors import about_file
from ckpt_surgery.fit.groups import group_of, require_used
from ckpt_surgery.fit.moments import AdaptMoment
from ckpt_surgery.fit.request import FitRequest
from ckpt_surgery.models.target import Target
from ckpt_surgery.reports.fitting import Fitted
from ckpt_surgery.training.documents import OptimizerChange
from ckpt_surgery.training.optimizers import InStep, keep_in_step
from ckpt_surgery.training.parameters import Inventory, NamedEntry, Parameter

_Sources = dict[str, dict[str, str | None]]


def optimizers_in_step(
    before: Checkpoint,
    after: Checkpoint,
    seen: Sequence[View],
    fitted: Sequence[Fitted],
    target: Target,
    asked: FitRequest,
) -> InStep:
    """Return the result with its optimizers following the fit.

    Raises `PlanError` for an optimizer among the weights, unless it is left out, and what
    `keep_in_step` and `require_used` raise.
    """
    choice, rules = asked.optimizer, asked.groups
    paths = {view.path for view in seen}
    held = inside(s for s in before.state_dicts if s.path in paths)
    if held and choice != "drop":
        raise refusal(held, before, "--optimizer drop leaves it out")
    dropped = tuple(OptimizerChange(join_path(s.path, entry.name), "dropped") for s, entry in held)
    if not before.others:  # bare weights: nothing that could be an optimizer
        require_used(rules, ())
        return InStep(after, dropped)
    sources, parameters, moments = _what_follows(seen, fitted, target)
    with about_file(before.file.name):
        step = keep_in_step(
            before,
            after,
            choice if choice in {"keep", "drop"} else "auto",
            sources=sources,
            moments=moments if choice == "resize" else None,
            parameters=parameters,
            homes=lambda name: group_of(name, rules),
        )
        added = [name.rpartition("/")[2] for c in step.changes for name in c.added]
        require_used(rules, added)
    return replace(step, changes=dropped + step.changes)


def _what_follows(
    seen: Sequence[View], fitted: Sequence[Fitted], target: Target
) -> tuple[_Sources, dict[str, list[Parameter]], dict[str, dict[str, AdaptMoment]]]:
    """Return, by path of a state dict, where each tensor is from, its parameters, their moments."""
    sources: _Sources = {}
    parameters: dict[str, list[Parameter]] = {}
    moments: dict[str, dict[str, AdaptMoment]] = {}
    for view, each in zip(seen, fitted, strict=True):
        origins, adapted = sources.setdefault(view.path, {}), moments.setdefault(view.path, {})
        for item in each.plan.items:
            name = view.prefix + item.name
            known = item.status != "initial" and item.source is not None
            origins[name] = f"{view.prefix}{item.source}" if known else None
            if item.adaptation is not None:
                adapted[name] = AdaptMoment(item.adaptation, item.shape)
        parameters.setdefault(view.path, []).extend(
            replace(p, name=view.prefix + p.name, aliases=tuple(view.prefix + a for a in p.aliases))
            for p in _parameters(target)
        )
    return sources, parameters, moments


def _parameters(target: Target) -> Sequence[Parameter]:
    """Return the target's parameters, of which the file may have
    two in one tensor, and two of one.
    """
    leaders = {name: group[0] for group in target.ties for name in group}
    return Inventory.of(
        NamedEntry(spec.name, spec.shape, spec.dtype, spec.role, leaders.get(spec.name))
        for spec in target.tensors
    ).parameters
