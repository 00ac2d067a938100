"""Files of ``torch.save`` from 0.1.13 to 1.5, and of its old format since: pickles, then storages.

Pickles of the magic number, the protocol, the system, the object and the list of storage keys
follow each other; then, in the order of that list, an element count and the raw bytes of each
storage. The reference is ``torch/serialization.py`` (`_legacy_save`, `_legacy_load`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, Storage
from ckpt_surgery.errors import DamagedFileError, ReadError
from ckpt_surgery.fileio import ByteRange, Source
from ckpt_surgery.formats.base import Format, Layout, LayoutOptions, Loss
from ckpt_surgery.formats.pickle_sequence import MAGIC_NUMBER, PROTOCOL_VERSION, PickleSequence
from ckpt_surgery.formats.tar_header import TAR_BLOCK, is_tar_header
from ckpt_surgery.pickles import (
    DEFAULT_LIMITS,
    Limits,
    Node,
    Object,
    Parsed,
    PersistentId,
    parse,
    walk,
)
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.calls import sizes, steps
from ckpt_surgery.torch_objects.find import assemble
from ckpt_surgery.torch_objects.storages import StorageId, parse_storage_id, text

_LONGEST_MAGIC: Final = 64
"""More bytes than a pickle of the magic number takes in any protocol."""

# Those that rebuild a tensor from (storage, offset, …), counted in elements of the storage.
_REBUILD_FUNCTIONS: Final = frozenset(
    f"torch._utils.{name}"
    for name in (
        "_rebuild_tensor",
        "_rebuild_tensor_v2",
        "_rebuild_qtensor",
    )
)


class TorchLegacy(Format):
    """A file of torch.save before 1.6."""

    name = "torch-legacy"
    title = "a file of torch.save before 1.6"
    written_as = "torch-zip"

    def sniff(self, source: Source) -> bool:
        """Say whether it begins with the magic number."""
        return _looks_like_legacy(source)

    def read(self, source: Source, limits: Limits) -> Checkpoint:
        """Describe the file; raises as `_read_legacy` does."""
        from ckpt_surgery.formats.torch_zip import with_arrays

        return with_arrays(_read_legacy(source, limits), limits)

    def losses(self, checkpoint: Checkpoint) -> Sequence[Loss]:
        """Return what is not in the graph of the pickle, and tensors of later types."""
        from ckpt_surgery.formats.torch_legacy_write import losses

        return losses(checkpoint)

    def lay_out(self, checkpoint: Checkpoint, options: LayoutOptions) -> Layout:
        """Place every byte; there are no `options` for it."""
        from ckpt_surgery.formats.torch_legacy_write import layout

        del options
        return layout(checkpoint)


def _looks_like_legacy(file: Source) -> bool:
    """Return whether the file begins with a pickle of the magic
    number, in any protocol's spelling.
    """
    head = file.read_at(0, min(_LONGEST_MAGIC, file.size))
    try:
        root = parse(head).root
    except ReadError:
        return False
    return type(root) is int and root == MAGIC_NUMBER


def _read_legacy(file: Source, limits: Limits = DEFAULT_LIMITS) -> Checkpoint:
    """Describe a legacy file.

    Views of storages (torch 0.3.1 and before) become tensors of the whole storage at a later
    offset, so that tensors that shared bytes still do; a view that was saved as a bare storage is
    a part of the root's bytes. Stricter than `torch.load`: every storage that the object refers
    to must be in the file, once, of one size and type (torch returns uninitialised memory for a
    missing one).

    Raises `DamagedFileError` if the file is truncated or contradicts itself, `LimitExceededError`
    if it is larger than `limits` allow.
    """
    sequence = _begun(file, limits)
    references = _References()
    parsed = sequence.pickle(references.load, restart=references.clear)
    keys = _storage_keys(sequence)
    references.resolve(_find_storages(sequence, keys, references.ids))
    references.shift_views(parsed.root, limits)
    return assemble(
        parsed.root,
        sources=(file,),
        format="torch-legacy",
        unwritable=_not_described(sequence, parsed),
        names=sequence.globals,
        opcodes=frozenset(sequence.opcodes),
        limits=limits,
    )


def _begun(file: Source, limits: Limits) -> PickleSequence:
    """Return the pickles of a file, at that of its object. Raises `DamagedFileError`."""
    if file.size >= TAR_BLOCK and is_tar_header(file.read_at(0, TAR_BLOCK)):
        raise DamagedFileError(
            "its first block is a header of a tar archive as well, which torch would read instead"
        )
    sequence = PickleSequence(ByteRange(file, 0, file.size), limits)
    for what, expected in (("magic number", MAGIC_NUMBER), ("protocol", PROTOCOL_VERSION)):
        found = sequence.pickle().root
        if type(found) is not int or found != expected:
            raise DamagedFileError(f"the {what} is not {expected}")
    sequence.pickle()  # the writer's system: torch ignores it, tensor bytes are little-endian
    return sequence


def storage_places(file: Source, limits: Limits = DEFAULT_LIMITS) -> list[tuple[int, StorageId]]:
    """Return where each storage should lie, at which byte its element count, and what it is.

    Only the pickles are read, so that the file may end anywhere behind them. Raises
    `DamagedFileError` if one of them is broken.
    """
    sequence = _begun(file, limits)
    references = _References()
    sequence.pickle(references.load, restart=references.clear)
    places: list[tuple[int, StorageId]] = []
    at = 0
    for key in _storage_keys(sequence):
        at = at or sequence.position
        found = references.ids.get(key)
        if found is None:
            raise DamagedFileError("nothing refers to the storage", entry=_entry(key))
        places.append((at, found))
        at += 8 + found.nbytes
    return places


def _not_described(sequence: PickleSequence, parsed: Parsed) -> str:
    """Return what the file has beside its object and storages, so that writing it would lose it."""
    beside = len(sequence.globals) - len(parsed.globals)
    if beside:  # the system and the keys are numbers and text: nothing to call or import
        return "a pickle beside its object's names classes or functions"
    if sequence.remaining:
        return f"{sequence.remaining} bytes follow its last storage"
    return sequence.not_in_graphs()


def _storage_keys(sequence: PickleSequence) -> list[str]:
    """Return the keys of the storages that follow, in the order of the file."""
    nodes = sequence.pickle().root
    keys = [text(node) for node in nodes] if isinstance(nodes, list) else [None]
    found = [key for key in keys if key is not None]
    if len(found) != len(keys):
        raise DamagedFileError("the storage keys are not a list of text")
    return found


def _find_storages(
    sequence: PickleSequence, keys: list[str], ids: Mapping[str, StorageId]
) -> dict[str, ByteRange]:
    """Return where the bytes of each storage lie: an element count
    (int64), then that many elements.
    """
    places: dict[str, ByteRange] = {}
    for key in keys:
        entry = _entry(key)
        expected = ids.get(key)
        if expected is None:
            raise DamagedFileError("nothing refers to the storage", entry=entry)
        if key in places:
            raise DamagedFileError("the storage is listed twice", entry=entry)
        (count,) = sequence.unpack("<q")
        if count != expected.numel:
            raise DamagedFileError(
                f"the storage has {count} elements where {expected.numel} are expected",
                entry=entry,
            )
        places[key] = sequence.take(expected.nbytes, entry)
    for key in ids:
        if key not in places:
            raise DamagedFileError("the storage is missing", entry=_entry(key))
    return places


@dataclass(frozen=True, slots=True)
class _View:
    """A part of a root storage that has a key of its own; `offset` and `numel` count elements."""

    root: str
    key: str
    offset: int
    numel: int


class _References:
    """The storages that a pickle refers to: collected while it is parsed, resolved afterwards."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything, before the pickle is parsed again."""
        # What the first reference to each root storage says.
        self.ids: dict[str, StorageId] = {}
        self._views: dict[str, _View] = {}
        self._found: list[tuple[PersistentId, StorageId, _View | None]] = []
        # Nodes that name a view: the node that names its root, and the view.
        self._shifts: dict[int, tuple[PersistentId, _View]] = {}

    def load(self, pid: Node) -> PersistentId:
        """Return the node for a persistent id: of a storage, or of a
        module's class with its source.
        """
        node = PersistentId(pid)
        found = parse_storage_id(pid)
        if not isinstance(pid, tuple) or found is None:
            if isinstance(pid, tuple) and pid and text(pid[0]) == "module":
                return node
            raise DamagedFileError("a persistent id names neither a storage nor a module")
        entry = _entry(found.key)
        if len(pid) != 6:
            raise DamagedFileError("a storage's persistent id has not 6 parts", entry=entry)
        first = self.ids.setdefault(found.key, found)
        # An empty storage may have several types: torch keeps no bytes that they could disagree on.
        if (first.nbytes or found.nbytes) and _identity(first) != _identity(found):
            raise DamagedFileError("references differ in the storage's size or type", entry=entry)
        self._found.append((node, found, self._view(pid[5], found)))
        return node

    def _view(self, metadata: Node, root: StorageId) -> _View | None:
        """Return the view that ``(key, offset, size)`` describes, None for the whole storage."""
        if metadata is None:
            return None
        entry = _entry(root.key)
        if not isinstance(metadata, tuple) or len(metadata) != 3:
            raise DamagedFileError("a view of the storage is malformed", entry=entry)
        key, offset, numel = text(metadata[0]), metadata[1], metadata[2]
        if key is None or type(offset) is not int or type(numel) is not int:
            raise DamagedFileError("a view of the storage is malformed", entry=entry)
        if offset < 0 or numel < 0 or offset + numel > root.numel:
            raise DamagedFileError("a view reaches outside the storage", entry=entry)
        view = _View(root.key, key, offset, numel)
        if self._views.setdefault(key, view) != view:
            raise DamagedFileError("references to a view of the storage differ", entry=entry)
        return view

    def resolve(self, places: Mapping[str, ByteRange]) -> None:
        """Give every persistent id its storage, whose bytes lie in `places`.

        Raises `DamagedFileError` if one key names both a view and a whole storage.
        """
        for key in self._views.keys() & self.ids.keys():
            raise DamagedFileError("the storage is also a view of one", entry=_entry(key))
        wholes: dict[tuple[object, ...], Storage] = {}
        parts: dict[str, Storage] = {}
        for node, found, view in self._found:
            data = places[found.key]
            whole = wholes.setdefault(
                _identity(found),
                Storage(found.key, found.dtype, found.location, data, found.untyped),
            )
            node.target = whole
            if view is not None and view.numel < found.numel:
                size = found.dtype.itemsize
                part = replace(
                    whole, key=view.key, data=data.slice(view.offset * size, view.numel * size)
                )
                node.target = parts.setdefault(view.key, part)
            if view is not None and isinstance(node.pid, tuple):
                self._shifts[id(node)] = PersistentId((*node.pid[:5], None), whole), view

    def shift_views(self, root: Node, limits: Limits) -> None:
        """Let the tensors of views be tensors of the root storages, starting later."""
        if not self._shifts:
            return
        for node in [n for n in walk(root, limits=limits) if isinstance(n, Object)]:
            if node.name in _REBUILD_FUNCTIONS:
                node.args = self._shifted(node.args)
            elif node.name.endswith("Tensor"):
                node.state = self._shifted(node.state)

    def _shifted(self, place: Node) -> Node:
        """`place`, (storage, offset, …), counted from the root storage if it is in a view.

        Raises `DamagedFileError` if the tensor reaches beyond the view, as torch would.
        """
        if not isinstance(place, tuple) or len(place) < 4 or id(place[0]) not in self._shifts:
            return place
        whole, view = self._shifts[id(place[0])]
        offset, shape, stride = place[1], sizes(place[2]), steps(place[3])
        is_empty = not shape and not view.numel  # as torch 0.3 wrote them
        if type(offset) is not int or len(shape) != len(stride) or is_empty:
            return place  # anything but an empty one is refused as a tensor
        extent = 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if 0 not in shape and not 0 <= offset <= view.numel - extent:
            raise DamagedFileError(
                f"a tensor reaches to element {offset + extent} of a view of {view.numel}",
                entry=_entry(view.key),
            )
        return (whole, offset + view.offset, *place[2:])


def _identity(found: StorageId) -> tuple[object, ...]:
    return found.key, found.dtype, found.untyped, found.numel


def _entry(key: str) -> str:
    return f"storage {key[:40]}"
