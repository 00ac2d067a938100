"""What is left of a distributed checkpoint of which archives are missing, cut off or damaged."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.checkpoint.stitch import Chunk, stitch
from ckpt_surgery.errors import DamagedFileError, ReadError
from ckpt_surgery.fileio import ByteRange, ByteSource, MemorySource, PartSource
from ckpt_surgery.fileio.directory import DirectorySource
from ckpt_surgery.fileio.padded import PaddedSource
from ckpt_surgery.formats.dcp import Branch, Dcp, chunk_of, require_metadata, whole_tensor
from ckpt_surgery.formats.dcp_metadata import (
    NAME,
    ChunkPlace,
    DcpMetadata,
    ObjectItem,
    TensorItem,
    read_metadata,
)
from ckpt_surgery.formats.dcp_safetensors import put_together, rank_files
from ckpt_surgery.formats.safetensors import Safetensors
from ckpt_surgery.formats.salvage import Salvaged, read_damaged
from ckpt_surgery.pickles import DEFAULT_LIMITS, Limits, Node
from ckpt_surgery.torch_objects.find import assemble
from ckpt_surgery.torch_objects.row_major import row_major
from ckpt_surgery.torch_objects.tensors import TensorReader

_CUT: Final = "the file is truncated"
_PART: Final = "a part of its bytes is missing or wrong"


def damaged_archives(
    source: DirectorySource, limits: Limits = DEFAULT_LIMITS
) -> list[tuple[str, ReadError]]:
    """Return the tensors and objects that are not whole, and why.

    None if the metadata cannot be read, about which the reader of the format says more.
    """
    try:
        require_metadata(source)
        reader = _Left(source, limits)
        reader.nodes(read_metadata(source.member(NAME), limits))
    except ReadError:
        return []
    return list(reader.errors.items())


def damaged_ranks(
    source: DirectorySource, limits: Limits = DEFAULT_LIMITS
) -> list[tuple[str, ReadError]]:
    """Return the safetensors files of ranks that are not whole, and why."""
    found: list[tuple[str, ReadError]] = []
    for name in rank_files(source):
        try:
            Safetensors().read(source.member(name), limits)
        except ReadError as error:
            found.append((name, error))
    return found


def read_damaged_ranks(source: DirectorySource, limits: Limits = DEFAULT_LIMITS) -> Salvaged:
    """Read what is left of a distributed checkpoint of safetensors: tensors whose parts are whole.

    Raises `DamagedFileError` if a header is broken, which says where parts belong: without one a
    tensor could be shorter than it was.
    """
    shards: list[Checkpoint] = []
    lost: dict[str, str] = {}
    for file in rank_files(source):
        left = read_damaged(source.member(file), limits)
        shards.append(left.checkpoint)
        for name, tensor in left.checkpoint.state_dicts[0].tensors:
            if not left.is_whole(tensor):
                lost[name] = f"{file}: {_PART}"
    checkpoint = put_together(source, shards, lost)
    return Salvaged(checkpoint, lambda storage: storage.nbytes, (), tuple(lost.items()))


def read_damaged_dcp(source: DirectorySource, limits: Limits = DEFAULT_LIMITS) -> Salvaged:
    """Read what is left. Of a tensor, all of its parts must be whole.

    An object that is lost takes with it what lies in the same list, up to the entry at the top, as
    an optimizer is of no use without one of its groups. Raises `DamagedFileError` if the metadata
    is missing or damaged, which alone knows the names.
    """
    try:
        require_metadata(source)
        metadata = read_metadata(source.member(NAME), limits)
    except DamagedFileError as error:
        error.message = f"nothing can be salvaged: {error.message}"
        raise
    reader = _Left(source, limits)
    nodes = reader.nodes(metadata)
    lost = _lost_objects(metadata, reader.errors)
    root = Branch()
    for name, node in nodes.items():
        if name not in lost:
            root.put(metadata.paths[name], node)
    checkpoint = assemble(
        root.node(),
        sources=(source.member(NAME), *(source.member(file) for file in reader.files)),
        format=Dcp.name,
        limits=limits,
    )
    reasons = {
        "/".join(map(str, metadata.paths[name])): _why(error)
        for name, error in reader.errors.items()
    }
    return Salvaged(
        replace(checkpoint, globals=(*metadata.globals, *checkpoint.globals)),
        lambda storage: 0 if id(storage.data) in reader.zeros else storage.nbytes,
        tuple(reader.notes),
        tuple(lost.items()),
        reasons,
    )


def _why(error: ReadError) -> str:
    return f"{error.entry}: {error.message}" if error.entry is not None else error.message


def _lost_objects(metadata: DcpMetadata, errors: dict[str, ReadError]) -> dict[str, str]:
    """Return what cannot be put into the graph, and why, by its name."""
    lost: dict[str, str] = {}
    for name, error in errors.items():
        if not isinstance(metadata.items[name], ObjectItem):
            continue
        path = metadata.paths[name]
        lost[name] = _why(error)
        if any(isinstance(key, int) for key in path):
            for other, beside in metadata.paths.items():
                if beside[0] == path[0]:
                    lost.setdefault(other, f"'{name}', which belongs to it, is lost")
    return lost


class _Left:
    """Reads the archives that are left; `errors` says what is wrong with others, by their names."""

    def __init__(self, source: DirectorySource, limits: Limits) -> None:
        self._source = source
        self._limits = limits
        self.errors: dict[str, ReadError] = {}
        self.files: dict[str, None] = {}
        self.notes: list[str] = []
        self.zeros: dict[int, ByteSource] = {}

    def nodes(self, metadata: DcpMetadata) -> dict[str, Node]:
        """Return the node of every entry; a tensor that is lost has zeros, an object none."""
        found: dict[str, Node] = {}
        for name, item in metadata.items.items():
            try:
                if isinstance(item, ObjectItem):
                    found[name] = self._object(item)
                else:
                    found[name] = whole_tensor(name, item, self._data(item))
            except ReadError as error:
                self.errors[name] = error
                if isinstance(item, TensorItem):
                    found[name] = whole_tensor(name, item, self._nothing(item))
        return found

    def _nothing(self, item: TensorItem) -> ByteSource:
        nbytes = item.dtype.itemsize
        for size in item.shape:
            nbytes *= size
        data = ByteRange(PaddedSource(MemorySource(b"", name="lost"), nbytes), 0, nbytes)
        self.zeros[id(data)] = data
        return data

    def _data(self, item: TensorItem) -> ByteSource:
        chunks = [
            Chunk(place.offsets, place.sizes, self._chunk(item, place)) for place in item.chunks
        ]
        return stitch(item.shape, item.dtype.itemsize, chunks)

    def _chunk(self, item: TensorItem, place: ChunkPlace) -> ByteSource:
        left = self._archive(place.file, place.offset, place.length)
        found = TensorReader(self._limits).describe(left.checkpoint.root)
        tensor = chunk_of(found, item, place)
        if not left.is_whole(tensor):
            raise self._lost(place)
        return row_major(tensor)

    def _object(self, item: ObjectItem) -> Node:
        left = self._archive(item.file, item.offset, item.length)
        if not all(map(left.is_whole, left.checkpoint.all_tensors)):
            raise self._lost(item)
        node: Node = left.checkpoint.root
        return node

    def _lost(self, place: ChunkPlace | ObjectItem) -> DamagedFileError:
        """Return the error for an archive that is not whole: cut off with its file, or else."""
        is_cut = self._source.member(place.file).size < place.offset + place.length
        hint = _CUT if is_cut else None
        return DamagedFileError(_PART, path=self._source.name, entry=place.file, hint=hint)

    def _archive(self, file: str, offset: int, length: int) -> Salvaged:
        """Return what is left of one archive. Raises `ReadError` if nothing is."""
        whole = self._source.member(file)
        there = min(length, whole.size - offset)
        if there <= 0:
            raise DamagedFileError(
                f"the file ends at byte {whole.size}, before its archive at byte {offset}",
                path=whole.name,
                entry=file,
                hint=_CUT,
            )
        self.files[file] = None
        part = PartSource(whole, offset, there, name=f"{whole.name}:{offset}")
        try:
            left = read_damaged(part, self._limits)
        except ReadError as error:
            error.entry = file
            error.hint = _CUT if there < length else error.hint
            raise
        self.notes += (f"{file}: {note}" for note in left.notes)
        return left
