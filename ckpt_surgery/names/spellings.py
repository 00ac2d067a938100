"""Names that models had in earlier versions, and names that only wrap others."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator
from typing import Final

NAMED_WRAPPERS: Final = frozenset(
    {
        "_orig_mod",  # torch.compile
        "_fsdp_wrapped_module",
        "_fpw_module",  # FSDP in torch 1.11
        "_checkpoint_wrapped_module",  # activation checkpointing
        "_forward_module",  # Lightning Fabric
    }
)
"""Segments that a wrapper around a module adds, and that no model has by itself."""

# and that of DataParallel, DistributedDataParallel, AveragedModel
_WRAPPERS: Final = NAMED_WRAPPERS | {"module"}

_LONGEST: Final = 512  # characters

_Replacement = str | Callable[[re.Match[str]], str]


def _halved(match: re.Match[str]) -> str:
    # RetinaNet's heads were Sequential(conv, relu, conv, relu, …); the convolutions are blocks now
    return f"{match[1]}.{int(match[2]) // 2}.0.{match[3]}"


_SPELLINGS: Final[tuple[tuple[re.Pattern[str], _Replacement], ...]] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # DenseNet before torchvision 0.2.1; torchvision.models.densenet._load_state_dict
        (r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$",
         r"\1\2"),
        # torchvision.models.vision_transformer.MLPBlock, version 2
        (r"^(.*mlp)\.linear_1\.(weight|bias)$", r"\1.0.\2"),
        (r"^(.*mlp)\.linear_2\.(weight|bias)$", r"\1.3.\2"),
        # torchvision.models.detection: rpn.RPNHead, version 2
        (r"^(.*rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2"),
        # torchvision.ops.FeaturePyramidNetwork, version 2
        (r"^(.*fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2"),
        # torchvision.models.detection.retinanet heads, version 2
        (r"^(.*head\.(?:classification|regression)_head\.conv)\.(\d*[02468])\.(weight|bias)$",
         _halved),
        # torchvision.models.detection.mask_rcnn.MaskRCNNHeads, version 2
        (r"^(.*mask_head)\.mask_fcn(\d+)\.(weight|bias)$",
         lambda match: f"{match[1]}.{int(match[2]) - 1}.0.{match[3]}"),
        # torch.nn.utils.weight_norm, now torch.nn.utils.parametrizations.weight_norm
        (r"^(|.*\.)weight_g$", r"\1parametrizations.weight.original0"),
        (r"^(|.*\.)weight_v$", r"\1parametrizations.weight.original1"),
        # norms of models that were converted from TensorFlow
        (r"^(|.*\.)gamma$", r"\1weight"),
        (r"^(|.*\.)beta$", r"\1bias"),
    )
)  # fmt: skip


# A part that every old spelling has: most names are told apart by one search.
_OLD_PARTS: Final = re.compile(
    r"denselayer|mlp\.linear_|rpn\.head\.conv|fpn\.|head\.conv|mask_fcn|(?:^|\.)(?:weight_[gv]|gamma|beta)$"
)


def modern_spelling(name: str, known: Container[str]) -> str | None:
    """Return the name among `known` that `name` is an old spelling
    of; None if it is none or known.
    """
    if name in known:
        return None
    return next((renamed for renamed in respellings(name) if renamed in known), None)


def respellings(name: str) -> Iterator[str]:
    """Yield the names that `name` may be an old spelling of; an absurdly long one is none."""
    if len(name) > _LONGEST or not _OLD_PARTS.search(name):
        return
    for pattern, replacement in _SPELLINGS:
        renamed = pattern.sub(replacement, name)
        if renamed != name:
            yield renamed


def unwrapped(name: str) -> str:
    """`name` without the segments that wrappers add: ``a._orig_mod.b`` is ``a.b``."""
    segments = name.split(".")
    kept = [segment for segment in segments[:-1] if segment not in _WRAPPERS]
    return ".".join([*kept, segments[-1]])
