"""Reading checkpoints of every format, found from their content.

They are written by `torch_zip_layout`, which those who only read need not import.
"""

from __future__ import annotations

import os
import re
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.errors import (
    CkptError,
    DamagedFileError,
    LimitExceededError,
    PathLike,
    UnknownFormatError,
)
from ckpt_surgery.fileio import FileSource, Source, ZipArchive, looks_like_zip, read_zip
from ckpt_surgery.formats.torch_zip import (
    is_torch_zip,
    is_torchscript,
    read_torch_zip,
)
from ckpt_surgery.pickles import DEFAULT_LIMITS, Limits
from ckpt_surgery.pickles.collector import collector_paused

_DOWNLOAD: Final = "the download may have failed"
_READABLE: Final = "what torch.save, torch.jit.save and safetensors wrote can be read"
_OTHER_ARCHIVE: Final = "the zip archive is damaged, or another program's and not torch.save's"
_DECOMPRESS: Final = "decompress it first: {} -dc FILE | ckpt COMMAND"
# What files that are no checkpoints begin with, for a helpful message.
_OTHER_FORMATS: Final = (
    (b"\x1f\x8b", "gzip data", _DECOMPRESS.format("gzip")),
    (b"BZh", "bzip2 data", _DECOMPRESS.format("bzip2")),
    (b"\xfd7zXZ", "xz data", _DECOMPRESS.format("xz")),
    (b"\x28\xb5\x2f\xfd", "zstd data", _DECOMPRESS.format("zstd")),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "extract it first"),
    (b"\x93NUMPY", "a numpy array", None),
    (b"\x89HDF", "an HDF5 file", None),
    (b"GGUF", "a GGUF file", None),
    (b"\xff\xd8\xff", "a JPEG image", None),
    (b"\x89PNG", "a PNG image", None),
    (b"%PDF", "a PDF document", None),
    (b"PYTORCH1", "a preview format of torch that no release reads", None),
    (b"version https://git-lfs", "a Git LFS pointer, not the file", "run: git lfs pull"),
    (b"<", "a web page or XML, not a checkpoint", _DOWNLOAD),
    (b"{", "JSON or the like, not a checkpoint", _DOWNLOAD),
)
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_ONNX: Final = re.compile(rb"\x08[\x01-\x1f][\x12\x3a]")  # its version, then producer or graph
_TEXT: Final = re.compile(rb"[\t\n\r\x20-\x7e]+")


def read(source: PathLike | Source, *, limits: Limits = DEFAULT_LIMITS) -> Checkpoint:
    """Describe the checkpoint in a file, without running it and without reading tensor bytes.

    The checkpoint keeps the file open, since its tensors' bytes would come from there: close it,
    or use it in a ``with`` statement. Raises `ReadError` if the file cannot be read, and its
    subclasses `UnknownFormatError`, `DamagedFileError` and `LimitExceededError`.
    """
    file = FileSource.open(source) if isinstance(source, str | os.PathLike) else source
    try:
        with collector_paused():
            return _read(file, limits)
    except CkptError as error:
        if error.path is None:
            error.name_file(file.name)
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


def _read(file: Source, limits: Limits) -> Checkpoint:
    if looks_like_zip(file):
        archive = _read_archive(file)
        if is_torchscript(archive):
            from ckpt_surgery.formats.torchscript import read_torchscript

            return read_torchscript(file, archive, limits)
        if is_torch_zip(archive):
            return read_torch_zip(file, archive, limits)
        raise UnknownFormatError(
            "a zip archive without 'data.pkl', not one of torch.save", hint=_OTHER_ARCHIVE
        )
    # Most files are archives, and need not wait for what reads the others to be imported.
    from ckpt_surgery.formats.safetensors import looks_like_safetensors, read_safetensors
    from ckpt_surgery.formats.torch_legacy import looks_like_legacy, read_legacy
    from ckpt_surgery.formats.torch_tar import looks_like_tar, read_tar

    if looks_like_legacy(file):
        return read_legacy(file, limits)
    if looks_like_tar(file):
        return read_tar(file, limits)
    if looks_like_safetensors(file):
        return read_safetensors(file, limits)
    raise _unknown(file)


def _read_archive(file: Source) -> ZipArchive:
    try:
        return read_zip(file)
    except DamagedFileError as error:
        if _is_npz(file):
            raise UnknownFormatError("this is a numpy archive (.npz)", hint=_READABLE) from error
        if error.hint is None:
            error.hint = _OTHER_ARCHIVE
        raise


def _is_npz(file: Source) -> bool:
    """Whether the first record of an archive is a numpy array."""
    start = file.read_at(0, min(file.size, 256))
    name = start[30 : 30 + int.from_bytes(start[26:28], "little")]
    return name.endswith(b".npy")


def _unknown(file: Source) -> UnknownFormatError:
    if file.size == 0:
        return UnknownFormatError("the file is empty", hint="the save or download did not finish")
    start = file.read_at(0, min(file.size, 64))
    text = start.removeprefix(_BYTE_ORDER_MARK).lstrip()
    for magic, what, hint in _OTHER_FORMATS:
        if text.startswith(magic):
            return UnknownFormatError(f"this is {what}", hint=hint or _READABLE)
    if start[:1] == b"\x80" and start[1:2] in {b"\0", b"\1", b"\2", b"\3", b"\4", b"\5"}:
        return UnknownFormatError("a plain pickle, not a file of torch.save", hint=_READABLE)
    if _ONNX.match(start):
        return UnknownFormatError("this looks like an ONNX model", hint=_READABLE)
    if _TEXT.fullmatch(start):
        return UnknownFormatError("this is text, not a checkpoint", hint=_DOWNLOAD)
    return UnknownFormatError("not a checkpoint of any known format", hint=_READABLE)


__all__ = ["read"]
