"""Write any readable checkpoint in another format."""

from __future__ import annotations

from ckpt_surgery.checkpoint.description import Checkpoint, join_path
from ckpt_surgery.checkpoint.select import the_state_dict
from ckpt_surgery.edits.convert import Convert, set_metadata
from ckpt_surgery.edits.narrow import OnlyStateDict
from ckpt_surgery.edits.plan import Plan
from ckpt_surgery.errors import PathLike
from ckpt_surgery.fileio import Source
from ckpt_surgery.formats import read
from ckpt_surgery.reports.edits import EditReport
from ckpt_surgery.writing.output import Output
from ckpt_surgery.writing.target import for_output
from ckpt_surgery.writing.write import Written, left_out, write


def convert(
    source: PathLike | Source,
    output: Output | PathLike,
    *,
    at: str | None = None,
    state_dict_only: bool = False,
) -> EditReport:
    """Write `source`, of whatever format, in the format of `output`.

    A pickled module becomes its state dict, its class not being needed; of TorchScript the state
    dict is all that is written, which the report's `dropped` says.
    `state_dict_only` writes the state dict alone, without what lies beside it; `at` says which if
    there are several.

    Raises `UsageError` if there is no state dict, or several to choose from, `ReadError` for a bad
    input, `LossyEditError` for what the format cannot hold and `WriteError` for a bad output.
    """
    target = output if isinstance(output, Output) else Output(output)
    target.check()
    with read(source) as checkpoint:
        narrowed = Plan()
        if state_dict_only or at is not None:
            chosen = the_state_dict(checkpoint, [at] if at is not None else [])
            narrowed = Plan((OnlyStateDict(chosen.path),))
        converted = narrowed.apply(for_output(checkpoint, target))
        return _report(checkpoint, narrowed, write(converted, target))


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
        removed=written.removed,
        renamed=(),
        carried=tuple(other.path for other in after.others),
        dropped=left_out(before, after),
        casts=written.casts,
        warnings=(*before.notes, *written.warnings),
        nbytes_before=before.size,
        nbytes_after=written.nbytes,
    )
