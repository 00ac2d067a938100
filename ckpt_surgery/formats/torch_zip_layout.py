"""The zip archive of ``torch.save``: where every byte of one goes, before any is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, Storage, join_path
from ckpt_surgery.fileio import Bytes, ByteSource
from ckpt_surgery.fileio.zip_write import Derived, ZipLayout, lay_out
from ckpt_surgery.formats.base import FileLayout, Layout, LayoutOptions, Loss
from ckpt_surgery.formats.provenance import RECORD
from ckpt_surgery.formats.serialization_id import serialization_id
from ckpt_surgery.formats.torch_zip_container import (
    MODERN,
    PICKLE,
    SERIALIZATION_ID,
    STORAGE_FOLDER,
    Container,
    content,
)
from ckpt_surgery.torch_objects.rebuild import Pickled, is_module_state, lower, stays_module

_NO_PLACE: Final = "has no place in a pickle of state dicts"
_NO_CLASS: Final = "a state dict has no class and no code"


def losses(checkpoint: Checkpoint) -> list[Loss]:
    """Return what a pickle of `checkpoint` would not hold.

    That is what lies beside the state dicts outside the graph, as in TorchScript, and whatever
    makes more of a state dict than one: a module's class.
    """
    found = [
        Loss(s.path, "module", "a pickled module", _NO_CLASS, refused=False)
        for s in checkpoint.state_dicts
        if is_module_state(s) and not stays_module(checkpoint, s)
    ]
    found += (
        Loss(o.path, "other", o.type, _NO_PLACE, refused=False)
        for o in checkpoint.others
        if checkpoint.root is None or (o.parent is None and o.node is not checkpoint.root)
    )
    found += (
        Loss(join_path(s.path, e.name), "entry", "a tensor", "is of no single storage")
        for s in checkpoint.state_dicts
        for e in s.entries
        if e.node is None and e.tensor is not None and e.tensor.storage is None
    )
    found += (
        Loss(name, "entry", f"a tensor of {tensor.dtype.name}", "torch has no such type")
        for name, tensor in checkpoint.tensors
        if not tensor.dtype.in_torch
    )
    return found


_LAST: Final = frozenset({"version", SERIALIZATION_ID})
"""Records that torch writes after all others."""


def layout(checkpoint: Checkpoint, options: LayoutOptions) -> Layout:
    """Place every byte of the archive; its root folder is called after a file, if that may be."""
    archive = _lay_out_torch_zip(checkpoint, nameless=options.nameless)
    sources = [record.source for record in archive.records]
    return Layout((FileLayout("", archive.nbytes, sources, archive.write),))


def _lay_out_torch_zip(checkpoint: Checkpoint, *, nameless: bool = False) -> ZipLayout:
    """Return where every byte of the archive for `checkpoint` goes, before any is written.

    A file that was an archive keeps its root folder (unless it is to be `nameless`), its generation
    of records and whatever else it holds; every other one becomes what torch 2.13 would write.
    """
    container = checkpoint.container
    if not isinstance(container, Container):
        container = MODERN
    if nameless:
        container = replace(container, root=MODERN.root)
    if checkpoint.provenance:
        container = _with_provenance(container, checkpoint.provenance)
    lowered = lower(checkpoint)
    pickled = lowered.emit()
    if container.original and _keep_their_places(container, pickled):
        own = _own_keys(pickled)
        # mostly they are called so already, and a second pickle would be the same
        return _same_storages(container, pickled if own == pickled.keys else lowered.emit(own))
    return _new_storages(container, pickled)


def _with_provenance(container: Container, text: str) -> Container:
    """Return a container with a record of how the checkpoint came about, before the version."""
    record = (RECORD, Bytes(text.encode("utf-8", "surrogatepass")))

    def placed(records: Sequence[tuple[str, ByteSource]]) -> tuple[tuple[str, ByteSource], ...]:
        kept = [each for each in records if each[0] != RECORD]
        ends = (place for place, (name, _) in enumerate(kept) if name in _LAST)
        place = next(ends, len(kept))
        return (*kept[:place], record, *kept[place:])

    before = tuple(each for each in container.before if each[0] != RECORD)
    original = placed(container.original) if container.original else ()
    return replace(container, before=before, after=placed(container.after), original=original)


def archive_of_pickle(pickled: Pickled) -> ZipLayout:
    """Place a pickle and its storages in an archive as today's torch writes one into a stream."""
    return _new_storages(MODERN, pickled)


def _keep_their_places(container: Container, pickled: Pickled) -> bool:
    """Return whether all storages stay, and in the order of visiting where torch relies on that."""
    if container.promises_layout:
        return tuple(pickled.storages) == container.storages
    return set(pickled.storages) == set(container.storages)


def _own_keys(pickled: Pickled) -> dict[Storage, str]:
    return {storage: storage.key for storage in pickled.storages}


def _same_storages(container: Container, pickled: Pickled) -> ZipLayout:
    """Return all storages stay: every record stays where it is, under its name."""
    old = container.find(PICKLE)
    unchanged = old is not None and content(old) == pickled.data
    records = [
        (name, data if unchanged and not _is_open(name, data) else _renewed(name, data, pickled))
        for name, data in container.original
    ]
    return lay_out(container.root, records, alignment=container.alignment)


def _new_storages(container: Container, pickled: Pickled) -> ZipLayout:
    """Return the storages are numbered in the order in which the pickle visits them.

    torch relies on it where the archive has a ``.format_version``; before that it sorted them by
    their names as text.
    """
    storages = list(pickled.keys.items())
    if not container.promises_layout:
        storages.sort(key=lambda item: item[1])
    records: list[tuple[str, ByteSource | Derived]] = []
    records.extend((name, _renewed(name, data, pickled)) for name, data in container.before)
    records.extend((STORAGE_FOLDER + key, storage.data) for storage, key in storages)
    records.extend((name, _renewed(name, data, pickled)) for name, data in container.after)
    return lay_out(container.root, records, alignment=container.alignment)


def _is_open(name: str, data: ByteSource) -> bool:
    """Return whether it is the id of an archive that was not written yet, and so is not known."""
    return name == SERIALIZATION_ID and isinstance(data, Bytes)


def _renewed(name: str, data: ByteSource, pickled: Pickled) -> ByteSource | Derived:
    if name == PICKLE:
        return Bytes(pickled.data)
    if name == SERIALIZATION_ID:
        return Derived(40, serialization_id)
    return data
