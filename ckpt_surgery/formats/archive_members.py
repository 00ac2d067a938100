"""Members of archives that other programs make around checkpoints: ``model.zip:policy.pth``.

Zip archives (stable-baselines3, torchserve) and tar archives, also compressed ones (AllenNLP). The
standard library's readers serve here: which bytes a name means is checked for being unambiguous,
and what a member holds is read as strictly as any file. A member that is stored is read where it
lies; one that is deflated, and a compressed archive, become an anonymous temporary file.
`archive_rewrite` puts a member back that was edited.
"""

from __future__ import annotations

import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

from ckpt_surgery.errors import (
    CkptError,
    DamagedFileError,
    LimitExceededError,
    ReadError,
    UnknownFormatError,
)
from ckpt_surgery.fileio import ByteRange, FileSource, PartSource, Source, looks_like_zip
from ckpt_surgery.fileio.member import MemberSource
from ckpt_surgery.fileio.zip_structs import LOCAL_MAGIC
from ckpt_surgery.formats import registry
from ckpt_surgery.formats.streams import decompressed, file_of, is_compressed, spooled
from ckpt_surgery.formats.tar_header import TAR_BLOCK, is_tar_header
from ckpt_surgery.pickles import DEFAULT_LIMITS
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    from ckpt_surgery.fileio.sink import Progress, Sink

SEPARATOR: Final = ":"
"""What stands between an archive and its member."""

_ALWAYS: Final = 1 << 30  # bytes that any member may become
_MOST_TIMES: Final = 100  # and a larger one this many times what it takes in the archive
_LOCAL_HEADER: Final = 30  # bytes of a zip member's own header in front of its name
_LOOKED_INTO: Final = 100  # members, of which it is found out whether they are checkpoints
_LOOKED_BYTES: Final = 64 << 20  # bytes that may be decompressed to find that out
_LISTED: Final = 8
_ONLY_LEADS: Final = frozenset({"compressed", "safetensors-index", "torch-index"})
_OF_TORCH: Final = ("data.pkl", "constants.pkl", "archive_format")
# Of torch as well, but called as files of others may be: they count where no checkpoint is found.
_BESIDE_PICKLE: Final = ("version", "byteorder", ".format_version")
_TRUNCATED: Final = "the file is truncated"
_ENDS: Final = (
    "unexpected end of data",
    "bad subsequent header",
    "empty header",
)  # of tarfile's messages
_OTHER: Final = "zip and tar archives have members, also compressed ones"
BROKEN: Final = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, NotImplementedError, EOFError,
    RuntimeError, ValueError, OSError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive; `opened` gives its bytes under the name that messages call it.

    `crc32` is the checksum that the archive has of it, None if it has none.
    """

    name: str
    nbytes: int
    is_stored: bool
    opened: Callable[[str], Source]
    info: zipfile.ZipInfo | tarfile.TarInfo
    crc32: int | None = None
    is_encrypted: bool = False


def open_member(path: str) -> Source | None:
    """Open ``ARCHIVE:MEMBER``; None if no part of `path` before a colon is a file.

    Raises `ReadError` if the file is no archive or has no such member, `DamagedFileError` if
    either is damaged or if two members have the name, and `LimitExceededError` for one that becomes
    far more than it is.
    """
    places = (at for at, sign in enumerate(path) if sign == SEPARATOR and at)
    at = next((at for at in places if os.path.isfile(path[:at])), None)  # noqa: PTH113
    if at is None:
        return None
    archive = FileSource.open(path[:at])
    whole: Source = archive
    try:
        if is_compressed(archive):
            whole = decompressed(archive)
        member = _named(whole, path[at + 1 :])
        content = member.opened(path)
    except BaseException:
        whole.close()
        archive.close()
        raise

    def put_back(
        inputs: Iterable[Source], fsync: bool | None, progress: Progress | None
    ) -> AbstractContextManager[Sink]:
        from ckpt_surgery.formats.archive_rewrite import new_content

        return new_content(
            archive, member.info, whole, inputs=inputs, fsync=fsync, progress=progress
        )

    return MemberSource(
        content,
        archive,
        name=path,
        check=lambda: _require_checksum(content, member),
        put_back=put_back,
    )


def _require_checksum(content: Source, member: Member) -> None:
    """Raise `DamagedFileError` if a stored member of a zip archive is not as its checksum says.

    One that was inflated, and a compressed archive, were compared when they were read.
    """
    if member.is_stored and member.crc32 is not None:
        from ckpt_surgery.fileio.record_sums import crc32_of

        if [*crc32_of([ByteRange(content, 0, content.size)])] != [member.crc32]:
            raise DamagedFileError(
                "the member does not match its checksum in the archive", path=content.name
            )


def member_in(source: Source, name: str, label: str) -> Source:
    """Return a member of an archive that is not compressed, called `label` in messages.

    Raises as `open_member` does. A member that is stored is a part of `source`, and closes it.
    """
    return _named(source, name).opened(label)


def describe_archive(source: Source) -> CkptError | None:
    """Return the error for an archive of other files, which names the checkpoints in it.

    None if it is no archive, a damaged one, or torch's own.
    """
    try:
        members = members_of(source)
    except ReadError as error:
        is_ours = error.hint == _TRUNCATED or not looks_like_zip(source)
        return error if is_ours else None
    if not members or is_of_torch([member.name for member in members]):
        return None
    kind = "zip" if looks_like_zip(source) else "tar"
    files = f"{len(members)} file{'' if len(members) == 1 else 's'}"
    if not os.path.isfile(source.name):  # noqa: PTH113 - standard input, an archive in another
        return UnknownFormatError(
            f"a {kind} archive of {files}",
            hint=f"write it to a file, and name a member as 'FILE{SEPARATOR}MEMBER'",
        )
    readable = list(_readable(members))
    if not readable:
        if any(member.name.split("/")[-1] in _BESIDE_PICKLE for member in members):
            return None
        return UnknownFormatError(
            f"a {kind} archive of {files}, in which no checkpoint was found",
            hint=f"a member is read as '{source.name}{SEPARATOR}MEMBER'; {_shown(members)}",
        )
    names = [f"'{name}'" for name in readable]
    return UnknownFormatError(
        f"a {kind} archive of {files}; checkpoints in it: {_cut(names)}",
        hint=f"name one as FILE: '{source.name}{SEPARATOR}{readable[0]}'",
    )


def is_of_torch(names: list[str]) -> bool:
    """Say whether files in an archive, of these names, are records of torch's own."""
    return any(name.split("/")[-1] in _OF_TORCH for name in names)


def _named(source: Source, name: str) -> Member:
    members = members_of(source)
    if members is None:
        raise ReadError(
            f"is no archive, and so has no member '{name}'", path=source.name, hint=_OTHER
        )
    found = [member for member in members if member.name == name]
    if not found:
        readable = [f"'{each}'" for each in _readable(members)]
        hint = f"checkpoints in it: {_cut(readable)}" if readable else _shown(members)
        raise ReadError(f"the archive has no member '{name}'", path=source.name, hint=hint)
    if len(found) > 1:
        raise DamagedFileError("two members have this name", path=source.name, entry=name)
    return found[0]


def _shown(members: list[Member]) -> str:
    names = [f"'{member.name}'" for member in members]
    return f"there are: {_cut(names)}" if names else "it has no members"


def _cut(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _readable(members: list[Member]) -> Iterator[str]:
    """Yield the names of members that hold tensors; of too large ones those with our suffixes."""
    from ckpt_surgery.formats.safetensors import Safetensors
    from ckpt_surgery.formats.torch_zip import TorchZip

    left = _LOOKED_BYTES
    for member in members[:_LOOKED_INTO]:
        if not member.is_stored:
            left -= member.nbytes
        if left < 0:
            suffix = os.path.splitext(member.name)[1].lower()  # noqa: PTH122
            if suffix in TorchZip.suffixes or suffix in Safetensors.suffixes:
                yield member.name
        elif _holds_tensors(member):
            yield member.name


def _holds_tensors(member: Member) -> bool:
    from ckpt_surgery.formats.torch_zip import forget_archive

    try:
        source = member.opened(member.name)
        found = registry.recognised(source)
        if found is None or found.name in _ONLY_LEADS:
            return False
        return any(True for _ in found.read(source, DEFAULT_LIMITS).all_tensors)
    except CkptError:
        return False
    finally:
        forget_archive()


def members_of(source: Source) -> list[Member] | None:
    """Return the files in an archive; None if `source` is none. Raises `DamagedFileError`."""
    try:
        if looks_like_zip(source):
            return list(_of_zip(source))
        block = source.read_at(0, TAR_BLOCK) if source.size >= TAR_BLOCK else b""
        if any(block) and is_tar_header(block):
            return list(_of_tar(source))
    except BROKEN as error:  # RecursionError is a RuntimeError
        raise _damaged(source, error) from error
    return None


def _of_tar(source: Source) -> Iterator[Member]:
    def opener(info: tarfile.TarInfo) -> Callable[[str], Source]:
        return lambda label: PartSource(source, info.offset_data, info.size, name=label)

    with tarfile.open(fileobj=file_of(source), mode="r:") as archive:
        for info in archive:
            if info.size < 0:  # older readers look for the next header where this one is
                raise tarfile.ReadError(f"the size of {info.name[:80]} is negative")
            if info.isreg() and not info.issparse():
                yield Member(info.name.removeprefix("./"), info.size, True, opener(info), info)


def _of_zip(source: Source) -> Iterator[Member]:
    def opener(info: zipfile.ZipInfo) -> Callable[[str], Source]:
        return lambda label: _opened(source, archive, info, label)

    archive = zipfile.ZipFile(file_of(source))  # nothing to close: the file is the source's
    infos = archive.infolist()
    if source.read_at(0, 4) == LOCAL_MAGIC and infos and min(i.header_offset for i in infos):
        raise DamagedFileError(
            "the directory does not have the first member: it is that of an archive inside",
            path=source.name,
            hint=_TRUNCATED,
        )
    for info in infos:
        if info.filename and not info.filename.endswith("/"):  # `is_dir` needs a name
            locked = bool(info.flag_bits & 1)
            stored = info.compress_type == zipfile.ZIP_STORED and not locked
            yield Member(
                info.filename,
                info.file_size,
                stored,
                opener(info),
                info,
                info.CRC,
                is_encrypted=locked,
            )


def _opened(source: Source, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Source:
    if info.file_size > max(_ALWAYS, _MOST_TIMES * info.compress_size):
        raise LimitExceededError(
            f"the member has {info.file_size} bytes, far more than it takes in the archive",
            path=source.name,
            entry=info.filename,
        )
    try:
        with archive.open(info) as stream:  # compares the local header with the directory
            if info.compress_type == zipfile.ZIP_STORED:
                return PartSource(source, _data_start(source, info), info.file_size, name=name)
            found = spooled(stream, source, name)
    except BROKEN as error:
        raise _damaged(source, error) from error
    if found.size != info.file_size:
        found.close()
        raise DamagedFileError(
            f"does not inflate to its {info.file_size} bytes",
            path=source.name,
            entry=info.filename,
        )
    return found


def _data_start(source: Source, info: zipfile.ZipInfo) -> int:
    """Return where the bytes of a zip member begin."""
    header = source.read_at(info.header_offset, _LOCAL_HEADER)
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return info.header_offset + _LOCAL_HEADER + name + extra


def _damaged(source: Source, error: Exception) -> DamagedFileError:
    said = str(error).lower() or type(error).__name__
    hint = _TRUNCATED if any(each in said for each in _ENDS) else None
    message = f"the archive cannot be read: {said[:200]}"
    return DamagedFileError(message, path=source.name, hint=hint)
