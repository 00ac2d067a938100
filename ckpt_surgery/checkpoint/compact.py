"""Which bytes of its storage a tensor uses, and storages cut down to those.

``torch.save`` writes a view's whole storage: ten elements of a thousand take a thousand. Cutting
keeps what tensors share: those that overlap stay views of one storage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ckpt_surgery.checkpoint.description import Checkpoint, Storage, Tensor
from ckpt_surgery.checkpoint.gather import Gathered
from ckpt_surgery.fileio import ByteRange


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of bytes of a storage that one tensor, or several overlapping ones, lie in.

    `start` and `end` are bytes. `sparse` says that its one tensor leaves gaps inside it.
    """

    storage: Storage
    start: int
    end: int
    tensors: tuple[Tensor, ...]
    sparse: bool

    @property
    def nbytes(self) -> int:
        """Bytes that have to be kept."""
        return self.tensors[0].nbytes if self.sparse else self.end - self.start


def unused_nbytes(checkpoint: Checkpoint) -> int:
    """Return bytes of the storages that no tensor uses."""
    pieces = find_pieces(checkpoint.all_tensors)
    storages = {piece.storage for piece in pieces}
    return sum(storage.nbytes for storage in storages) - sum(piece.nbytes for piece in pieces)


def find_pieces(tensors: Iterable[Tensor]) -> list[Piece]:
    """Return the runs of bytes that tensors use, per storage, in the
    order of the first tensor in each.
    """
    by_storage: dict[Storage, dict[int, Tensor]] = {}
    for tensor in tensors:
        for part in tensor.strided_parts():
            assert part.storage is not None  # noqa: S101  # what `strided_parts` promises
            by_storage.setdefault(part.storage, {})[id(part.node)] = part
    pieces: list[Piece] = []
    for storage, parts in by_storage.items():
        tensor = next(iter(parts.values()))
        if len(parts) == 1 and tensor.nbytes == storage.nbytes and tensor.is_contiguous:
            pieces.append(Piece(storage, 0, storage.nbytes, (tensor,), False))
        else:
            pieces += _pieces_of(storage, parts.values())
    return pieces


def _pieces_of(storage: Storage, tensors: Iterable[Tensor]) -> Iterator[Piece]:
    group: list[Tensor] = []
    start = end = 0
    for tensor in sorted(tensors, key=_span):
        first, last = _span(tensor)
        if group and (first >= end or first == last):
            yield _piece(storage, start, end, group)
            group = []
        if not group:
            start, end = first, last
        group.append(tensor)
        end = max(end, last)
    yield _piece(storage, start, end, group)


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return the first byte that a tensor touches, and the byte after
    the last; (0, 0) if it is empty.
    """
    if not tensor.extent:
        return 0, 0
    dtype = tensor.dtype
    start = tensor.offset * dtype.itemsize // dtype.elements_per_byte
    return start, dtype.nbytes(tensor.offset + tensor.extent)


def _piece(storage: Storage, start: int, end: int, group: list[Tensor]) -> Piece:
    widest = max(tensor.dtype.itemsize for tensor in group)
    start -= start % widest  # so that every tensor's offset stays a whole number of its elements
    first = group[0]
    alike = all(tensor.identity == first.identity for tensor in group)
    repeats = any(n > 1 and step == 0 for n, step in zip(first.shape, first.stride, strict=True))
    gaps = first.numel < first.extent and not repeats and first.dtype.elements_per_byte == 1
    can_gather = isinstance(storage.data, ByteRange)
    return Piece(storage, start, end, tuple(group), alike and gaps and can_gather)


def in_own_storage(tensor: Tensor) -> Tensor:
    """Return a strided tensor in a storage that nothing else views, of
    just its bytes if that can be.
    """
    assert tensor.storage is not None  # noqa: S101  # what strided means
    (piece,) = _pieces_of(tensor.storage, [tensor])
    cut = _cut(piece) or [replace(tensor, storage=replace(tensor.storage))]
    return cut[0]


def compact(checkpoint: Checkpoint) -> Checkpoint:
    """Return every tensor in a storage of just the bytes that it, or those overlapping it, use."""
    moved = dict(checkpoint.moved)
    for piece in find_pieces(checkpoint.all_tensors):
        if piece.nbytes == piece.storage.nbytes and not piece.sparse:
            continue
        for tensor in _cut(piece):
            moved[id(tensor.node)] = tensor
    return replace(
        checkpoint,
        state_dicts=tuple(
            replace(
                state_dict,
                entries=tuple(
                    replace(entry, tensor=entry.tensor and _moved(entry.tensor, moved))
                    for entry in state_dict.entries
                ),
            )
            for state_dict in checkpoint.state_dicts
        ),
        others=tuple(
            replace(other, tensors=tuple(_moved(tensor, moved) for tensor in other.tensors))
            for other in checkpoint.others
        ),
        moved=moved,
    )


def _moved(tensor: Tensor, moved: dict[int, Tensor]) -> Tensor:
    parts = tuple(_moved(part, moved) for part in tensor.parts)
    new = moved.get(id(tensor.node)) if tensor.storage is not None else None
    if new is None:
        return replace(tensor, parts=parts) if parts else tensor
    return replace(tensor, storage=new.storage, offset=new.offset, stride=new.stride, parts=parts)


def _cut(piece: Piece) -> list[Tensor]:
    old = piece.storage
    if piece.sparse:
        return _gathered(piece)
    if not isinstance(old.data, ByteRange):
        return []
    storage = replace(old, data=old.data.slice(piece.start, piece.end - piece.start))
    return [
        replace(
            tensor,
            storage=storage,
            offset=tensor.offset
            - piece.start * tensor.dtype.elements_per_byte // tensor.dtype.itemsize
            if tensor.extent
            else 0,
        )
        for tensor in piece.tensors
    ]


def _gathered(piece: Piece) -> list[Tensor]:
    first = piece.tensors[0]
    order = sorted(
        (d for d, n in enumerate(first.shape) if n > 1), key=lambda d: first.stride[d], reverse=True
    )
    dense, step = [1] * len(first.shape), 1
    for dimension in reversed(order):
        dense[dimension] = step
        step *= first.shape[dimension]
    assert isinstance(piece.storage.data, ByteRange)  # noqa: S101  # what `sparse` says
    itemsize = first.dtype.itemsize
    data = piece.storage.data.slice(first.offset * itemsize, first.extent * itemsize)
    shape = tuple(first.shape[d] for d in order)
    source = Gathered(data, shape, tuple(first.stride[d] for d in order), itemsize)
    storage = replace(piece.storage, data=source)
    return [replace(t, storage=storage, offset=0, stride=tuple(dense)) for t in piece.tensors]
