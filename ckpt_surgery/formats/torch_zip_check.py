"""What can be odd about an archive of ``torch.save`` that is not damaged."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, Storage
from ckpt_surgery.checkpoint.findings import Finding, finding_of
from ckpt_surgery.errors import DamagedFileError, ReadError
from ckpt_surgery.fileio import ByteRange, ByteSource, Source, ZipArchive, read_zip
from ckpt_surgery.fileio.zip_structs import LOCAL
from ckpt_surgery.fileio.zip_write import ZipLayout, lay_out
from ckpt_surgery.formats.torch_zip_container import Container

_MOST_PLACES: Final = 20
"""Places of one file that are listed one by one."""

_ALIGNMENT: Final = 64  # where an archive does not say another
_SMALL: Final = 1 << 16  # bytes of a record such as the version
_MOST_CODE: Final = 1 << 26  # bytes of one compressed record, as many as a reader takes
_VERSION: Final = ".format_version"
_WITHOUT_PROMISE: Final = b"0"
_DROP: Final = "any edit of ckpt writes the layout anew: ckpt convert FILE -o OUT"


def records(checkpoint: Checkpoint) -> Sequence[tuple[str, ByteRange]]:
    """Return the records that are stored as they are. Raises `ReadError`."""
    archive = read_zip(checkpoint.file)
    return [(record.name, record.data) for record in archive.records if not record.compressed]


def check_compressed(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Yield the compressed records that do not decode to what their checksum says."""
    for record in read_zip(checkpoint.file).records:
        if not record.compressed:
            continue
        try:
            found = zlib.crc32(record.read(_MOST_CODE))
        except ReadError as error:
            yield finding_of(error)
            continue
        if found != record.crc32:
            yield Finding(
                "error",
                f"the checksum of what it decodes to is {found:08x}, and the file says "
                f"{record.crc32:08x}",
                record.name,
                rule="checksum",
                offset=record.data.offset,
            )


def check(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Yield what is hidden in the archive, and where it differs from what torch writes."""
    archive = read_zip(checkpoint.file)
    container = checkpoint.container if isinstance(checkpoint.container, Container) else None
    yield from _hidden(archive, container)
    layout = _torchs_layout(archive)
    laid_out = _is_laid_out(archive, layout)
    promise = _promise(archive)
    if promise and container is not None:
        yield from _broken_promise(container, checkpoint, laid_out=laid_out)
    if laid_out:
        yield from _differences(checkpoint.file, archive, layout)
    elif not promise:
        yield Finding(
            "note", "the archive was not laid out by torch.save, nor like it", rule="structure"
        )


def _promise(archive: ZipArchive) -> bool:
    """Return whether torch may compute where storages lie instead of asking the directory."""
    record = archive.get(_VERSION)
    try:
        return record is not None and record.read(_SMALL) != _WITHOUT_PROMISE
    except DamagedFileError:  # its checksum is compared with those of all records
        return False


def _hidden(archive: ZipArchive, container: Container | None) -> Iterator[Finding]:
    if archive.unused_nbytes:
        yield Finding(
            "warning",
            f"{archive.unused_nbytes} bytes of the archive belong to no record",
            rule="hidden-bytes",
        )
    for name, data in () if container is None else container.idle[:_MOST_PLACES]:
        yield Finding(
            "warning",
            f"nothing refers to the {data.nbytes} bytes of the record",
            entry=name,
            rule="hidden-bytes",
        )


def _torchs_layout(archive: ZipArchive) -> ZipLayout:
    """Return where torch would put the records that the archive has, in its order."""
    items: list[tuple[str, ByteSource]] = [(each.name, each.data) for each in archive.records]
    first = archive.file.read_at(archive.records[0].header_offset, LOCAL.size)
    alignment = archive.get(".storage_alignment")
    return lay_out(
        archive.root,
        items,
        alignment=_ALIGNMENT if alignment is None else int(alignment.read(_SMALL)),
        decoded={each.name: each.nbytes for each in archive.records if each.compressed},
        written_at=LOCAL.unpack(first)[4:6],
    )


def _is_laid_out(archive: ZipArchive, layout: ZipLayout) -> bool:
    """Return whether every record lies where torch would put it."""
    return layout.nbytes == archive.file.size and all(
        (found.header_offset, found.data.offset) == (placed.header_offset, placed.data_offset)
        for found, placed in zip(archive.records, layout.records, strict=True)
    )


def _broken_promise(
    container: Container, checkpoint: Checkpoint, *, laid_out: bool
) -> Iterator[Finding]:
    """Yield what torch takes for granted when it computes where storages lie.

    ``torch.load`` with ``map_location="meta"`` and ``calculate_storage_offsets`` does (torch 2.7
    and later): the storages are numbered in the order in which the pickle visits them, and lie in
    that order in torch's layout.
    """
    stored = [storage.key for storage in container.storages]
    visited = list(dict.fromkeys(storage.key for storage in _visited(checkpoint)))
    numbered = [str(number) for number in range(len(stored))]
    if not laid_out:
        what = "the records do not lie where torch.save puts them"
    elif container.idle or not stored == numbered == visited:
        what = "the storages are not numbered in the order in which they are visited"
    else:
        return
    yield Finding(
        "error",
        f"'{_VERSION}' promises a layout that the archive does not have: {what}",
        entry=_VERSION,
        hint=_DROP,
        rule="layout-promise",
    )


def _visited(checkpoint: Checkpoint) -> Iterator[Storage]:
    """Yield the storages in the order in which the pickle refers to them first."""
    from ckpt_surgery.pickles import PersistentId, walk

    for node in walk(checkpoint.root):
        if isinstance(node, PersistentId) and isinstance(node.target, Storage):
            yield node.target


def _differences(source: Source, archive: ZipArchive, layout: ZipLayout) -> Iterator[Finding]:
    """Yield where headers, padding or the directory are not byte for byte what torch writes."""
    places: list[tuple[int, str | None]] = []
    for offset, expected, name in layout.structure([each.crc32 for each in archive.records]):
        found = source.read_at(offset, len(expected))
        if found != expected:
            pairs = zip(found, expected, strict=True)
            places += [(offset + i, name) for i, (a, b) in enumerate(pairs) if a != b]
    for offset, name in places[:_MOST_PLACES]:
        yield Finding(
            "warning",
            f"byte {offset}, beside the data, is not what torch.save writes",
            entry=name or "end of the archive",
            rule="structure",
            offset=offset,
        )
    if len(places) > _MOST_PLACES:
        yield Finding(
            "warning",
            f"{len(places) - _MOST_PLACES} more bytes beside the data are not either",
            rule="structure",
        )
