"""Write any readable checkpoint in another format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ckpt_surgery.checkpoint.description import Checkpoint, join_path
from ckpt_surgery.checkpoint.select import the_state_dict
from ckpt_surgery.edits.convert import Convert, set_metadata
from ckpt_surgery.edits.finish import finishing
from ckpt_surgery.edits.narrow import OnlyStateDict
from ckpt_surgery.edits.plan import Plan, Planned
from ckpt_surgery.errors import PathLike
from ckpt_surgery.fileio import Source
from ckpt_surgery.formats import read
from ckpt_surgery.ops.run import left_out
from ckpt_surgery.reports.edits import EditReport
from ckpt_surgery.writing.output import Output
from ckpt_surgery.writing.target import for_output
from ckpt_surgery.writing.write import Written, write


@dataclass(frozen=True, slots=True)
class ConvertRequest:
    """What is written in another format: all of it, or one state dict alone.

    The latter with `state_dict_only`, or with `at`, which says which if there are several. With
    `tensors_only` it is no more than the tensors of the state dict, each of them rebuilt.
    """

    at: str | None = None
    state_dict_only: bool = False
    tensors_only: bool = False

    def plan(self, checkpoint: Checkpoint) -> Planned:
        """Plan it. Raises `UsageError` if there is no state dict, or several to choose from."""
        if not self.state_dict_only and not self.tensors_only and self.at is None:
            return Planned(Plan())
        chosen = the_state_dict(checkpoint, [] if self.at is None else [self.at])
        if self.tensors_only:
            from ckpt_surgery.edits.bare import OnlyTensors

            return Planned(Plan((OnlyTensors(chosen.path),)))
        return Planned(Plan((OnlyStateDict(chosen.path),)))


def convert(
    source: PathLike | Source,
    output: Output | PathLike,
    request: ConvertRequest | None = None,
    **choices: Any,
) -> EditReport:
    """Write `source`, of whatever format, in the format of `output`.

    A pickled module becomes its state dict, its class not being needed; of TorchScript the state
    dict is all that is written, which the report's `dropped` says.
    ``convert(file, output, at="model")`` is short for
    ``convert(file, output, ConvertRequest(at="model"))``.

    Raises `UsageError` if there is no state dict, or several to choose from, `ReadError` for a bad
    input, `LossyEditError` for what the format cannot hold and `WriteError` for a bad output.
    """
    if request is not None and choices:
        raise TypeError("the request says it all; make another with dataclasses.replace")
    asked = ConvertRequest(**choices) if request is None else request
    target = output if isinstance(output, Output) else Output(output)
    target.check()
    with read(source) as checkpoint:
        narrowing = asked.plan(checkpoint).plan
        converted, last = finishing(narrowing.apply(for_output(checkpoint, target)), target)
        plan = Plan((*narrowing.edits, *last))
        return _report(checkpoint, plan, write(converted, target))


def _report(before: Checkpoint, narrowed: Plan, written: Written) -> EditReport:
    after = written.checkpoint
    allowed = any(loss.refused for loss in written.losses)
    conversion = Convert(before.format, written.format, allow_loss=allowed)
    texts = set_metadata(written)
    return EditReport(
        command="convert",
        inputs=(before.file.name,),
        output=written.output,
        format=written.format,
        plan=tuple(Plan((*narrowed.edits, conversion, *texts)).to_dict()),
        rules=(),
        kept=tuple(join_path(s.path, entry.name) for s in after.state_dicts for entry in s.entries),
        removed=(*_no_tensors(before, narrowed), *written.removed),
        renamed=(),
        carried=tuple(other.path for other in after.others),
        dropped=left_out(before, narrowed, after),
        casts=written.casts,
        warnings=(*before.notes, *written.warnings),
        nbytes_before=before.size,
        nbytes_after=written.nbytes,
    )


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
