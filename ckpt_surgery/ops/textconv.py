"""A checkpoint as lines of text, for programs that compare texts: ``git diff``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from ckpt_surgery.checkpoint.description import Tensor
from ckpt_surgery.errors import PathLike, ReadError
from ckpt_surgery.fileio import Source
from ckpt_surgery.formats import read
from ckpt_surgery.torch_objects.equality import fingerprint
from ckpt_surgery.torch_objects.leaves import Leaf, leaves_of


def text_lines(source: PathLike | Source) -> Iterator[tuple[str, str]]:
    """Yield every tensor and every value of a checkpoint by its path, with what tells it apart.

    For a tensor that is its type, its shape and the CRC-32 of its elements, which is read from the
    file where it has one. Raises `ReadError` if the file cannot be read.
    """
    with read(source) as checkpoint:
        for name, tensor in checkpoint.tensors:
            yield name, _form(tensor)
        for other in checkpoint.others:
            for path, leaf in leaves_of(other).items():
                yield path, _form(leaf) if isinstance(leaf, Tensor) else _value(leaf)


def _form(tensor: Tensor) -> str:
    text = f"{tensor.dtype.name} {list(tensor.shape)}"
    content: object = None
    with suppress(ReadError):
        content = fingerprint(tensor, lambda _: None)
    if not isinstance(content, tuple):
        return text
    last = content[-1]
    return f"{text} {last:08x}" if isinstance(last, int) else f"{text} {str(last)[:16]}"


def _value(leaf: Leaf) -> str:
    shown = leaf.shown
    return repr(shown) if shown is not leaf.type else leaf.type
