"""Write any readable checkpoint in another format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ckpt_surgery.checkpoint.description import Checkpoint, StateDict, join_path
from ckpt_surgery.checkpoint.select import choose_state_dicts
from ckpt_surgery.edits.convert import Convert, set_metadata
from ckpt_surgery.edits.finish import finishing
from ckpt_surgery.edits.narrow import OnlyStateDict
from ckpt_surgery.edits.narrow_plan import the_one
from ckpt_surgery.edits.plan import Plan, Planned, followed_by
from ckpt_surgery.errors import PathLike, UsageError, about_file
from ckpt_surgery.fileio import Source
from ckpt_surgery.formats import read
from ckpt_surgery.ops.run import left_out
from ckpt_surgery.reports.edits import EditReport
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.writing.output import Output
from ckpt_surgery.writing.target import for_output
from ckpt_surgery.writing.write import Written, write

if TYPE_CHECKING:
    from ckpt_surgery.edits.cast_plan import CastRule

_ALL_OF_IT: Final = (
    "'--at' narrows nothing here, and the whole file is written: --state-dict-only writes that "
    "state dict alone"
)


@dataclass(frozen=True, slots=True)
class ConvertRequest:
    """What is written in another format: all of it, or one state dict alone.

    The latter with `state_dict_only`. With `tensors_only` it is no more than the tensors of the
    state dict, each of them rebuilt. `at` are the paths of the state dicts that this is about (or
    the path of the one): that which is written alone, or those that are cast. `dtypes`
    are element types, ``TYPE`` for all floating-point tensors or ``SELECTION=TYPE``; with
    `keep_norms` the former leave norms and statistics of 32 bits as they are. `max_loss` is the
    largest share of itself that a number may lose. `attributes` are globs of the attributes of a
    TorchScript archive that become entries of its state dict.

    Raises `UsageError` for a type that there is not.
    """

    at: Sequence[str] | str | None = None
    state_dict_only: bool = False
    tensors_only: bool = False
    dtypes: Sequence[str] = ()
    keep_norms: bool = True
    max_loss: float | None = None
    attributes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.max_loss is not None and not self.dtypes:
            raise UsageError("'max_loss' is for a cast", fields=("max_loss",), hint="give --dtype")
        if self.max_loss is not None and not self.max_loss >= 0:
            raise UsageError(f"'max_loss {self.max_loss}' is no share", fields=("max_loss",))
        if self.dtypes:
            self._rules()

    def plan(self, checkpoint: Checkpoint) -> Planned:
        """Plan it.

        Raises `UsageError` if there is no state dict, or several to choose from, or for a glob of
        attributes that matches none, and what `plan_casts` raises.
        """
        if not self.attributes:
            return self._rest(checkpoint)
        from ckpt_surgery.edits.attributes import plan_attributes
        from ckpt_surgery.edits.inputs import Inputs

        taken = plan_attributes(checkpoint, self.attributes)
        rest = self._rest(taken.plan.apply(checkpoint, Inputs(())))
        return replace(
            rest,
            plan=Plan((*taken.plan.edits, *rest.plan.edits)),
            rules=(*taken.rules, *rest.rules),
        )

    def _rest(self, checkpoint: Checkpoint) -> Planned:
        """Plan all but the attributes."""
        at = [self.at] if isinstance(self.at, str) else list(self.at or ())
        if not self.state_dict_only and not self.tensors_only:
            return self._of_all(checkpoint, at)
        chosen, warnings = the_one(checkpoint, at)
        casts = self._casts(checkpoint, [chosen])
        casts = replace(casts, warnings=(*casts.warnings, *warnings))
        if self.tensors_only:
            from ckpt_surgery.edits.bare import OnlyTensors

            bare = followed_by(casts, [OnlyTensors(chosen.path)])
            return replace(bare, warnings=(*bare.warnings, *_no_numbers(checkpoint, chosen)))
        return followed_by(casts, [OnlyStateDict(chosen.path)])

    def _of_all(self, checkpoint: Checkpoint, at: Sequence[str]) -> Planned:
        """Plan the casts of the state dicts at the paths `at`, or of all; the rest is kept."""
        if not at:
            return self._casts(checkpoint, checkpoint.state_dicts)
        chosen = choose_state_dicts(checkpoint, at)
        whole = len(checkpoint.state_dicts) == 1 and not checkpoint.others
        remark = [] if self.dtypes or whole else [_ALL_OF_IT]
        planned = self._casts(checkpoint, chosen)
        return replace(planned, warnings=(*planned.warnings, *remark))

    def _casts(self, checkpoint: Checkpoint, state_dicts: Sequence[StateDict]) -> Planned:
        if not self.dtypes:
            return Planned(Plan())
        from ckpt_surgery.compute.elements import require_torch
        from ckpt_surgery.edits.cast_plan import plan_casts

        require_torch()
        return plan_casts(
            checkpoint,
            state_dicts,
            self._rules(),
            keep_norms=self.keep_norms,
            max_loss=self.max_loss,
        )

    def _rules(self) -> list[CastRule]:
        from ckpt_surgery.edits.cast_plan import CastRule

        return [CastRule(text) for text in self.dtypes]


def convert(
    source: PathLike | Source,
    output: Output | PathLike,
    request: ConvertRequest | None = None,
    **choices: Any,
) -> EditReport:
    """Write `source`, of whatever format, in the format of `output`.

    A pickled module becomes its state dict, its class not being needed; of TorchScript the state
    dict is all that is written, which the report's `dropped` says.
    ``convert(file, output, state_dict_only=True)`` is short for
    ``convert(file, output, ConvertRequest(state_dict_only=True))``.

    Raises `UsageError` if there is no state dict, or several to choose from, `ReadError` for a bad
    input, `LossyEditError` for what the format cannot hold and `WriteError` for a bad output.
    """
    if request is not None and choices:
        raise TypeError("the request says it all; make another with dataclasses.replace")
    asked = ConvertRequest(**choices) if request is None else request
    target = output if isinstance(output, Output) else Output(output)
    target.check()
    with read(source) as checkpoint:
        with about_file(checkpoint.file.name):
            planned = asked.plan(checkpoint)
        converted = planned.plan.apply(for_output(checkpoint, target))
        converted, last = finishing(converted, target, "convert", planned.plan.edits)
        planned = replace(planned, plan=Plan((*planned.plan.edits, *last)))
        return _report(checkpoint, planned, write(converted, target))


def _report(before: Checkpoint, planned: Planned, written: Written) -> EditReport:
    narrowed, after = planned.plan, written.checkpoint
    allowed = any(loss.refused for loss in written.losses)
    conversion = Convert(before.format, written.format, allow_loss=allowed)
    texts = set_metadata(written)
    return EditReport(
        command="convert",
        inputs=(before.file.name,),
        output=written.output,
        format=written.format,
        plan=tuple(Plan((*narrowed.edits, conversion, *texts)).to_dict()),
        rules=tuple(each.rule.to_dict() | {"matched": each.matched} for each in planned.rules),
        kept=tuple(join_path(s.path, entry.name) for s in after.state_dicts for entry in s.entries),
        removed=(*_no_tensors(before, narrowed), *written.removed),
        renamed=(),
        carried=tuple(other.path for other in after.others),
        dropped=_left_out(before, narrowed, after),
        casts=written.casts,
        warnings=(*before.notes, *planned.warnings, *written.warnings),
        nbytes_before=before.size,
        nbytes_after=written.nbytes,
    )


def _left_out(before: Checkpoint, narrowed: Plan, after: Checkpoint) -> tuple[str, ...]:
    """Return what is no longer there, of which what became an entry is none."""
    taken = {edit["name"] for edit in narrowed.to_dict() if edit["edit"] == "take-attribute"}
    return tuple(path for path in left_out(before, narrowed, after) if path not in taken)


def _no_numbers(checkpoint: Checkpoint, chosen: StateDict) -> Iterator[str]:
    """Yield what is not in the numbers that are written, as sentences."""
    from ckpt_surgery.formats.traits import lost_traits
    from ckpt_surgery.torch_objects.rebuild import is_module_state

    why = "only numbers are written, as if on the CPU"
    if is_module_state(chosen):
        yield f"a pickled module becomes its state dict: {why}"
    if chosen.metadata:
        yield f"'{join_path(chosen.path, '_metadata')}' is left out: {why}"
    taken = replace(checkpoint, state_dicts=(chosen,), others=())
    for loss in lost_traits(taken, why, ["parameters", "attributes", "devices", "records"]):
        yield f"{loss.what} is left out: {loss.why}"


def _no_tensors(before: Checkpoint, narrowed: Plan) -> tuple[str, ...]:
    """Return the entries that are no tensors, where only tensors are written."""
    from ckpt_surgery.edits.bare import OnlyTensors

    paths = [edit.path for edit in narrowed.edits if isinstance(edit, OnlyTensors)]
    return tuple(
        join_path(state_dict.path, entry.name)
        for state_dict in before.state_dicts
        for entry in state_dict.entries
        if state_dict.path in paths and entry.tensor is None
    )
