"""Tensors that are attributes of a TorchScript module, as entries of its state dict.

Before torch 1.6 an archive declared no buffers: the running statistics of a batch norm are
attributes like any other there, and no state dict of `torch.jit.load` has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Final

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, Other, StateDict, Tensor
from ckpt_surgery.checkpoint.select import RuleCount
from ckpt_surgery.edits.base import BatchEdit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.places import edit_state_dicts, require_distinct
from ckpt_surgery.edits.plan import Plan, Planned
from ckpt_surgery.edits.values import require_strided
from ckpt_surgery.errors import PlanError, UsageError
from ckpt_surgery.names import Rule
from ckpt_surgery.names.suggest import near_hint
from ckpt_surgery.pickles import Object
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.kinds import role_of
from ckpt_surgery.torch_objects.tensors import TensorReader

_OF_SCRIPTS: Final = "torchscript"
_LISTED: Final = "'ckpt inspect' lists the attributes among the other entries"


@dataclass(frozen=True, slots=True)
class TakeAttribute(BatchEdit):
    """Let the attribute `name` of a script, a tensor beside its state dict, be an entry of that.

    It comes behind the other entries of its module.
    """

    kind: ClassVar[str] = "take-attribute"
    state_dict: str
    name: str

    @classmethod
    def apply_all(
        cls,
        run: Sequence[TakeAttribute],
        checkpoint: Checkpoint,
        inputs: Inputs,  # noqa: ARG003
    ) -> Checkpoint:
        """Return the checkpoint with these entries.

        Raises `PlanError` for a name that no such tensor has, or one that has more to it.
        """
        found = _attributes(checkpoint)
        for edit in run:
            if edit.name not in found:
                raise PlanError(
                    f"the plan takes the attribute '{edit.name}', which is not there",
                    path=checkpoint.file.name,
                    hint=near_hint(edit.name, found),
                )

        def taken(state_dict: StateDict, edits: Sequence[TakeAttribute]) -> StateDict:
            entries = (_entry(state_dict.path, e.name, found[e.name][1]) for e in edits)
            return _with_entries(state_dict, tuple(entries))

        gone = {id(found[edit.name][0]) for edit in run}
        edited = edit_state_dicts(run, checkpoint, taken)
        return replace(
            edited, others=tuple(other for other in edited.others if id(other) not in gone)
        )


@dataclass(frozen=True, slots=True)
class _AttributeRule:
    """What ``--attributes`` asks for, as reports have it."""

    text: str

    def to_dict(self) -> dict[str, object]:
        return {"rule": "attributes", "text": self.text}


def plan_attributes(checkpoint: Checkpoint, globs: Sequence[str]) -> Planned:
    """Take the attributes that any of `globs` matches.

    Raises `UsageError` for one that matches nothing.
    """
    names = list(_attributes(checkpoint)) if checkpoint.format == _OF_SCRIPTS else []
    chosen: set[str] = set()
    counts: list[RuleCount] = []
    for text in globs:
        rule = Rule("glob", text)
        matched = [name for name in names if rule.matches(name)]
        if not matched:
            raise UsageError(
                f"'--attributes {text}' matches nothing",
                path=checkpoint.file.name,
                hint=_LISTED if names else _hint_without(checkpoint),
            )
        chosen.update(matched)
        counts.append(RuleCount(_AttributeRule(text), len(matched)))
    edits = (TakeAttribute("", name) for name in names if name in chosen)
    return Planned(Plan(tuple(edits)), tuple(counts))


def _hint_without(checkpoint: Checkpoint) -> str:
    if checkpoint.format == _OF_SCRIPTS:
        return "no attribute of its modules is a tensor: all of them are in the state dict"
    return f"only a TorchScript archive has attributes, and this is of format '{checkpoint.format}'"


def _attributes(checkpoint: Checkpoint) -> dict[str, tuple[Other, Tensor]]:
    """Return the entries that are a tensor and in no container, by their paths."""
    reader = TensorReader()
    described = ((o, reader.describe(o.node)) for o in checkpoint.others if _is_object(o))
    return {other.path: (other, tensor) for other, tensor in described if tensor is not None}


def _is_object(other: Other) -> bool:
    return isinstance(other.node, Object) and other.parent is None and other.path != ""


def _entry(path: str, name: str, tensor: Tensor) -> Entry:
    """Return an entry that is written anew, detached as those of a state dict are."""
    require_strided(path, name, tensor)
    bare = replace(tensor, requires_grad=False, is_parameter=False, parts=(), node=None)
    return Entry(name, bare, role_of(name, bare))


def _with_entries(state_dict: StateDict, more: Sequence[Entry]) -> StateDict:
    """Return the state dict with more entries, those of a module beside each other."""
    ranks = {module: rank for rank, module in enumerate(state_dict.metadata or ())}

    def rank(entry: Entry) -> int:
        return ranks.get(entry.name.rpartition(".")[0], len(ranks))

    entries = sorted((*state_dict.entries, *more), key=rank)
    require_distinct(state_dict.path, (entry.name for entry in entries))
    return replace(state_dict, entries=tuple(entries))
