"""Make adapters: of the difference of two models, or of several adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from ckpt_surgery.checkpoint.description import Checkpoint, join_path
from ckpt_surgery.checkpoint.select import the_state_dict
from ckpt_surgery.dtypes import BY_NAME, DType
from ckpt_surgery.errors import PathLike, UsageError, about_file
from ckpt_surgery.fileio import Source
from ckpt_surgery.formats import read
from ckpt_surgery.formats.traits import lost_traits
from ckpt_surgery.merge.files import label_of, merge_file, partner
from ckpt_surgery.merge.lora.layers import (
    Layer,
    adapter_checkpoint,
    other_entries,
    peft_config,
    peft_entries,
)
from ckpt_surgery.merge.lora.plan import Adapter
from ckpt_surgery.merge.lora.writing import require_adapter_output, write_adapter
from ckpt_surgery.names import Selection
from ckpt_surgery.names.suggest import near_hint
from ckpt_surgery.reports.adapters import AdapterLayer, AdapterReport
from ckpt_surgery.torch_objects.rebuild import is_module_state
from ckpt_surgery.writing.output import Output


def extract_lora(
    base: PathLike | Source,
    tuned: PathLike | Source,
    output: Output | PathLike,
    *,
    rank: int,
    selection: Selection | None = None,
    at: Sequence[str] = (),
    dtype: str | None = None,
    fan_in_fan_out: bool = False,
) -> AdapterReport:
    """Write an adapter of `rank` that makes of `base` nearly what `tuned` is, as PEFT saves it.

    Every matrix and kernel that differs gets the factors with the least error; `selection`
    narrows them. `dtype` is that of the factors (default: float32). With `fan_in_fan_out` matrices
    are stored with their inputs first, as GPT-2 has them.

    Raises `MismatchError` for models whose names or shapes differ, `UsageError`, and what reading
    and writing raise.
    """
    target = output if isinstance(output, Output) else Output(output)
    require_adapter_output(target, directory=True)
    _require_rank(rank)
    from ckpt_surgery.compute.elements import require_torch
    from ckpt_surgery.merge.lora.extract import extract

    require_torch()
    chosen = _dtype(dtype)
    with ExitStack() as stack:
        files = []
        for source in (base, tuned):
            checkpoint = stack.enter_context(read(source))
            files.append(merge_file(checkpoint, label_of(source), ()))
        own = the_state_dict(files[0].checkpoint, at)
        with about_file(files[1].label):
            theirs = partner(own, files[1])
            found = extract(
                own,
                theirs,
                rank,
                selection or Selection(),
                fan_in_fan_out=fan_in_fan_out,
                progress=target.progress,
            )
        sources = [source for file in files for source in file.sources]
        made = adapter_checkpoint(peft_entries(found.layers, chosen), sources)
        config = peft_config(found.layers, fan_in_fan_out=fan_in_fan_out)
        nbytes = write_adapter(made, config, target)
    others = tuple(_no_tensors(files[1].checkpoint))
    return AdapterReport(
        "extract",
        (files[0].label, files[1].label),
        None if target.dry_run else str(target.path),
        _said(found.layers),
        found.left_out,
        chosen.name,
        nbytes,
        tuple(_only_factors(files[1].checkpoint)),
        (*(s.path for s in files[1].checkpoint.state_dicts if s is not theirs), *others),
    )


def merge_loras(
    adapters: Sequence[PathLike | Source],
    output: Output | PathLike,
    *,
    rank: int | None = None,
    scales: Sequence[float] | None = None,
    dtype: str | None = None,
) -> AdapterReport:
    """Write one adapter that adds what all `adapters` add, each times one of `scales`.

    Without `rank` their factors stand side by side, and nothing is lost; with it each layer is cut
    to that rank by its singular values. The result has the naming of the first: PEFT's is a
    directory, others are a file.

    Raises `UsageError` for adapters that are more than products, and what reading and writing
    raise.
    """
    target = output if isinstance(output, Output) else Output(output)
    if len(adapters) < 2 and rank is None:
        raise UsageError("one adapter is nothing to merge", hint="name several, or give --rank N")
    if rank is not None:
        _require_rank(rank)
    factors = _one_each(scales or (1.0,), len(adapters))
    from ckpt_surgery.compute.elements import require_torch
    from ckpt_surgery.merge.lora.combine import combine

    require_torch()
    chosen = _dtype(dtype)
    with ExitStack() as stack:
        found = []
        for source, factor in zip(adapters, factors, strict=True):
            checkpoint = stack.enter_context(read(source))
            found.append(Adapter(merge_file(checkpoint, label_of(source), ()), factor))
        is_pefts = _require_one_naming(found)
        require_adapter_output(target, directory=is_pefts)
        layers = combine(found, rank, target.progress)
        entries = (peft_entries if is_pefts else other_entries)(layers, chosen)
        sources = [source for each in found for source in each.file.sources]
        made = adapter_checkpoint(entries, sources)
        nbytes = write_adapter(made, peft_config(layers) if is_pefts else None, target)
        remarks = tuple(text for each in found for text in each.remarks)
    return AdapterReport(
        "merge",
        tuple(each.file.label for each in found),
        None if target.dry_run else str(target.path),
        _said(layers),
        (),
        chosen.name,
        nbytes,
        remarks,
        tuple(dict.fromkeys(_no_tensors(*(each.file.checkpoint for each in found)))),
    )


def _one_each(scales: Sequence[float], count: int) -> tuple[float, ...]:
    """Return a scale for each of `count` adapters; one is for all."""
    if len(scales) == 1:
        return tuple(scales) * count
    if len(scales) != count:
        raise UsageError(f"{len(scales)} scales for {count} adapters", fields=("scales",))
    return tuple(scales)


def _require_one_naming(adapters: Sequence[Adapter]) -> bool:
    """Refuse adapters of different namings; return whether that of all is PEFT's."""
    is_pefts = adapters[0].parts.is_pefts
    for each in adapters:
        if each.parts.is_pefts != is_pefts:
            raise UsageError(
                "the adapters have different namings, which only a model brings together",
                path=each.file.label,
                hint="fold them into a model: ckpt merge -m lora",
            )
    return is_pefts


def _only_factors(tuned: Checkpoint) -> Iterator[str]:
    """Yield what is no entry of the tuned model's file, and not in an adapter, as sentences."""
    yield from tuned.notes
    why = "an adapter holds factors alone"
    if any(map(is_module_state, tuned.state_dicts)):
        yield f"a pickled module is left out: {why}"
    if any(state_dict.metadata for state_dict in tuned.state_dicts):
        yield f"'_metadata' is left out: {why}"
    for loss in lost_traits(tuned, why, ["devices", "records"]):
        yield f"{loss.what} is left out: {loss.why}"


def _no_tensors(*checkpoints: Checkpoint) -> Iterator[str]:
    """Yield the paths of what lies beside tensors, but for texts that every adapter has."""
    for checkpoint in checkpoints:
        yield from (o.path for o in checkpoint.others if o.value != {"format": "pt"})
        for state_dict in checkpoint.state_dicts:
            for entry in state_dict.entries:
                if entry.tensor is None:
                    yield join_path(state_dict.path, entry.name)


def _said(layers: Sequence[Layer]) -> tuple[AdapterLayer, ...]:
    return tuple(AdapterLayer(layer.module, layer.rank, layer.error) for layer in layers)


def _require_rank(rank: int) -> None:
    if rank < 1:
        raise UsageError(f"'rank {rank}' is no rank", fields=("rank",))


def _dtype(name: str | None) -> DType:
    found = BY_NAME.get(name or "float32")
    if found is None or found.kind != "float" or found.itemsize < 2:
        known = [dtype.name for dtype in BY_NAME.values() if dtype.kind == "float"]
        raise UsageError(
            f"'dtype' must be a floating type, got '{name}'", hint=near_hint(name or "", known)
        )
    return found
