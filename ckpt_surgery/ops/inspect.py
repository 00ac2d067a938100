"""Say what is in a checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

from ckpt_surgery.checkpoint.compact import find_pieces
from ckpt_surgery.checkpoint.description import (
    Checkpoint,
    StateDict,
    Storage,
    Tensor,
    find_ties,
    join_path,
    shared_storages,
)
from ckpt_surgery.checkpoint.select import choose_state_dicts, select
from ckpt_surgery.errors import LimitExceededError, PathLike
from ckpt_surgery.fileio import Source
from ckpt_surgery.formats import read
from ckpt_surgery.formats.provenance import steps_of
from ckpt_surgery.names import Selection
from ckpt_surgery.reports.inspection import InspectReport, Place, Totals
from ckpt_surgery.torch_objects.averages import AVERAGED_MODEL_COUNT, holds_average
from ckpt_surgery.torch_objects.kinds import entry_counts

if TYPE_CHECKING:
    from ckpt_surgery.compute.stats import TensorStats
    from ckpt_surgery.torch_objects.safe_loading import SafeLoading
    from ckpt_surgery.training.documents import AverageFacts, TrainingFacts
    from ckpt_surgery.writing.output import ProgressBar


def inspect(
    source: PathLike | Source,
    selection: Selection | None = None,
    *,
    at: Sequence[str] = (),
    params_only: bool = False,
    stats: bool = False,
    recognise: bool = False,
    look_beside: bool = True,
    progress: ProgressBar | None = None,
) -> InspectReport:
    """Describe the checkpoint in `source`: its tensors, what lies beside them, ties, waste.

    `selection` and `at` narrow what is listed; `params_only` leaves out what is known to be a
    buffer. Only `stats` reads tensors, imports torch and shows `progress` in bytes; without it
    single numbers of the training state are read, such as an optimizer's step counts. `recognise`
    looks the whole state dicts up among torchvision's architectures. Without `look_beside` nothing
    is said of plain values beside the weights, and not whether torch loads the file safely.

    Raises `UsageError` for a rule that matches nothing, `ReadError` for a bad input and
    `MissingDependencyError` if `stats` finds no torch.
    """
    with read(source) as checkpoint:
        listed = _listed(checkpoint, selection, at, params_only=params_only)
        narrowed = replace(checkpoint, state_dicts=tuple(listed))
        training, averages, unclear = _training(checkpoint)
        return InspectReport(
            file=checkpoint.file.name,
            format=checkpoint.format,
            size=checkpoint.size,
            state_dicts=narrowed.state_dicts,
            others=checkpoint.others,
            totals=_totals(checkpoint, [tensor for _, tensor in narrowed.tensors]),
            ties=find_ties(narrowed.tensors),
            globals=checkpoint.globals,
            notes=(*checkpoint.notes, *_shard_notes(narrowed), *unclear),
            stats=_stats(narrowed, progress) if stats else {},
            places=_places(checkpoint.state_dicts),
            training=training,
            averaged=_averaged(averages),
            averages=averages,
            declared=checkpoint.architecture,
            provenance=tuple(steps_of(checkpoint)),
            files=tuple(source.name for source in checkpoint.sources[1:]),
            architectures=_architectures(checkpoint, listed) if recognise else {},
            values=_values(checkpoint, training) if look_beside else {},
            weights_only=_safe_loading(checkpoint) if look_beside else None,
            details={o.path: counts for o in checkpoint.others if (counts := entry_counts(o.node))},
        )


def _values(
    checkpoint: Checkpoint, training: Mapping[str, TrainingFacts]
) -> dict[str, Mapping[str, Any]]:
    """Return the plain values in each entry beside the weights that is no training state."""
    from ckpt_surgery.torch_objects.entry_values import values_of_entries

    return values_of_entries(other for other in checkpoint.others if other.path not in training)


def _safe_loading(checkpoint: Checkpoint) -> SafeLoading | None:
    from ckpt_surgery.torch_objects.safe_loading import safe_loading

    return safe_loading(checkpoint)


def _shard_notes(checkpoint: Checkpoint) -> Iterator[str]:
    """Say that a file is one rank's, and lacks what the others have."""
    shards = [t.shard for _, t in checkpoint.tensors if t.shard is not None]
    parts = Counter(str(shard) for shard in shards if not shard.is_whole)
    for part, number in parts.items():
        which = "1 tensor is" if number == 1 else f"{number:,} tensors are each"
        yield f"{which} {part}: the files of the other ranks have the rest"


def _training(
    checkpoint: Checkpoint,
) -> tuple[Mapping[str, TrainingFacts], tuple[AverageFacts, ...], tuple[str, ...]]:
    """Return what is known of training state and of averages, and a
    note if it is too much to look at.

    A file of bare weights has neither.
    """
    if not checkpoint.others and not any(
        each.kind == "ema" or holds_average(each.names) for each in checkpoint.state_dicts
    ):
        return {}, (), ()
    from ckpt_surgery.training.facts import average_facts, training_facts

    try:
        return training_facts(checkpoint), average_facts(checkpoint), ()
    except LimitExceededError as error:  # the rest of the file can still be described
        return {}, (), (f"nothing is said of training state: {error.message}",)


def _averaged(averages: Iterable[AverageFacts]) -> dict[str, int]:
    """Return how many models each moving average has taken in, where it says so, by its path."""
    counts = ((each.path, each.counters.get(AVERAGED_MODEL_COUNT)) for each in averages)
    return {path: count for path, count in counts if isinstance(count, int)}


def _listed(
    checkpoint: Checkpoint, selection: Selection | None, at: Sequence[str], *, params_only: bool
) -> list[StateDict]:
    selects = selection is not None and bool(selection.rules)
    listed = list(checkpoint.state_dicts)
    if at or selects:
        listed = choose_state_dicts(checkpoint, at)
    if selection is not None and selects:
        chosen, _ = select(listed, selection)
        listed = [
            replace(s, entries=tuple(e for e in s.entries if e.name in each.chosen))
            for s, each in zip(listed, chosen, strict=True)
        ]
    if params_only:
        listed = [
            replace(s, entries=tuple(e for e in s.entries if e.tensor and e.role != "buffer"))
            for s in listed
        ]
    return listed


def _totals(checkpoint: Checkpoint, tensors: Sequence[Tensor]) -> Totals:
    storages: set[Storage] = {
        part.storage
        for tensor in tensors
        for part in tensor.strided_parts()
        if part.storage is not None
    }
    pieces = find_pieces(checkpoint.all_tensors)
    used = sum(piece.used_nbytes for piece in pieces if piece.storage in storages)
    storage_nbytes = sum(storage.nbytes for storage in storages)
    return Totals(
        tensors=len(tensors),
        numel=sum(tensor.numel for tensor in tensors),
        nbytes=sum(tensor.nbytes for tensor in tensors),
        storage_nbytes=storage_nbytes,
        unused_nbytes=storage_nbytes - used,
    )


def _architectures(
    checkpoint: Checkpoint, listed: Sequence[StateDict]
) -> dict[str, dict[str, object]]:
    from ckpt_surgery.models.signatures import recognise

    paths = {state_dict.path for state_dict in listed}
    found = {
        state_dict.path: recognise((name, tensor.shape) for name, tensor in state_dict.tensors)
        for state_dict in checkpoint.state_dicts
        if state_dict.path in paths
    }
    return {path: each.to_dict() for path, each in found.items() if each is not None}


def _stats(checkpoint: Checkpoint, progress: ProgressBar | None) -> dict[str, TensorStats | None]:
    from ckpt_surgery.compute.stats import all_stats

    tensors = dict(checkpoint.tensors)
    total = sum(tensor.nbytes for tensor in tensors.values())
    with nullcontext(None) if progress is None else progress(total) as advance:
        return all_stats(tensors, advance=advance)


def _places(state_dicts: Iterable[StateDict]) -> dict[str, Place]:
    """Return the place of every entry of whole state dicts, by ``path/name``."""
    found: dict[str, Place] = {}
    for state_dict in state_dicts:
        shared = shared_storages(tensor for _, tensor in state_dict.tensors)
        numbers = count()
        seen: dict[object, int] = {}
        for index, entry in enumerate(state_dict.entries):
            parameter = None
            tensor = entry.tensor
            if tensor is not None and entry.role != "buffer":
                tie = tensor.identity if tensor.storage in shared else id(tensor)
                parameter = seen.get(tie)
                if parameter is None:
                    parameter = seen[tie] = next(numbers)
            found[join_path(state_dict.path, entry.name)] = Place(index, parameter)
    return found
