"""Directories of torch.distributed.checkpoint: what goes into them, as ``dcp.save`` writes it.

A state dict is flattened as ``torch/distributed/checkpoint/_traverse.py`` does it: dictionaries
always, lists where a tensor or a dictionary is in them; anything else is one object. Each tensor
and each object becomes a complete archive of ``torch.save``, objects first, and the archives stand
one after the other in the file of rank 0. ``.metadata`` says where.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

from ckpt_surgery.checkpoint.description import (
    Checkpoint,
    Storage,
    Tensor,
    contiguous_strides,
    find_ties,
    join_path,
)
from ckpt_surgery.errors import LossyEditError, about_file
from ckpt_surgery.fileio import Bytes, ByteSource
from ckpt_surgery.fileio.sink import Sink
from ckpt_surgery.fileio.zip_write import ZipLayout
from ckpt_surgery.formats.base import FileLayout, Layout, Loss
from ckpt_surgery.formats.dcp_metadata import NAME, metadata_bytes
from ckpt_surgery.formats.torch_zip_layout import archive_of_pickle
from ckpt_surgery.formats.torch_zip_layout import losses as torch_losses
from ckpt_surgery.formats.traits import Trait, lost_traits
from ckpt_surgery.pickles import Node, PersistentId
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.kinds import printed_key
from ckpt_surgery.torch_objects.mappings import mapping_pairs
from ckpt_surgery.torch_objects.math_bits import math_bits
from ckpt_surgery.torch_objects.rebuild import Lowered, lower, settled
from ckpt_surgery.torch_objects.row_major import row_major
from ckpt_surgery.torch_objects.storages import text
from ckpt_surgery.torch_objects.tensor_calls import build
from ckpt_surgery.torch_objects.tensors import TensorReader

_FILE: Final = "__0_0.distcp"
_OWNED: Final = ("__*_*.distcp", NAME)
_TITLE: Final = "a distributed checkpoint"
_UNREADABLE: Final = re.compile("u?int[1-7]")  # torch has no function that copies their elements
_NO_SUCH_TYPE: Final = "torch cannot load this type from such a checkpoint"
_BY_ITSELF: Final = f"{_TITLE} stores every name by itself"
_BESIDE: Final[tuple[Trait, ...]] = (
    *("overlaps", "strides", "parameters", "attributes", "devices", "records"),
)
_NOT_STRIDED: Final = "its elements are not one strided view"
_MOST_NAMED: Final = 3
# Places that one thing may stand in on average, in a checkpoint of more than a few: each is stored.
_MOST_REPEATED: Final = 8
_FEW: Final = 10_000
_KEYS: Final = (str, int, float)

_Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class _Item:
    """A tensor or an object: its flat name, the keys that lead to it, and its archive."""

    name: str
    path: _Path
    tensor: Tensor | None
    archive: ZipLayout


def losses(checkpoint: Checkpoint) -> list[Loss]:
    """Return what a directory of `checkpoint` would not hold."""
    return [*torch_losses(checkpoint), *_lost_tensors(checkpoint), *_lost_structure(checkpoint)]


def layout(checkpoint: Checkpoint) -> Layout:
    """Place every byte of the archives and of the metadata.

    Raises `LossyEditError` if the checkpoint is no dictionary, if two flat names are the same, or
    for a tensor or a key that a flat name or a chunk cannot be.
    """
    with about_file(checkpoint.file.name):
        items = list(_items(checkpoint))
    in_file = [each for each in items if each.tensor is None]
    in_file += [each for each in items if each.tensor is not None]
    spans: dict[str, tuple[int, int]] = {}
    position = 0
    for item in in_file:
        spans[item.name] = (position, item.archive.nbytes)
        position += item.archive.nbytes
    data = Bytes(
        metadata_bytes(
            [(each.name, each.path, each.tensor, *spans[each.name]) for each in items],
            [each.name for each in in_file],
            _FILE,
        )
    )
    archives = [each.archive for each in in_file]
    sources = [record.source for archive in archives for record in archive.records]
    return Layout(
        (
            FileLayout(_FILE, position, sources, partial(_write, archives, position)),
            FileLayout(NAME, data.nbytes, [data], partial(_copy, data)),
        ),
        owned=_OWNED,
    )


def _write(archives: Sequence[ZipLayout], nbytes: int, sink: Sink) -> None:
    sink.reserve(nbytes)
    for archive in archives:
        archive.write(sink)


def _copy(data: ByteSource, sink: Sink) -> None:
    sink.copy(data)


def _items(checkpoint: Checkpoint) -> Iterator[_Item]:
    """Yield everything that becomes an archive, in the order of the state dict."""
    root = settled(lower(checkpoint))
    if mapping_pairs(root) is None:
        raise LossyEditError(f"{_TITLE} is made of a dictionary, and this is none")
    reader = TensorReader()
    taken: set[str] = set()
    for path, node in list(_leaves(root, reader)):  # refused before anything is made
        name = ".".join(map(str, path))
        if name in taken:
            raise LossyEditError(
                f"{_TITLE} joins keys with dots, and two entries would have this name",
                entry=name,
            )
        taken.add(name)
        tensor = reader.describe(node)
        if tensor is None:
            yield _Item(name, path, None, archive_of_pickle(Lowered(node, {}).emit()))
            continue
        if tensor.storage is None or tensor.layout != "strided":
            raise LossyEditError(
                f"{_TITLE} cannot hold a {tensor.layout} tensor: {_NOT_STRIDED}", entry=name
            )
        chunk = _chunk(tensor)
        place = PersistentId(None, chunk.storage)
        yield _Item(name, path, chunk, archive_of_pickle(Lowered(build(place, chunk), {}).emit()))


def _chunk(tensor: Tensor) -> Tensor:
    """Return a tensor as `dcp.save` stores it: alone in its storage, which is on the CPU.

    One that has a storage to itself keeps its strides, as there.
    """
    dtype, held, stride = tensor.dtype, tensor.storage, tensor.stride
    if held is None or held.nbytes != tensor.nbytes or held.big_endian or any(math_bits(tensor)):
        data, offset, stride = row_major(tensor), 0, contiguous_strides(tensor.shape)
    else:
        data, offset = held.data, tensor.offset
    storage = Storage("0", dtype, "cpu", data, untyped=dtype.storage_class is None)
    return Tensor(tensor.shape, dtype, stride, offset, storage)


def _leaves(root: Node, reader: TensorReader) -> Iterator[tuple[_Path, Node]]:
    """Yield the path and the node of everything that torch would store by itself.

    Raises `LossyEditError` for what holds itself, and for things that stand in so many places that
    a small file would become a huge directory.
    """
    waiting: list[tuple[_Path, Node]] = [((), root)]
    around: list[Node] = []  # what holds the node in turn, by depth
    visited, distinct = 0, set[int]()
    while waiting:
        path, node = waiting.pop()
        del around[len(path) :]
        visited += 1
        distinct.add(id(node))
        if visited > _FEW + _MOST_REPEATED * len(distinct):
            raise LossyEditError(
                f"{_TITLE} stores an entry for each place, and the same things are in too many",
                entry=".".join(map(str, path)),
            )
        below = _below(path, node, reader)
        if below is None:
            yield path, node
            continue
        if any(each is node for each in around):
            raise LossyEditError(
                f"{_TITLE} cannot hold a container that is in itself",
                entry=".".join(map(str, path)),
            )
        around.append(node)
        waiting.extend(reversed(below))


def _below(path: _Path, node: Node, reader: TensorReader) -> list[tuple[_Path, Node]] | None:
    """Return what torch takes apart at `path`; None for what it stores as it is."""
    if reader.describe(node) is not None:
        return None
    pairs = mapping_pairs(node)
    if pairs is not None:
        if not pairs and path and isinstance(path[-1], int):
            raise LossyEditError(
                f"{_TITLE} cannot hold an empty dictionary in a list",
                entry=".".join(map(str, path)),
            )
        return [((*path, _key(key, path)), value) for key, value in pairs]
    if isinstance(node, list) and not _is_terminal(node, reader):
        return [((*path, index), value) for index, value in enumerate(node)]
    return None


def _is_terminal(node: list[Node], reader: TensorReader) -> bool:
    """Return whether neither a tensor nor a dictionary is in a list, or in lists in it."""
    waiting: list[Node] = [node]
    seen: set[int] = {id(node)}
    while waiting:
        for each in waiting.pop():  # type: ignore[attr-defined]  # only lists are put there
            if reader.describe(each) is not None or mapping_pairs(each) is not None:
                return False
            if isinstance(each, list) and id(each) not in seen:
                seen.add(id(each))
                waiting.append(each)
    return True


def _key(key: Node, path: _Path) -> str:
    if text(key) is None and not isinstance(key, _KEYS):
        raise LossyEditError(
            f"{_TITLE} cannot have a key that is neither text nor number",
            entry=".".join(map(str, path)),
        )
    return printed_key(key)


def _lost_tensors(checkpoint: Checkpoint) -> Iterator[Loss]:
    known = {loss.path for loss in torch_losses(checkpoint) if loss.part == "entry"}
    for name, tensor in checkpoint.tensors:
        if (tensor.storage is None or tensor.layout != "strided") and name not in known:
            yield Loss(name, "entry", f"a {tensor.layout} tensor", _NOT_STRIDED)
        elif _UNREADABLE.fullmatch(tensor.dtype.name) and name not in known:
            yield Loss(name, "entry", f"a tensor of {tensor.dtype.name}", _NO_SUCH_TYPE)


def _lost_structure(checkpoint: Checkpoint) -> Iterator[Loss]:
    """Yield what is no longer known of the structure: what torch's own writer loses as well."""
    for state_dict in checkpoint.state_dicts:
        if state_dict.metadata:
            what = f"'{join_path(state_dict.path, '_metadata')}'"
            yield _remark(what, f"{_TITLE} has no place for the versions of modules")
    ties = find_ties(checkpoint.tensors)
    if ties:
        names = _some([" = ".join(group) for group in ties])
        yield _remark(f"what is tied ({names})", _BY_ITSELF)
    yield from lost_traits(checkpoint, _BY_ITSELF, _BESIDE)
    empty, numbered, repeated = _odd_places(checkpoint)
    if repeated:
        yield _remark(f"that objects are one and the same ({_some(repeated)})", _BY_ITSELF)
    if empty:
        yield _remark(
            f"an empty dictionary ({_some(empty)})", f"{_TITLE} stores only what is in one"
        )
    if numbered:
        yield _remark(f"that keys are numbers ({_some(numbered)})", f"{_TITLE} makes them texts")


def _remark(what: str, why: str) -> Loss:
    return Loss("", "file", what, why, refused=False)


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _odd_places(checkpoint: Checkpoint) -> tuple[list[str], list[str], list[str]]:
    """Return the paths of empty dictionaries, of those with keys that are numbers, and of
    containers that stand in another place as well.
    """
    skipped = {id(each.node) for each in checkpoint.state_dicts}
    skipped |= {id(each.node) for each in checkpoint.dropped}
    empty: list[str] = []
    numbered: list[str] = []
    repeated: list[str] = []
    waiting: list[tuple[str, Node]] = [("", checkpoint.root)]
    seen: set[int] = set()
    while waiting:
        path, node = waiting.pop()
        if id(node) in skipped or id(node) in seen:
            if id(node) in seen and (mapping_pairs(node) or isinstance(node, list)):
                repeated.append(path)
            continue
        seen.add(id(node))
        pairs = mapping_pairs(node)
        if pairs is not None:
            if not pairs and path:
                empty.append(path)
            if any(text(key) is None for key, _ in pairs):
                numbered.append(path or "the whole")
            below = [(join_path(path, printed_key(key)), value) for key, value in pairs]
            waiting.extend(reversed(below))
        elif isinstance(node, list):
            waiting.extend((join_path(path, str(n)), each) for n, each in enumerate(node))
    return empty, numbered, repeated
