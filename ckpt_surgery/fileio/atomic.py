"""Where bytes go: files that appear whole or not at all, and streams.

Bytes that come unchanged from a file are copied by the kernel where that is faster.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ckpt_surgery.errors import PathLike, WriteError
from ckpt_surgery.fileio.file_sink import FileSink, StreamSink
from ckpt_surgery.fileio.os_errors import cannot, reported
from ckpt_surgery.fileio.sink import Progress, Sink
from ckpt_surgery.fileio.sources import Source, is_at

_NAME_MAX: Final = 255  # bytes of a file name on the common file systems
_CREATE_FLAGS: Final = (
    os.O_WRONLY
    | os.O_CREAT
    | os.O_EXCL
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_BINARY", 0)
)
_PERMISSIONS: Final = 0o777  # set-user-ID bits were given to another file's content
_ONE_AT_A_TIME: Final = "nothing was written; run the command again"
_NO_LINKS: Final = {
    errno.EPERM,
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
    errno.ENOSYS,
    errno.EMLINK,
    errno.EINVAL,
}


@contextmanager
def atomic_output(
    path: PathLike,
    *,
    force: bool = False,
    replacing: Source | None = None,
    inputs: Iterable[Source] = (),
    fsync: bool | None = None,
    progress: Progress | None = None,
) -> Iterator[Sink]:
    """Write the file at `path`, which appears complete when the block ends, or not at all.

    An existing file is replaced only with `force`, or if it is the file `replacing`; through a
    symbolic link the file that it leads to is replaced. A new file has the mode bits that the
    umask gives, a replacing one the permissions (and if allowed the owner) of the replaced, never
    its set-user-ID bits. `fsync` says
    whether the bytes must have reached the disk; by default only if a file is replaced. A
    terminal, a null device or a named pipe is written to directly.

    Raises WriteError if the output exists, is one of `inputs`, or cannot be written, and if
    `replacing` is no longer the file at `path`, as it was read, when the new one takes its place.
    """
    name = os.fspath(path)
    target, existing = _resolve(name)
    if existing is not None and (stat.S_ISCHR(existing.st_mode) or stat.S_ISFIFO(existing.st_mode)):
        # Opened without O_CREAT and never renamed over: a device stays what it is.
        with _open_stream(name) as fd, stream_output(fd, name=name, progress=progress) as sink:
            yield sink
        return
    _check_existing(name, existing, force=force, replacing=replacing, inputs=inputs)
    durable = existing is not None if fsync is None else fsync
    temporary = hidden_beside(target)
    try:
        # Mode bits that the kernel gives are right from the start, default ACLs included.
        with create_new(temporary, 0o666 if existing is None else 0o600, name) as file:
            sink = FileSink(file.fileno(), name=name, progress=progress)
            yield sink
            sink.finish()
            with reported(name):
                if existing is not None:
                    _inherit(file.fileno(), temporary, existing)
                if durable:
                    os.fsync(file.fileno())
                file.close()
        with nobody_else_replaces(replacing, target, name), reported(name):
            _publish(temporary, target, name, replace=existing is not None)
        if durable:
            fsync_directory(target.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextmanager
def stream_output(
    fd: int,
    *,
    name: str = "<stdout>",
    inputs: Iterable[Source] = (),
    progress: Progress | None = None,
) -> Iterator[Sink]:
    """Write to an open descriptor, which stays open; what was written is flushed at the end.

    Raises WriteError if the descriptor is one of the `inputs`, which would change while it is
    read.
    """
    status = os.fstat(fd)
    for source in inputs:
        if stat.S_ISREG(status.st_mode) and source.identity == (status.st_dev, status.st_ino):
            raise WriteError("the output is the input", path=name)
    sink = StreamSink(fd, name=name, progress=progress)
    yield sink
    sink.finish()


def _resolve(name: str) -> tuple[Path, os.stat_result | None]:
    """Return the file that `name` leads to through links, and its status if it exists."""
    with reported(name):
        # Asked by its name first: what /dev/stdout leads to need not have another.
        try:
            existing = Path(name).stat()
        except FileNotFoundError:
            existing = None
        target = Path(os.path.realpath(name))
    if name.endswith(os.sep) or (existing is not None and stat.S_ISDIR(existing.st_mode)):
        raise WriteError("is a directory", path=name)
    if existing is None and not target.parent.is_dir():
        raise WriteError(f"the directory '{target.parent}' does not exist", path=name)
    return target, existing


def _check_existing(
    name: str,
    existing: os.stat_result | None,
    *,
    force: bool,
    replacing: Source | None,
    inputs: Iterable[Source],
) -> None:
    if replacing is not None and not is_at(replacing, name):
        raise WriteError("is no longer the file that was read", path=name)
    if existing is None or replacing is not None:
        return
    if not stat.S_ISREG(existing.st_mode):
        raise WriteError("is not a regular file", path=name)
    if any(is_at(source, name) for source in inputs):
        raise WriteError(
            "the output is the input", path=name, hint="give --in-place to replace the input"
        )
    if not force:
        raise WriteError("already exists", path=name, hint="give --force to replace it")


def hidden_beside(target: Path) -> Path:
    """Return a hidden name in the same directory, and so on the same file system."""
    token = f".{os.urandom(6).hex()}.tmp"
    stem = os.fsencode(f".{target.name}")[: _NAME_MAX - len(token)].decode("utf-8", "ignore")
    return target.with_name(stem + token)


def create_new(temporary: Path, mode: int, name: str) -> io.FileIO:
    """Open a file that does not exist yet, for what messages call `name`. Raises WriteError."""
    try:
        return io.FileIO(os.open(temporary, _CREATE_FLAGS, mode), "wb")
    except OSError as error:
        raise WriteError(
            cannot("be written", error),
            path=name,
            hint=f"it is written beside first, so '{temporary.parent}' must allow new files",
        ) from error


@contextmanager
def _open_stream(name: str) -> Iterator[int]:
    with reported(name):
        fd = os.open(name, os.O_WRONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
    try:
        yield fd
    finally:
        os.close(fd)


def _inherit(fd: int, temporary: Path, replaced: os.stat_result) -> None:
    """Take over the owner and the mode bits of the replaced file, as far as that is permitted."""
    if hasattr(os, "fchown"):
        mine = os.fstat(fd)
        if (mine.st_uid, mine.st_gid) != (replaced.st_uid, replaced.st_gid):
            with contextlib.suppress(PermissionError):
                os.fchown(fd, replaced.st_uid, replaced.st_gid)
    with contextlib.suppress(PermissionError):
        if hasattr(os, "fchmod"):
            os.fchmod(fd, stat.S_IMODE(replaced.st_mode) & _PERMISSIONS)
        else:  # pragma: no cover (Windows)
            temporary.chmod(stat.S_IMODE(replaced.st_mode))


def _publish(temporary: Path, target: Path, name: str, *, replace: bool) -> None:
    """Give the finished file its name; without `replace` only if nobody else has it by now."""
    if replace:
        temporary.replace(target)
        return
    try:
        if os.name == "nt":  # pragma: no cover
            temporary.rename(target)  # which fails on Windows if the target exists
        else:
            target.hardlink_to(temporary)
    except FileExistsError as error:
        raise WriteError(
            "another program created it meanwhile",
            path=name,
            hint="give --force to replace it",
        ) from error
    except OSError as error:
        if error.errno not in _NO_LINKS or os.path.lexists(target):
            raise
        temporary.replace(target)


@contextmanager
def nobody_else_replaces(source: Source | None, target: Path, name: str) -> Iterator[None]:
    """Hold off whoever else edits `source` in place, which must still be at `target`, unchanged.

    The lock lies on what is replaced, so that of two edits at once the second finds another file
    in its place when it gets the lock. It closes the time between the last look and the rename.
    """
    if source is None:
        yield
        return
    with _locked(target, name):
        if not is_at(source, target):
            raise WriteError(
                "is no longer what was read: another program replaced it meanwhile",
                path=name,
                hint=_ONE_AT_A_TIME,
            )
        source.require_unchanged()
        if os.name == "nt":  # pragma: no cover
            source.close()  # Windows replaces no file that is open
        yield


@contextmanager
def _locked(target: Path, name: str) -> Iterator[None]:
    """Lock a file or directory as far as the system can.

    Raises WriteError if another program has locked it.
    """
    try:
        import fcntl
    except ImportError:  # pragma: no cover (Windows)
        yield
        return
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # gone, which the next look finds; or without locks
            fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise WriteError(
                    "another program holds a lock on it", path=name, hint=_ONE_AT_A_TIME
                ) from None
        yield


def fsync_directory(directory: Path) -> None:
    """Make a new name last; a system that cannot open or sync directories does so by itself."""
    with contextlib.suppress(OSError):
        fd = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
