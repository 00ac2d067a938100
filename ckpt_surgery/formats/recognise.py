"""Finding the format that recognises a source."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ckpt_surgery.errors import ReadError
from ckpt_surgery.fileio import Source
from ckpt_surgery.formats import registry

if TYPE_CHECKING:
    from ckpt_surgery.formats.base import Format


def find_format(source: Source) -> Format:
    """Return the format that recognises `source`. Raises `UnknownFormatError` if none does."""
    is_directory = source_is_directory(source)
    found = registry.recognised(source, is_directory=is_directory)
    if found is not None:
        return found
    if not is_directory:
        from ckpt_surgery.formats.pickle_scan import with_dangers
        from ckpt_surgery.formats.unknown import unknown

        raise with_dangers(unknown(source), source)
    raise ReadError("is a directory", path=source.name, hint="name the checkpoint file in it")


def source_is_directory(source: Source) -> bool:
    """Return whether `source` is a directory, without importing what reads those."""
    directories = sys.modules.get("ckpt_surgery.fileio.directory")
    return directories is not None and isinstance(source, directories.DirectorySource)
