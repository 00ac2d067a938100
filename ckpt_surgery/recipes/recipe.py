"""What a recipe is: inputs by name, steps in order, and where the results go."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import field
from typing import Any, Protocol

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.edits.plan import Planned
from ckpt_surgery.errors import PathLike, UsageError
from ckpt_surgery.fileio import Source
from ckpt_surgery.fileio.distinct import Role
from ckpt_surgery.names import near
from ckpt_surgery.recipes.work import Work
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.writing.output import Output


class Action(Protocol):
    """What a step does. `verb` is what reports call it."""

    @property
    def verb(self) -> str:
        """What reports call it."""

    def plan(self, checkpoint: Checkpoint, work: Work) -> Planned:
        """Return the edits that it takes; an assertion takes none, and raises if it fails."""


@dataclass(frozen=True, slots=True)
class Step:
    """An action on the checkpoint called `on`, whose result is called `name`.

    `on` None is the result of the step before, or the first input; `name` None leaves the name.
    `said` is what the recipe's author wrote, for the record.
    """

    action: Action
    on: str | None = None
    name: str | None = None
    said: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RecipeOutput:
    """Where the checkpoint called `name` goes; None is the result of the last step."""

    output: Output
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """Steps on checkpoints by name, each as if it read what the one before had written.

    `inputs` are files by name, `read` what else was read to know the recipe: no output may be one
    of those. Raises `UsageError` if a step or an output names what is not there by then.
    """

    inputs: Mapping[str, PathLike | Source]
    steps: Sequence[Step] = ()
    outputs: Sequence[RecipeOutput] = ()
    read: Sequence[Role] = ()

    def __post_init__(self) -> None:
        if not self.inputs:
            raise UsageError("the recipe has no input", hint="write [inputs] with NAME = FILE")
        known = list(self.inputs)
        last = known[0]
        for number, step in enumerate(self.steps, 1):
            last = step.on or last
            _require_known(last, known, f"step {number}")
            last = step.name or last
            known += [] if last in known else [last]
        for output in self.outputs:
            if output.name is not None:
                _require_known(output.name, known, f"output '{output.output.path}'")


def _require_known(name: str, known: Collection[str], where: str) -> None:
    if name not in known:
        meant = " or ".join(f"'{each}'" for each in near(name, known))
        raise UsageError(
            f"{where}: there is no '{name}'",
            hint=f"did you mean {meant}?" if meant else f"there are: {', '.join(known)}",
        )
