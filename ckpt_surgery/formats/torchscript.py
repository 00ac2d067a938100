"""TorchScript archives (``torch.jit.save``) as the state dict that ``torch.jit.load`` would give.

``data.pkl`` holds the modules with all their attributes in one dictionary each. Which of them are
parameters and buffers is declared in the code beside it, of which only these declarations are
read. As in ``torch::jit`` (``api/module.h``) an attribute is in the state dict if it is declared a
parameter and is a tensor, or if it is declared a buffer of type ``Tensor``. What was a
non-persistent buffer is declared like any other.

Reading only: the code would have to follow every change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from ckpt_surgery.checkpoint.description import Checkpoint, Other, StateDict
from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.fileio import Source, ZipArchive, read_zip
from ckpt_surgery.formats.base import Format
from ckpt_surgery.formats.torch_zip import StorageRecords, archive_of, is_torchscript, not_in_graph
from ckpt_surgery.formats.torch_zip_container import CONSTANTS
from ckpt_surgery.formats.torchscript_code import Declaration, declarations
from ckpt_surgery.pickles import Dict, Global, Limits, Node, Object, parse, walk
from ckpt_surgery.torch_objects.kinds import type_name
from ckpt_surgery.torch_objects.mappings import mapping_pairs, named_items, state_of
from ckpt_surgery.torch_objects.module_tree import ModuleTree
from ckpt_surgery.torch_objects.tensors import TensorReader

if TYPE_CHECKING:
    from ckpt_surgery.checkpoint.findings import Finding
    from ckpt_surgery.fileio import ByteRange

_FORMAT: Final = "torchscript"
_MODULE_VERSION: Final = 1  # torch.jit.RecursiveScriptModule._version

_DATA: Final = "data.pkl"
_BYTE_ORDER: Final = "byteorder"
_MAX_CODE: Final = 1 << 26  # bytes of all source files that are read
_BUILT_IN: Final = "__torch__.torch.classes."  # declared in C++, not in the archive


class TorchScript(Format):
    """The archive of ``torch.jit.save``, of which the state dict is read."""

    name = _FORMAT
    title = "a TorchScript archive"
    written_as = "torch-zip"

    def sniff(self, source: Source) -> bool:
        """Say whether it is a zip archive with TorchScript's constants."""
        archive = archive_of(source)
        return archive is not None and is_torchscript(archive)

    def read(self, source: Source, limits: Limits) -> Checkpoint:
        """Describe the archive's state dict; raises as `read_torchscript` does."""
        return read_torchscript(source, archive_of(source) or read_zip(source), limits)

    def check(self, checkpoint: Checkpoint) -> Iterator[Finding]:
        """Yield what of the code is damaged, and where the archive is not as torch writes it."""
        from ckpt_surgery.formats.torch_zip_check import check, check_compressed

        yield from check_compressed(checkpoint)
        yield from check(checkpoint)

    def records(self, checkpoint: Checkpoint) -> Sequence[tuple[str, ByteRange]]:
        """Return the records of the archive that are not compressed."""
        from ckpt_surgery.formats.torch_zip_check import records

        return records(checkpoint)


def _with_own_nodes(state_dict: StateDict) -> StateDict:
    """Return the entries, those of types without a storage class in Python without their nodes.

    The class in such a node is one that `torch.load` does not know: the tensor is rebuilt anew.
    """
    entries = (
        replace(entry, tensor=replace(entry.tensor, node=None), node=None)
        if entry.tensor is not None and entry.tensor.dtype.storage_class is None
        else entry
        for entry in state_dict.entries
    )
    return replace(state_dict, entries=tuple(entries))


def read_torchscript(
    file: Source, archive: ZipArchive, limits: Limits, *, without_code: bool = False
) -> Checkpoint:
    """Describe a TorchScript archive; neither tensor bytes nor code beyond declarations are read.

    Tensors that are outside the state dict, attributes and constants of the code, are `others`.
    `without_code`: where code is missing, every attribute that is a tensor is taken for a buffer.
    Raises `DamagedFileError` if a record is missing, malformed or contradicts another, and
    `LimitExceededError` if the code or a pickle is larger than allowed.
    """
    root, lost = _parse(archive, _DATA, limits)
    tensors = TensorReader(limits)
    tree = ModuleTree("", tensors.describe, limits)
    reader = _Reader(tree, _Code(archive), without_code=without_code)
    if not isinstance(root, Object) or reader.declaration(root) is None:
        raise DamagedFileError("holds no module", path=file.name, entry=_DATA)
    _require_made_of_classes(root, _DATA, limits)
    tree.walk(root, reader.enter)
    constants, lost_beside = _parse(archive, CONSTANTS, limits)
    _require_made_of_classes(constants, CONSTANTS, limits)
    unwritable = lost or lost_beside
    if unwritable:
        reader.notes.append(f"an edit would lose something: {unwritable}")
    return Checkpoint(
        format=_FORMAT,
        sources=(file,),
        root=root,
        state_dicts=(_with_own_nodes(tree.state_dict("model", root)),),
        others=tuple(_others([*reader.attributes, ("constants", constants)], tensors)),
        globals=tuple(
            dict.fromkeys(
                node.qualified for node in walk(root, limits=limits) if isinstance(node, Global)
            )
        ),
        container=archive,
        notes=tuple(reader.notes),
        unwritable=unwritable,
    )


def _parse(archive: ZipArchive, name: str, limits: Limits) -> tuple[Node, str]:
    """Return the graph of a pickle, and what of the pickle is not in it.

    Its storages are the records in the folder of its name.
    """
    record = archive.get(name)
    if record is None:
        raise DamagedFileError("the record is missing", path=archive.file.name, entry=name)
    storages = StorageRecords(archive, f"{name.removesuffix('.pkl')}/", of_script=True)
    data = record.read(limits.pickle_bytes)
    parsed = parse(data, limits=limits, persistent_load=storages.load)
    return parsed.root, not_in_graph(parsed, len(data))


def _require_made_of_classes(root: Node, name: str, limits: Limits) -> None:
    """Raise `DamagedFileError` if an object is made of anything but a class.

    torch.jit does not look at what it is made of, so that it finds objects where a pickle has none.
    """
    for node in walk(root, limits=limits):
        if isinstance(node, Object) and node.op == "NEWOBJ":
            if isinstance(node.callee, Global) and node.args == ():
                continue
            raise DamagedFileError("an object is not made as torch.jit makes them", entry=name)


class _Code:
    """The declarations of the archive's source files, each read when it is first asked for."""

    def __init__(self, archive: ZipArchive) -> None:
        self._archive = archive
        self._files: dict[str, dict[str, Declaration]] = {}
        self._left = _MAX_CODE

    def declaration(self, cls: Global) -> Declaration | None:
        """Return what is declared of a class; None if it is one of torch's own, written in C++.

        Raises `DamagedFileError` if the code does not declare it.
        """
        name = f"code/{cls.module.replace('.', '/')}.py"
        if name not in self._files:
            self._files[name] = self._read(name)
        declaration = self._files[name].get(cls.name)
        if declaration is None and not f"{cls.module}.".startswith(_BUILT_IN):
            raise DamagedFileError(
                f"the code does not declare the class '{cls.qualified}'",
                path=self._archive.file.name,
                entry=name,
            )
        return declaration

    def is_missing(self, cls: Global) -> bool:
        """Return whether the file is missing that would declare a class."""
        own = f"{cls.module}.".startswith("__torch__.") and not cls.module.startswith(_BUILT_IN)
        return own and self._archive.get(f"code/{cls.module.replace('.', '/')}.py") is None

    def _read(self, name: str) -> dict[str, Declaration]:
        record = self._archive.get(name)
        if record is None:
            return {}
        data = record.read(self._left)
        self._left -= len(data)
        try:
            source = data.decode()
        except UnicodeDecodeError as error:
            raise DamagedFileError(
                "the code is not UTF-8", path=self._archive.file.name, entry=name
            ) from error
        try:
            return declarations(source)
        except DamagedFileError as error:
            error.entry = name
            raise


@dataclass(slots=True)
class _Reader:
    """Reads script modules into a tree; `attributes` are what is no part of the state dict."""

    tree: ModuleTree
    code: _Code
    without_code: bool = False
    attributes: list[tuple[str, Node]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def declaration(self, node: Node) -> Declaration | None:
        """Return what the code declares of the module that `node` is; None if it is no module."""
        if not isinstance(node, Object) or node.op != "NEWOBJ":
            return None
        if not isinstance(node.callee, Global):
            return None
        if self.without_code and self.code.is_missing(node.callee):
            slots = frozenset(named_items(state_of(node)) or {})
            return Declaration(is_module=bool(slots), parameters=frozenset(), buffers=slots)
        declared = self.code.declaration(node.callee)
        return declared if declared is not None and declared.is_module else None

    def enter(self, node: Object, prefix: str) -> Iterator[tuple[str, Object]]:
        """Record what the module itself holds; returns its children."""
        self.tree.metadata[prefix[:-1]] = Dict(["version", _MODULE_VERSION])
        declared, slots = self.declaration(node), named_items(state_of(node))
        if slots is None and mapping_pairs(state_of(node)) is not None:
            raise self.tree.damaged("an attribute of a module has no name", prefix[:-1])
        if declared is None or slots is None:
            what = prefix[:-1] or "the model itself"
            self.notes.append(f"'{what}' is restored by its own code: its entries are left out")
            self.attributes.append((prefix[:-1], node.state))
            return iter(())
        self.tree.spend(len(slots), prefix)
        modules: list[tuple[str, Object]] = []
        stateful = declared.parameters | declared.buffers
        for name, value in slots.items():
            if isinstance(value, Object) and self.declaration(value) is not None:
                modules.append((name, value))
            elif name not in stateful or not self._is_tensor(value):
                self.attributes.append((prefix + name, value))
        for name, value in slots.items():
            if name in declared.parameters and self._is_tensor(value):
                self.tree.add(prefix + name, value, "parameter")
        for name, value in slots.items():
            if name in declared.buffers and self._is_tensor(value):
                self.tree.add(prefix + name, value, "buffer")
        return iter(modules)

    def _is_tensor(self, value: Node) -> bool:
        """Say whether `value` is a tensor.

        Raises `DamagedFileError` for one that begins beyond its storage, even if it is empty, as
        ``torch.jit.load`` does, and for one with hooks, which ``torch.load`` would give to it.
        """
        tensor = self.tree.describe(value)
        if tensor is None or not isinstance(tensor.node, Object):
            return False
        if tensor.storage and tensor.dtype.nbytes(tensor.offset) > tensor.storage.nbytes:
            raise DamagedFileError("a tensor begins beyond the end of its storage")
        args = tensor.node.args
        for hooks in args if isinstance(args, tuple) else ():
            if isinstance(hooks, (Dict, Object)) and mapping_pairs(hooks):
                raise DamagedFileError(f"'{tensor.node.name}' has arguments of the wrong form")
        return True


def _others(attributes: list[tuple[str, Node]], reader: TensorReader) -> Iterator[Other]:
    """Those of `attributes` that are tensors or hold some, each counted where it is found first."""
    seen: set[int] = set()
    for path, node in attributes:
        tensors = tuple(reader.below(node, seen))
        if tensors or reader.describe(node) is not None:
            yield Other(path, type_name(node), None, tensors, node)
