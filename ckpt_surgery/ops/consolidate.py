"""Put the files of the ranks of a training run together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ckpt_surgery.checkpoint.description import Checkpoint, Tensor, join_path
from ckpt_surgery.edits.convert import conversion
from ckpt_surgery.edits.finish import finishing
from ckpt_surgery.edits.narrow import OnlyStateDict
from ckpt_surgery.edits.narrow_plan import the_one
from ckpt_surgery.edits.plan import Plan
from ckpt_surgery.errors import PathLike, UsageError
from ckpt_surgery.formats import read
from ckpt_surgery.formats.traits import lost_traits
from ckpt_surgery.ranks.axes import AxisRule
from ckpt_surgery.ranks.deepspeed import ZeroRank, read_zero
from ckpt_surgery.ranks.fairscale import has_shard_metadata, unflattened
from ckpt_surgery.ranks.files import find_rank_files
from ckpt_surgery.ranks.join import Joined
from ckpt_surgery.ranks.megatron import consolidate_megatron
from ckpt_surgery.ranks.parts import read_parts
from ckpt_surgery.ranks.structure import (
    Consolidated,
    consolidate_ranks,
    flat_checkpoint,
    join_flat,
)
from ckpt_surgery.reports.consolidating import ConsolidateReport, JoinedTensor
from ckpt_surgery.writing.output import Output
from ckpt_surgery.writing.target import for_output
from ckpt_surgery.writing.write import left_out, write


def consolidate(
    sources: PathLike | Sequence[PathLike],
    output: Output | PathLike,
    *,
    axes: Sequence[AxisRule | str] = (),
    edits: Plan | None = None,
    state_dict_only: bool = False,
    at: Sequence[str] = (),
) -> ConsolidateReport:
    """Write one checkpoint from the files that ranks saved, or from a directory of them.

    Understood are DTensors (FSDP2, tensor parallelism), ShardedTensors (FSDP1), fairscale's flat
    parameters, LLaMA's ``consolidated.NN.pth``, Megatron-LM's tensor parallelism, ZeRO checkpoints
    of DeepSpeed, whose weights in float32 are taken, and any others with `axes`, which say how
    tensors are joined (``"**.wq.weight=0"``). Nothing of the files is run, and memory does not grow
    with them. `edits` are applied to what was put together; with `state_dict_only` one state dict
    of that is written alone, the one at `at` if there are several.

    Raises `UsageError` if it is not known how tensors are joined, or which state dict is meant,
    `ReadError` for bad or missing files, `LossyEditError` for what the output's format cannot hold
    and `WriteError` for a bad output.
    """
    rules = [each if isinstance(each, AxisRule) else AxisRule.parse(each) for each in axes]
    named = (
        [sources]
        if isinstance(sources, str | Path) or not isinstance(sources, Sequence)
        else sources
    )
    target = output if isinstance(output, Output) else Output(output)
    if target.in_place:
        raise UsageError("the files of ranks are not replaced in place", fields=("in_place",))
    if at and not state_dict_only:
        raise UsageError("'at' is for 'state_dict_only'", fields=("at", "state_dict_only"))
    target.check()
    with ExitStack() as opened:
        writer, found = _consolidated(named, rules, opened)
        before, more = found.checkpoint, edits or Plan()
        edited = more.apply(for_output(before, Output(dry_run=True))) if more.edits else before
        if state_dict_only:
            found, only = _narrowed(found, edited, at)
            edited, more = only.apply(edited), Plan((*more.edits, *only.edits))
        ready = for_output(edited, target)
        finished, last = finishing(ready, target, "consolidate", more.edits)
        written = write(finished, target, inputs=before.sources)
    return ConsolidateReport(
        inputs=tuple(source.name for source in before.sources if source.size),
        output=written.output,
        format=written.format,
        writer=writer,
        joined=tuple(JoinedTensor(n, each.how, each.parts) for n, each in found.joined.items()),
        removed=written.removed,
        carried=tuple(other.path for other in written.checkpoint.others),
        dropped=(*found.left_out, *left_out(before, written.checkpoint)),
        warnings=(*found.notes, *written.warnings),
        nbytes_before=before.size,
        nbytes_after=written.nbytes,
        named=tuple(str(each) for each in named),
        axes=tuple(rule.option.removeprefix("--axis ") for rule in rules),
        edits=tuple(Plan((*more.edits, *last, *conversion(edited.format, written))).to_dict()),
    )


def _consolidated(
    named: Sequence[PathLike], rules: Sequence[AxisRule], opened: ExitStack
) -> tuple[str, Consolidated]:
    files = find_rank_files(named)
    if files.writer == "deepspeed":
        return "deepspeed", _zero(files.paths[0], rules, opened)
    checkpoints = [opened.enter_context(read(path)) for path in files.paths]
    if files.writer == "dcp":
        return "dcp", _of_one(checkpoints[0], rules)
    if files.writer == "megatron":
        return "megatron", consolidate_megatron(checkpoints, rules)
    ranks = [read_parts(each) for each in checkpoints]
    if all(map(has_shard_metadata, ranks)):
        _refuse_rules(rules)
        tensors = unflattened(ranks)
        others = tuple(other.path for other in checkpoints[0].others)
        return "fairscale", _flat(tensors, checkpoints, others)
    found = consolidate_ranks(ranks, rules, is_llama=files.writer == "llama")
    return files.writer, _with_losses(checkpoints[0], found)


def _narrowed(
    found: Consolidated, edited: Checkpoint, at: Sequence[str]
) -> tuple[Consolidated, Plan]:
    """Return what is said of the one state dict that is written, and the edit that narrows."""
    chosen, said = the_one(edited, at)
    names = {join_path(chosen.path, name) for name, _ in chosen.tensors}
    joined = {name: each for name, each in found.joined.items() if name in names}
    narrowed = replace(found, joined=joined, notes=(*found.notes, *said))
    return narrowed, Plan((OnlyStateDict(chosen.path),))


def _with_losses(first: Checkpoint, found: Consolidated) -> Consolidated:
    """Return what was put together, and what of the first rank's file is not in it."""
    why = "the files of ranks are put together to a new archive"
    lost = lost_traits(first, why, ["records"])
    notes = (*first.notes, *found.notes, *(f"{x.what} is left out: {x.why}" for x in lost))
    kept = {other.path for other in found.checkpoint.others}
    gone = (other.path for other in first.others if other.path not in kept)
    return replace(found, notes=notes, left_out=(*found.left_out, *gone))


def _of_one(checkpoint: Checkpoint, rules: Sequence[AxisRule]) -> Consolidated:
    """Return a directory that is read as one checkpoint."""
    _refuse_rules(rules)
    joined = {name: Joined(tensor, "placement", 1) for name, tensor in checkpoint.tensors}
    return Consolidated(checkpoint, joined, checkpoint.notes)


def _refuse_rules(rules: Sequence[AxisRule]) -> None:
    if rules:
        raise UsageError(f"'{rules[0].option}': these files say how everything is joined")


def _zero(folder: Path, rules: Sequence[AxisRule], opened: ExitStack) -> Consolidated:
    checkpoints: list[Checkpoint] = []
    opened.callback(_close, checkpoints)
    ranks: list[ZeroRank] = read_zero(folder, checkpoints)
    if len(ranks) == 1:
        _refuse_rules(rules)
        return _flat(ranks[0].tensors, checkpoints, ranks[0].left_out)
    names = [each.files[0].file.name for each in ranks]
    joined = join_flat([each.tensors for each in ranks], names, rules)
    tensors = {name: each.tensor for name, each in joined.items()}
    return Consolidated(flat_checkpoint(checkpoints, tensors), joined, (), ranks[0].left_out)


def _close(checkpoints: Sequence[Checkpoint]) -> None:
    for each in checkpoints:
        each.close()


def _flat(
    tensors: Mapping[str, Tensor], checkpoints: Sequence[Checkpoint], others: tuple[str, ...]
) -> Consolidated:
    joined = {name: Joined(tensor, "flat", len(checkpoints)) for name, tensor in tensors.items()}
    return Consolidated(flat_checkpoint(checkpoints, tensors), joined, (), others)
