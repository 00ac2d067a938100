"""Safetensors: where every byte goes, as the safetensors library writes it.

The header comes first, ``__metadata__`` at its front and spaces behind it up to a multiple of 8
bytes; then the tensors one after another, those of the widest types first and by name within a
type. Each is row-major and little-endian, and takes its own bytes: there are no views. Tied tensors
are written once, and the other names stand in ``__metadata__`` with the name of the one written,
as ``safetensors.torch.save_model`` does it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, StateDict, Tensor, join_path
from ckpt_surgery.dtypes import BY_SAFETENSORS
from ckpt_surgery.errors import LossyEditError, UsageError
from ckpt_surgery.fileio import Bytes, ByteSource
from ckpt_surgery.fileio.sink import Sink
from ckpt_surgery.formats.base import FileLayout, Layout, LayoutOptions, Loss
from ckpt_surgery.formats.provenance import KEY as PROVENANCE
from ckpt_surgery.formats.safetensors_header import (
    MAX_HEADER_BYTES,
    METADATA,
    Original,
    is_alias,
    is_unicode,
)
from ckpt_surgery.formats.traits import Trait, lost_traits
from ckpt_surgery.torch_objects.math_bits import math_bits
from ckpt_surgery.torch_objects.rebuild import is_module_state
from ckpt_surgery.torch_objects.row_major import row_major

_ALIGNMENT: Final = 8
# Of the library's `Dtype`, in the order in which it writes them (safetensors/src/tensor.rs).
_ORDER: Final = (
    *("U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"),
    *("F8_E5M2FNUZ", "F8_E4M3FNUZ", "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8"),
    *("F6_E3M2", "F6_E2M3", "F4", "BOOL"),
)
_RANK: Final = {code: rank for rank, code in enumerate(_ORDER)}
_PACKED_FLOAT: Final = BY_SAFETENSORS["F4"]
_NO_OBJECTS: Final = "safetensors holds nothing but one state dict of tensors"
_NO_TYPE: Final = "safetensors has no such type"
_OWN_BYTES: Final = "each tensor of a safetensors file has bytes of its own"
_NUMBERS: Final = "safetensors holds names, types, shapes and numbers"
_SORTED: Final = "safetensors sorts tensors by their type and name"
_BESIDE: Final[tuple[Trait, ...]] = ("strides", "parameters", "attributes", "devices", "records")


def losses(checkpoint: Checkpoint) -> list[Loss]:
    """Return what a safetensors file of `checkpoint` would not hold."""
    return [
        *_lost_state_dicts(checkpoint.state_dicts),
        *_lost_others(checkpoint),
        *(loss for s in checkpoint.state_dicts for e in s.entries for loss in _lost(s, e)),
        *_lost_traits(checkpoint),
    ]


def _lost_state_dicts(state_dicts: Sequence[StateDict]) -> Iterator[Loss]:
    if len(state_dicts) != 1:
        for each in state_dicts:
            what = f"one of {len(state_dicts)} state dicts"
            yield Loss(each.path, "state_dict", what, _NO_OBJECTS)
        if not state_dicts:
            yield Loss("", "state_dict", "no state dict", "there is nothing to write")
    for each in state_dicts:
        if is_module_state(each):
            reason = "a state dict has no class and no code"
            yield Loss(each.path, "module", "a pickled module", reason, refused=False)
        if each.metadata:
            reason = "safetensors has no place for the versions of modules"
            what = f"'{join_path(each.path, '_metadata')}'"
            yield Loss(each.path, "file", what, reason, refused=False)


def _lost_others(checkpoint: Checkpoint) -> Iterator[Loss]:
    for other in checkpoint.others:
        if other.path == METADATA and _is_texts(other.value):
            continue
        in_graph = other.parent is not None or other.node is checkpoint.root
        refused = checkpoint.root is not None and in_graph
        yield Loss(other.path, "other", other.type, _NO_OBJECTS, refused=refused)


def _is_texts(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(text, str) for item in value.items() for text in item
    )


def _lost(state_dict: StateDict, entry: Entry) -> Iterator[Loss]:
    path, tensor = join_path(state_dict.path, entry.name), entry.tensor
    if not is_unicode(entry.name) or entry.name == METADATA:
        yield Loss(path, "entry", "a name", "safetensors cannot have it")
    if tensor is None:
        yield Loss(path, "entry", "no tensor", _NO_OBJECTS)
    elif tensor.storage is None:
        what = "a tensor" if tensor.layout == "strided" else f"a {tensor.layout} tensor"
        yield Loss(path, "entry", what, "its elements are not one strided view")
    elif tensor.dtype.safetensors is None:
        yield Loss(path, "entry", f"a tensor of {tensor.dtype.name}", _NO_TYPE)
    elif tensor.dtype is _PACKED_FLOAT and not tensor.shape:
        yield Loss(path, "entry", "two numbers of 4 bits", "they would need a dimension")


def _lost_traits(checkpoint: Checkpoint) -> Iterator[Loss]:
    """Yield what tensors have beside numbers, and an archive beside tensors."""
    yield from lost_traits(checkpoint, _OWN_BYTES, ["overlaps"])
    yield from lost_traits(checkpoint, _NUMBERS, _BESIDE)
    for state_dict in checkpoint.state_dicts:
        ties = tied_names(state_dict)
        found = [each for each in _written(state_dict, ties) if each[1].dtype.safetensors]
        if len(checkpoint.state_dicts) == 1 and sorted(found, key=_place) != found:
            yield Loss("", "file", "the order of the names", _SORTED, refused=False)


def layout(checkpoint: Checkpoint, options: LayoutOptions) -> Layout:
    """Place every byte of the file.

    Raises `UsageError` for metadata that would be taken for a tied tensor, `LossyEditError` if
    the header is longer than the format allows, and what `row_major` raises.
    """
    (state_dict,) = checkpoint.state_dicts
    metadata = _metadata(checkpoint, options)
    original = checkpoint.container
    if isinstance(original, Original) and original.metadata == metadata:
        same = original.entries == state_dict.entries
        if same and not (options.duplicate_ties and tied_names(state_dict)):
            return _single([original.file])
    ties = {} if options.duplicate_ties else tied_names(state_dict)
    _require_no_alias(options.metadata, state_dict.names)
    written = sorted(_written(state_dict, ties), key=_place)
    header = _header(written, _with_aliases(metadata, ties))
    return _single([Bytes(header), *(row_major(tensor) for _, tensor in written)])


def _single(sources: Sequence[ByteSource]) -> Layout:
    nbytes = sum(source.nbytes for source in sources)
    return Layout((FileLayout("", nbytes, sources, partial(_write, sources, nbytes)),))


def _write(sources: Sequence[ByteSource], nbytes: int, sink: Sink) -> None:
    sink.reserve(nbytes)
    for source in sources:
        sink.copy(source)


def _metadata(checkpoint: Checkpoint, options: LayoutOptions) -> dict[str, str] | None:
    """Return the texts to be written, those of the checkpoint first; None if there are none."""
    kept = next((other.value for other in checkpoint.others if other.path == METADATA), None)
    made = {PROVENANCE: checkpoint.provenance} if checkpoint.provenance else {}
    if kept is None and not options.metadata and not made:
        return None
    return {**(kept or {}), **made, **options.metadata}


def _require_no_alias(metadata: Mapping[str, str], names: Sequence[str]) -> None:
    for key, value in metadata.items():
        if is_alias(key, value, names):
            raise UsageError(
                f"'{key}={value}' in the metadata would say that '{key}' is tied to the tensor "
                f"'{value}'"
            )
        if not is_unicode(key) or not is_unicode(value):
            raise UsageError("metadata that is no Unicode text cannot be written", entry=key)


def tied_names(state_dict: StateDict) -> dict[str, str]:
    """Return the names that are not written, each with the name that has the same elements.

    Of the names of one tensor the first in the alphabet is written, as the library chooses.
    """
    groups: dict[object, list[str]] = {}
    for name, tensor in state_dict.tensors:
        if tensor.numel:
            groups.setdefault((tensor.identity, math_bits(tensor)), []).append(name)
    tied = [sorted(names) for names in groups.values() if len(names) > 1]
    return {alias: names[0] for names in tied for alias in names[1:]}


def _written(state_dict: StateDict, ties: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in state_dict.tensors:
        if name not in ties:
            yield name, tensor


def _place(item: tuple[str, Tensor]) -> tuple[int, str]:
    name, tensor = item
    return _RANK[str(tensor.dtype.safetensors)], name


def _with_aliases(
    metadata: Mapping[str, str] | None, ties: Mapping[str, str]
) -> dict[str, str] | None:
    """Return what is written as ``__metadata__``: the texts, then the tied names.

    Raises `UsageError` if a text stands where a tied name has to.
    """
    texts = dict(metadata or {})
    for alias, name in ties.items():
        if texts.get(alias, name) != name or not is_alias(alias, name, {name}):
            raise UsageError(
                f"'{alias}' is a key of the metadata, and is needed for a tied tensor's name",
                hint="give --duplicate-ties to write that tensor twice",
            )
    return None if metadata is None and not ties else texts | dict(sorted(ties.items()))


def _header(written: Sequence[tuple[str, Tensor]], metadata: Mapping[str, str] | None) -> bytes:
    header: dict[str, Any] = {} if metadata is None else {METADATA: metadata}
    position = 0
    for name, tensor in written:
        end = position + tensor.nbytes
        header[name] = {
            "dtype": tensor.dtype.safetensors,
            "shape": _shape(tensor),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise LossyEditError(
            f"the header would have {len(text)} bytes, more than the {MAX_HEADER_BYTES} allowed"
        )
    return len(text).to_bytes(_ALIGNMENT, "little") + text


def _shape(tensor: Tensor) -> list[int]:
    """Return the shape in elements, of which torch packs two of 4 bits into one of its own."""
    shape = list(tensor.shape)
    return [*shape[:-1], shape[-1] * 2] if tensor.dtype is _PACKED_FLOAT else shape
