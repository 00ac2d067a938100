"""What every edit does around its plan: read, plan, apply, lay out, write, report."""

from __future__ import annotations

from collections.abc import Callable

from ckpt_surgery.checkpoint.description import Checkpoint, join_path
from ckpt_surgery.edits.plan import Drop, DropOther, DropStateDict, Planned, Rename, apply
from ckpt_surgery.errors import CkptError, LossyEditError, PathLike
from ckpt_surgery.fileio import Source
from ckpt_surgery.formats import read
from ckpt_surgery.formats.base import OUTPUT_FORMAT, READ_ONLY, conversion
from ckpt_surgery.reports.edits import EditReport
from ckpt_surgery.writing.output import Output
from ckpt_surgery.writing.write import destination, left_out, named_by_content, write


def edit(
    command: str,
    source: PathLike | Source,
    output: Output,
    build: Callable[[Checkpoint], Planned],
    *,
    narrow: Callable[[Checkpoint], Checkpoint] | None = None,
) -> EditReport:
    """Carry out the plan that `build` makes for the checkpoint in `source`; `narrow` the result."""
    output.check()
    with read(source) as checkpoint:
        require_editable(checkpoint)
        try:
            planned = build(checkpoint)
        except CkptError as error:
            if error.path is None:
                error.name_file(checkpoint.file.name)
            raise
        edited = apply(planned.plan, checkpoint)
        if narrow is not None:
            edited = narrow(edited)
        output = named_by_content(edited, output)
        nbytes = write(edited, output)
        return _report(command, checkpoint, edited, planned, output, nbytes)


def require_editable(checkpoint: Checkpoint) -> None:
    """Raise `LossyEditError` for formats whose edit could not be written back."""
    what = READ_ONLY.get(checkpoint.format)
    if what is not None:
        name = checkpoint.file.name
        raise LossyEditError(
            f"{what} cannot be edited",
            path=name,
            hint=f"extract its weights first: ckpt convert {name} -o weights.pth",
        )


def _report(
    command: str,
    before: Checkpoint,
    after: Checkpoint,
    planned: Planned,
    output: Output,
    nbytes: int,
) -> EditReport:
    edits = planned.plan.edits
    renames = [edit for edit in edits if isinstance(edit, Rename)]
    moved = {(edit.state_dict, edit.new) for edit in renames}
    return EditReport(
        command=command,
        inputs=(before.file.name,),
        output=destination(before, output),
        format=OUTPUT_FORMAT,
        plan=(*planned.plan.to_dict(), *conversion(before)),
        rules=tuple(each.rule.to_dict() | {"matched": each.matched} for each in planned.rules),
        kept=tuple(
            join_path(state_dict.path, entry.name)
            for state_dict in after.state_dicts
            for entry in state_dict.entries
            if (state_dict.path, entry.name) not in moved
        ),
        removed=tuple(join_path(e.state_dict, e.name) for e in edits if isinstance(e, Drop)),
        renamed=tuple(
            (join_path(e.state_dict, e.old), join_path(e.state_dict, e.new)) for e in renames
        ),
        carried=tuple(other.path for other in after.others),
        dropped=tuple(
            dict.fromkeys(
                (
                    *(e.path for e in edits if isinstance(e, DropOther | DropStateDict)),
                    *left_out(before, after),
                )
            )
        ),
        optimizers=planned.optimizers,
        warnings=(*before.notes, *planned.warnings),
        nbytes_before=before.size,
        nbytes_after=nbytes,
    )
