"""The records of an archive of ``torch.save`` by their names, and what it has beside its pickle."""

from __future__ import annotations

from ckpt_surgery.checkpoint.description import Storage
from ckpt_surgery.fileio import Bytes, ByteSource
from ckpt_surgery.startup.lazy_dataclass import dataclass

PICKLE = "data.pkl"
CONSTANTS = "constants.pkl"
SERIALIZATION_ID = ".data/serialization_id"
STORAGE_FOLDER = "data/"


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
        return 64 if record is None else int(content(record))


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
    after=(("version", Bytes(b"3\n")), (SERIALIZATION_ID, Bytes(b""))),
)


def content(source: ByteSource) -> bytes:
    """Return all bytes of a small record."""
    return b"".join(source.chunks())
