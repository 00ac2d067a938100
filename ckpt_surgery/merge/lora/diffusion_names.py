"""Names of Stable Diffusion's U-Net in diffusers, and in the original code. Torch-free.

The correspondence is that of diffusers' own conversion (``convert_ldm_unet_checkpoint`` in
``loaders/single_file_utils.py``) for four blocks of two layers, as Stable Diffusion 1 and 2 have
them, with every dot an underscore.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

_RESNET: Final = {
    "norm1": "in_layers_0",
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "norm2": "out_layers_0",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
}
_PER_BLOCK: Final = 3  # two layers and what changes the resolution


def _inner(kind: str, rest: str) -> str:
    return _RESNET.get(rest, rest) if kind == "resnets" else rest


def _down(m: re.Match[str]) -> str:
    place = 1 + int(m[1]) * _PER_BLOCK + int(m[3])
    return f"input_blocks_{place}_{int(m[2] == 'attentions')}_{_inner(m[2], m[4])}"


def _up(m: re.Match[str]) -> str:
    place = int(m[1]) * _PER_BLOCK + int(m[3])
    return f"output_blocks_{place}_{int(m[2] == 'attentions')}_{_inner(m[2], m[4])}"


def _middle(m: re.Match[str]) -> str:
    place = 1 if m[1] == "attentions" else 2 * int(m[2])
    return f"middle_block_{place}_{_inner(m[1], m[3])}"


_RULES: Final[tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...]] = tuple(
    (re.compile(pattern), rule)
    for pattern, rule in (
        (r"conv_in", lambda _: "input_blocks_0_0"),
        (r"conv_norm_out", lambda _: "out_0"),
        (r"conv_out", lambda _: "out_2"),
        (r"time_embedding_linear_(\d)", lambda m: f"time_embed_{2 * int(m[1]) - 2}"),
        (r"down_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)", _down),
        (r"up_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)", _up),
        (r"mid_block_(attentions|resnets)_(\d+)_(.+)", _middle),
        (
            r"down_blocks_(\d+)_downsamplers_0_conv",
            lambda m: f"input_blocks_{_PER_BLOCK * (int(m[1]) + 1)}_0_op",
        ),
        (
            r"up_blocks_(\d+)_upsamplers_0_conv",
            lambda m: f"output_blocks_{_PER_BLOCK * int(m[1]) + 2}_{2 if int(m[1]) else 1}_conv",
        ),
    )
)


def original_name(flat: str) -> str | None:
    """Return the original code's name for a module of diffusers, both with underscores for dots.

    None for a name that the U-Net of diffusers does not have.
    """
    for pattern, rule in _RULES:
        match = pattern.fullmatch(flat)
        if match is not None:
            return rule(match)
    return None
