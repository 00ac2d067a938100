"""Rename the entries of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.edits.entries import Wrap
from ckpt_surgery.edits.entry_plan import plan_entry_renames
from ckpt_surgery.edits.follow import with_all_in_step
from ckpt_surgery.edits.narrow_plan import narrowed
from ckpt_surgery.edits.plan import Plan, Planned, followed_by
from ckpt_surgery.edits.rename_plan import plan_rename
from ckpt_surgery.errors import PathLike, PlanError, UsageError
from ckpt_surgery.fileio import Source
from ckpt_surgery.formats import registry
from ckpt_surgery.names.rewrite import RewriteRule
from ckpt_surgery.ops.run import edit
from ckpt_surgery.reports.edits import EditReport
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.writing.output import Output

if TYPE_CHECKING:
    from ckpt_surgery.training.optimizers import OptimizerChoice


@dataclass(frozen=True, slots=True)
class RenameRequest:
    """How entries are renamed: by `rules`, one after the other.

    Every state dict in the file is renamed, or those at the paths `at`; ``_metadata`` follows, and
    so do the names that an optimizer stores. `optimizer` and `state_dict_only` are as for `strip`.
    `entries` are pairs of a path beside (or of) the weights and the key that it gets; with `wrap`
    everything becomes the one entry of that name of a dictionary. With `allow_nothing` it is no
    error if nothing is to be renamed.

    Raises `UsageError` for choices that contradict each other.
    """

    rules: Sequence[RewriteRule] = ()
    at: Sequence[str] = ()
    optimizer: OptimizerChoice = "auto"
    state_dict_only: bool = False
    entries: Sequence[tuple[str, str]] = ()
    wrap: str | None = None
    allow_nothing: bool = False

    def __post_init__(self) -> None:
        if self.wrap is not None and (not self.wrap or "/" in self.wrap):
            raise UsageError(f"'wrap {self.wrap}' is no key", fields=("wrap",))
        if self.state_dict_only and self.entries:
            raise UsageError(
                "'state_dict_only' leaves no 'entries' to rename",
                fields=("state_dict_only", "entries"),
            )

    def plan(self, checkpoint: Checkpoint) -> Planned:
        """Plan it.

        Raises `UsageError` for a rule that changes nothing or makes an empty name, and
        `NameCollisionError` if two entries would get one name.
        """
        planned = Planned(Plan())
        others = self.entries or self.wrap or self.state_dict_only or self.allow_nothing
        if self.rules or not others:
            planned = plan_rename(checkpoint, self.rules, at=self.at)
        if self.state_dict_only:
            planned = narrowed(checkpoint, planned, self.at, self.optimizer)
        else:
            planned = with_all_in_step(checkpoint, planned, self.optimizer)
            planned = followed_by(planned, plan_entry_renames(checkpoint, self.entries))
        return planned if self.wrap is None else followed_by(planned, [Wrap(self.wrap)])


def rename(
    source: PathLike | Source,
    output: Output | PathLike,
    request: RenameRequest | Sequence[RewriteRule] = (),
    **choices: Any,
) -> EditReport:
    """Write `source` with its entries renamed as `request` says.

    ``rename(file, output, [AddPrefix("net")], at=["model"])`` is short for
    ``rename(file, output, RenameRequest([AddPrefix("net")], at=["model"]))``.

    Raises `UsageError` for a rule that changes nothing or makes an empty name,
    `NameCollisionError` if two entries would get one name, and what `strip` raises.
    """
    if not isinstance(request, RenameRequest):
        request = RenameRequest(request, **choices)
    elif choices:
        raise TypeError("the request says it all; make another with dataclasses.replace")
    asked = request

    def build(checkpoint: Checkpoint) -> Planned:
        if asked.wrap is not None:
            _require_dictionaries(checkpoint)
        return asked.plan(checkpoint)

    return edit("rename", source, output, build)


def _require_dictionaries(checkpoint: Checkpoint) -> None:
    """Raise `PlanError` if the format that is to be written is one state dict and no more."""
    written = registry.get(checkpoint.format)
    if written.is_flat:
        raise PlanError(
            f"{written.title} has no dictionary around its tensors",
            path=checkpoint.file.name,
            hint="-o FILE.pth writes a format that has; --add-prefix puts a prefix before names",
        )
