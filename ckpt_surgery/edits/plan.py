"""Plans: edits as plain data, applied one after the other, saved and read back.

Making a plan finds everything that is wrong with it; applying one only carries it out, on the
description, and returns a new description.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.checkpoint.select import RuleCount
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.errors import PlanError
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    from ckpt_surgery.training.documents import OptimizerChange


@dataclass(frozen=True, slots=True)
class Plan:
    """Edits in the order in which they are applied."""

    edits: tuple[Edit, ...] = ()

    def apply(self, checkpoint: Checkpoint, inputs: Inputs | None = None) -> Checkpoint:
        """Return the checkpoint after the edits; the one given stays as it is.

        What they take of other files comes from `inputs`. Edits of one kind that follow each other
        are carried out together. Raises `PlanError` if an edit speaks of something that is not
        there, and `NameCollisionError` if two entries would get one name.
        """
        given = inputs or Inputs()

        def carry_out(done: Checkpoint, run: list[Edit]) -> Checkpoint:
            return type(run[0]).apply_all(run, done, given)

        return reduce(carry_out, (list(run) for _, run in groupby(self.edits, type)), checkpoint)

    def path_after(self, path: str) -> str | None:
        """Return where what was at `path` lies after all edits; see `Edit.path_after`."""
        found: str | None = path
        for edit in self.edits:
            if found is None:
                break
            found = edit.path_after(found)
        return found

    def paths_after(self, paths: Iterable[str]) -> list[str | None]:
        """Return `path_after` of each of `paths`, in time that does not grow with their product."""
        found: list[str | None] = list(paths)
        moving = (e for e in self.edits if type(e).path_after is not Edit.path_after)
        for _, run in groupby(moving, type):
            alike = list(run)
            found = type(alike[0]).paths_after(alike, found)
        return found

    def to_dict(self) -> list[dict[str, Any]]:
        """Return the edits as JSON has them: ``{"edit": "rename", "from": …, "to": …}``."""
        return [edit.to_dict() for edit in self.edits]

    @classmethod
    def from_dict(cls, edits: Sequence[Mapping[str, Any]]) -> Plan:
        """Return the plan that `to_dict` wrote. Raises `PlanError` for anything else."""
        from ckpt_surgery.edits.registry import find

        if not isinstance(edits, list | tuple):
            raise PlanError("not a list of edits")
        found: list[Edit] = []
        for place, fields in enumerate(edits):
            try:
                if not isinstance(fields, Mapping):
                    raise TypeError("it is no table of fields")  # noqa: TRY301 - said as the others
                found.append(find(fields.get("edit")).from_dict(fields))
            except TypeError as error:
                raise PlanError(f"not a list of edits: number {place + 1}: {error}") from error
        return cls(tuple(found))


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, what its rules matched, and what the user should know about it."""

    plan: Plan
    rules: tuple[RuleCount, ...] = ()
    warnings: tuple[str, ...] = ()
    optimizers: tuple[OptimizerChange, ...] = ()


def followed_by(planned: Planned, edits: Sequence[Edit]) -> Planned:
    """Return the plan with more edits at its end, but before storages are cut to what is used."""
    if not edits:
        return planned
    last = [edit for edit in planned.plan.edits if edit.kind == "compact"]
    first = [edit for edit in planned.plan.edits if edit.kind != "compact"]
    return replace(planned, plan=Plan((*first, *edits, *last)))


def apply(plan: Plan, checkpoint: Checkpoint, *, others: Iterable[Checkpoint] = ()) -> Checkpoint:
    """Return `checkpoint` after the edits of a plan; see `Plan.apply`.

    What the plan takes of other files comes from `others`, by the names of their files.
    """
    return plan.apply(checkpoint, Inputs(others))
