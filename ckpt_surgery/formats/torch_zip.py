"""The zip archive of ``torch.save`` since torch 1.6, of every generation: reading and writing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckpt_surgery.checkpoint import Checkpoint, Storage
from ckpt_surgery.errors import DamagedFileError, UnknownFormatError
from ckpt_surgery.fileio import (
    Bytes,
    ByteSource,
    Derived,
    SourceFile,
    ZipArchive,
    ZipLayout,
    lay_out,
    serialization_id,
)
from ckpt_surgery.formats.assemble import assemble
from ckpt_surgery.formats.storages import parse_storage_id
from ckpt_surgery.pickles import Limits, Node, Parsed, PersistentId, parse

if TYPE_CHECKING:
    from ckpt_surgery.formats.lower import Pickled

PICKLE = "data.pkl"
CONSTANTS = "constants.pkl"
_SERIALIZATION_ID = ".data/serialization_id"
_STORAGE_FOLDER = "data/"
_SMALL = 1 << 16  # bytes; a record such as `version` that is longer is an attack


@dataclass(frozen=True, slots=True)
class Container:
    """What an archive has beside its pickle and its storages, and in which order.

    `before` and `after` are the records around the storages, by their names below `root`;
    `storages` those that the pickle refers to, in the order of the archive; `idle` the records
    that look like storages but that nothing refers to.
    """

    root: str
    before: tuple[tuple[str, ByteSource], ...]
    storages: tuple[Storage, ...]
    after: tuple[tuple[str, ByteSource], ...]
    idle: tuple[tuple[str, ByteSource], ...] = ()
    original: tuple[tuple[str, ByteSource], ...] = ()

    def find(self, name: str) -> ByteSource | None:
        return next((data for known, data in (*self.before, *self.after) if known == name), None)

    @property
    def promises_layout(self) -> bool:
        """Whether torch may compute where the storages lie instead of asking the directory."""
        return self.find(".format_version") is not None

    @property
    def alignment(self) -> int:
        """The number of bytes that every record's start is a multiple of."""
        record = self.find(".storage_alignment")
        return 64 if record is None else int(_content(record))


# The records of torch 2.13 around a pickle and its storages.
MODERN = Container(
    root="archive",
    before=(
        (PICKLE, Bytes(b"")),
        (".format_version", Bytes(b"1")),
        (".storage_alignment", Bytes(b"64")),
        ("byteorder", Bytes(b"little")),
    ),
    storages=(),
    after=(("version", Bytes(b"3\n")), (_SERIALIZATION_ID, Bytes(b""))),
)


def is_torchscript(archive: ZipArchive) -> bool:
    """Whether ``torch.load`` would take the archive for TorchScript: it has constants."""
    return archive.get(CONSTANTS) is not None


def is_torch_zip(archive: ZipArchive) -> bool:
    """Whether an archive holds a pickle where ``torch.load`` looks for it."""
    return archive.get(PICKLE) is not None


def read_torch_zip(file: SourceFile, archive: ZipArchive, limits: Limits) -> Checkpoint:
    """Describe an archive of ``torch.save``; tensor bytes are not read.

    Raises `DamagedFileError` if a record is missing or contradicts the pickle.
    """
    record = archive.get(PICKLE)
    if record is None:
        raise UnknownFormatError("the archive holds no 'data.pkl'", path=file.name)
    _require_version(archive)
    storages = StorageRecords(archive)
    data = record.read(limits.pickle_bytes)
    parsed = parse(data, limits=limits, persistent_load=storages.load)
    notes: list[str] = []
    container = _container(archive, storages)
    if container.idle:
        count, size = len(container.idle), sum(data.nbytes for _, data in container.idle)
        notes.append(f"{count} storage records of {size} bytes are used by nothing")
    return assemble(
        parsed.root,
        file=file,
        format="torch-zip",
        container=container,
        notes=tuple(notes),
        unwritable=_lost(parsed, len(data)),
        names=parsed.globals,
        limits=limits,
    )


def _lost(parsed: Parsed, nbytes: int) -> str:
    """What of a pickle is not in its graph, so that writing it would lose it."""
    if parsed.lost:
        return f"its pickle calls '{parsed.lost[0].name}' and throws the result away"
    if parsed.end != nbytes:
        return f"{nbytes - parsed.end} bytes follow the end of its pickle"
    return ""


class StorageRecords:
    """Resolves the persistent ids of an archive's pickle to the records in `folder`."""

    def __init__(self, archive: ZipArchive, folder: str = _STORAGE_FOLDER) -> None:
        self.archive = archive
        self.folder = folder
        self.by_key: dict[str, Storage] = {}
        order = archive.get("byteorder")
        self.big_endian = order is not None and order.read(_SMALL) == b"big"

    def load(self, pid: Node) -> PersistentId:
        """A reference to the storage that `pid` names.

        Raises `DamagedFileError` if it names none, or one of another size or element type.
        """
        wanted = parse_storage_id(pid)
        if wanted is None:
            raise DamagedFileError("a persistent id names no storage")
        known = self.by_key.get(wanted.key)
        if known is None:
            record = self.archive.get(self.folder + wanted.key)
            if record is None:
                raise DamagedFileError(
                    f"the record '{self.folder}{wanted.key}' is missing",
                    entry=f"storage {wanted.key}",
                    hint="the file is truncated or was written by an interrupted save",
                )
            known = Storage(
                wanted.key,
                wanted.dtype,
                wanted.location,
                record.data,
                untyped=wanted.untyped,
                big_endian=self.big_endian,
            )
            self.by_key[wanted.key] = known
        alike = known.dtype == wanted.dtype and known.untyped == wanted.untyped
        if not alike and not known.nbytes == wanted.nbytes == 0:  # torch.save writes empty ones so
            raise DamagedFileError(
                "two tensors give it different element types", entry=f"storage {wanted.key}"
            )
        if known.nbytes != wanted.nbytes:
            raise DamagedFileError(
                f"the record has {known.nbytes} bytes where the pickle says {wanted.nbytes}",
                entry=f"storage {wanted.key}",
            )
        return PersistentId(pid, known)


def _require_version(archive: ZipArchive) -> None:
    record = archive.get("version") or archive.get(".data/version")
    text = record.read(_SMALL).strip() if record is not None else b""
    if not text.isdigit() or not 1 <= int(text[:9]) <= 10:
        what = "unknown version of torch's archive" if record else "the record is missing"
        raise DamagedFileError(what, path=archive.file.name, entry="version")
    order = archive.get("byteorder")
    if order is not None and order.read(_SMALL) not in (b"little", b"big"):
        raise DamagedFileError(
            "is neither 'little' nor 'big'", path=archive.file.name, entry="byteorder"
        )
    alignment = archive.get(".storage_alignment")
    if alignment is not None:
        text = alignment.read(_SMALL)
        if not text.isdigit() or not 1 <= int(text[:9]) <= 1 << 15:
            raise DamagedFileError(
                "is no alignment in bytes", path=archive.file.name, entry=".storage_alignment"
            )


def _container(archive: ZipArchive, storages: StorageRecords) -> Container:
    before: list[tuple[str, ByteSource]] = []
    after: list[tuple[str, ByteSource]] = []
    idle: list[tuple[str, ByteSource]] = []
    used: list[Storage] = []
    started = False
    for record in archive.records:
        item: tuple[str, ByteSource] = (record.name, record.data)
        if record.name.startswith(_STORAGE_FOLDER):
            started = True
            storage = storages.by_key.get(record.name[len(_STORAGE_FOLDER) :])
            if storage is None:
                idle.append(item)
            else:
                used.append(storage)
        elif started or record.name in ("version", _SERIALIZATION_ID):
            after.append(item)
        else:
            before.append(item)
    original = tuple((record.name, record.data) for record in archive.records)
    return Container(archive.root, tuple(before), tuple(used), tuple(after), tuple(idle), original)


def lay_out_torch_zip(checkpoint: Checkpoint) -> ZipLayout:
    """Where every byte of the archive for `checkpoint` goes, before any is written.

    A file that was an archive keeps its root folder, its generation of records and whatever else
    it holds; every other one becomes what torch 2.13 would write.
    """
    container = checkpoint.container
    if not isinstance(container, Container):
        container = MODERN
    from ckpt_surgery.formats.lower import lower  # not for those who only read

    lowered = lower(checkpoint)
    pickled = lowered.emit()
    if container.original and _keep_their_places(container, pickled):
        return _same_storages(container, lowered.emit(_own_keys(pickled)))
    return _new_storages(container, pickled)


def _keep_their_places(container: Container, pickled: Pickled) -> bool:
    """Whether all storages stay, and in the order of visiting where torch relies on that."""
    if container.promises_layout:
        return tuple(pickled.storages) == container.storages
    return set(pickled.storages) == set(container.storages)


def _own_keys(pickled: Pickled) -> dict[Storage, str]:
    return {storage: storage.key for storage in pickled.storages}


def _same_storages(container: Container, pickled: Pickled) -> ZipLayout:
    """All storages stay: every record stays where it is, under its name."""
    old = container.find(PICKLE)
    unchanged = old is not None and _content(old) == pickled.data
    records = [
        (name, data if unchanged else _renewed(name, data, pickled))
        for name, data in container.original
    ]
    return lay_out(container.root, records, alignment=container.alignment)


def _new_storages(container: Container, pickled: Pickled) -> ZipLayout:
    """The storages are numbered in the order in which the pickle visits them.

    torch relies on it where the archive has a ``.format_version``; before that it sorted them by
    their names as text.
    """
    storages = list(pickled.keys.items())
    if not container.promises_layout:
        storages.sort(key=lambda item: item[1])
    records: list[tuple[str, ByteSource | Derived]] = []
    records.extend((name, _renewed(name, data, pickled)) for name, data in container.before)
    records.extend((_STORAGE_FOLDER + key, storage.data) for storage, key in storages)
    records.extend((name, _renewed(name, data, pickled)) for name, data in container.after)
    return lay_out(container.root, records, alignment=container.alignment)


def _renewed(name: str, data: ByteSource, pickled: Pickled) -> ByteSource | Derived:
    if name == PICKLE:
        return Bytes(pickled.data)
    if name == _SERIALIZATION_ID:
        return Derived(40, serialization_id)
    return data


def _content(source: ByteSource) -> bytes:
    return b"".join(source.chunks())
