"""A member of an archive as a source that knows the archive, so that it can be put back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from ckpt_surgery.fileio.sources import FileSource, PartSource, Source

if TYPE_CHECKING:
    from ckpt_surgery.fileio.sink import Progress, Sink

_PutBack = Callable[
    ["Iterable[Source]", "bool | None", "Progress | None"], "AbstractContextManager[Sink]"
]
"""Called with the inputs of a run, `fsync` and `progress`, as `atomic_output` has them."""


class MemberSource(PartSource):
    """All of `content`, which is a member of the file `archive`; closing it closes both.

    `check` raises `DamagedFileError` if the content is not that of the archive's checksum.
    `put_back` gives a sink for new content, and replaces the archive by one that holds it.
    """

    def __init__(
        self,
        content: Source,
        archive: FileSource,
        *,
        name: str,
        check: Callable[[], None],
        put_back: _PutBack,
    ) -> None:
        super().__init__(content, 0, content.size, name=name)
        self._archive = archive
        self._check: Callable[[], None] | None = check
        self.put_back = put_back

    @property
    def can_be_put_back(self) -> bool:
        """Whether the archive is a file, and not what a pipe held."""
        return self._archive.path is not None

    def require_unchanged(self) -> None:
        """Raise ReadError if the archive changed."""
        self._archive.require_unchanged()

    def require_whole(self) -> None:
        """Raise DamagedFileError if it is not what the archive's checksum says; looks once."""
        check, self._check = self._check, None
        if check is not None:
            check()

    def close(self) -> None:
        """Close the member and its archive."""
        super().close()
        self._archive.close()


def require_whole_members(sources: Iterable[Source]) -> None:
    """Raise DamagedFileError if a member among `sources` is not what its archive's checksum says.

    For whoever reads all of them; one that is only described is not looked at.
    """
    for source in sources:
        if isinstance(source, MemberSource):
            source.require_whole()
