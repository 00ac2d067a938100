"""Finding the format of a file from its content, and saying what other files are."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from ckpt_surgery.errors import (
    CkptError,
    DamagedFileError,
    LimitExceededError,
    PathLike,
    ReadError,
    about_file,
)
from ckpt_surgery.fileio import FileSource, Source
from ckpt_surgery.formats.recognise import find_format, source_is_directory
from ckpt_surgery.pickles import DEFAULT_LIMITS, Limits
from ckpt_surgery.startup.collector import collector_paused

if TYPE_CHECKING:
    from ckpt_surgery.checkpoint.description import Checkpoint

# What belongs to a checkpoint, and by itself is none.
_PART_SUFFIX: Final = ".distcp"
_METADATA: Final = ".metadata"


def read(source: PathLike | Source, *, limits: Limits = DEFAULT_LIMITS) -> Checkpoint:
    """Describe the checkpoint in a file, without running it and without reading tensor bytes.

    A directory is read if it is of a format that keeps checkpoints in one.

    The checkpoint keeps the file open, since its tensors' bytes would come from there: close it,
    or use it in a ``with`` statement. Raises `ReadError` if the file cannot be read, and its
    subclasses `UnknownFormatError`, `DamagedFileError` and `LimitExceededError`.
    """
    file = opened(source) if isinstance(source, str | os.PathLike) else source
    try:
        with about_file(file.name), collector_paused():
            return _read(file, limits)
    except DamagedFileError as error:
        if not source_is_directory(file):
            from ckpt_surgery.formats.pickle_scan import with_dangers

            with_dangers(error, file)
        file.close()
        raise
    except CkptError:
        file.close()
        raise
    except MemoryError:
        pass  # and what filled the memory is gone
    file.close()
    raise LimitExceededError(
        "out of memory: it describes more than fits",
        path=file.name,
        hint="a checkpoint's description is small: the file may be meant to fill the memory",
    )


def _read(source: Source, limits: Limits) -> Checkpoint:
    from ckpt_surgery.formats.torch_zip import forget_archive

    try:
        return find_format(source).read(source, limits)
    finally:
        forget_archive()


def opened(path: PathLike) -> Source:
    """Open a file, a directory, or a member of an archive (``model.zip:policy.pth``).

    The ``.metadata`` of a distributed checkpoint stands for its directory.
    A file whose own name has the colon comes first. Raises `ReadError` if that is not possible.
    """
    if os.path.isdir(path):  # noqa: PTH112 - a path object takes its time to import
        from ckpt_surgery.fileio.directory import DirectorySource

        return DirectorySource.open(path)
    if _stands_for_directory(path):
        return opened(os.path.dirname(path) or ".")  # noqa: PTH120
    return opened_file(path)


def _stands_for_directory(path: PathLike) -> bool:
    """Say whether `path` is the metadata beside the files of a distributed checkpoint.

    Reports call the checkpoint so.
    """
    folder, name = os.path.split(os.fspath(path))
    if name != _METADATA or not os.path.isfile(path):  # noqa: PTH113
        return False
    return any(beside.endswith(_PART_SUFFIX) for beside in os.listdir(folder or "."))  # noqa: PTH208


def opened_file(path: PathLike) -> Source:
    """Open a file or a member of an archive. Raises `ReadError` as `opened` does."""
    name = os.fspath(path)
    if ":" in name and not os.path.lexists(name):
        from ckpt_surgery.formats.archive_members import open_member

        member = open_member(name)
        if member is not None:
            return member
    return FileSource.open(path)


def is_checkpoint_directory(path: PathLike) -> bool:
    """Return whether a directory is one checkpoint, and not a folder of several."""
    with suppress(ReadError):
        source = opened(path)
        try:
            found = find_format(source)
        finally:
            source.close()
        return found.is_one(source)
    return False
