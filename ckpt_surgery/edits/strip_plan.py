"""Planning what to remove of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from ckpt_surgery.checkpoint.compact import unused_nbytes
from ckpt_surgery.checkpoint.description import Checkpoint, StateDict
from ckpt_surgery.checkpoint.select import RuleCount, select
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.compact import Compact
from ckpt_surgery.edits.drop import Drop, DropOther
from ckpt_surgery.edits.plan import Plan, Planned
from ckpt_surgery.edits.rename import RenameModule
from ckpt_surgery.edits.views import views, with_averages_inside
from ckpt_surgery.errors import UsageError
from ckpt_surgery.names import Selection
from ckpt_surgery.names.metadata import strip_metadata
from ckpt_surgery.pickles import Node

NO_TRAINING_STATE: Final = "there is no training state to remove"


def plan_strip(
    checkpoint: Checkpoint,
    selection: Selection,
    *,
    at: Sequence[str] = (),
    training_state: Callable[[str, Node], object] | None = None,
    compact: bool = False,
    break_views: bool = False,
    or_nothing: bool = False,
) -> Planned:
    """Remove the selected entries, what `training_state` says of (path, node), unused bytes.

    `training_state` gives something true for what is to go. Unused bytes are those before other
    edits; `with_true_numbers` counts them when the plan is whole.

    Training state goes wherever it lies: beside the state dicts, or among the weights of one.

    Raises `UsageError` if there is nothing to do (unless `or_nothing`: other edits do something), a
    rule matches nothing, or nothing would remain.
    """
    edits: list[Edit] = []
    counts: tuple[RuleCount, ...] = ()
    warnings: list[str] = []
    if selection.rules:
        edits, counts, warnings = _of_names(checkpoint, selection, at)
    if training_state is not None:
        state = _training_state(checkpoint, training_state)
        known = set(edits)
        edits += (edit for edit in state if edit not in known)
        if not state:
            warnings.append(NO_TRAINING_STATE)
    if compact:
        edits.append(Compact(unused_nbytes(checkpoint), break_views=break_views))
    if not selection.rules and training_state is None and not compact and not or_nothing:
        raise UsageError(
            "nothing is selected",
            hint="say what to remove: NAME, --pattern, --prefix, --glob, --keys-from, --entry, "
            "--training-state",
        )
    return Planned(Plan(tuple(edits)), counts, tuple(warnings))


def _of_names(
    checkpoint: Checkpoint, selection: Selection, at: Sequence[str]
) -> tuple[list[Edit], tuple[RuleCount, ...], list[str]]:
    """Return the edits that remove what is selected, what each rule matched, and remarks."""
    seen = views(checkpoint, at)
    state_dicts = [view.state_dict for view in seen]
    try:
        picked, counts = select(state_dicts, selection)
    except UsageError as error:
        error.hint = _meant(checkpoint, selection, error) or error.hint
        raise
    chosen = [
        with_averages_inside(state_dict, each.chosen, keep=selection.keep)
        for state_dict, each in zip(state_dicts, picked, strict=True)
    ]
    edits: list[Edit] = []
    pairs = list(zip(seen, chosen, strict=True))
    for view, names in pairs:
        edits += view.translated(Drop("", n) for n in view.state_dict.names if n in names)
    for view, names in pairs:
        edits += view.translated(_modules(view.state_dict, names))
    _require_remainder(checkpoint, state_dicts, chosen)
    return edits, counts, list(_left_whole(state_dicts, chosen))


def _training_state(
    checkpoint: Checkpoint, is_training_state: Callable[[str, Node], object]
) -> list[Edit]:
    """Return the edits that remove training state beside the state dicts and among weights."""
    _require_more_than(checkpoint, is_training_state)
    beside = [o.path for o in checkpoint.others if o.path and is_training_state(o.path, o.node)]
    among = (
        Drop(state_dict.path, entry.name)
        for state_dict in checkpoint.state_dicts
        for entry in state_dict.entries
        if entry.tensor is None and is_training_state(entry.name, entry.node)
    )
    return [*(DropOther(path) for path in beside), *among]


def _meant(checkpoint: Checkpoint, selection: Selection, error: UsageError) -> str | None:
    """Return what takes a thing that a rule without match names: it is no name of a weight."""
    rules = (rule for rule in selection.rules if error.message.startswith(f"'{rule.option}' "))
    text = next((rule.text.rstrip(".") for rule in rules), "")
    beside = [other.path for other in checkpoint.others]
    weights = [state_dict.path for state_dict in checkpoint.state_dicts]
    if text in weights:
        return f"'{text}' is a state dict: '--entry {text}' takes it, '--at {text}' what is in it"
    if text in beside or any(path and text.startswith(f"{path}/") for path in beside):
        return f"'{text}' is beside the weights: '--entry {text}' takes it"
    if text.lstrip("-").replace("_", "-") in {"training-state", "ema", "average"}:
        return "'--training-state' takes optimizers, schedulers and averages; --ema publishes one"
    return None


def _modules(state_dict: StateDict, chosen: frozenset[str]) -> Iterator[RenameModule]:
    """Yield an edit for each record in ``_metadata`` of a module that goes with its entries."""
    names = state_dict.names
    modules = list(state_dict.metadata or ())
    kept = set(strip_metadata(modules, names, [name for name in names if name not in chosen]))
    return (RenameModule(state_dict.path, m, None) for m in modules if m not in kept)


def _left_whole(state_dicts: Sequence[StateDict], chosen: Sequence[frozenset[str]]) -> list[str]:
    """State dicts that a selection leaves whole although it takes something of others."""
    touched = [bool(names) for names in chosen]
    if all(touched) or not any(touched):
        return []
    return [
        f"nothing in '{state_dict.path}' is selected, so it is out of step with the others"
        for state_dict, some in zip(state_dicts, touched, strict=True)
        if not some and state_dict.entries
    ]


def _require_more_than(
    checkpoint: Checkpoint, training_state: Callable[[str, Node], object]
) -> None:
    others = checkpoint.others
    if (
        not checkpoint.state_dicts
        and others
        and all(training_state(o.path, o.node) for o in others)
    ):
        raise UsageError(
            "the whole file is training state, and nothing would remain",
            path=checkpoint.file.name,
            hint="'ckpt inspect' shows what the file holds",
        )


def _require_remainder(
    checkpoint: Checkpoint, state_dicts: Sequence[StateDict], chosen: Sequence[frozenset[str]]
) -> None:
    for state_dict, names in zip(state_dicts, chosen, strict=True):
        if state_dict.entries and len(names) == len(state_dict.entries):
            where = f" of '{state_dict.path}'" if state_dict.path else ""
            raise UsageError(
                f"every entry{where} would be removed",
                path=checkpoint.file.name,
                hint="--keep inverts a selection",
            )
