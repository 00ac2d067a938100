"""Say what ``load_state_dict`` would say, without loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ckpt_surgery.errors import PathLike
from ckpt_surgery.fileio import SourceFile
from ckpt_surgery.formats import read
from ckpt_surgery.models.reports import Matched, MatchReport
from ckpt_surgery.models.specs import Value
from ckpt_surgery.ops.targets import describe, opened
from ckpt_surgery.plan import choose_state_dicts


def match(
    source: PathLike | SourceFile,
    *,
    model: str | None = None,
    model_args: Mapping[str, Value] | None = None,
    settings: Sequence[str] = (),
    like: PathLike | SourceFile | None = None,
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
            return MatchReport(
                inputs=(checkpoint.file.name, *(file.name for file in aim.inputs)),
                target=aim.target.title,
                class_name=aim.target.class_name,
                matched=tuple(
                    Matched(each.path, each.kind, aim.compare(describe(each))) for each in chosen
                ),
                warnings=checkpoint.notes,
            )
