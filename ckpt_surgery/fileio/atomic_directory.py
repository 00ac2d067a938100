"""Directories that appear with all their files, or not at all.

The files are written into a hidden directory beside the target, which gets its name at the end. A
replaced directory is exchanged with the new one at once where the system can do that (Linux), and
otherwise moved aside first and moved back if the new one cannot take its place.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, TypeAlias

from ckpt_surgery.errors import PathLike, WriteError
from ckpt_surgery.fileio.atomic import (
    create_new,
    fsync_directory,
    hidden_beside,
    nobody_else_replaces,
)
from ckpt_surgery.fileio.directory import require_below
from ckpt_surgery.fileio.file_sink import FileSink
from ckpt_surgery.fileio.os_errors import reported
from ckpt_surgery.fileio.sink import Progress, Sink
from ckpt_surgery.fileio.sources import Source, is_at

_OpenFile: TypeAlias = Callable[[str], AbstractContextManager[Sink]]
"""Opens a new file of the directory by its relative name, to be written and then closed."""

_MOST_NAMED: Final = 3
_AT_FDCWD: Final = -100
_EXCHANGE: Final = 2  # RENAME_EXCHANGE of linux/fs.h


@contextmanager
def atomic_directory(
    path: PathLike,
    *,
    force: bool = False,
    replacing: Source | None = None,
    inputs: Iterable[Source] = (),
    replaceable: Iterable[str] = (),
    fsync: bool | None = None,
    progress: Progress | None = None,
) -> Iterator[_OpenFile]:
    """Write the directory at `path`, which appears complete when the block ends, or not at all.

    An existing directory is replaced only with `force`, or if it is the directory `replacing`, and
    only if each of its files matches one of the glob patterns `replaceable`: nothing else gets
    lost. An empty one is replaced without. `fsync` says whether all bytes must have reached the
    disk; by default only if a directory is replaced.

    Raises WriteError if that is not so, if the output is one of `inputs`, or if it cannot be
    written.
    """
    name = os.fspath(path)
    target = _resolved(name)
    exists = os.path.lexists(target)
    if exists:
        _check_existing(name, target, force, replacing, inputs, tuple(replaceable))
    durable = exists if fsync is None else fsync
    temporary = hidden_beside(target)
    try:
        with reported(name):
            temporary.mkdir()
        yield lambda relative: _new_file(temporary, relative, name, durable, progress)
        with reported(name):
            if exists:
                shutil.copymode(target, temporary)
            if durable:
                _fsync_all(temporary)
            with nobody_else_replaces(replacing, target, name):
                _publish(temporary, target, name, exists=exists)
            if durable:
                fsync_directory(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _resolved(name: str) -> Path:
    """Return the directory that `name` leads to through links, or would."""
    with reported(name):
        target = Path(os.path.realpath(name))
    if not target.parent.is_dir():
        raise WriteError(f"the directory '{target.parent}' does not exist", path=name)
    if target.exists() and not target.is_dir():
        raise WriteError("is a file, and the output is a directory", path=name)
    return target


def _check_existing(
    name: str,
    target: Path,
    force: bool,
    replacing: Source | None,
    inputs: Iterable[Source],
    replaceable: tuple[str, ...],
) -> None:
    if replacing is not None and not is_at(replacing, name):
        raise WriteError("is no longer the directory that was read", path=name)
    with reported(name):
        found = sorted(each for each in target.rglob("*") if _is_file(each))
    files = [each.relative_to(target).as_posix() for each in found]
    if replacing is None and files:
        if any(is_at(source, name) for source in inputs):
            raise WriteError(
                "the output is the input", path=name, hint="give --in-place to replace the input"
            )
        if not force:
            raise WriteError("already exists", path=name, hint="give --force to replace it")
    others = [f for f in files if not any(fnmatchcase(f, each) for each in replaceable)]
    if others:
        named = ", ".join(f"'{other}'" for other in others[:_MOST_NAMED])
        more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
        raise WriteError(
            f"replacing it would remove what is no part of a checkpoint: {named}{more}",
            path=name,
            hint="name a new directory",
        )


def _is_file(found: Path) -> bool:
    """Return whether removing it would remove more than a folder: links count."""
    return found.is_symlink() or not found.is_dir()


@contextmanager
def _new_file(
    directory: Path,
    relative: str,
    name: str,
    durable: bool,
    progress: Progress | None,
) -> Iterator[Sink]:
    require_below(relative, name)
    file = directory / relative
    with reported(name):
        file.parent.mkdir(parents=True, exist_ok=True)
    with create_new(file, 0o666, name) as opened:
        sink = FileSink(opened.fileno(), name=f"{name}/{relative}", progress=progress)
        yield sink
        sink.finish()
        if durable:
            with reported(name):
                os.fsync(opened.fileno())


def _fsync_all(directory: Path) -> None:
    for folder, _, _ in os.walk(directory):
        fsync_directory(Path(folder))


def _publish(temporary: Path, target: Path, name: str, *, exists: bool) -> None:
    """Give the finished directory its name; what it replaces is then called `temporary`."""
    if not exists:
        if os.path.lexists(target):
            raise WriteError(
                "another program created it meanwhile",
                path=name,
                hint="give --force to replace it",
            )
        temporary.rename(target)
        return
    if _exchanged(temporary, target):
        return
    aside = hidden_beside(target)
    target.rename(aside)
    try:
        temporary.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    with contextlib.suppress(OSError):
        aside.rename(temporary)


def _exchanged(temporary: Path, target: Path) -> bool:
    """Let two directories change their names at once; False if the system cannot."""
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(temporary), os.fsencode(target)
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) == 0)
