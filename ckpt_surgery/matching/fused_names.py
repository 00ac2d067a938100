"""How the parts of attention and gated layers are called where they are one tensor, and where not.

The order of the parts is that in which these projects stack them: query, key, value (torch's
``nn.MultiheadAttention``, timm, GPT-2, …), gate before up (transformers), ``w1`` before ``w2``
(DINOv2). In a ``query_key_value`` they may lie in a row (ChatGLM) or head by head (GPT-NeoX,
BLOOM).
"""

from __future__ import annotations

import re
from typing import Final

from ckpt_surgery.startup.lazy_dataclass import dataclass

_SPELLED: Final = re.compile(r"((?:[\w\-]+\.)*)([A-Za-z]\w*?)([._])(weight|bias)", re.ASCII)
_LONGEST: Final = 512  # characters; no module is called so

INTERLEAVED: Final = frozenset({"query_key_value"})
"""Names under which the parts of some models lie head by head."""


@dataclass(frozen=True, slots=True)
class Family:
    """Names of one tensor, and what its parts are called where they are tensors of their own."""

    fused: tuple[str, ...]
    parts: tuple[tuple[str, ...], ...]


def _qkv(*forms: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(form.format(letter) for letter in "qkv") for form in forms)


_QKV: Final = (
    *_qkv("{}", "{}_proj", "to_{}", "w{}", "W{}", "w_{}", "W_{}", "{}_lin", "linear_{}", "fc_{}"),
    ("query", "key", "value"),
    ("query_proj", "key_proj", "value_proj"),
    ("in_proj_q", "in_proj_k", "in_proj_v"),
)

FAMILIES: Final = (
    Family(
        (
            *("qkv", "in_proj", "c_attn", "qkv_proj", "to_qkv", "Wqkv", "wqkv", "W_pack"),
            *("qkv_lin", "query_key_value"),
        ),
        _QKV,
    ),
    Family(("kv", "kv_proj", "to_kv", "Wkv", "wkv"), tuple(parts[1:] for parts in _QKV)),
    Family(("gate_up_proj",), (("gate_proj", "up_proj"), ("w1", "w3"))),
    Family(("w12",), (("w1", "w2"),)),
)


@dataclass(frozen=True, slots=True)
class Spelled:
    """A name in parts: ``attn.`` ``in_proj`` ``_`` ``weight``."""

    prefix: str
    token: str
    separator: str
    leaf: str

    def called(self, token: str, separator: str) -> str:
        """Return the name with another token before its leaf."""
        return f"{self.prefix}{token}{separator}{self.leaf}"


def spelled(name: str) -> Spelled | None:
    """Return the parts of the name of a weight or a bias; None for any other name."""
    found = _SPELLED.fullmatch(name) if len(name) <= _LONGEST else None
    return None if found is None else Spelled(*found.groups())
