"""Say what ``load_state_dict`` would say, without loading."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.checkpoint.select import choose_state_dicts, require_whole
from ckpt_surgery.errors import PathLike
from ckpt_surgery.fileio import Source
from ckpt_surgery.formats import read
from ckpt_surgery.formats.torch_zip import TorchZip
from ckpt_surgery.matching.comparison import Comparison
from ckpt_surgery.matching.correspondence import AmbiguousMatchError, Level, correspond
from ckpt_surgery.matching.layouts import layouts_of
from ckpt_surgery.matching.request import MatchRequest
from ckpt_surgery.matching.target_source import Aim, Described, describe, opened
from ckpt_surgery.reports.fitting import Matched, MatchReport
from ckpt_surgery.torch_objects.arrays import is_of_arrays

_MOST_NAMES: Final = 5000
"""Names beyond which other spellings of them are not looked for: that takes seconds."""


def match(
    source: PathLike | Source, request: MatchRequest | None = None, **choices: Any
) -> MatchReport:
    """Compare every state dict of `source`, or those that are asked about, with one target.

    ``match(file, model="torchvision:resnet34")`` is short for
    ``match(file, MatchRequest(model="torchvision:resnet34"))``. A model is built on the meta
    device. No tensor is read, and nothing runs that a checkpoint names.

    Raises `UsageError` for a target that cannot be, `ConstructionError` for what the model's own
    code does wrong, `ReadError` for a bad file and `MissingDependencyError` without torch.
    """
    if request is not None and choices:
        raise TypeError("the request says it all; make another with dataclasses.replace")
    asked = MatchRequest(**choices) if request is None else request
    with read(source) as checkpoint:
        chosen = choose_state_dicts(checkpoint, asked.at)
        require_whole(checkpoint, chosen, "cannot be compared")
        with opened(asked) as aim:
            matched = []
            notes: list[str] = []
            for each in chosen:
                described = describe(each)
                compared = aim.compare(_as_loaded(described, checkpoint))
                layouts = () if compared.fits else layouts_of(described, aim)
                matched.append(Matched(each.path, each.kind, compared, layouts))
                note = _spelled_otherwise(described, aim, compared)
                if note is not None:
                    notes.append(f"'{each.path}': {note}" if len(chosen) > 1 else note)
            return MatchReport(
                inputs=(checkpoint.file.name, *aim.inputs),
                target=aim.target.title,
                class_name=aim.target.class_name,
                matched=tuple(matched),
                warnings=(*checkpoint.notes, *_of_arrays(checkpoint), *notes),
            )


def _of_arrays(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield what to say of arrays, as which the file's own loader gives what is compared here."""
    if is_of_arrays(checkpoint):
        yield "load_state_dict takes no numpy arrays: 'ckpt convert' writes them as tensors"


def _as_loaded(described: Described, checkpoint: Checkpoint) -> Described:
    """Return a state dict as torch.load gives it, where that gives arrays."""
    if not (checkpoint.format == TorchZip.name and is_of_arrays(checkpoint)):
        return described
    return replace(
        described, specs=tuple(replace(spec, layout="numpy.ndarray") for spec in described.specs)
    )


def _spelled_otherwise(source: Described, aim: Aim, compared: Comparison) -> str | None:
    """Return what `fit` would pair, of the names that ``load_state_dict`` does not know."""
    lost = set(compared.missing)
    if not lost or not compared.unexpected:
        return None
    if max(len(source.specs), len(aim.target.tensors)) > _MOST_NAMES:
        return None
    level: Level
    for level, command in (("prefix", "ckpt fit"), ("suffix", "ckpt fit --match suffix")):
        try:
            pairs = correspond(
                source.specs, aim.target.tensors, level=level, upgraded=aim.upgraded(source)
            ).pairs
        except AmbiguousMatchError:
            continue
        # what only ends alike may be anything
        found = [pair for pair in pairs if pair.target in lost and pair.how != "suffix"]
        if found:
            ways = ", ".join(dict.fromkeys(pair.how for pair in found))
            count = f"{len(found):,} of these names"
            names = f"{count} are" if len(found) > 1 else "1 of these names is"
            return f"{names} only spelled otherwise ({ways}): '{command}' pairs them"
    return None
