"""Pickles that torch.save did not write: of tensors, or of numpy's arrays, as state dicts.

A tensor that ``pickle.dump`` writes has its storage in a file of torch.save of its own, as bytes in
the pickle, which ``torch.storage._load_from_bytes`` would load. detectron2's models and paddle's
``.pdparams`` are such files of arrays. All of the file is held in memory.
"""

from __future__ import annotations

from dataclasses import replace

from ckpt_surgery.checkpoint.description import Checkpoint, Storage
from ckpt_surgery.errors import DamagedFileError, ReadError, UnknownFormatError
from ckpt_surgery.fileio import MemorySource, Source
from ckpt_surgery.formats.base import Format
from ckpt_surgery.formats.pickle_scan import with_dangers
from ckpt_surgery.formats.torch_legacy import TorchLegacy
from ckpt_surgery.formats.torch_zip import not_in_graph
from ckpt_surgery.pickles import Limits, Node, Object, PersistentId, parse, walk
from ckpt_surgery.torch_objects.arrays import array_note, with_tensors
from ckpt_surgery.torch_objects.find import assemble
from ckpt_surgery.torch_objects.numpy_values import numpy_bytes

_PROTOCOLS = b"\2\3\4\5"
_OF_DCP = "torch.distributed.checkpoint.metadata.Metadata"
_LOAD = "torch.storage._load_from_bytes"


class PlainPickle(Format):
    """A pickle of tensors or arrays, written by pickle itself."""

    name = "pickle"
    title = "a plain pickle"
    written_as = "torch-zip"

    def sniff(self, source: Source) -> bool:
        """Say whether it begins and ends as a pickle of protocol 2 or later."""
        if source.size < 4:
            return False
        start, end = source.read_at(0, 2), source.read_at(source.size - 1, 1)
        return start[:1] == b"\x80" and start[1:] in _PROTOCOLS and end == b"."

    def read(self, source: Source, limits: Limits) -> Checkpoint:
        """Describe the pickle, of which nothing is called.

        Raises `UnknownFormatError` if it holds neither tensors nor arrays, and
        `DamagedFileError`.
        """
        data = source.read_at(0, min(source.size, limits.pickle_bytes + 1))
        parsed = parse(data, limits=limits, persistent_load=_refuse)
        tensors = _resolve_storages(parsed.root, source, limits)
        arrays = with_tensors(parsed.root, limits)
        if not tensors and not arrays:
            if isinstance(parsed.root, Object) and parsed.root.name == _OF_DCP:
                raise UnknownFormatError(
                    "this is the metadata of a distributed checkpoint "
                    "(torch.distributed.checkpoint)",
                    hint="name its directory: 'ckpt inspect DIR'",
                )
            error = UnknownFormatError(
                "a plain pickle without tensors and numpy arrays, not a file of torch.save",
                hint="what torch.save, torch.jit.save and safetensors wrote can be read",
            )
            raise with_dangers(error, source)
        checkpoint = assemble(
            parsed.root,
            sources=(source,),
            format=self.name,
            unwritable=not_in_graph(parsed, source.size),
            names=parsed.globals,
            limits=limits,
        )
        notes = [array_note(arrays)] if arrays else []
        return replace(checkpoint, notes=(*notes, *checkpoint.notes))


def _refuse(pid: Node) -> PersistentId:
    del pid
    raise DamagedFileError("a plain pickle refers to something outside of it")


def _resolve_storages(root: Node, source: Source, limits: Limits) -> int:
    """Put storages in the place of the calls that would load them; return how many there are."""
    found: dict[int, PersistentId] = {}
    for node in list(walk(root, limits=limits)):
        if not isinstance(node, Object) or not isinstance(node.args, tuple) or not node.args:
            continue
        first = node.args[0]
        if isinstance(first, Object) and first.name == _LOAD:
            if id(first) not in found:
                found[id(first)] = _storage(first, str(len(found)), source, limits)
            node.args = (found[id(first)], *node.args[1:])
    return len(found)


def _storage(call: Object, key: str, source: Source, limits: Limits) -> PersistentId:
    """Return a reference to the storage whose file the argument of `call` is."""
    data = numpy_bytes(call.args[0]) if isinstance(call.args, tuple) and call.args else None
    if data is None:
        raise DamagedFileError("a storage is not given as bytes", entry=f"storage {key}")
    try:
        inner = TorchLegacy().read(MemorySource(data, name=source.name, origin=source), limits)
    except ReadError as error:
        error.entry = f"storage {key}"
        raise
    root = inner.root
    if not isinstance(root, PersistentId) or not isinstance(root.target, Storage):
        raise DamagedFileError("its bytes are no storage", entry=f"storage {key}")
    return PersistentId(None, replace(root.target, key=key))
