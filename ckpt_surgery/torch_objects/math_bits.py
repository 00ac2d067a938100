"""Bits that let torch read stored elements as conjugated or negated."""

from __future__ import annotations

from typing import Final

from ckpt_surgery.checkpoint.description import Tensor
from ckpt_surgery.pickles import Dict, Object
from ckpt_surgery.torch_objects.calls import Call, wrong_form
from ckpt_surgery.torch_objects.storages import text

FROM_TYPE: Final = frozenset(
    {"torch._tensor._rebuild_from_type_v2", "torch.tensor._rebuild_from_type_v2"}
)
"""Functions that rebuild a tensor around another: their arguments have its call."""

_METADATA: Final = {"torch._utils._rebuild_tensor_v2": 6, "torch._utils._rebuild_tensor_v3": 7}
"""Which argument of a function says it."""


def math_bits(tensor: Tensor) -> tuple[bool, bool]:
    """Return whether torch would read the stored elements as conjugated, and whether as negated."""
    node = tensor.node
    if isinstance(node, Object) and node.name in FROM_TYPE and isinstance(node.args, tuple):
        function, _, args, _ = node.args
        node = Object("REDUCE", function, args, node.at)
    index = _METADATA.get(node.name) if isinstance(node, Object) else None
    if index is None or not isinstance(node, Object) or not isinstance(node.args, tuple):
        return False, False
    if len(node.args) <= index:
        return False, False
    return bits_of_call(Call.plain(node, 0, index + 1), index)


def bits_of_call(call: Call, index: int) -> tuple[bool, bool]:
    """Return what the metadata of a tensor say, if there are any; torch asks for presence alone.

    Raises `DamagedFileError` if they are no dictionary of truth values.
    """
    metadata = call.settled(index)
    if metadata is None:
        return False, False
    if not isinstance(metadata, Dict):
        raise wrong_form(call.node)
    names = set()
    for key, value in metadata.pairs():
        if not isinstance(value, bool) or text(key) is None:
            raise wrong_form(call.node)
        names.add(text(key))
    return "conj" in names, "neg" in names
