"""Reading checkpoints of every format, found from their content, and writing them."""

from __future__ import annotations

from typing import Final

from ckpt_surgery.checkpoint import Checkpoint
from ckpt_surgery.errors import CkptError, PathLike, UnknownFormatError
from ckpt_surgery.fileio import SourceFile, looks_like_zip, read_zip
from ckpt_surgery.formats.assemble import entry_counts, holds_optimizer, is_training_state
from ckpt_surgery.formats.mappings import named_items
from ckpt_surgery.formats.torch_zip import (
    is_torch_zip,
    is_torchscript,
    lay_out_torch_zip,
    read_torch_zip,
)
from ckpt_surgery.garbage import collector_paused
from ckpt_surgery.pickles import DEFAULT_LIMITS, Limits

# What files that are no checkpoints begin with, for a helpful message.
_OTHER_FORMATS: Final = (
    (b"\x1f\x8b", "gzip data", "decompress it first: gzip -dc FILE | ckpt …"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "extract it first"),
    (b"BZh", "bzip2 data", "decompress it first: bzip2 -dc FILE | ckpt …"),
    (b"\xfd7zXZ", "xz data", "decompress it first: xz -dc FILE | ckpt …"),
    (b"\x93NUMPY", "a numpy array", None),
    (b"\x89HDF", "an HDF5 file", None),
    (b"GGUF", "a GGUF file", None),
    (b"PYTORCH1", "a preview format of torch that no release reads", None),
    (b"version https://git-lfs", "a Git LFS pointer, not the file", "run: git lfs pull"),
    (b"<", "a web page or XML, not a checkpoint", "the download may have failed"),
)


def read(source: PathLike | SourceFile, *, limits: Limits = DEFAULT_LIMITS) -> Checkpoint:
    """Describe the checkpoint in a file, without running it and without reading tensor bytes.

    The checkpoint keeps the file open, since its tensors' bytes would come from there: close it,
    or use it in a ``with`` statement. Raises `ReadError` if the file cannot be read, and its
    subclasses `UnknownFormatError`, `DamagedFileError` and `LimitExceededError`.
    """
    file = source if isinstance(source, SourceFile) else SourceFile.open(source)
    try:
        with collector_paused():
            return _read(file, limits)
    except CkptError as error:
        if error.path is None:
            error.name_file(file.name)
        file.close()
        raise


def _read(file: SourceFile, limits: Limits) -> Checkpoint:
    if looks_like_zip(file):
        archive = read_zip(file)
        if is_torchscript(archive):
            from ckpt_surgery.formats.torchscript import read_torchscript

            return read_torchscript(file, archive, limits)
        if is_torch_zip(archive):
            return read_torch_zip(file, archive, limits)
        raise UnknownFormatError("a zip archive without 'data.pkl', not one of torch.save")
    # Most files are archives, and need not wait for what reads the others to be imported.
    from ckpt_surgery.formats.legacy import looks_like_legacy, read_legacy
    from ckpt_surgery.formats.safetensors import looks_like_safetensors, read_safetensors
    from ckpt_surgery.formats.tar import looks_like_tar, read_tar

    if looks_like_legacy(file):
        return read_legacy(file, limits)
    if looks_like_tar(file):
        return read_tar(file, limits)
    if looks_like_safetensors(file):
        return read_safetensors(file, limits)
    raise _unknown(file)


def _unknown(file: SourceFile) -> UnknownFormatError:
    if file.size == 0:
        return UnknownFormatError("the file is empty", hint="the save or download did not finish")
    start = file.read_at(0, min(file.size, 64))
    for magic, what, hint in _OTHER_FORMATS:
        if start.startswith(magic):
            return UnknownFormatError(f"this is {what}", hint=hint)
    if start[:1] == b"\x80" and start[1:2] in {b"\0", b"\1", b"\2", b"\3", b"\4", b"\5"}:
        return UnknownFormatError(
            "a plain pickle, not a file of torch.save",
            hint="only what torch.save, torch.jit.save or safetensors wrote can be read",
        )
    return UnknownFormatError("not a checkpoint of any known format")


__all__ = [
    "entry_counts",
    "holds_optimizer",
    "is_training_state",
    "lay_out_torch_zip",
    "named_items",
    "read",
]
