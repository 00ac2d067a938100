"""Archives of ``torch.export.save`` (``.pt2``): the weights beside the exported program.

Since torch 2.8 the bytes of each weight are a record, described by
``data/weights/MODEL_weights_config.json`` (``torch/export/pt2_archive/_package.py`` and
``torch/_export/serde/schema.py``); before, the state dict was a file of ``torch.save`` in the
archive. The program is not read, and not written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, StateDict, Storage, Tensor
from ckpt_surgery.checkpoint.findings import Finding
from ckpt_surgery.dtypes import BY_NAME, UNTYPED, DType
from ckpt_surgery.errors import DamagedFileError, ReadError
from ckpt_surgery.fileio import ByteRange, PartSource, Source, ZipArchive, ZipRecord, looks_like_zip
from ckpt_surgery.formats import registry
from ckpt_surgery.formats.base import Format
from ckpt_surgery.formats.strict_json import load_object
from ckpt_surgery.formats.torch_zip import archive_of
from ckpt_surgery.pickles import Limits

_MARK: Final = "archive_format"
_MARKED: Final = b"pt2"
WEIGHTS: Final = "data/weights/"
_CONFIG: Final = "_weights_config.json"
_SMALL: Final = 1 << 16  # bytes
_LOCAL_HEADER: Final = 30
_OLD_FIRST: Final = (b"version", b"serialized_exported_program.json")
_OLD_WEIGHTS: Final = ("serialized_state_dict.pt", "serialized_state_dict.json")
"""The second is what torch 2.1 called the same file of ``torch.save``."""
_STRIDED: Final = 7  # torch._export.serde.schema.Layout
_MOST: Final = 1 << 62
# torch._export.serde.schema.ScalarType
_TYPES: Final = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32",
    8: "float64", 9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16",
    28: "uint16", 29: "float8_e4m3fn", 30: "float8_e5m2", 31: "float8_e4m3fnuz",
    32: "float8_e5m2fnuz", 33: "float8_e8m0fnu", 34: "uint32", 35: "uint64",
}  # fmt: skip
_NOTE: Final = "the exported program is not read: these are its weights alone"
_NO_WEIGHTS: Final = "this archive of torch.export holds no weights that can be read"
_OPENED_BY: Final = (
    "torch.export.load(FILE).state_dict gives those of a program; a package of AOTInductor is "
    "compiled code, which torch._inductor.aoti_load_package loads"
)


class TorchExport(Format):
    """The archive of ``torch.export.save``, of which the weights are read."""

    name = "torch-export"
    title = "an archive of torch.export"
    written_as = "torch-zip"

    def sniff(self, source: Source) -> bool:
        """Say whether it is a zip archive that calls itself so, or begins as those before did."""
        archive = archive_of(source)
        if archive is None:
            return _is_old(source)
        try:
            mark = archive.get(_MARK)
            return mark is not None and mark.read(_SMALL) == _MARKED
        except ReadError:
            return False

    def read(self, source: Source, limits: Limits) -> Checkpoint:
        """Describe the weights, a state dict for each model in the archive.

        Raises `DamagedFileError` if a description is malformed or contradicts its record, and
        `ReadError` if the archive holds no weights.
        """
        archive = archive_of(source)
        if archive is None:
            return _of_member(source, _old_weights(source), limits)
        configs = [record for record in archive.records if is_config(record.name)]
        if not configs:
            whole = [
                r for r in archive.records if r.name.startswith(WEIGHTS) and r.name[-3:] == ".pt"
            ]
            if len(whole) != 1:
                raise ReadError(_NO_WEIGHTS, path=source.name, hint=_OPENED_BY)
            data = whole[0].data
            part = PartSource(source, data.offset, data.nbytes, name=source.name)
            return _of_member(source, part, limits)
        found, weights = describe_weights(archive, configs, limits)
        return Checkpoint(
            format=self.name,
            # a part of the file, so that the program is not replaced by its weights
            sources=(PartSource(source, 0, source.size, name=source.name),),
            root=None,
            state_dicts=found,
            notes=(_NOTE, *weights.notes),
            unwritable=weights.unwritable,
        )

    def check(self, checkpoint: Checkpoint) -> Iterator[Finding]:
        """Yield what of the archive is damaged, and where it is not as torch writes it."""
        from ckpt_surgery.formats import torch_zip_check

        if self.is_around(checkpoint):
            yield from registry.get(checkpoint.format).check(checkpoint)
            return
        yield from torch_zip_check.check_compressed(checkpoint)
        yield from torch_zip_check.check(checkpoint)

    def is_around(self, checkpoint: Checkpoint) -> bool:
        """Say whether the weights are a file of ``torch.save`` in the archive."""
        return checkpoint.format != self.name

    def records(self, checkpoint: Checkpoint) -> Sequence[tuple[str, ByteRange]]:
        """Return the records of the archive, the program's, too."""
        from ckpt_surgery.formats import torch_zip_check

        if self.is_around(checkpoint):
            return registry.get(checkpoint.format).records(checkpoint)
        own = {data.offset: data for _, data in super().records(checkpoint)}  # as tensors have it
        found = torch_zip_check.records(checkpoint)
        return [(name, own.get(data.offset, data)) for name, data in found]


def describe_weights(
    archive: ZipArchive, configs: Sequence[ZipRecord], limits: Limits
) -> tuple[tuple[StateDict, ...], _Weights]:
    """Return the state dict of each description, and what is to be said of all; raises as `read`
    does.
    """
    weights = _Weights(archive)
    found = [
        weights.state_dict(record, limits, "" if len(configs) == 1 else _model(record))
        for record in configs
    ]
    return tuple(found), weights


def is_config(name: str) -> bool:
    """Say whether a record describes the weights of a model."""
    return name.startswith(WEIGHTS) and name.endswith(_CONFIG)


def _model(record: ZipRecord) -> str:
    return record.name.removeprefix(WEIGHTS).removesuffix(_CONFIG)


def _is_old(source: Source) -> bool:
    """Say whether it begins as an archive of torch 2.1 to 2.7."""
    if not looks_like_zip(source):
        return False
    start = source.read_at(0, min(source.size, _SMALL))
    length = int.from_bytes(start[26:28], "little")
    return start[_LOCAL_HEADER : _LOCAL_HEADER + length] in _OLD_FIRST and _OLD_FIRST[1] in start


def _old_weights(source: Source) -> Source:
    from ckpt_surgery.formats.archive_members import member_in

    try:
        return member_in(source, _OLD_WEIGHTS[0], source.name)
    except DamagedFileError:
        raise
    except ReadError:  # there is no such member
        return member_in(source, _OLD_WEIGHTS[1], source.name)


def _of_member(source: Source, member: Source, limits: Limits) -> Checkpoint:
    """Describe a file of ``torch.save`` in the archive."""
    from ckpt_surgery.formats.recognise import find_format

    found = find_format(member).read(member, limits)
    if not isinstance(member, PartSource):
        source.close()
    return replace(found, notes=(_NOTE, *found.notes))


class _Weights:
    """The records of weights, each a storage of one type, however many tensors view it."""

    def __init__(self, archive: ZipArchive) -> None:
        self._archive = archive
        self._storages: dict[str, Storage] = {}
        self._types: dict[str, DType] = {}
        order = archive.get("byteorder")
        self._big_endian = order is not None and order.read(_SMALL) == b"big"
        self.notes: list[str] = []
        self.unwritable = ""

    def state_dict(self, config: ZipRecord, limits: Limits, path: str) -> StateDict:
        """Return the state dict that `config`, a record of JSON, describes."""
        data = config.read(limits.pickle_bytes)
        said = load_object(data, path=self._archive.file.name, what=f"'{config.name}'")
        weights = said.get("config")
        if not isinstance(weights, dict):
            raise DamagedFileError("describes no weights", entry=config.name)
        pickled = [name for name, each in weights.items() if _field(each, "use_pickle", bool, name)]
        if pickled:
            self.unwritable = f"the weight '{pickled[0]}' is a pickled object, which is not read"
            self.notes.append(f"{len(pickled)} weights are pickled objects, which are not read")
        entries = tuple(self._entries(weights, frozenset(pickled)))
        return StateDict(path, "model", entries, missing=tuple(pickled))

    def _entries(self, weights: dict[str, Any], left_out: frozenset[str]) -> Iterator[Entry]:
        for name, each in weights.items():
            if name not in left_out:
                is_parameter = _field(each, "is_param", bool, name)
                role = "parameter" if is_parameter else "buffer"
                yield Entry(name, self._tensor(name, each), role)  # type: ignore[arg-type]

    def _tensor(self, name: str, described: dict[str, Any]) -> Tensor:
        meta = _field(described, "tensor_meta", dict, name)
        dtype = BY_NAME.get(_TYPES.get(_field(meta, "dtype", int, name), ""))
        if dtype is None or _field(meta, "layout", int, name) != _STRIDED:
            raise DamagedFileError("has an unknown type or layout", entry=name)
        shape, stride = (
            tuple(_integer(n, name) for n in _field(meta, key, list, name))
            for key in ("sizes", "strides")
        )
        offset = _integer(meta.get("storage_offset"), name)
        if len(shape) != len(stride):
            raise DamagedFileError("has not one stride for each dimension", entry=name)
        device = str(_field(meta, "device", dict, name).get("type", "cpu"))
        storage = self._storage(_field(described, "path_name", str, name), dtype, device, name)
        tensor = Tensor(shape, dtype, stride, offset, storage, device=device)
        if dtype.nbytes(offset + tensor.extent) > storage.nbytes:
            raise DamagedFileError("ends beyond the record of its bytes", entry=name)
        return tensor

    def _storage(self, key: str, dtype: DType, device: str, name: str) -> Storage:
        if key not in self._storages:
            record = self._archive.get(WEIGHTS + key)
            if record is None:
                raise DamagedFileError(f"the record '{WEIGHTS}{key}' is missing", entry=name)
            untyped = dtype.storage_class is None
            stored = UNTYPED if untyped else dtype
            self._storages[key] = Storage(
                key, stored, device, record.data, untyped=untyped, big_endian=self._big_endian
            )
            self._types[key] = dtype
        if self._types[key] is not dtype or self._storages[key].nbytes % dtype.itemsize:
            raise DamagedFileError("its record is of another type", entry=name)
        return self._storages[key]


def _field(described: object, key: str, kind: type, name: str) -> Any:
    """Return a field of a description. Raises `DamagedFileError` if it is not of its type."""
    value = described.get(key) if isinstance(described, dict) else None
    if type(value) is not kind:
        raise DamagedFileError(f"its description has no valid '{key}'", entry=name)
    return value


def _integer(described: object, name: str) -> int:
    value = _field(described, "as_int", int, name)
    if not 0 <= value < _MOST:
        raise DamagedFileError(f"a size, stride or offset is {value}", entry=name)
    return int(value)
