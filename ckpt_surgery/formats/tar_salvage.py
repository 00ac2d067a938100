"""What is left of a tar archive of torch before 0.1.13 that ends before its last byte."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, Storage
from ckpt_surgery.errors import DamagedFileError, ReadError
from ckpt_surgery.fileio import ByteRange, MemorySource, Source
from ckpt_surgery.fileio.padded import PaddedSource
from ckpt_surgery.formats.tar_header import TAR_BLOCK
from ckpt_surgery.formats.torch_tar import Storages, put_together, small_pickles, tar_members
from ckpt_surgery.pickles import Global, Limits, Node
from ckpt_surgery.torch_objects.storages import storage_dtype

_UNKNOWN: Final = 1 << 40  # elements, of a storage of which nothing but the type is known


def read_damaged_tar(source: Source, limits: Limits) -> tuple[Checkpoint, dict[int, Storage]]:
    """Return the checkpoint of a file that may end anywhere in its storages, the last member.

    With it come storages that are not in the file, by the identity of their bytes. Raises
    `DamagedFileError` if the members before it, which name the tensors, are not whole.
    """
    members = dict(_members(source))
    for name in ("pickle", "tensors", "storages"):
        if name not in members:
            raise DamagedFileError(
                f"nothing can be salvaged: its member '{name}' is missing",
                path=source.name,
                entry=name,
            )
    sequence = small_pickles(members["storages"], limits)
    storages = _LeftStorages(sequence)
    checkpoint = put_together(members["storages"].source, members, sequence, storages, limits)
    return checkpoint, storages.made_up


def _members(source: Source) -> Iterator[tuple[str, ByteRange]]:
    """Yield the members whose headers are there, each as long as its header says."""
    padded = PaddedSource(source, source.size)
    while True:
        try:
            found = list(tar_members(padded))
        except DamagedFileError:
            last = _end_of_last(source)
            if last <= padded.size:
                raise
            padded = PaddedSource(source, last)
            continue
        yield from found
        return


def _end_of_last(source: Source) -> int:
    """Return the byte at which the last member whose header is in the file would end."""
    import tarfile

    at = end = 0
    while at + TAR_BLOCK <= source.size:
        block = source.read_at(at, TAR_BLOCK)
        if not any(block):
            break
        try:
            size = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").size
        except tarfile.HeaderError:
            break
        if size < 0:  # the next header would be this one, or one before it
            break
        end = at + TAR_BLOCK + size
        at += TAR_BLOCK + -(-size // TAR_BLOCK) * TAR_BLOCK
    return end


class _LeftStorages(Storages):
    """The storages up to the place where the file ends; others are made up when a tensor asks."""

    def read(self) -> None:
        """Read storages until one cannot be, and the views if none of them is missing."""
        self.made_up: dict[int, Storage] = {}
        try:
            super().read()
        except ReadError:
            return

    def admits(self, key: int, tensor_class: Node) -> bool:
        """Return True: a storage that is not there is of the type of the tensor, and lost."""
        if key not in self:
            name = tensor_class.name.rpartition(".")[2] if isinstance(tensor_class, Global) else ""
            kind = Global("torch", name.replace("Tensor", "Storage"))
            dtype, untyped = storage_dtype(kind, str(key))
            nbytes = _UNKNOWN * dtype.itemsize
            nothing = PaddedSource(MemorySource(b"", name="storages"), nbytes)
            made = Storage(str(key), dtype, "cpu", ByteRange(nothing, 0, nbytes), untyped)
            self.wholes[key], self.places[key] = made, (key, 0, _UNKNOWN)
            self.made_up[id(made.data)] = made
        return True
