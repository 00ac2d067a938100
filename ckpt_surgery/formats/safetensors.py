"""Safetensors: the size of a JSON header (u64), the header, and the tensors one after another.

The format is that of the safetensors README; where its reference reader is looser (a duplicate
name, unknown fields of a tensor, space before the header) this one follows the README.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final, NoReturn

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, Other, StateDict, Storage, Tensor
from ckpt_surgery.dtypes import BY_SAFETENSORS, DType
from ckpt_surgery.errors import DamagedFileError, LimitExceededError, ReadError
from ckpt_surgery.fileio import ByteRange, Source
from ckpt_surgery.formats.base import Format
from ckpt_surgery.pickles import DEFAULT_LIMITS, Limits
from ckpt_surgery.torch_objects.kinds import role_of

MAX_HEADER_BYTES: Final = 100_000_000
METADATA: Final = "__metadata__"

_SIZE_BYTES: Final = 8
_FIELDS: Final = frozenset({"dtype", "shape", "data_offsets"})
_MAX_DIMENSION: Final = 2**63 - 1
_MAX_DIMENSIONS: Final = 1000
_HALF_BYTE: Final = "F4"
_WITHOUT_TORCH_DTYPE: Final = frozenset({"F6_E2M3", "F6_E3M2"})


class Safetensors(Format):
    """A safetensors file."""

    name = "safetensors"
    title = "a safetensors file"
    suffixes = (".safetensors",)
    written_as = "torch-zip"

    def sniff(self, source: Source) -> bool:
        """Say whether it begins with the size and the brace of a header."""
        return looks_like_safetensors(source)

    def read(self, source: Source, limits: Limits) -> Checkpoint:
        """Describe the file; raises as `read_safetensors` does."""
        return read_safetensors(source, limits)


def looks_like_safetensors(file: Source) -> bool:
    """Whether the file begins with the size of a header that fits and with the brace of one."""
    if file.size <= _SIZE_BYTES:
        return False
    head = file.read_at(0, _SIZE_BYTES + 1)
    header_bytes = int.from_bytes(head[:_SIZE_BYTES], "little")
    return head[_SIZE_BYTES:] == b"{" and header_bytes <= MAX_HEADER_BYTES


def read_safetensors(file: Source, limits: Limits = DEFAULT_LIMITS) -> Checkpoint:
    """Describe a safetensors file: one state dict, in the order of the data.

    Every tensor has a storage of its own, named like the tensor. `limits` bounds the header as it
    bounds a pickle. Raises `DamagedFileError` if the file breaks a rule of the format,
    `LimitExceededError` if the header is too long, and `ReadError` if torch has no such dtype.
    """
    header, start = _read_header(file, limits)
    metadata = _metadata(header.pop(METADATA, None))
    found = [_Span.of(name, info) for name, info in header.items()]
    found.sort(key=lambda span: (span.begin, span.end))
    _require_tiling(found, file.size - start)
    entries = tuple(_entry(span, file, start) for span in found)
    others = () if metadata is None else (Other(METADATA, "dict", metadata),)
    return Checkpoint(
        format="safetensors",
        sources=(file,),
        root=None,
        state_dicts=(StateDict("", "model", entries),),
        others=others,
    )


def _read_header(file: Source, limits: Limits) -> tuple[dict[str, Any], int]:
    """The header, and the byte at which the data starts."""
    if file.size < _SIZE_BYTES:
        raise _damaged(f"{file.size} bytes are too few for a header")
    nbytes = int.from_bytes(file.read_at(0, _SIZE_BYTES), "little")
    most = min(MAX_HEADER_BYTES, limits.pickle_bytes)
    if nbytes > most:
        raise LimitExceededError(f"the header has {nbytes} bytes, more than {most}", entry="header")
    if nbytes > file.size - _SIZE_BYTES:
        raise DamagedFileError(
            f"the header has {nbytes} bytes, but only {file.size - _SIZE_BYTES} are left",
            entry="header",
            hint="the file is truncated",
        )
    return _parse_header(file.read_at(_SIZE_BYTES, nbytes)), _SIZE_BYTES + nbytes


def _parse_header(data: bytes) -> dict[str, Any]:
    if not data.startswith(b"{"):
        raise _damaged("the header does not begin with '{'")
    try:
        header = json.loads(
            data.decode(), object_pairs_hook=_distinct, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError as error:
        raise _damaged("the header is not UTF-8") from error
    except RecursionError as error:
        raise _damaged("the header is nested too deeply") from error
    except ValueError as error:  # what JSON forbids, a number of too many digits, our own checks
        raise _damaged(f"the header is not valid: {str(error)[:200].lower()}") from error
    if not isinstance(header, dict):  # pragma: no cover (JSON that begins with a brace)
        raise _damaged("the header is no object")
    return header


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, refused if a name stands in it twice or if a string is no Unicode text."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    for name, value in pairs:
        for string in (name, value):
            if isinstance(string, str) and not _is_unicode(string):
                raise ValueError("a string holds a lone surrogate")
    return found


def _is_unicode(string: str) -> bool:
    """Whether `string` has no lone surrogate, which JSON can spell and UTF-8 cannot."""
    if string.isascii():
        return True
    try:
        string.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"'{name}' is not JSON")


def _metadata(found: object) -> dict[str, str] | None:
    """``__metadata__``, text to text; absent and null are the same."""
    if found is None:
        return None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise _damaged("is not a mapping of text to text", METADATA)
    return found


@dataclass(frozen=True, slots=True)
class _Span:
    """One tensor of the header. `begin` and `end` count bytes from the start of the data."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    begin: int
    end: int

    @classmethod
    def of(cls, name: str, info: object) -> _Span:
        """Check one tensor's description: fields, types, and that its bytes are as many as said."""
        entry = _tensor_entry(name)
        if not isinstance(info, dict) or info.keys() != _FIELDS:
            raise _damaged("has other fields than dtype, shape and data_offsets", entry)
        code, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
        if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
            raise _damaged("the shape is not a list of sizes", entry)
        if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise _damaged("the data offsets are not a begin and an end", entry)
        dtype = _dtype(code, entry)
        if code == _HALF_BYTE:
            # torch packs two elements in a byte and counts bytes in the last dimension.
            if not shape or shape[-1] % 2:
                raise _damaged("the last dimension of an F4 tensor is not even", entry)
            shape = [*shape[:-1], shape[-1] // 2]
        begin, end = offsets
        expected = prod(shape) * dtype.itemsize
        if end - begin != expected:
            raise _damaged(f"has {end - begin} bytes where {expected} are expected", entry)
        return cls(name, dtype, tuple(shape), begin, end)


def _dtype(code: object, entry: str) -> DType:
    if isinstance(code, str) and code in _WITHOUT_TORCH_DTYPE:
        raise ReadError(f"torch has no element type '{code}'", entry=entry)
    if not isinstance(code, str) or code not in BY_SAFETENSORS:
        raise _damaged(f"unknown element type '{str(code)[:40]}'", entry)
    return BY_SAFETENSORS[code]


def _are_sizes(found: object) -> bool:
    """Whether `found` is a list of integers from 0 to 2**63 - 1; true and 1.0 are none."""
    return isinstance(found, list) and all(
        type(n) is int and 0 <= n <= _MAX_DIMENSION for n in found
    )


def _require_tiling(spans: Sequence[_Span], nbytes: int) -> None:
    """Refuse spans, in order, that do not fill the data without hole and overlap."""
    position = 0
    for span in spans:
        if span.begin != position:
            what = "overlaps another tensor" if span.begin < position else "leaves a hole before it"
            raise _damaged(f"the data {what}", _tensor_entry(span.name))
        position = span.end
    if position > nbytes:
        raise DamagedFileError(
            f"the tensors take {position} bytes, but the file holds {nbytes}",
            hint="the file is truncated",
        )
    if position < nbytes:
        raise _damaged(f"{nbytes - position} bytes follow the last tensor", "data")


def _entry(span: _Span, file: Source, start: int) -> Entry:
    data = ByteRange(file, start + span.begin, span.end - span.begin)
    tensor = Tensor(
        span.shape,
        span.dtype,
        _contiguous(span.shape),
        storage=Storage(span.name, span.dtype, "cpu", data),
    )
    return Entry(span.name, tensor, role_of(span.name, tensor))


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides, in elements, of a contiguous tensor of this shape."""
    steps = []
    step = 1
    for n in reversed(shape):
        steps.append(step)
        step *= max(n, 1)
    return tuple(reversed(steps))


def _tensor_entry(name: str) -> str:
    return f"tensor {name[:80]!r}"


def _damaged(message: str, entry: str = "header") -> DamagedFileError:
    return DamagedFileError(message, entry=entry)
