"""Directories of torch.distributed.checkpoint: a ``.metadata`` and ``.distcp`` files of archives.

A ``.distcp`` file is complete archives of torch.save one after the other, each of one chunk of a
tensor or of one object. What is read is what ``dcp.load`` would put into a state dict of the same
structure: every tensor whole and contiguous, everything else as it was saved.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, Storage, Tensor, contiguous_strides
from ckpt_surgery.checkpoint.stitch import Chunk, ranges_of, stitch
from ckpt_surgery.errors import DamagedFileError, ReadError
from ckpt_surgery.fileio import ByteRange, ByteSource, PartSource, Source, read_zip
from ckpt_surgery.fileio.directory import DirectorySource
from ckpt_surgery.fileio.zip_salvage import find_records
from ckpt_surgery.formats.base import Format, Layout, LayoutOptions, Loss
from ckpt_surgery.formats.dcp_metadata import (
    NAME,
    ChunkPlace,
    ObjectItem,
    TensorItem,
    read_metadata,
)
from ckpt_surgery.formats.torch_zip import read_torch_zip
from ckpt_surgery.formats.torch_zip_container import PICKLE
from ckpt_surgery.pickles import Dict, Limits, Node, PersistentId
from ckpt_surgery.torch_objects.find import assemble
from ckpt_surgery.torch_objects.row_major import row_major
from ckpt_surgery.torch_objects.tensor_calls import build
from ckpt_surgery.torch_objects.tensors import TensorReader

_SUFFIX: Final = ".distcp"


class Dcp(Format):
    """A directory that ``torch.distributed.checkpoint.save`` wrote."""

    name = "dcp"
    title = "a distributed checkpoint"
    of_directories = True

    def sniff(self, source: Source) -> bool:
        """Say whether it has files of archives, or a ``.metadata``; a whole one has both."""
        if not isinstance(source, DirectorySource):
            return False
        archives = [name for name in source.names if name.endswith(_SUFFIX)]
        beside = any("/" not in name for name in archives)
        return beside or source.names == [NAME] or (bool(archives) and NAME in source.names)

    def read(self, source: Source, limits: Limits) -> Checkpoint:
        """Describe all that was saved as one checkpoint; raises as `_read_dcp` does."""
        if not isinstance(source, DirectorySource):
            raise ReadError("is no directory", path=source.name)
        return _read_dcp(source, limits)

    def records(self, checkpoint: Checkpoint) -> Sequence[tuple[str, ByteRange]]:
        """Return the metadata, which has no checksum, and the storages of all parts of tensors."""
        metadata = checkpoint.file
        ranges: dict[tuple[int, int], tuple[str, ByteRange]] = {}
        for tensor in checkpoint.all_tensors:
            for part in tensor.strided_parts():
                if part.storage is None:
                    continue
                for one in ranges_of(part.storage.data):
                    where = f"{part.storage.key} in {os.path.basename(one.source.name)}"  # noqa: PTH119
                    ranges[id(one.source), one.offset] = (where, one)
        return [(NAME, ByteRange(metadata, 0, metadata.size)), *ranges.values()]

    def losses(self, checkpoint: Checkpoint) -> Sequence[Loss]:
        """Return tensors that are no strided views, and what flat names do not say."""
        from ckpt_surgery.formats.dcp_write import losses

        return losses(checkpoint)

    def lay_out(self, checkpoint: Checkpoint, options: LayoutOptions) -> Layout:
        """Place the archives and the metadata; there are no options for them."""
        from ckpt_surgery.formats.dcp_write import layout

        del options
        return layout(checkpoint)


def require_metadata(source: DirectorySource) -> None:
    """Raise `DamagedFileError`, which says what is known without it, if ``.metadata`` is missing.

    torch writes it last, when all ranks have written their files.
    """
    if NAME in source.names:
        return
    files = [name for name in source.names if name.endswith(_SUFFIX)]
    count = sum(
        record.name.endswith(f"/{PICKLE}")
        for name in files
        for record in find_records(source.member(name))
    )
    there = f"is 1 file of {count}" if len(files) == 1 else f"are {len(files)} files of {count}"
    raise DamagedFileError(
        f"it is missing, and names and places of tensors with it: there {there} archives in all, "
        "each of one part of a tensor or of one object",
        path=source.name,
        entry=NAME,
        hint="the save was interrupted, or the file was not copied: hidden files often are not",
    )


def _read_dcp(source: DirectorySource, limits: Limits) -> Checkpoint:
    """Describe the directory, without running its ``.metadata`` and without reading tensors.

    Raises `DamagedFileError` if the metadata is not of torch's form, a file is missing, chunks do
    not tile their tensor, or an archive does not hold what the metadata says.
    """
    require_metadata(source)
    metadata = read_metadata(source.member(NAME), limits)
    reader = _Reader(source, limits)
    root = Branch()
    for name, item in metadata.items.items():
        try:
            root.put(metadata.paths[name], reader.node(name, item))
        except ReadError as error:
            error.entry = error.entry or name
            raise
    checkpoint = assemble(
        root.node(),
        sources=(source.member(NAME), *(source.member(file) for file in reader.files)),
        format=Dcp.name,
        limits=limits,
    )
    return replace(checkpoint, globals=(*metadata.globals, *checkpoint.globals))


class Branch:
    """A dictionary or list on the way to entries, while it is put together."""

    def __init__(self) -> None:
        self.children: dict[str | int, Branch | tuple[Node]] = {}

    def put(self, path: tuple[str | int, ...], leaf: Node) -> None:
        """Place `leaf` at the end of `path`. Raises `DamagedFileError` if something is there."""
        branch = self
        for key in path[:-1]:
            below = branch.children.setdefault(key, Branch())
            if not isinstance(below, Branch):
                raise DamagedFileError("an entry lies below another one")
            branch = below
        if path[-1] in branch.children:
            raise DamagedFileError("two entries lie at one place")
        branch.children[path[-1]] = (leaf,)

    def node(self) -> Node:
        """Return the graph: branches whose keys are indices are lists, as torch makes them."""
        waiting: list[tuple[Branch, bool]] = [(self, False)]
        made: dict[int, Node] = {}
        while waiting:
            branch, ready = waiting.pop()
            below = [child for child in branch.children.values() if isinstance(child, Branch)]
            if not ready:
                waiting.append((branch, True))
                waiting += ((child, False) for child in below)
                continue
            values: dict[str | int, Node] = {
                key: made[id(child)] if isinstance(child, Branch) else child[0]
                for key, child in branch.children.items()
            }
            made[id(branch)] = _container(values)
        return made[id(self)]


def _container(values: Mapping[str | int, Node]) -> Node:
    if values and all(isinstance(key, int) for key in values):
        if sorted(values, key=int) != list(range(len(values))):
            raise DamagedFileError("a list lacks some of its elements")
        return [values[index] for index in range(len(values))]
    items: list[Node] = []
    for key, value in values.items():
        items += (key, value)
    return Dict(items)


class _Reader:
    """Reads the archives in the files of one directory."""

    def __init__(self, source: DirectorySource, limits: Limits) -> None:
        self._source = source
        self._limits = limits
        self._tensors = TensorReader(limits)
        self.files: dict[str, None] = {}

    def node(self, name: str, item: TensorItem | ObjectItem) -> Node:
        if isinstance(item, ObjectItem):
            return self._archive(item.file, item.offset, item.length)
        chunks = [
            Chunk(place.offsets, place.sizes, row_major(self._chunk(item, place)))
            for place in item.chunks
        ]
        return whole_tensor(name, item, stitch(item.shape, item.dtype.itemsize, chunks))

    def _chunk(self, item: TensorItem, place: ChunkPlace) -> Tensor:
        node = self._archive(place.file, place.offset, place.length)
        return chunk_of(self._tensors.describe(node), item, place)

    def _archive(self, file: str, offset: int, length: int) -> Node:
        self.files[file] = None
        whole = self._source.member(file)
        part = PartSource(whole, offset, length, name=f"{whole.name}:{offset}")
        node: Node = read_torch_zip(part, read_zip(part), self._limits).root
        return node


def whole_tensor(name: str, item: TensorItem, data: ByteSource) -> Node:
    """Return the node of a tensor whose elements, row-major, are `data`."""
    dtype = item.dtype
    storage = Storage(name, dtype, "cpu", data, untyped=dtype.storage_class is None)
    tensor = Tensor(item.shape, dtype, contiguous_strides(item.shape), storage=storage)
    return build(PersistentId(None, storage), tensor)


def chunk_of(tensor: Tensor | None, item: TensorItem, place: ChunkPlace) -> Tensor:
    """Return the tensor of an archive. Raises `DamagedFileError` if it is not what it should be."""
    if tensor is None or tensor.storage is None:
        raise DamagedFileError("an archive holds no plain tensor where one should be")
    if tensor.shape != place.sizes or tensor.dtype != item.dtype:
        raise DamagedFileError(
            f"an archive holds {tensor.dtype.name} {list(tensor.shape)}, the metadata says "
            f"{item.dtype.name} {list(place.sizes)}"
        )
    return tensor
