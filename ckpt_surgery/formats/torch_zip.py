"""The zip archive of ``torch.save`` since torch 1.6, of every generation: reading."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from ckpt_surgery.checkpoint.description import Checkpoint, Storage
from ckpt_surgery.errors import DamagedFileError, ReadError, UnknownFormatError
from ckpt_surgery.fileio import (
    ByteSource,
    Source,
    ZipArchive,
    looks_like_zip,
    read_zip,
)
from ckpt_surgery.formats.base import Format
from ckpt_surgery.formats.torch_zip_container import (
    CONSTANTS,
    PICKLE,
    SERIALIZATION_ID,
    STORAGE_FOLDER,
    Container,
)
from ckpt_surgery.pickles import Limits, Node, Parsed, PersistentId, parse
from ckpt_surgery.torch_objects.find import assemble
from ckpt_surgery.torch_objects.storages import parse_storage_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ckpt_surgery.checkpoint.findings import Finding
    from ckpt_surgery.fileio import ByteRange
    from ckpt_surgery.formats.base import Layout, LayoutOptions, Loss

_SMALL = 1 << 16  # bytes; a record such as `version` that is longer is an attack


class TorchZip(Format):
    """The archive of ``torch.save`` since torch 1.6, which every torch since then loads."""

    name = "torch-zip"
    title = "an archive of torch.save"
    keeps_provenance = True
    keeps_modules = True
    keeps_checksums = True
    suffixes = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl", ".th", ".model", ".state_dict")

    def sniff(self, source: Source) -> bool:
        """Say whether it is a zip archive with a pickle and without TorchScript's constants."""
        archive = archive_of(source)
        return archive is not None and _is_torch_zip(archive) and not is_torchscript(archive)

    def read(self, source: Source, limits: Limits) -> Checkpoint:
        """Describe the archive. Raises `DamagedFileError` as `read_torch_zip` does."""
        return read_torch_zip(source, archive_of(source) or read_zip(source), limits)

    def losses(self, checkpoint: Checkpoint) -> Sequence[Loss]:
        """Return what is not in the graph of the pickle, and the classes of pickled modules."""
        from ckpt_surgery.formats.torch_zip_layout import losses

        return losses(checkpoint)

    def lay_out(self, checkpoint: Checkpoint, options: LayoutOptions) -> Layout:
        """Place every record; metadata has no place in an archive of torch.save."""
        from ckpt_surgery.formats.torch_zip_layout import layout

        return layout(checkpoint, options)

    def reread(self, checkpoint: Checkpoint) -> Checkpoint | None:
        """Return what is read if nothing but names of a bare state dict changes, None otherwise."""
        from ckpt_surgery.formats.torch_zip_reread import reread

        return reread(checkpoint)

    def check(self, checkpoint: Checkpoint) -> Iterator[Finding]:
        """Yield where the archive is not laid out as torch does, and what nothing refers to."""
        from ckpt_surgery.formats.torch_zip_check import check

        return check(checkpoint)

    def records(self, checkpoint: Checkpoint) -> Sequence[tuple[str, ByteRange]]:
        """Return every record of the archive."""
        from ckpt_surgery.formats.torch_zip_check import records

        return records(checkpoint)


_read_last: list[ZipArchive] = []


def archive_of(source: Source) -> ZipArchive | None:
    """Return the records of a zip archive, None for anything else and for a damaged archive.

    Those of the last archive are kept until `forget_archive` is called, since several formats ask
    for them in turn.
    """
    if not looks_like_zip(source):
        return None
    for archive in _read_last:
        if archive.file is source:
            return archive
    try:
        archive = read_zip(source)
    except ReadError:
        return None
    _read_last[:] = [archive]
    return archive


def forget_archive() -> None:
    """Let go of the last archive."""
    _read_last.clear()


def is_torchscript(archive: ZipArchive) -> bool:
    """Return whether ``torch.load`` would take the archive for TorchScript: it has constants."""
    return archive.get(CONSTANTS) is not None


def _is_torch_zip(archive: ZipArchive) -> bool:
    """Return whether an archive holds a pickle where ``torch.load`` looks for it."""
    return archive.get(PICKLE) is not None


def read_torch_zip(file: Source, archive: ZipArchive, limits: Limits) -> Checkpoint:
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
        are = "storage record" if count == 1 else "storage records"
        used = "is" if count == 1 else "are"
        notes.append(f"{count} {are} of {size} bytes {used} used by nothing")
    checkpoint = assemble(
        parsed.root,
        sources=(file,),
        format="torch-zip",
        container=container,
        notes=tuple(notes),
        unwritable=not_in_graph(parsed, len(data)),
        names=parsed.globals,
        opcodes=parsed.rare,
        limits=limits,
    )
    checkpoint = with_arrays(checkpoint, limits)
    return _noting_unlisted(checkpoint, storages.by_key.values())


def with_arrays(checkpoint: Checkpoint, limits: Limits) -> Checkpoint:
    """Return the checkpoint; one that holds numpy's arrays instead of weights, with tensors."""
    if checkpoint.state_dicts or not any(name.startswith("numpy") for name in checkpoint.globals):
        return checkpoint
    from ckpt_surgery.torch_objects.arrays import reassembled

    return reassembled(checkpoint, limits)


def _noting_unlisted(checkpoint: Checkpoint, storages: Iterable[Storage]) -> Checkpoint:
    """`checkpoint` with a note of the storages that none of its tensors is in, if there are any.

    They belong to objects that are not understood, or to what a module has beside its state dict,
    which is not said here.
    """
    if checkpoint.format == "torch-module":
        return checkpoint
    listed: set[int] = set()
    for tensor in checkpoint.all_tensors:
        listed.add(id(tensor.storage))
        if tensor.parts:
            listed.update(id(part.storage) for part in tensor.strided_parts())
    unlisted = [storage for storage in storages if id(storage) not in listed]
    if not unlisted:
        return checkpoint
    nbytes = sum(storage.nbytes for storage in unlisted)
    note = f"{len(unlisted)} storages of {nbytes} bytes are in no tensor that is listed"
    return replace(checkpoint, notes=(*checkpoint.notes, note))


def not_in_graph(parsed: Parsed, nbytes: int) -> str:
    """Return what of a pickle is not in its graph, so that writing it would lose it."""
    if parsed.lost:
        return f"its pickle calls '{parsed.lost[0].name}' and throws the result away"
    if parsed.end != nbytes:
        return f"{nbytes - parsed.end} bytes follow the end of its pickle"
    return ""


class StorageRecords:
    """Resolves the persistent ids of an archive's pickle to the records in `folder`.

    `of_script` takes the classes that only TorchScript's writer names.
    """

    def __init__(
        self, archive: ZipArchive, folder: str = STORAGE_FOLDER, *, of_script: bool = False
    ) -> None:
        self.archive = archive
        self._of_script = of_script
        self.folder = folder
        self.by_key: dict[str, Storage] = {}
        order = archive.get("byteorder")
        self.big_endian = order is not None and order.read(_SMALL) == b"big"

    def load(self, pid: Node) -> PersistentId:
        """Return a reference to the storage that `pid` names.

        Raises `DamagedFileError` if it names none, or one of another size or element type.
        """
        wanted = parse_storage_id(pid, of_script=self._of_script)
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
    versions = [r for name in ("version", ".data/version") if (r := archive.get(name)) is not None]
    for record in versions:
        text = record.read(_SMALL).strip()
        if not text.isdigit() or not 1 <= int(text[:9]) <= 10:
            raise DamagedFileError(
                "unknown version of torch's archive", path=archive.file.name, entry=record.name
            )
    if not versions:
        raise DamagedFileError("the record is missing", path=archive.file.name, entry="version")
    for name in (".format_version", SERIALIZATION_ID):
        archive.get(name)  # torch looks for them; refused under a name of another case
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
        if record.name.startswith(STORAGE_FOLDER):
            started = True
            storage = storages.by_key.get(record.name[len(STORAGE_FOLDER) :])
            if storage is None:
                idle.append(item)
            else:
                used.append(storage)
        elif started or record.name in ("version", SERIALIZATION_ID):
            after.append(item)
        else:
            before.append(item)
    original = tuple((record.name, record.data) for record in archive.records)
    return Container(archive.root, tuple(before), tuple(used), tuple(after), tuple(idle), original)
