"""Safetensors: the size of a JSON header (u64), the header, and the tensors one after another.

The format is that of the safetensors README; where its reference reader is looser (a duplicate
name, unknown fields of a tensor) this one follows the README. Space before the header is read, as
the reference means it to be: a writer may align the data with it.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from math import prod
from typing import Any, Final, NoReturn

from ckpt_surgery.checkpoint.description import (
    Checkpoint,
    Entry,
    Other,
    StateDict,
    Storage,
    Tensor,
    contiguous_strides,
)
from ckpt_surgery.dtypes import BY_SAFETENSORS, FOUR_BITS, UNTYPED, DType
from ckpt_surgery.errors import DamagedFileError, LimitExceededError
from ckpt_surgery.fileio import ByteRange, Source
from ckpt_surgery.formats.base import Format, Layout, LayoutOptions, Loss
from ckpt_surgery.formats.safetensors_header import (
    MAX_HEADER_BYTES,
    METADATA,
    Original,
    is_alias,
    is_unicode,
)
from ckpt_surgery.pickles import DEFAULT_LIMITS, Limits
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.kinds import role_of

_SIZE_BYTES: Final = 8
_ALIGNMENT: Final = 8
_FIELDS: Final = frozenset({"dtype", "shape", "data_offsets"})
_MAX_DIMENSION: Final = 2**63 - 1
_MAX_DIMENSIONS: Final = 1000
_SPACE: Final = b" \t\r\n"
_MOST_SPACE: Final = 1 << 20  # bytes in front of a header: what aligns the data to a page is less
_FOUR_BITS: Final = "F4"
OF_RANKS: Final = "DCP_SHARDING_INFO"
"""The key of ``__metadata__`` of a file that one rank of several saved, which may hold parts."""
OF_DCP: Final = frozenset({OF_RANKS, "DCP_VERSION"})
"""Keys of torch.distributed.checkpoint, of one file each and not of the model."""
A_PART: Final = (
    "it is one rank's file of a distributed checkpoint, and its tensors may be parts: "
    "the directory has the whole ones"
)
_TRUNCATED: Final = "the file is truncated"


class Safetensors(Format):
    """A safetensors file."""

    name = "safetensors"
    title = "a safetensors file"
    keeps_provenance = True
    is_flat = True
    suffixes = (".safetensors",)
    honours = frozenset({"metadata", "duplicate_ties"})

    def sniff(self, source: Source) -> bool:
        """Say whether it begins with the size and the brace of a header."""
        return _looks_like_safetensors(source)

    def read(self, source: Source, limits: Limits) -> Checkpoint:
        """Describe the file; raises as `_read_safetensors` does."""
        return _read_safetensors(source, limits)

    def losses(self, checkpoint: Checkpoint) -> Sequence[Loss]:
        """Return all but one state dict of strided tensors of the format's types."""
        from ckpt_surgery.formats.safetensors_write import losses

        return losses(checkpoint)

    def lay_out(self, checkpoint: Checkpoint, options: LayoutOptions) -> Layout:
        """Place the header and every tensor, as the safetensors library does."""
        from ckpt_surgery.formats.safetensors_write import layout

        return layout(checkpoint, options)


def _looks_like_safetensors(file: Source) -> bool:
    """Return whether the file begins with the size of a header that
    fits and with the brace of one.
    """
    if file.size <= _SIZE_BYTES:
        return False
    head = file.read_at(0, _SIZE_BYTES + 1)
    header_bytes = int.from_bytes(head[:_SIZE_BYTES], "little")
    if header_bytes > MAX_HEADER_BYTES:
        return False
    start = head[_SIZE_BYTES:]
    if start in _SPACE:
        left = min(header_bytes, file.size - _SIZE_BYTES, _MOST_SPACE)
        start = file.read_at(_SIZE_BYTES, left).lstrip(_SPACE)[:1]
    return start == b"{"


def _read_safetensors(file: Source, limits: Limits = DEFAULT_LIMITS) -> Checkpoint:
    """Describe a safetensors file: one state dict, in the order of the data.

    Every tensor has a storage of its own, named like the tensor; names in ``__metadata__`` that are
    tied to one are entries as well. A tensor of a type that torch does not have is described like
    any other. `limits` bounds the header as it bounds a pickle. Raises `DamagedFileError` if the
    file breaks a rule of the format, and `LimitExceededError` if the header is too long.
    """
    text = _read_header(file, limits)
    header, start = _parse_header(text), _SIZE_BYTES + len(text)
    metadata = _metadata(header.pop(METADATA, None))
    found = [_Span.of(name, info) for name, info in header.items()]
    found.sort(key=lambda span: (span.begin, span.end))
    _require_tiling(found, file.size - start)
    tensors = {span.name: _tensor(span, file, start) for span in found}
    aliases, rest = _aliases(metadata, tensors)
    tensors |= {alias: tensors[name] for alias, name in aliases.items()}
    entries = tuple(Entry(name, each, role_of(name, each)) for name, each in tensors.items())
    return Checkpoint(
        format=Safetensors.name,
        sources=(file,),
        root=None,
        state_dicts=(StateDict("", "model", entries),),
        others=() if rest is None else (Other(METADATA, "dict", rest),),
        container=Original(ByteRange(file, 0, file.size), entries, rest),
        notes=(*((A_PART,) if OF_RANKS in (metadata or {}) else ()), *_leniencies(text, start)),
    )


def _leniencies(header: bytes, start: int) -> Iterator[str]:
    """Yield what the format's description does not foresee and its reference reader accepts."""
    if not header.startswith(b"{"):
        yield "there is space in front of the header"
    if header[-1:] in {b"\n", b"\r", b"\t"}:
        yield "the header is padded with other characters than spaces"
    if start % _ALIGNMENT:
        yield f"the data starts at byte {start}, which is no multiple of {_ALIGNMENT}"


def _aliases(
    metadata: Mapping[str, str] | None, names: Container[str]
) -> tuple[dict[str, str], dict[str, str] | None]:
    """Split metadata into names of tied tensors, with the name of what they are tied to, and texts.

    ``safetensors.torch.save_model`` writes the first (alias: name) among the second.
    """
    if metadata is None:
        return {}, None
    aliases = {key: value for key, value in metadata.items() if is_alias(key, value, names)}
    rest = {key: value for key, value in metadata.items() if key not in aliases}
    return aliases, rest if rest or not aliases else None


def _read_header(file: Source, limits: Limits) -> bytes:
    """Return the header, which the data follows."""
    if file.size < _SIZE_BYTES:
        raise DamagedFileError(
            f"{file.size} bytes are too few for a header", entry="header", hint=_TRUNCATED
        )
    nbytes = int.from_bytes(file.read_at(0, _SIZE_BYTES), "little")
    most = min(MAX_HEADER_BYTES, limits.pickle_bytes)
    if nbytes > most:
        raise LimitExceededError(f"the header has {nbytes} bytes, more than {most}", entry="header")
    if nbytes > file.size - _SIZE_BYTES:
        raise DamagedFileError(
            f"the header has {nbytes} bytes, but only {file.size - _SIZE_BYTES} are left",
            entry="header",
            hint=_TRUNCATED,
        )
    return file.read_at(_SIZE_BYTES, nbytes)


def _parse_header(data: bytes) -> dict[str, Any]:
    if not data.lstrip(_SPACE).startswith(b"{"):
        raise _damaged("the header does not begin with '{'")
    try:
        header = json.loads(
            data.decode(),
            object_pairs_hook=_distinct,
            parse_constant=_refuse_constant,
            parse_int=_integer,
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
    """Return a JSON object, refused if a name stands in it twice or
    if a string is no Unicode text.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    for name, value in pairs:
        for string in (name, value):
            if isinstance(string, str) and not is_unicode(string):
                raise ValueError("a string holds a lone surrogate")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"'{name}' is not JSON")


def _integer(text: str) -> int:
    """Return the number; ``-0``, which Python takes for 0, is one below 0 for the format."""
    return -1 if text == "-0" else int(text)


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
        begin, end = offsets
        numel = prod(shape)
        if numel * (dtype.bits or 8) % 8:
            raise _damaged(f"{numel} elements of '{code}' end inside a byte", entry)
        expected = dtype.nbytes(numel)
        if end - begin != expected:
            raise _damaged(f"has {end - begin} bytes where {expected} are expected", entry)
        if dtype is FOUR_BITS and shape and shape[-1] % 2 == 0:
            # torch packs two elements in a byte and counts bytes in the last dimension
            dtype, shape = BY_SAFETENSORS[_FOUR_BITS], [*shape[:-1], shape[-1] // 2]
        return cls(name, dtype, tuple(shape), begin, end)


def _dtype(code: object, entry: str) -> DType:
    if not isinstance(code, str) or code not in BY_SAFETENSORS:
        raise _damaged(f"unknown element type '{str(code)[:40]}'", entry)
    return FOUR_BITS if code == _FOUR_BITS else BY_SAFETENSORS[code]


def _are_sizes(found: object) -> bool:
    """Return whether `found` is a list of integers from 0 to 2**63 - 1; true and 1.0 are none."""
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


def _tensor(span: _Span, file: Source, start: int) -> Tensor:
    data = ByteRange(file, start + span.begin, span.end - span.begin)
    untyped = span.dtype.storage_class is None  # torch keeps these types in untyped storages
    stored = UNTYPED if untyped else span.dtype
    storage = Storage(span.name, stored, "cpu", data, untyped=untyped)
    return Tensor(span.shape, span.dtype, contiguous_strides(span.shape), storage=storage)


def _tensor_entry(name: str) -> str:
    return f"tensor {name[:80]!r}"


def _damaged(message: str, entry: str = "header") -> DamagedFileError:
    return DamagedFileError(message, entry=entry)
