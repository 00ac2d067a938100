"""What every edit does around its plan: read, plan, apply, lay out, write, report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ckpt_surgery.checkpoint.description import Checkpoint, join_path
from ckpt_surgery.edits.averages import DropStateDict
from ckpt_surgery.edits.convert import conversion
from ckpt_surgery.edits.drop import Drop, DropOther
from ckpt_surgery.edits.finish import finishing
from ckpt_surgery.edits.plan import Plan, Planned
from ckpt_surgery.edits.rename import Rename
from ckpt_surgery.errors import PathLike, about_file
from ckpt_surgery.fileio import Source
from ckpt_surgery.formats import read
from ckpt_surgery.reports.edits import EditReport
from ckpt_surgery.torch_objects.rebuild import stays_module
from ckpt_surgery.writing.output import Output
from ckpt_surgery.writing.target import for_output
from ckpt_surgery.writing.write import Written, write


def edit(
    command: str,
    source: PathLike | Source,
    output: Output | PathLike,
    build: Callable[[Checkpoint], Planned],
) -> EditReport:
    """Carry out the plan that `build` makes for the checkpoint in `source`."""
    target = output if isinstance(output, Output) else Output(output)
    target.check()
    with read(source) as checkpoint:
        before = for_output(checkpoint, target, keep_modules=True)
        with about_file(checkpoint.file.name):
            planned = build(before)
        edited, last = finishing(planned.plan.apply(before), target, command, planned.plan.edits)
        planned = replace(planned, plan=Plan((*planned.plan.edits, *last)))
        return _report(command, checkpoint, planned, write(edited, target))


def _report(command: str, before: Checkpoint, planned: Planned, written: Written) -> EditReport:
    after = written.checkpoint
    edits = planned.plan.edits
    renames = [edit for edit in edits if isinstance(edit, Rename)]
    paths = list(dict.fromkeys(edit.state_dict for edit in renames))
    homes = dict(zip(paths, planned.plan.paths_after(paths), strict=True))
    moved = {(homes[edit.state_dict], edit.new) for edit in renames}
    return EditReport(
        command=command,
        inputs=(before.file.name,),
        output=written.output,
        format=written.format,
        plan=tuple(Plan((*edits, *conversion(before.format, written))).to_dict()),
        rules=tuple(each.rule.to_dict() | {"matched": each.matched} for each in planned.rules),
        kept=tuple(
            join_path(state_dict.path, entry.name)
            for state_dict in after.state_dicts
            for entry in state_dict.entries
            if (state_dict.path, entry.name) not in moved
        ),
        removed=(
            *(join_path(e.state_dict, e.name) for e in edits if isinstance(e, Drop)),
            *written.removed,
        ),
        renamed=tuple(
            (join_path(e.state_dict, e.old), join_path(e.state_dict, e.new)) for e in renames
        ),
        carried=tuple(other.path for other in after.others),
        dropped=tuple(
            dict.fromkeys(
                (
                    *(e.path for e in edits if isinstance(e, DropOther | DropStateDict)),
                    *left_out(before, planned.plan, after),
                )
            )
        ),
        optimizers=planned.optimizers,
        casts=written.casts,
        warnings=(*_notes_of(before, after), *planned.warnings, *written.warnings),
        nbytes_before=before.size,
        nbytes_after=written.nbytes,
    )


def _notes_of(before: Checkpoint, after: Checkpoint) -> tuple[str, ...]:
    """Return what reading noted, but for what does not matter of modules that stay as they are."""
    kept = {
        note
        for state_dict in after.state_dicts
        if stays_module(after, state_dict)
        for note in after.modules[id(state_dict.node)].notes
    }
    return tuple(note for note in before.notes if note not in kept)


def left_out(before: Checkpoint, plan: Plan, after: Checkpoint) -> tuple[str, ...]:
    """Return the paths of the entries and state dicts of `before` that `after` does not have."""
    kept = {other.path for other in after.others}
    weights = {state_dict.path for state_dict in after.state_dicts}
    gone: list[str] = []
    for paths, left in (
        ([other.path for other in before.others], kept),
        ([state_dict.path for state_dict in before.state_dicts], weights),
    ):
        after_all = plan.paths_after(paths)
        gone += (old for old, new in zip(paths, after_all, strict=True) if new not in left)
    return tuple(gone)
