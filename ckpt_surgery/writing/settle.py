"""A checkpoint as it would be read again after it was written, without writing it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from operator import is_
from typing import Any

from ckpt_surgery.checkpoint.description import Checkpoint, Storage
from ckpt_surgery.fileio import ByteRange
from ckpt_surgery.fileio.recorded import RecordedSource, Recording
from ckpt_surgery.formats import read
from ckpt_surgery.formats.registry import FORMATS, get
from ckpt_surgery.pickles import PersistentId, walk
from ckpt_surgery.writing.output import Output
from ckpt_surgery.writing.write import laid_out


def settle(checkpoint: Checkpoint) -> Checkpoint:
    """Return what reading gives after the checkpoint is written in its own format.

    So one edit after the other gives exactly what files between them would. Unless the format
    knows it without, the pickle is written and parsed; bytes of tensors are not read, and still
    come from where they did. A directory's format is left as it is.

    Raises `LossyEditError` if the format cannot hold something.
    """
    known = get(checkpoint.format).reread(checkpoint) if checkpoint.format in FORMATS else None
    if known is not None:
        return known
    held, layout, *_ = laid_out(checkpoint, Output(dry_run=True))
    if layout.is_directory:
        return held
    recording = Recording()
    layout.files[0].write(recording)
    source = recording.as_source(checkpoint.file)
    found = read(source)
    for storage in _storages(found):
        # nobody else has seen this description yet, and the graph refers to its storages
        object.__setattr__(storage, "data", _traced(storage.data, source))
    return replace(found, sources=checkpoint.sources, container=_traced(found.container, source))


def _storages(checkpoint: Checkpoint) -> Iterator[Storage]:
    """Yield every storage of a checkpoint, some of them more than once."""
    for tensor in checkpoint.all_tensors:
        yield from (part.storage for part in tensor.strided_parts() if part.storage is not None)
    if checkpoint.root is not None:
        for node in walk(checkpoint.root):
            if isinstance(node, PersistentId) and isinstance(node.target, Storage):
                yield node.target


def _traced(value: Any, source: RecordedSource) -> Any:
    """Return a value in which ranges of the recording are the pieces that they were made of."""
    if isinstance(value, ByteRange):
        return source.origin(value) if value.source is source else value
    if isinstance(value, tuple) and type(value) is tuple:
        new = tuple(_traced(part, source) for part in value)
        return value if all(map(is_, new, value)) else new
    if is_dataclass(value) and not isinstance(value, type | Storage):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        made = {name: _traced(part, source) for name, part in parts.items()}
        changed = {name: part for name, part in made.items() if part is not parts[name]}
        return replace(value, **changed) if changed else value
    return value
