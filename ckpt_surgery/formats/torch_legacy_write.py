"""The format of ``torch.save`` before 1.6: where every byte goes, as `_legacy_save` writes it.

Pickles of the magic number, the protocol, the system and the object; then the keys of the storages,
in the order of their texts, and for each an element count and its bytes, little-endian. torch uses
addresses for keys; those of another file of torch are kept, else they are numbers in the order in
which the pickle comes to the storages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, Storage, Tensor, join_path
from ckpt_surgery.fileio import Bytes, ByteSource
from ckpt_surgery.fileio.sink import Sink
from ckpt_surgery.formats import torch_zip_layout
from ckpt_surgery.formats.base import FileLayout, Layout, Loss
from ckpt_surgery.formats.pickle_sequence import MAGIC_NUMBER, PROTOCOL_VERSION
from ckpt_surgery.formats.traits import lost_traits
from ckpt_surgery.pickles import Dict, Node
from ckpt_surgery.pickles.emit import emit
from ckpt_surgery.torch_objects.rebuild import lower
from ckpt_surgery.torch_objects.row_major import row_major

_NO_TYPE: Final = "torch before 1.6 has no such type"
_NOT_LOADED: Final = "torch does not load one from a file of this kind"
_SYSTEM: Final = (
    *("protocol_version", PROTOCOL_VERSION, "little_endian", True),
    *("type_sizes", Dict(["short", 2, "int", 4, "long", 4])),
)
"""What the writer's system was; torch has never looked at it."""


def losses(checkpoint: Checkpoint) -> list[Loss]:
    """Return what is not in the graph of the pickle, and tensors of later types."""
    found = torch_zip_layout.losses(checkpoint)
    known = {loss.path for loss in found}
    for state_dict in checkpoint.state_dicts:
        for name, tensor in state_dict.tensors:
            path = join_path(state_dict.path, name)
            if path not in known and tensor.dtype.storage_class is None:
                found.append(Loss(path, "entry", f"a tensor of {tensor.dtype.name}", _NO_TYPE))
            elif path not in known and tensor.layout == "nested":
                found.append(Loss(path, "entry", "a nested tensor", _NOT_LOADED))
    found += (
        Loss(other.path, "other", f"{other.type} with tensors of {name}", _NO_TYPE)
        for other in checkpoint.others
        for name in sorted({t.dtype.name for t in other.tensors if t.dtype.storage_class is None})
    )
    found += lost_traits(checkpoint, "a file of torch before 1.6 is no archive", ["records"])
    return found


def layout(checkpoint: Checkpoint) -> Layout:
    """Place every byte of the file."""
    lowered = lower(checkpoint)
    pickled = lowered.emit(views=True)
    own = {storage: storage.key for storage in pickled.storages}
    if len(set(own.values())) == len(own) and all(key.isdecimal() for key in own.values()):
        pickled = lowered.emit(own, views=True)
    storages = {key: storage for storage, key in pickled.keys.items()}
    keys: list[Node] = [*sorted(storages)]
    head = (MAGIC_NUMBER, PROTOCOL_VERSION, Dict([*_SYSTEM]))
    start = b"".join((*map(emit, head), pickled.data, emit(keys)))
    sources = [Bytes(start), *(part for key in sorted(storages) for part in _stored(storages[key]))]
    nbytes = sum(source.nbytes for source in sources)
    return Layout((FileLayout("", nbytes, sources, partial(_write, sources, nbytes)),))


def _stored(storage: Storage) -> Iterator[ByteSource]:
    """Yield the number of a storage's elements (int64), and those."""
    yield Bytes(storage.numel.to_bytes(8, "little"))
    if storage.big_endian and not storage.untyped:
        yield row_major(Tensor((storage.numel,), storage.dtype, (1,), storage=storage))
    else:
        yield storage.data


def _write(sources: Sequence[ByteSource], nbytes: int, sink: Sink) -> None:
    sink.reserve(nbytes)
    for source in sources:
        sink.copy(source)
