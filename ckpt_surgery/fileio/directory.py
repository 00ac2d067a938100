"""A directory whose files are read, as a format that keeps checkpoints in one finds it."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import PurePath, PurePosixPath
from typing import Final

from ckpt_surgery.errors import DamagedFileError, LimitExceededError, PathLike, ReadError
from ckpt_surgery.fileio.os_errors import cannot
from ckpt_surgery.fileio.sources import FileIdentity, FileSource

_MOST_FILES: Final = 100_000
"""Files that are listed: a checkpoint has thousands, a wrong directory any number."""


class DirectorySource:
    """A directory and its files, which are opened by safe relative names only.

    `name` is what messages call it, `path` where it lies, `size` the bytes of all its files.
    Closing it closes the files that were opened through it. A snapshot in the cache of
    huggingface_hub is made of links into the ``blobs`` beside it: those are its files as well.
    """

    def __init__(self, name: str, label: str | None = None) -> None:
        self.name = name if label is None else label
        self.path = name
        status = os.stat(name)  # noqa: PTH116
        self.identity: FileIdentity | None = (status.st_dev, status.st_ino)
        self._root = os.path.realpath(name)
        self._sizes = _listed(self._root, name)
        self._opened: dict[str, FileSource] = {}
        self.size = sum(self._sizes.values())

    @classmethod
    def open(cls, path: PathLike, label: str | None = None) -> DirectorySource:
        """Open the directory at `path`, which messages call `label` if there is one.

        Raises `ReadError` if it cannot be listed.
        """
        name = os.fspath(path)
        try:
            return cls(name, label)
        except OSError as error:
            raise ReadError(cannot("be read", error), path=name) from error

    def __repr__(self) -> str:
        return f"DirectorySource({self.name!r}, {len(self._sizes)} files)"

    @property
    def names(self) -> list[str]:
        """The files in it, by their names relative to it with ``/``, sorted."""
        return list(self._sizes)

    def member(self, relative: str) -> FileSource:
        """Open a file in it, once; a second call returns the same.

        Raises `DamagedFileError` if the name leads out of the directory, through a link too, or
        if there is no such file, and `ReadError` if it cannot be opened.
        """
        if relative not in self._opened:
            self._opened[relative] = self._open(relative)
        return self._opened[relative]

    def _open(self, relative: str) -> FileSource:
        require_below(relative, self.name)
        if relative not in self._sizes and not self._leads_inside(relative):
            raise DamagedFileError(
                "the file is missing",
                path=self.name,
                entry=relative,
                hint="the files of a checkpoint are to lie beside each other",
            )
        return FileSource.open(os.path.join(self.path, relative))  # noqa: PTH118

    def _leads_inside(self, relative: str) -> bool:
        """Return whether the name is a link, or goes through some, to a file that lies inside."""
        target = os.path.realpath(os.path.join(self._root, relative))  # noqa: PTH118
        if not os.path.isfile(target):  # noqa: PTH113
            return False
        if os.path.commonpath([target, self._root]) != self._root:
            raise DamagedFileError(
                "the file is a link that leads out of the directory",
                path=self.name,
                entry=relative,
            )
        return True

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """Raise `ReadError`: only its files have bytes."""
        del offset, nbytes
        raise ReadError("is a directory", path=self.name)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Raise `ReadError`: only its files have bytes."""
        self.read_at(offset, buffer.nbytes)

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Raise `ReadError`: only its files have bytes."""
        return [self.read_at(*each) for each in ranges]

    def descriptor_at(self, offset: int) -> None:
        """Return None: its bytes lie in no one file."""

    def require_unchanged(self) -> None:
        """Raise `ReadError` if a file that was opened through it changed."""
        for file in self._opened.values():
            file.require_unchanged()

    def close(self) -> None:
        """Close every file that was opened through it."""
        for file in self._opened.values():
            file.close()


def require_below(relative: str, name: str) -> None:
    """Raise `DamagedFileError` unless `relative` names something below the directory `name`.

    No absolute path, drive, backslash, null character or ``..``, whatever the system makes of it.
    """
    parts = PurePosixPath(relative).parts
    unsafe = not parts or relative.startswith("/") or ".." in parts
    if unsafe or any(character in relative for character in "\\:\0"):
        raise DamagedFileError(
            "the name of a file leads out of the directory", path=name, entry=relative
        )


def _blobs_of(root: str) -> str | None:
    """Return the directory of a cached repository's files if `root` is a snapshot of it."""
    snapshots = PurePath(root).parent
    blobs = str(snapshots.parent / "blobs")
    found = snapshots.name == "snapshots" and os.path.realpath(blobs) == blobs
    return blobs if found else None


def _size_of_blob(link: str, blobs: str | None) -> int | None:
    """Return the size of the file in `blobs` that `link` leads to; None if it leads elsewhere."""
    if blobs is None:
        return None
    target = os.path.realpath(link)
    if os.path.dirname(target) != blobs or not os.path.isfile(target):  # noqa: PTH113, PTH120
        return None
    return os.stat(target).st_size  # noqa: PTH116


def _listed(root: str, name: str) -> dict[str, int]:
    """Return the sizes of the regular files below `root` by relative name.

    Links are not followed, except those of a snapshot to the files of its repository.
    """
    blobs = _blobs_of(root)
    sizes: dict[str, int] = {}
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        with os.scandir(os.path.join(root, folder)) as entries:  # noqa: PTH118
            for entry in entries:
                relative = f"{folder}{entry.name}"
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(f"{relative}/")
                elif stat.S_ISREG(status.st_mode):
                    sizes[relative] = status.st_size
                elif stat.S_ISLNK(status.st_mode):
                    size = _size_of_blob(entry.path, blobs)
                    if size is not None:
                        sizes[relative] = size
                if len(sizes) + len(waiting) > _MOST_FILES:
                    raise LimitExceededError(
                        f"more than {_MOST_FILES} files in it",
                        path=name,
                        hint="name the checkpoint file in it",
                    )
    return dict(sorted(sizes.items()))
