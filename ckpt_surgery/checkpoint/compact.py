"""Which bytes of its storage a tensor uses, and storages cut down to those.

``torch.save`` writes a view's whole storage: ten elements of a thousand take a thousand. Cutting
keeps what tensors share: those that overlap stay views of one storage, unless their views are to
be broken; then only ties, which are the same elements, stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import prod

from ckpt_surgery.checkpoint.coverage import span, steps_of, used_nbytes
from ckpt_surgery.checkpoint.description import Checkpoint, Storage, Tensor
from ckpt_surgery.checkpoint.gather import Gathered, part_of
from ckpt_surgery.fileio import ByteRange
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of bytes of a storage that one tensor, or several overlapping ones, lie in.

    `start` and `end` are bytes. `sparse` says that its tensors are one, tied, and that it leaves
    gaps which need not be kept.
    """

    storage: Storage
    start: int
    end: int
    tensors: tuple[Tensor, ...]
    sparse: bool

    @property
    def nbytes(self) -> int:
        """Bytes that have to be kept."""
        if not self.sparse:
            return self.end - self.start
        first = self.tensors[0]
        return first.dtype.itemsize * prod(n for n, _ in steps_of(first))

    @property
    def used_nbytes(self) -> int:
        """Bytes that elements of its tensors lie in, each counted once; see `used_nbytes`."""
        first = self.tensors[0]
        if len(self.tensors) == 1 and first.dtype.elements_per_byte == 1 and first.is_contiguous:
            return first.nbytes  # by far the most frequent, and much quicker
        return used_nbytes(self.tensors)

    @property
    def overlaps(self) -> bool:
        """Whether tensors of it are not the same elements, though they lie in the same run."""
        return any(tensor.identity != self.tensors[0].identity for tensor in self.tensors)


def unused_nbytes(checkpoint: Checkpoint) -> int:
    """Return bytes of the storages that no element of a tensor lies in."""
    pieces = find_pieces(checkpoint.all_tensors)
    storages = {piece.storage for piece in pieces}
    used = sum(piece.used_nbytes for piece in pieces)
    return sum(storage.nbytes for storage in storages) - used


def find_pieces(tensors: Iterable[Tensor], *, break_views: bool = False) -> list[Piece]:
    """Return the runs of bytes that tensors use, per storage, in the
    order of the first tensor in each; with `break_views` one for each tensor and those tied to it.
    """
    by_storage: dict[Storage, dict[int, Tensor]] = {}
    for tensor in tensors:
        for part in tensor.strided_parts():
            assert part.storage is not None  # noqa: S101  # what `strided_parts` promises
            by_storage.setdefault(part.storage, {})[_key(part)] = part
    pieces: list[Piece] = []
    for storage, parts in by_storage.items():
        tensor = next(iter(parts.values()))
        if len(parts) == 1 and tensor.nbytes == storage.nbytes and tensor.is_contiguous:
            pieces.append(Piece(storage, 0, storage.nbytes, (tensor,), False))
        elif break_views:
            pieces += _ties_of(storage, parts.values())
        else:
            pieces += _pieces_of(storage, parts.values())
    return pieces


def _key(tensor: Tensor) -> int:
    """Return what tells tensors apart: the node that rebuilds one, if it has one."""
    return id(tensor if tensor.node is None else tensor.node)


def _ties_of(storage: Storage, tensors: Iterable[Tensor]) -> Iterator[Piece]:
    groups: dict[object, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.identity, []).append(tensor)
    for group in groups.values():
        yield _piece(storage, *span(group[0]), group)


def _pieces_of(storage: Storage, tensors: Iterable[Tensor]) -> Iterator[Piece]:
    group: list[Tensor] = []
    start = end = 0
    for tensor in sorted(tensors, key=span):
        first, last = span(tensor)
        if group and (first >= end or first == last):
            yield _piece(storage, start, end, group)
            group = []
        if not group:
            start, end = first, last
        group.append(tensor)
        end = max(end, last)
    yield _piece(storage, start, end, group)


def _piece(storage: Storage, start: int, end: int, group: list[Tensor]) -> Piece:
    widest = max(tensor.dtype.itemsize for tensor in group)
    start -= start % widest  # so that every tensor's offset stays a whole number of its elements
    first = group[0]
    alike = all(tensor.identity == first.identity for tensor in group)
    can_gather = isinstance(storage.data, ByteRange) and first.dtype.elements_per_byte == 1
    return Piece(storage, start, end, tuple(group), alike and can_gather and _has_gaps(first))


def _has_gaps(tensor: Tensor) -> bool:
    """Return whether something lies between its elements, and no place is two of them."""
    if not tensor.numel:
        return False
    extent = numel = 1
    for n, step in steps_of(tensor):
        if step < extent:
            return False
        extent += (n - 1) * step
        numel *= n
    return numel < extent


def in_own_storage(tensor: Tensor) -> Tensor:
    """Return a strided tensor in a storage that nothing else views, of
    just its bytes if that can be.
    """
    assert tensor.storage is not None  # noqa: S101  # what strided means
    (piece,) = _pieces_of(tensor.storage, [tensor])
    cut = _cut(piece) or [replace(tensor, storage=replace(tensor.storage))]
    return cut[0]


def compact(checkpoint: Checkpoint, *, break_views: bool = False) -> Checkpoint:
    """Return every tensor in a storage of just the bytes that it, or those overlapping it, use.

    With `break_views` none overlaps another any longer: each has its own bytes, as after
    ``clone()`` in torch, except that tied ones stay tied.
    """
    moved: dict[int, Tensor] = {}
    whole: set[Storage] = set()
    for piece in find_pieces(checkpoint.all_tensors, break_views=break_views):
        stays = piece.nbytes == piece.storage.nbytes and not piece.sparse
        if stays and not (break_views and piece.storage in whole):
            whole.add(piece.storage)
            continue
        new = _cut(piece, break_views=break_views)
        moved.update(zip(map(_key, piece.tensors), new, strict=bool(new)))
    with_node = {id(t.node): t for t in moved.values() if t.node is not None}
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
        moved={**checkpoint.moved, **with_node},
    )


def _moved(tensor: Tensor, moved: dict[int, Tensor]) -> Tensor:
    parts = tuple(_moved(part, moved) for part in tensor.parts)
    new = moved.get(_key(tensor)) if tensor.storage is not None else None
    if new is None:
        return replace(tensor, parts=parts) if parts else tensor
    return replace(tensor, storage=new.storage, offset=new.offset, stride=new.stride, parts=parts)


def _cut(piece: Piece, *, break_views: bool = False) -> list[Tensor]:
    """Return the piece's tensors in a storage of its own; none if that holds computed bytes, which
    are only made twice to break views.
    """
    old = piece.storage
    if piece.sparse:
        return _gathered(piece)
    if not isinstance(old.data, ByteRange) and not break_views:
        return []
    storage = replace(old, data=part_of(old.data, piece.start, piece.end - piece.start))
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
    dimensions = [d for d, n in enumerate(first.shape) if n > 1 and first.stride[d]]
    order = sorted(dimensions, key=lambda d: first.stride[d], reverse=True)
    repeated = (n > 1 and not step for n, step in zip(first.shape, first.stride, strict=True))
    dense, step = [0 if repeats else 1 for repeats in repeated], 1
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
