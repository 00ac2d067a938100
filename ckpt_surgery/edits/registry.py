"""Every kind of edit, and where its class is; imported when a plan has one."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from ckpt_surgery.edits.base import Edit

if TYPE_CHECKING:
    from ckpt_surgery.training.optimizers import MomentChange, MomentMaker

KINDS: Final[dict[str, str]] = {
    "drop": "ckpt_surgery.edits.drop:Drop",
    "drop-entry": "ckpt_surgery.edits.drop:DropOther",
    "rename": "ckpt_surgery.edits.rename:Rename",
    "rename-module": "ckpt_surgery.edits.rename:RenameModule",
    "take": "ckpt_surgery.edits.take:Take",
    "take-module": "ckpt_surgery.edits.take:TakeModule",
    "take-attribute": "ckpt_surgery.edits.attributes:TakeAttribute",
    "take-weights": "ckpt_surgery.edits.averages:TakeWeights",
    "update-average": "ckpt_surgery.edits.averages:UpdateAverage",
    "drop-state-dict": "ckpt_surgery.edits.averages:DropStateDict",
    "only-state-dict": "ckpt_surgery.edits.narrow:OnlyStateDict",
    "only-tensors": "ckpt_surgery.edits.bare:OnlyTensors",
    "update-optimizer": "ckpt_surgery.edits.optimizer:UpdateOptimizer",
    "compact": "ckpt_surgery.edits.compact:Compact",
    "convert": "ckpt_surgery.edits.convert:Convert",
    "settle": "ckpt_surgery.edits.settle:Settle",
    "rename-entry": "ckpt_surgery.edits.entries:RenameEntry",
    "wrap": "ckpt_surgery.edits.entries:Wrap",
    "unwrap": "ckpt_surgery.edits.entries:Unwrap",
    "plain": "ckpt_surgery.edits.plain:ToPlain",
    "set-device": "ckpt_surgery.edits.device:SetDevice",
    "set-metadata": "ckpt_surgery.edits.metadata:SetMetadata",
    "set-provenance": "ckpt_surgery.edits.provenance:SetProvenance",
    "set-value": "ckpt_surgery.edits.set_value:SetValue",
    "permute": "ckpt_surgery.edits.rearrange:Permute",
    "transpose": "ckpt_surgery.edits.rearrange:Transpose",
    "reshape": "ckpt_surgery.edits.rearrange:Reshape",
    "squeeze": "ckpt_surgery.edits.rearrange:Squeeze",
    "unsqueeze": "ckpt_surgery.edits.rearrange:Unsqueeze",
    "take-indices": "ckpt_surgery.edits.rearrange:Take",
    "flip": "ckpt_surgery.edits.rearrange:Flip",
    "slice": "ckpt_surgery.edits.rearrange:Slice",
    "pad": "ckpt_surgery.edits.rearrange:Pad",
    "repeat": "ckpt_surgery.edits.rearrange:Repeat",
    "scale": "ckpt_surgery.edits.arithmetic:Scale",
    "add": "ckpt_surgery.edits.arithmetic:Add",
    "fill": "ckpt_surgery.edits.arithmetic:Fill",
    "cast": "ckpt_surgery.edits.cast:Cast",
    "split": "ckpt_surgery.edits.parts:Split",
    "concat": "ckpt_surgery.edits.parts:Concat",
    "fold-branches": "ckpt_surgery.edits.folds:FoldBranches",
    "fold-weight-norm": "ckpt_surgery.edits.folds:FoldWeightNorm",
    "fold-spectral-norm": "ckpt_surgery.edits.folds:FoldSpectralNorm",
    "copy": "ckpt_surgery.edits.share:Copy",
    "tie": "ckpt_surgery.edits.share:Tie",
    "layers": "ckpt_surgery.edits.layers:Layers",
    "untie": "ckpt_surgery.edits.share:Untie",
    "merge": "ckpt_surgery.merge.edit:Merge",
    "fold-lora": "ckpt_surgery.merge.lora.edit:FoldLora",
    "fit": "ckpt_surgery.fit.edit:Fit",
}
"""What ``"edit"`` says in JSON: module and class. A new kind is a class and a row here."""


MOMENT_CHANGES: Final[dict[str, str]] = {
    "adapt": "ckpt_surgery.fit.moments:AdaptMoment",
    "edits": "ckpt_surgery.edits.moments:EditMoment",
    "made": "ckpt_surgery.edits.moments:MadeMoment",
}
"""What ``"how"`` says of a change of an optimizer's moments: module and class, as in `KINDS`."""


def find(kind: object) -> type[Edit]:
    """Return the class of a kind of edit. Raises `TypeError` for an unknown one."""
    found: type[Edit] = _find(KINDS, kind, "edit")
    return found


def find_moment_change(kind: object) -> type[MomentChange | MomentMaker]:
    """Return the class of a change of moments. Raises `TypeError` for an unknown one."""
    found: type[MomentChange | MomentMaker] = _find(MOMENT_CHANGES, kind, "change of moments")
    return found


def kind_of_moment_change(change: MomentChange | MomentMaker) -> str:
    """Return what a change of moments is called in JSON."""
    home = f"{type(change).__module__}:{type(change).__name__}"
    return next(kind for kind, place in MOMENT_CHANGES.items() if place == home)


def _find(table: dict[str, str], kind: object, what: str) -> Any:
    home = table.get(kind) if isinstance(kind, str) else None
    if home is None:
        raise TypeError(f"there is no {what} {kind!r}")
    module, _, name = home.partition(":")
    return getattr(import_module(module), name)
