"""Pickles as inert graphs: read, walked and written without running anything in them.

The names here are those that reading needs; `emit` is imported from its own module by what writes.
"""

from ckpt_surgery.pickles.limits import DEFAULT_LIMITS, Limits
from ckpt_surgery.pickles.machine import TruncatedPickleError
from ckpt_surgery.pickles.nodes import (
    NO_STATE,
    ByteString,
    Dict,
    Extension,
    Global,
    List,
    Node,
    Object,
    ObjectOp,
    PersistentId,
    children,
    own_text,
)
from ckpt_surgery.pickles.parse import Parsed, parse
from ckpt_surgery.pickles.walk import walk

__all__ = [
    "DEFAULT_LIMITS",
    "NO_STATE",
    "ByteString",
    "Dict",
    "Extension",
    "Global",
    "Limits",
    "List",
    "Node",
    "Object",
    "ObjectOp",
    "Parsed",
    "PersistentId",
    "TruncatedPickleError",
    "children",
    "own_text",
    "parse",
    "walk",
]
