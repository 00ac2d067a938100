"""Whether an output holds already what would be written."""

from __future__ import annotations

from pathlib import Path

from ckpt_surgery.errors import PathLike
from ckpt_surgery.fileio.unchanged import holds
from ckpt_surgery.formats.base import Layout


def holds_layout(path: PathLike, layout: Layout) -> bool:
    """Return whether the file or directory `path` holds what `layout` writes, and nothing else."""
    if not layout.is_directory:
        return holds(path, layout.nbytes, layout.files[0].write)
    folder = Path(path)
    if not folder.is_dir():
        return False
    found = {each.relative_to(folder).as_posix() for each in folder.rglob("*") if _is_file(each)}
    return found == {file.name for file in layout.files} and all(
        holds(folder / file.name, file.nbytes, file.write) for file in layout.files
    )


def _is_file(found: Path) -> bool:
    """Return whether it counts: a folder does not, a link to one does."""
    return found.is_symlink() or not found.is_dir()
