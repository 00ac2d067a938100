"""Say what ``load_state_dict`` would say, without loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from ckpt_surgery.checkpoint.select import choose_state_dicts
from ckpt_surgery.errors import PathLike
from ckpt_surgery.fileio import Source
from ckpt_surgery.formats import read
from ckpt_surgery.matching.comparison import Comparison
from ckpt_surgery.matching.correspondence import AmbiguousMatchError, correspond
from ckpt_surgery.matching.target_source import Aim, Described, describe, opened
from ckpt_surgery.models.specs import Value
from ckpt_surgery.reports.fitting import Matched, MatchReport

_MOST_NAMES: Final = 5000
"""Names beyond which other spellings of them are not looked for: that takes seconds."""


def match(
    source: PathLike | Source,
    *,
    model: str | None = None,
    model_args: Mapping[str, Value] | None = None,
    settings: Sequence[str] = (),
    like: PathLike | Source | None = None,
    at: Sequence[str] = (),
) -> MatchReport:
    """Compare every state dict of `source`, or those at the paths `at`, with one target.

    The target is a `model` (``torchvision:NAME`` or ``package.module:callable``, called with
    `model_args`, its layers changed by `settings` such as ``"fc.out_features=5"``), built on the
    meta device, or the state dict of the file `like`. No tensor is read. The callable is the
    user's own code, and runs; nothing runs that a checkpoint names.

    Raises `UsageError` for a target that cannot be, `ConstructionError` for what the model's own
    code does wrong, `ReadError` for a bad file and `MissingDependencyError` without torch.
    """
    with read(source) as checkpoint:
        chosen = choose_state_dicts(checkpoint, at)
        with opened(model, model_args, settings, like) as aim:
            matched = []
            notes: list[str] = []
            for each in chosen:
                described = describe(each)
                compared = aim.compare(described)
                matched.append(Matched(each.path, each.kind, compared))
                note = _spelled_otherwise(described, aim, compared)
                if note is not None:
                    notes.append(f"'{each.path}': {note}" if len(chosen) > 1 else note)
            return MatchReport(
                inputs=(checkpoint.file.name, *aim.inputs),
                target=aim.target.title,
                class_name=aim.target.class_name,
                matched=tuple(matched),
                warnings=(*checkpoint.notes, *notes),
            )


def _spelled_otherwise(source: Described, aim: Aim, compared: Comparison) -> str | None:
    """What `fit` would pair, of the names that ``load_state_dict`` does not know."""
    lost = set(compared.missing)
    if not lost or not compared.unexpected:
        return None
    if max(len(source.specs), len(aim.target.tensors)) > _MOST_NAMES:
        return None
    try:
        pairs = correspond(source.specs, aim.target.tensors, upgraded=aim.upgraded(source)).pairs
    except AmbiguousMatchError:
        return None
    found = [pair for pair in pairs if pair.target in lost]
    if not found:
        return None
    ways = ", ".join(dict.fromkeys(pair.how for pair in found))
    names = "1 of these names is" if len(found) == 1 else f"{len(found):,} of these names are"
    return f"{names} only spelled otherwise ({ways}): 'ckpt fit' pairs them"
