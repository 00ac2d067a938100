"""What becomes of an optimizer whose model was edited."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.edits.base import BatchEdit
from ckpt_surgery.edits.fields import fields_from_json, fields_to_json
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.places import not_there
from ckpt_surgery.edits.registry import find_moment_change, kind_of_moment_change
from ckpt_surgery.errors import PlanError
from ckpt_surgery.pickles import walk
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.mappings import mapping_length
from ckpt_surgery.torch_objects.tensors import TensorReader
from ckpt_surgery.training.optimizers import (
    FoundOptimizer,
    Groups,
    Member,
    MomentMaker,
    at_paths,
    changed_moments,
    made_moments,
    rebuild,
    with_nodes,
)


@dataclass(frozen=True, slots=True)
class UpdateOptimizer(BatchEdit):
    """Let the optimizer at `path` follow what other edits did to the model that it trains.

    `groups` are its parameters by now, in their order: the number (or name) that the optimizer has
    for one, None for a new one. In JSON a parameter is that key alone, or if more is to be said a
    table: ``key``, ``name`` (what is stored for it), ``reset`` (its state is left out), ``from``
    (those that it is made of) and ``change`` (what is done to its moments, or theirs).
    """

    kind: ClassVar[str] = "update-optimizer"
    path: str
    groups: Groups

    @classmethod
    def apply_all(
        cls,
        run: Sequence[Self],
        checkpoint: Checkpoint,
        inputs: Inputs,  # noqa: ARG003
    ) -> Checkpoint:
        """Return the checkpoint with these optimizers updated, each once."""
        found = at_paths(checkpoint, {edit.path for edit in run})
        _require_untouched(checkpoint, found.values())
        reader = TensorReader()
        nodes = []
        for edit in run:
            optimizer = found.pop(edit.path, None)
            if optimizer is None:
                raise not_there(checkpoint, edit.path)
            nodes.append((optimizer, rebuild(optimizer.state, _made(edit, optimizer, reader))))
        return with_nodes(checkpoint, nodes)

    def to_dict(self) -> dict[str, Any]:
        """Return the edit as JSON has it."""
        groups = [[_member_to_json(member) for member in group] for group in self.groups]
        return {"edit": self.kind, "path": self.path, "groups": groups}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Return the edit that `to_dict` wrote. Raises `TypeError` for anything else."""
        plain = fields_from_json(_Plain, {k: v for k, v in fields.items() if k != "edit"})
        groups = tuple(tuple(map(_member_from_json, group)) for group in plain.groups)
        return cls(plain.path, groups)


def _require_untouched(checkpoint: Checkpoint, optimizers: Iterable[FoundOptimizer]) -> None:
    """Raise `PlanError` if other edits reached into an optimizer, which would be lost."""
    if not checkpoint.replaced:
        return
    for optimizer in optimizers:
        for node in walk(optimizer.state.node):
            touched = id(node) in checkpoint.replaced and mapping_length(node) is not None
            if touched and node is not optimizer.source:
                raise PlanError(
                    "parts of it were edited before its model was",
                    entry=optimizer.path,
                    hint="edit the model first",
                )


def _made(edit: UpdateOptimizer, optimizer: FoundOptimizer, reader: TensorReader) -> Groups:
    """Return the groups of an edit with the moments that their changes make."""

    def made(member: Member) -> Member:
        if member.change is None:
            return member
        if isinstance(member.change, MomentMaker):
            moments = made_moments(optimizer.state, member.made_of, member.change, reader)
        else:
            moments = changed_moments(optimizer.state, member.key, member.change, reader)
        if moments is None:
            key = member.made_of[0] if member.made_of else member.key
            raise PlanError(
                f"the moments of parameter {key!r} cannot be changed as the plan says",
                entry=edit.path,
            )
        return replace(member, moments=moments)

    return tuple(tuple(map(made, group)) for group in edit.groups)


@dataclass(frozen=True, slots=True)
class _PlainMember:
    """A parameter as JSON has it."""

    key: int | str | None
    name: str | None = None
    reset: bool = False
    change: Mapping[str, object] | None = None
    old: tuple[int | str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Plain:
    """The fields as JSON has them."""

    path: str
    groups: tuple[tuple[int | str | _PlainMember | None, ...], ...]


def _member_to_json(member: Member) -> Any:
    if member.name is None and not member.reset and member.change is None:
        return member.key
    found = fields_to_json(_PlainMember(member.key, member.name, member.reset, old=member.made_of))
    if member.change is not None:
        change = {"how": kind_of_moment_change(member.change), **fields_to_json(member.change)}
        found["change"] = change
    return found


def _member_from_json(found: int | str | _PlainMember | None) -> Member:
    if not isinstance(found, _PlainMember):
        return Member(found)
    change = None
    if found.change is not None:
        fields = dict(found.change)
        change = fields_from_json(find_moment_change(fields.pop("how", None)), fields)
    return Member(found.key, found.name, found.reset, change=change, made_of=found.old)
