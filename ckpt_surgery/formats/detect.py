"""Finding the format of a file from its content, and saying what other files are."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Final

from ckpt_surgery.errors import (
    CkptError,
    DamagedFileError,
    LimitExceededError,
    PathLike,
    ReadError,
    UnknownFormatError,
    about_file,
)
from ckpt_surgery.fileio import FileSource, Source, looks_like_zip, read_zip
from ckpt_surgery.formats import registry
from ckpt_surgery.formats.tar_header import TAR_BLOCK, is_tar_header
from ckpt_surgery.pickles import DEFAULT_LIMITS, Limits
from ckpt_surgery.startup.collector import collector_paused

if TYPE_CHECKING:
    from ckpt_surgery.checkpoint.description import Checkpoint
    from ckpt_surgery.formats.base import Format

_DOWNLOAD: Final = "the download may have failed"
_READABLE: Final = "what torch.save, torch.jit.save and safetensors wrote can be read"
_OTHER_ARCHIVE: Final = "the zip archive is damaged, or another program's and not torch.save's"
_TRUNCATED: Final = "the file is truncated"
_HDF5: Final = "read it with h5py, and write its arrays with numpy.savez or safetensors"
_GGUF: Final = (
    "the package 'gguf' reads it (gguf.GGUFReader, gguf.dequantize); transformers loads it with "
    "from_pretrained(…, gguf_file=FILE)"
)
_MXNET: Final = "mxnet.nd.load reads it; write its arrays with numpy.savez"
_ONNX_HINT: Final = "onnx.numpy_helper.to_array of each initializer gives its arrays"
_FLAX: Final = "flax.serialization.msgpack_restore reads it; write its arrays with numpy.savez"
_TFLITE: Final = "tf.lite.Interpreter(FILE).get_tensor gives its arrays"
# What files that are no checkpoints begin with, for a helpful message.
_OTHER_FORMATS: Final = (
    # a stream that is long enough to hold anything is read
    (b"\x1f\x8b", "the start of gzip data", _TRUNCATED),
    (b"BZh", "the start of bzip2 data", _TRUNCATED),
    (b"\xfd7zXZ", "the start of xz data", _TRUNCATED),
    (b"\x28\xb5\x2f\xfd", "the start of zstd data", _TRUNCATED),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "extract it first"),
    (b"\x89HDF", "an HDF5 file (Keras writes them)", _HDF5),
    (b"GGUF", "a GGUF file of llama.cpp", _GGUF),
    (b"ggml", "a GGML file of llama.cpp", _GGUF),
    (b"lmgg", "a GGML file of llama.cpp", _GGUF),
    (b"tjgg", "a GGML file of llama.cpp", _GGUF),
    (b"\x12\x01\0\0\0\0\0\0", "a file of parameters of mxnet", _MXNET),
    (b"\xff\xd8\xff", "a JPEG image", None),
    (b"\x89PNG", "a PNG image", None),
    (b"%PDF", "a PDF document", None),
    (b"PYTORCH1", "a preview format of torch that no release reads", None),
    (b"version https://git-lfs", "a Git LFS pointer, not the file", "run: git lfs pull"),
    (b"<", "a web page or XML, not a checkpoint", _DOWNLOAD),
    (b"{", "JSON or the like, not a checkpoint", _DOWNLOAD),
)
# What belongs to a checkpoint, and by itself is none.
_PART_SUFFIX: Final = ".distcp"
_METADATA: Final = ".metadata"
_PART: Final = "this is one file of a distributed checkpoint (torch.distributed.checkpoint)"
_PART_HINT: Final = "name its directory, which holds '.metadata': 'ckpt inspect DIR'"
_JSON_SUFFIX: Final = ".json"
_JSON_HINT: Final = "name the file of weights, or an index with a 'weight_map', or its directory"
_MOST_JSON: Final = 1 << 26  # bytes
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_ONNX: Final = re.compile(rb"\x08[\x01-\x1f][\x12\x3a]")  # its version, then producer or graph
_FLAX_MAP: Final = re.compile(  # a map, whose first key is a short text
    rb"(?:[\x81-\x8f]|\xde..|\xdf....)(?:[\xa1-\xbf]|\xd9.)[\w./ -]+", re.DOTALL
)
_SAFETENSORS_SUFFIX: Final = ".safetensors"
_SAFETENSORS_SIZE: Final = 8  # bytes that say how long its header is
_TEXT: Final = re.compile(rb"[\t\n\r\x20-\x7e]+")


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


def find_format(source: Source) -> Format:
    """Return the format that recognises `source`. Raises `UnknownFormatError` if none does."""
    is_directory = source_is_directory(source)
    candidates: Iterator[Format] = chain(registry.built_in(), registry.added())
    for candidate in candidates:
        if candidate.of_directories == is_directory and candidate.sniff(source):
            return candidate
    if not is_directory:
        from ckpt_surgery.formats.pickle_scan import with_dangers

        raise with_dangers(_unknown(source), source)
    raise ReadError("is a directory", path=source.name, hint="name the checkpoint file in it")


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


def source_is_directory(source: Source) -> bool:
    """Return whether `source` is a directory, without importing what reads those."""
    directories = sys.modules.get("ckpt_surgery.fileio.directory")
    return directories is not None and isinstance(source, directories.DirectorySource)


def _unknown_zip(file: Source) -> CkptError:
    """Return the error for a zip archive of no format."""
    from ckpt_surgery.formats.archive_members import describe_archive

    found = describe_archive(file)
    if found is not None:
        return found
    try:
        read_zip(file)
    except DamagedFileError as error:
        error.hint = error.hint or _OTHER_ARCHIVE
        return error
    return UnknownFormatError(
        "a zip archive without 'data.pkl', not one of torch.save", hint=_OTHER_ARCHIVE
    )


def _is_json(file: Source) -> bool:
    """Say whether a file is a JSON object or list as a whole."""
    import json

    if file.size > _MOST_JSON:
        return False
    try:
        found = json.loads(file.read_at(0, file.size))
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict | list)


def _unended_pickle(file: Source) -> CkptError:
    """Return the error for what begins as a pickle and does not end as one."""
    from ckpt_surgery.pickles import TruncatedPickleError, parse

    hint = _DOWNLOAD
    try:
        parse(file.read_at(0, min(file.size, DEFAULT_LIMITS.pickle_bytes)))
    except TruncatedPickleError:
        hint = f"{_TRUNCATED}: {_DOWNLOAD}"
    except ReadError:
        pass
    return UnknownFormatError(
        "a plain pickle, not a file of torch.save, that does not end as one", hint=hint
    )


def _unknown(file: Source) -> CkptError:
    """Return the error for a file of no format, which says what it looks like."""
    if file.name.endswith(_PART_SUFFIX):
        return UnknownFormatError(_PART, hint=_PART_HINT)
    if file.size == 0:
        return UnknownFormatError("the file is empty", hint="the save or download did not finish")
    if looks_like_zip(file):
        return _unknown_zip(file)
    if file.name.endswith(_JSON_SUFFIX) and _is_json(file):
        return UnknownFormatError("this is JSON, not weights", hint=_JSON_HINT)
    if file.size >= TAR_BLOCK and is_tar_header(file.read_at(0, TAR_BLOCK)):
        from ckpt_surgery.formats.archive_members import describe_archive

        if (found := describe_archive(file)) is not None:
            return found
    if file.name.endswith(_SAFETENSORS_SUFFIX) and file.size <= _SAFETENSORS_SIZE:
        what = f"{file.size} bytes are too few for the header of a safetensors file"
        return DamagedFileError(what, hint=_TRUNCATED)
    start = file.read_at(0, min(file.size, 64))
    text = start.removeprefix(_BYTE_ORDER_MARK).lstrip()
    for magic, what, hint in _OTHER_FORMATS:
        if text.startswith(magic):
            return UnknownFormatError(f"this is {what}", hint=hint or _READABLE)
    if start[:1] == b"\x80" and start[1:2] in {b"\0", b"\1", b"\2", b"\3", b"\4", b"\5"}:
        return _unended_pickle(file)
    if _ONNX.match(start):
        return UnknownFormatError("this looks like an ONNX model", hint=_ONNX_HINT)
    if start[4:8] == b"TFL3":
        return UnknownFormatError("this is a TensorFlow Lite model", hint=_TFLITE)
    if _FLAX_MAP.match(start):
        return UnknownFormatError("this looks like msgpack, which flax writes", hint=_FLAX)
    if _TEXT.fullmatch(start):
        return UnknownFormatError("this is text, not a checkpoint", hint=_DOWNLOAD)
    return UnknownFormatError("not a checkpoint of any known format", hint=_READABLE)
