"""Plain Python values in the place of numpy scalars, Namespaces and paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from ckpt_surgery.checkpoint.description import Checkpoint, Other
from ckpt_surgery.edits.base import BatchEdit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.places import not_there
from ckpt_surgery.pickles import Node
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.kinds import plain_value, type_name
from ckpt_surgery.torch_objects.simple import find_simple


@dataclass(frozen=True, slots=True)
class ToPlain(BatchEdit):
    """Put the plain value in the place of the object at `path`, which is of the class `old`."""

    kind: ClassVar[str] = "plain"
    path: str
    old: str

    @classmethod
    def apply_all(
        cls,
        run: Sequence[ToPlain],
        checkpoint: Checkpoint,
        inputs: Inputs,  # noqa: ARG003
    ) -> Checkpoint:
        """Return the checkpoint with those values; all else stays.

        Raises `PlanError` for a path at which no such object is.
        """
        wanted = {(edit.path, edit.old) for edit in run}
        values: dict[int, Node] = {}
        found = set()
        nodes: list[Node] = []
        for path, node, value in find_simple(checkpoint):
            if (path, type_name(node)) in wanted:
                found.add((path, type_name(node)))
                values[id(node)] = value
                nodes.append(node)
        for edit in run:
            if (edit.path, edit.old) not in found:
                raise not_there(checkpoint, edit.path)
        replaced = {key: values.get(id(node), node) for key, node in checkpoint.replaced.items()}

        def renewed(other: Other) -> Other:
            node = checkpoint.replaced.get(id(other.node), other.node)
            if id(node) not in values:
                return other
            value = values[id(node)]
            return replace(other, type=type_name(value), value=plain_value(value))

        return replace(
            checkpoint,
            others=tuple(map(renewed, checkpoint.others)),
            replaced={**replaced, **{id(node): values[id(node)] for node in nodes}},
        )


def plan_plain(checkpoint: Checkpoint) -> list[ToPlain]:
    """Put plain values in the place of all objects that are hardly more than these."""
    found = ((path, type_name(node)) for path, node, _ in find_simple(checkpoint))
    return [ToPlain(*each) for each in dict.fromkeys(found)]
