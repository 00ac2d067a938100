"""Which format an output is of, and a checkpoint as that format holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, StateDict, join_path
from ckpt_surgery.errors import LossyEditError, UsageError
from ckpt_surgery.formats import registry
from ckpt_surgery.formats.base import Format, LayoutOptions, Loss
from ckpt_surgery.writing.output import Output

_MOST_LISTED: Final = 20


def output_format(checkpoint: Checkpoint, output: Output) -> Format:
    """Return the format to write: the one asked for, the suffix's, or the checkpoint's own.

    A checkpoint of a format that is only read is written in the one that holds what it gives.
    """
    chosen = output.chosen_format()
    if chosen is not None:
        return chosen
    own = registry.get(checkpoint.format)
    return registry.get(own.written_as) if own.written_as else own


def for_output(checkpoint: Checkpoint, output: Output, *, keep_modules: bool = False) -> Checkpoint:
    """Return `checkpoint` as the format of `output` holds it, before any edit.

    What has no place there goes; what the format refuses stays, since an edit may remove it, and
    so do the attributes of a script until it is written, since an edit may take them. With
    `keep_modules` pickled modules may stay what they are, if no edit changes what is in them;
    otherwise they become their state dicts.
    Raises `LossyEditError` for an edit in place of a file that can only be replaced by a part of
    what it is: a pickled module by its state dict.
    """
    target = output_format(checkpoint, output)
    if not (keep_modules and target.keeps_modules and not output.plain):
        checkpoint = replace(checkpoint, modules={})
    losses = [loss for loss in target.losses(checkpoint) if not loss.refused]
    require_modules(checkpoint, output, target, losses)
    return replace(without(checkpoint, _without_takeable(checkpoint, losses)), format=target.name)


def _without_takeable(checkpoint: Checkpoint, losses: Sequence[Loss]) -> list[Loss]:
    """Return `losses` but those of attributes of a script, which lie in no container."""
    takeable = {o.path for o in checkpoint.others if o.parent is None and o.node is not None}
    takeable.discard("")
    return [loss for loss in losses if loss.part != "other" or loss.path not in takeable]


def require_modules(
    checkpoint: Checkpoint, output: Output, target: Format, losses: Sequence[Loss]
) -> None:
    """Raise `LossyEditError` if `losses` name a module, and `output` is to take its place."""
    for loss in losses:
        if loss.part == "module" and output.in_place and output.format is None:
            raise LossyEditError(
                f"in its place would stand its weights alone, without {loss.what}: {loss.why}",
                path=checkpoint.file.name,
                hint=f"give -o FILE, or --format {target.name} to replace it anyway",
            )


def without(checkpoint: Checkpoint, losses: Sequence[Loss]) -> Checkpoint:
    """Return `checkpoint` without the entries that `losses` name."""
    others = {loss.path for loss in losses if loss.part == "other"}
    entries = {loss.path for loss in losses if loss.part == "entry"}
    if not others and not entries:
        return checkpoint
    gone = tuple(o for o in checkpoint.others if o.path in others)
    return replace(
        checkpoint,
        state_dicts=tuple(_thinned(s, entries) for s in checkpoint.state_dicts),
        others=tuple(o for o in checkpoint.others if o.path not in others),
        dropped=(*checkpoint.dropped, *(o for o in gone if o.parent is not None)),
    )


def _thinned(state_dict: StateDict, names: set[str]) -> StateDict:
    entries = state_dict.entries
    kept = tuple(e for e in entries if join_path(state_dict.path, e.name) not in names)
    return replace(state_dict, entries=kept) if len(kept) < len(entries) else state_dict


def require_held(
    checkpoint: Checkpoint, target: Format, losses: Sequence[Loss], *, has_sidecar: bool = False
) -> None:
    """Raise `LossyEditError`, which lists them, if there are `losses` that `target` refuses."""
    if not losses:
        return
    by_reason: dict[str, list[Loss]] = {}
    for loss in losses[:_MOST_LISTED]:
        by_reason.setdefault(loss.why, []).append(loss)
    listed = "; ".join(f"{', '.join(map(_said, lost))}: {why}" for why, lost in by_reason.items())
    more = len(losses) - _MOST_LISTED
    raise LossyEditError(
        f"{target.title} cannot hold {listed}" + (f"; and {more} more" if more > 0 else ""),
        path=checkpoint.file.name,
        hint=_way_out(checkpoint, target, losses, has_sidecar),
    )


def _said(loss: Loss) -> str:
    return f"'{loss.path}' ({loss.what})" if loss.path else loss.what


def _way_out(
    checkpoint: Checkpoint, target: Format, losses: Sequence[Loss], has_sidecar: bool
) -> str:
    parts = {loss.part for loss in losses}
    ways = []
    if "state_dict" in parts:
        ways.append("--state-dict-only --at PATH writes one state dict")
    elif parts == {"other"}:
        ways.append("--state-dict-only writes the weights alone")
    if "state_dict" not in parts:
        if not has_sidecar and (parts == {"other"} or _has_values(checkpoint, losses)):
            ways.append("--sidecar FILE.json keeps plain values")
        ways.append("--allow-loss leaves out what is listed")
    if target.name != registry.DEFAULT:
        ways.append(f"--format {registry.DEFAULT} holds everything")
    return ", ".join(ways)


def _has_values(checkpoint: Checkpoint, losses: Sequence[Loss]) -> bool:
    """Say whether an entry of a state dict that is no tensor is among the losses."""
    lost = {loss.path for loss in losses if loss.part == "entry"}
    return any(
        entry.tensor is None and join_path(state_dict.path, entry.name) in lost
        for state_dict in checkpoint.state_dicts
        for entry in state_dict.entries
    )


def require_honoured(target: Format, options: LayoutOptions) -> None:
    """Raise `UsageError` for an option that the format has no use for."""
    if options.metadata and "metadata" not in target.honours:
        raise UsageError(f"'--metadata': {target.title} has no place for it")
    if options.duplicate_ties and "duplicate_ties" not in target.honours:
        raise UsageError(f"'--duplicate-ties': {target.title} holds tied tensors as they are")
    if options.max_shard_size is not None and "max_shard_size" not in target.honours:
        raise UsageError(
            f"'--max-shard-size': {target.title} is not split by size",
            hint="give -o DIRECTORY and --format safetensors-index or torch-index",
        )
