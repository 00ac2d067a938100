"""What the header of a safetensors file may hold, for those who read and who write one."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Final

from ckpt_surgery.checkpoint.description import Entry
from ckpt_surgery.fileio import ByteRange
from ckpt_surgery.startup.lazy_dataclass import dataclass

MAX_HEADER_BYTES: Final = 100_000_000
METADATA: Final = "__metadata__"
_FRAMEWORK: Final = "format"
"""The key of ``__metadata__`` that names the writer's framework, and is no alias of a tensor."""


@dataclass(frozen=True, slots=True)
class Original:
    """A file as it was read, which is written again if its entries and metadata are the same."""

    file: ByteRange
    entries: tuple[Entry, ...]
    metadata: Mapping[str, str] | None


def is_alias(key: str, value: str, names: Container[str]) -> bool:
    """Return whether an item of ``__metadata__`` says that `key` is tied to the tensor `value`."""
    return value in names and key not in names and key != _FRAMEWORK


def is_unicode(string: str) -> bool:
    """Return whether `string` has no lone surrogate, which JSON can spell and UTF-8 cannot."""
    if string.isascii():
        return True
    try:
        string.encode()
    except UnicodeEncodeError:
        return False
    return True
