"""What a file of no format looks like, and what cures it."""

from __future__ import annotations

import re
from typing import Final

from ckpt_surgery.errors import CkptError, DamagedFileError, ReadError, UnknownFormatError
from ckpt_surgery.fileio import Source, looks_like_zip, read_zip
from ckpt_surgery.formats.tar_header import TAR_BLOCK, is_tar_header
from ckpt_surgery.pickles import DEFAULT_LIMITS

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

_PART_SUFFIX: Final = ".distcp"
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


def unknown(file: Source) -> CkptError:
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
