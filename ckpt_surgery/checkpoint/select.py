"""Choosing state dicts by their paths, and their entries by rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from ckpt_surgery.checkpoint.description import Checkpoint, StateDict, join_path
from ckpt_surgery.errors import UsageError
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    from ckpt_surgery.checkpoint.description import Checkpoint, StateDict
    from ckpt_surgery.names import Chosen, Selection


SAVE_STATE_DICT: Final = "save the model's state_dict() with torch"
_MOST_MISSING: Final = 5  # names in a message
# Objects whose weights are not among their attributes: graphs, and quantised modules by themselves.
_CODED: Final = ("torch.fx.", "torch.ao.nn.", "torch.nn.quantized.", "torch.nn.intrinsic.")


class _SaidRule(Protocol):
    """A rule of any kind, as far as reports speak of it."""

    def to_dict(self) -> dict[str, object]:
        """Return the rule as reports have it."""


@dataclass(frozen=True, slots=True)
class RuleCount:
    """How many names a rule matched or changed, over all state dicts."""

    rule: _SaidRule
    matched: int


def choose_state_dicts(checkpoint: Checkpoint, at: Sequence[str]) -> list[StateDict]:
    """Return the state dicts to edit: all, or those at the paths `at`.

    Raises `UsageError` if there is none, or none at one of the paths.
    """
    if not checkpoint.state_dicts:
        raise _without_state_dict(checkpoint)
    by_path = {state_dict.path: state_dict for state_dict in checkpoint.state_dicts}
    for path in at:
        if path not in by_path:
            known = ", ".join(f"'{path}'" if path else "the top level ('')" for path in by_path)
            raise UsageError(
                f"'at {path}': no state dict there",
                fields=("at",),
                path=checkpoint.file.name,
                hint=f"there are state dicts at: {known}",
            )
    wanted = dict.fromkeys(at or by_path)
    return [by_path[path] for path in wanted]


def require_whole(checkpoint: Checkpoint, state_dicts: Iterable[StateDict], what: str) -> None:
    """Raise `UsageError` for a model whose state dict was not read in full.

    `what` is said of what is missing, such as "cannot be compared".
    """
    missing = missing_of(state_dicts)
    if missing:
        said = missing_said(missing, what)
        raise UsageError(said, path=checkpoint.file.name, hint=SAVE_STATE_DICT)


def missing_of(state_dicts: Iterable[StateDict]) -> list[str]:
    """Return the paths of what only the code of modules would put into their state dicts."""
    return [join_path(each.path, name) for each in state_dicts for name in each.missing]


def missing_said(missing: Sequence[str], what: str) -> str:
    """Say `what` of what is missing, and name the first of it."""
    shown = ", ".join(f"'{name}'" for name in missing[:_MOST_MISSING])
    more = f" and {len(missing) - _MOST_MISSING} more" if len(missing) > _MOST_MISSING else ""
    return f"what only the code of modules unpacks or adds {what}: {shown}{more}"


def _without_state_dict(checkpoint: Checkpoint) -> UsageError:
    """Return the error for a file without a state dict, which names a module that is but code."""
    coded = next((o for o in checkpoint.others if o.type.startswith(_CODED)), None)
    if coded is None:
        message, hint = "there is no state dict in it", "'ckpt inspect' shows what the file holds"
    else:
        place = f"'{coded.path}'" if coded.path else "what it holds"
        message = (
            f"there is no state dict in it: {place} is of {coded.type}, and only the code of that "
            "unpacks its weights"
        )
        hint = SAVE_STATE_DICT
    return UsageError(message, path=checkpoint.file.name, hint=hint)


def select(
    state_dicts: Sequence[StateDict], selection: Selection
) -> tuple[list[Chosen], tuple[RuleCount, ...]]:
    """Return what a selection takes of each state dict. Raises
    `UsageError` for a rule without match.
    """
    chosen = [selection.choose(state_dict.names) for state_dict in state_dicts]
    counts: Counter[int] = Counter()
    for each in chosen:
        counts.update({index: count for index, (_, count) in enumerate(each.counts)})
    totals = [(rule, counts[index]) for index, rule in enumerate(selection.rules)]
    selection.require_matches(totals, all_names(state_dicts))
    return chosen, tuple(RuleCount(rule, count) for rule, count in totals)


def all_names(state_dicts: Iterable[StateDict]) -> list[str]:
    """Return every name of the state dicts once, in order."""
    return list(dict.fromkeys(name for state_dict in state_dicts for name in state_dict.names))


def the_state_dict(checkpoint: Checkpoint, at: Sequence[str]) -> StateDict:
    """Return the state dict at `at`, or the only one, or the only one that is no moving average.

    Raises `UsageError` if there are several.
    """
    found = choose_state_dicts(checkpoint, at)
    if not at and len(models := [each for each in found if each.kind == "model"]) == 1:
        return models[0]
    if len(found) > 1:
        paths = ", ".join(f"'{state_dict.path}' ({state_dict.kind})" for state_dict in found)
        raise UsageError(
            f"there are {len(found)} state dicts: {paths}",
            path=checkpoint.file.name,
            hint=f"choose one, for example with --at {found[0].path}",
        )
    return found[0]


def alone(checkpoint: Checkpoint, state_dict: StateDict) -> Checkpoint:
    """Return a checkpoint of that state dict and nothing beside it; a module loses its class."""
    return replace(
        checkpoint,
        dropped=(),
        root=state_dict.node,
        state_dicts=(replace(state_dict, path=""),),
        others=(),
        modules={},
        unwritable="",
    )
