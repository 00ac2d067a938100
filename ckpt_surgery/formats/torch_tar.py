"""Files of ``torch.save`` up to 0.1.12: a tar archive of four members.

``storages`` holds the storages and their views, ``tensors`` how each tensor lies in one,
``pickle`` the object, which names tensors by their keys, and ``sys_info`` the writer's system.
The reference is `legacy_load` in ``torch/serialization.py``, which still reads them.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, Storage, Tensor
from ckpt_surgery.checkpoint.findings import Finding
from ckpt_surgery.errors import DamagedFileError, ReadError
from ckpt_surgery.fileio import CHUNK, ByteRange, Source
from ckpt_surgery.formats.base import Format
from ckpt_surgery.formats.pickle_sequence import PickleSequence
from ckpt_surgery.pickles import DEFAULT_LIMITS, Global, Limits, Node, Object, PersistentId
from ckpt_surgery.torch_objects.find import assemble
from ckpt_surgery.torch_objects.storages import storage_dtype, text
from ckpt_surgery.torch_objects.tensor_calls import build

_MEMBERS: Final = frozenset({"sys_info", "pickle", "tensors", "storages"})
_BLOCK: Final = 512
_END: Final = 2 * _BLOCK
_TRUNCATED: Final = "the file is truncated"
_MAX_PAX_BYTES: Final = 1 << 16
_PAX_DIGITS: Final = 6
_PAX_NAMES: Final = frozenset({b"path", b"linkpath", b"size", b"hdrcharset"})
_MAX_DIMENSIONS: Final = 1000
_LONGEST_KEY: Final = 20  # digits of 2**64, since keys are addresses
_SMALL_WINDOW: Final = 1 << 12
"""Bytes read at once where short pickles and tensor bytes alternate."""


class TorchTar(Format):
    """A tar archive of torch.save before 0.1.13."""

    name = "torch-tar"
    title = "a tar archive of torch.save before 0.1.13"
    written_as = "torch-zip"

    def sniff(self, source: Source) -> bool:
        """Say whether it begins with the first member's header."""
        return _looks_like_tar(source)

    def read(self, source: Source, limits: Limits) -> Checkpoint:
        """Describe the file; raises as `_read_tar` does."""
        try:
            return _read_tar(source, limits)
        except DamagedFileError as error:
            if error.hint is None and not _has_end(source):
                error.hint = _TRUNCATED
            raise

    def check(self, checkpoint: Checkpoint) -> Iterator[Finding]:
        """Yield an error for an archive that stops before its end; all members are in it."""
        file = checkpoint.file
        behind = _behind(data for _, data in tar_members(file))
        is_whole = file.size - behind >= _END and file.size % _BLOCK == 0
        if not is_whole and not _after_end(file, behind):
            yield Finding("error", "the archive has no end", None, _TRUNCATED, "truncated")


def _has_end(file: Source) -> bool:
    """Say whether the file closes with the two blocks of zeros that end a tar archive."""
    if file.size < _END or file.size % _BLOCK:
        return False
    return not any(file.read_at(file.size - _END, _END))


def _behind(members: Iterable[ByteRange]) -> int:
    """Return the byte behind the last member and what fills up its block."""
    return max(data.offset + -(-data.nbytes // _BLOCK) * _BLOCK for data in members)


def _after_end(file: Source, behind: int) -> str:
    """Return what to say of a file that goes on with more than the zeros that end an archive."""
    for start in range(behind, file.size, CHUNK):
        data = file.read_at(start, min(CHUNK, file.size - start))
        if rest := data.lstrip(b"\0"):
            return f"{file.size - start - len(data) + len(rest)} bytes follow the archive's end"
    return ""


def _looks_like_tar(file: Source) -> bool:
    """Return whether the file begins like a tar archive whose first member is one of torch's."""
    try:
        return next(tar_members(file), None) is not None
    except ReadError:
        return False


def _read_tar(file: Source, limits: Limits = DEFAULT_LIMITS) -> Checkpoint:
    """Describe a tar checkpoint.

    Nothing is extracted. Its tensors become the `_rebuild_tensor_v2` of later versions, one node
    a key, so that a tensor used twice still is one. An empty tensor, which had no dimension then,
    has the shape (0,).

    Raises `DamagedFileError` if a member is missing, twice, truncated or no plain file, or if the
    members contradict each other, and `LimitExceededError` if they are larger than `limits` allow.
    """
    members: dict[str, ByteRange] = {}
    for name, data in tar_members(file):
        if name in members:
            raise DamagedFileError("the member is there twice", entry=name)
        members[name] = data
    for name in sorted(_MEMBERS - members.keys()):
        raise DamagedFileError("the member is missing", entry=name)
    sequence = small_pickles(members["storages"], limits)
    more = _after_end(file, _behind(members.values()))
    return put_together(file, members, sequence, Storages(sequence), limits, more)


def small_pickles(member: ByteRange, limits: Limits) -> PickleSequence:
    """Return a member in which short pickles and bytes alternate, at its start."""
    return PickleSequence(member, limits, window=_SMALL_WINDOW)


def put_together(
    file: Source,
    members: Mapping[str, ByteRange],
    sequence: PickleSequence,
    storages: Storages,
    limits: Limits,
    more: str = "",
) -> Checkpoint:
    """Describe a tar checkpoint of which the `storages` are read, from `sequence`.

    `more` says what the file has beside its members.
    """
    heads = [sequence, small_pickles(members["tensors"], limits)]
    tensors = _read_tensors(heads[1], storages)

    def persistent_load(pid: Node) -> Node:
        if isinstance(pid, tuple) and len(pid) == 3:
            return pid[0]  # a module's class, its source file and its source
        key = _number(text(pid))
        if key is not None and key in tensors:
            return tensors[key]
        if key is not None and key in storages:
            return storages.reference(key)
        raise DamagedFileError("a persistent id names no tensor and no storage", entry="pickle")

    body = PickleSequence(members["pickle"], limits)
    parsed = body.pickle(persistent_load)
    sequences = (*heads, body)
    return assemble(
        parsed.root,
        sources=(file,),
        format="torch-tar",
        unwritable=next(filter(None, map(_not_described, sequences)), more),
        names=[name for sequence in sequences for name in sequence.globals],
        limits=limits,
    )


def _not_described(sequence: PickleSequence) -> str:
    """Return what a member has beside what was read of it, so that
    writing the rest would lose it.
    """
    if sequence.remaining:
        return f"{sequence.remaining} bytes of a member have no meaning"
    return sequence.not_in_graphs()


def tar_members(file: Source) -> Iterator[tuple[str, ByteRange]]:
    """Name and data of each member in the order of the file; torch's four and no others.

    Raises `DamagedFileError` on anything that torch's writer would not have written.
    """
    position = 0
    while position + _BLOCK <= file.size:
        block = file.read_at(position, _BLOCK)
        if not any(block):
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            raise DamagedFileError("the tar header is invalid", entry=f"byte {position}") from error
        if header.size < 0:
            raise DamagedFileError("the tar header is invalid", entry=f"byte {position}")
        data = ByteRange(file, position + _BLOCK, header.size)
        position += _BLOCK + -(-header.size // _BLOCK) * _BLOCK
        if header.type == tarfile.XHDTYPE:
            _require_harmless(data)
            continue
        if header.name not in _MEMBERS:
            shown = header.name.encode("utf-8", "replace").decode()[:80]
            raise DamagedFileError("the member is not one of torch's", entry=shown)
        if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise DamagedFileError("the member is no plain file", entry=header.name)
        yield header.name, data


def _require_harmless(data: ByteRange) -> None:
    """Refuse an extended header that changes more than times and owners of the next member.

    It must be nothing but records of "LENGTH KEY=VALUE" and a line feed, of exactly that length:
    of any others two readers may find different ones.
    """
    entry = f"byte {data.offset}"
    if data.nbytes > _MAX_PAX_BYTES:
        raise DamagedFileError("the extended tar header is too long", entry=entry)
    left = data.read()
    while left:
        length, _, rest = left.partition(b" ")
        nbytes = int(length) if length.isdigit() and len(length) <= _PAX_DIGITS else 0
        key, equals, _ = rest.partition(b"=")
        header = len(length) + 1 + len(key) + 1
        if not equals or not header < nbytes <= len(left) or left[nbytes - 1 : nbytes] != b"\n":
            raise DamagedFileError("the extended tar header is malformed", entry=entry)
        if key in _PAX_NAMES or key.startswith(b"GNU.sparse"):
            raise DamagedFileError(
                "the extended tar header renames or resizes a member", entry=entry
            )
        left = left[nbytes:]


class Storages:
    """The storages of the archive by their keys, and the views of them."""

    def __init__(self, sequence: PickleSequence) -> None:
        """Read n pickles of (key, location, class), each followed by a count and the elements.

        Then follows one pickle, the list of views: (key, key of its root, offset, size).
        """
        self._sequence = sequence
        self.wholes: dict[int, Storage] = {}
        self.places: dict[int, tuple[int, int, int]] = {}  # key of the whole, offset, size
        self.read()

    def read(self) -> None:
        """Read how many storages there are, these, and the views behind them."""
        for _ in range(_count(self._sequence, "storages")):
            self.read_storage()
        self.read_views()

    def read_views(self) -> None:
        """Read the list of views."""
        sequence = self._sequence
        views = sequence.pickle().root
        if not isinstance(views, list):
            raise self._damaged("the views are not a list")
        for view in views:
            self._add_view(view)

    def __contains__(self, key: object) -> bool:
        return key in self.places

    def admits(self, key: int, tensor_class: Node) -> bool:
        """Return whether a tensor of a class may lie in the storage: whether it is there."""
        del tensor_class
        return key in self

    def place(self, key: int) -> tuple[Storage, int, int]:
        """Return the whole storage that `key` lies in, its first
        element there, and how many it has.
        """
        whole, offset, numel = self.places[key]
        return self.wholes[whole], offset, numel

    def reference(self, key: int) -> PersistentId:
        """Return a storage, or the part of one that a view is, that
        the pickle refers to by itself.
        """
        whole, offset, numel = self.places[key]
        storage = self.wholes[whole]
        if numel < storage.numel:
            size = storage.dtype.itemsize
            part = storage.data
            if not isinstance(part, ByteRange):  # pragma: no cover (they are made here)
                raise TypeError(part)
            storage = replace(storage, key=str(key), data=part.slice(offset * size, numel * size))
        return _storage_reference(storage)

    def read_storage(self) -> None:
        """Read the next storage."""
        sequence = self._sequence
        node = sequence.pickle().root
        if not isinstance(node, tuple) or len(node) != 3 or type(node[0]) is not int:
            raise self._damaged("a storage is not described by key, location and class")
        key, location = node[0], text(node[1])
        if location is None:
            raise self._damaged("the location of a storage is not text")
        if key in self.places:
            raise self._damaged(f"the storage {key} is there twice")
        dtype, untyped = storage_dtype(node[2], str(key))
        (count,) = sequence.unpack("<q")
        if count < 0:
            raise self._damaged(f"the storage {key} has a negative size")
        data = sequence.take(count * dtype.itemsize, f"storage {key}")
        self.wholes[key] = Storage(str(key), dtype, location, data, untyped)
        self.places[key] = key, 0, count

    def _add_view(self, view: Node) -> None:
        parts = tuple(view) if isinstance(view, (tuple, list)) else ()
        numbers = [part for part in parts if type(part) is int]
        if len(parts) != 4 or len(numbers) != 4:
            raise self._damaged("a view is not described by four numbers")
        key, root, offset, numel = numbers
        if key in self.places:
            raise self._damaged(f"the storage {key} is there twice")
        if root not in self.places:
            raise self._damaged(f"a view is one of the unknown storage {root}")
        whole, start, size = self.places[root]
        if offset < 0 or numel < 0 or offset + numel > size:
            raise self._damaged(f"a view reaches outside the storage {root}")
        self.places[key] = whole, start + offset, numel

    def _damaged(self, message: str) -> DamagedFileError:
        return DamagedFileError(message, entry="storages")


def _read_tensors(sequence: PickleSequence, storages: Storages) -> dict[int, Object]:
    """Return the node that rebuilds each tensor, by the tensor's key.

    After each pickle of (key, storage key, class) follow the number of dimensions (int32 and four
    unused bytes), the sizes, the strides and the offset (int64).
    """
    tensors: dict[int, Object] = {}
    for _ in range(_count(sequence, "tensors")):
        node = sequence.pickle().root
        if not isinstance(node, tuple) or len(node) != 3 or type(node[0]) is not int:
            raise DamagedFileError("a tensor is not described by keys and class", entry="tensors")
        key, storage_key = node[0], node[1]
        if key in tensors or key in storages:  # torch keeps both in one dictionary
            raise DamagedFileError(f"the tensor {key} is there twice", entry="tensors")
        if type(storage_key) is not int or not storages.admits(storage_key, node[2]):
            raise DamagedFileError(f"the tensor {key} is in an unknown storage", entry="tensors")
        dimensions, _unused = sequence.unpack("<ii")
        if not 0 <= dimensions <= _MAX_DIMENSIONS:
            message = f"the tensor {key} has {dimensions} dimensions"
            raise DamagedFileError(message, entry="tensors")
        shape = sequence.unpack(f"<{dimensions}q")
        stride = sequence.unpack(f"<{dimensions}q")
        (offset,) = sequence.unpack("<q")
        storage, start, numel = storages.place(storage_key)
        if not shape:  # torch had no scalars then: no dimension means no element
            shape, stride = (0,), (1,)
        place = Tensor(shape, storage.dtype, stride, start + offset, storage)
        if place.extent and (offset < 0 or offset + place.extent > numel):
            raise DamagedFileError(f"the tensor {key} reaches beyond its storage", entry="tensors")
        tensors[key] = build(_storage_reference(storage), place)
    return tensors


def _storage_reference(storage: Storage) -> PersistentId:
    """Return a reference to `storage` as a later ``torch.save`` would write it."""
    name = "UntypedStorage" if storage.untyped else storage.dtype.storage_class
    pid = ("storage", Global("torch", name or ""), storage.key, storage.device, storage.numel)
    return PersistentId(pid, storage)


def _count(sequence: PickleSequence, what: str) -> int:
    count = sequence.pickle().root
    if type(count) is not int or count < 0:
        raise DamagedFileError(f"the number of {what} is none", entry=what)
    return count


def _number(key: str | None) -> int | None:
    """Return a key as the pickle spells it, in decimal digits; None for anything else."""
    if key is None or not (key.isascii() and key.isdigit()) or len(key) > _LONGEST_KEY:
        return None
    return int(key)
