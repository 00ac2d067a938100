"""What a plan decides about: the parameters, in the order in which `parameters()` yields them.

An inventory is made from names, shapes, element types and roles alone; where a model is at hand,
its `Structure` adds what no file can show (children without parameters, kinds of modules).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import field, replace
from functools import cached_property
from math import prod
from typing import Final, Literal

from ckpt_surgery.checkpoint.description import StateDict
from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.errors import LimitExceededError
from ckpt_surgery.startup.lazy_dataclass import dataclass

_Role = Literal["parameter", "buffer", "unknown"]
ModuleKind = Literal["norm", "dropout", "other"]

_STATISTICS: Final = ("running_mean", "running_var")
# floating-point buffers of well-known modules: batch and instance norms, Swin v2's attention
_BUFFERS: Final = frozenset({*_STATISTICS, "relative_coords_table"})
_AUXILIARY: Final = re.compile("aux|dist", re.IGNORECASE)
_NUMBERED: Final = re.compile(r"\d[a-z]?$")
_LONGEST_NAME: Final = 1024  # characters; a longer one names no module, but could fill the memory
_NESTED: Final = ".blocks."
_PARALLEL: Final = re.compile("branch|path|stream", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class NamedEntry:
    """One name of a state dict. Entries with an equal `tie` (not None) are one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    role: _Role = "unknown"
    tie: object = None


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter; `aliases` are the further names that a tied one has."""

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return BY_NAME[self.dtype].nbytes(self.numel)

    @property
    def can_train(self) -> bool:
        """Whether it can have a gradient: torch gives one to real and complex numbers only."""
        return BY_NAME[self.dtype].kind in {"float", "complex"}

    @property
    def module(self) -> str:
        """The path of the module that owns it, empty for the root."""
        return self.name.rpartition(".")[0]

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def is_bias(self) -> bool:
        return self.leaf == "bias" or (len(self.shape) <= 1 and "bias" in self.leaf)


@dataclass(frozen=True, slots=True)
class Structure:
    """What a live model adds: the names of its direct children, and the kind of every module.

    `modules` is in the order of `named_modules()`, the root (``""``) left out. A model that says so
    gives the `layers` of its parameters, counted from the input, the `undecayed` ones that are
    spared from weight decay, and those of its output layer, the `classifier`.
    """

    children: tuple[str, ...]
    modules: Mapping[str, ModuleKind]
    layers: Mapping[str, int] | None = None
    undecayed: frozenset[str] | None = None
    classifier: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Inventory:
    """The parameters of a model, the names of its buffers, and how sure the distinction is.

    `guessed` counts the parameters whose role the source did not tell: floating-point entries of
    a bare state dict that are not named like a buffer. `keys` are the names of the state dict,
    buffers included, in its order.
    """

    parameters: tuple[Parameter, ...]
    buffers: tuple[str, ...] = ()
    guessed: int = 0
    structure: Structure | None = field(default=None)
    keys: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        entries: Iterable[NamedEntry],
        structure: Structure | None = None,
        keys: Iterable[str] | None = None,
    ) -> Inventory:
        """Sort entries (in file order) into parameters, each once, and buffers.

        `keys` are the names of the state dict in its order, if those of the entries are not.
        Raises LimitExceededError for a name of more than 1024 characters.
        """
        entries = list(entries)
        hooked = _hooked_buffers({entry.name for entry in entries})
        firsts: dict[object, NamedEntry] = {}
        aliases: dict[str, list[str]] = {}
        buffers: list[str] = []
        names: list[str] = []
        guessed = 0
        for entry in entries:
            require_short(entry.name)
            names.append(entry.name)
            is_hooked = entry.role == "unknown" and entry.name in hooked
            if is_hooked or not _is_parameter(entry):
                buffers.append(entry.name)
                continue
            key = ("name", entry.name) if entry.tie is None else ("tie", entry.tie)
            first = firsts.setdefault(key, entry)
            if first is entry:
                guessed += entry.role == "unknown"
            else:
                aliases.setdefault(first.name, []).append(entry.name)
        parameters = tuple(
            Parameter(i, entry.name, entry.shape, entry.dtype, tuple(aliases.get(entry.name, ())))
            for i, entry in enumerate(firsts.values())
        )
        listed = tuple(names if keys is None else keys)
        return cls(parameters, tuple(buffers), guessed, structure, listed)

    @classmethod
    def of_state_dict(
        cls, state_dict: StateDict, structure: Structure | None = None, *, every: bool = False
    ) -> Inventory:
        """Return the inventory of a state dict as it was read from a file.

        With `every` each tensor is a parameter, integers included.
        """
        entries = _entries(state_dict)
        if every:
            entries = (replace(entry, role="parameter") for entry in entries)
        return cls.of(entries, structure, state_dict.names)

    @property
    def names(self) -> Iterator[str]:
        """Every name of every parameter, aliases after the first name."""
        return (name for parameter in self.parameters for name in parameter.names)

    @cached_property
    def statistics(self) -> tuple[str, ...]:
        """Paths of the modules that keep running statistics (batch norms and their like)."""
        owners = (name.rpartition(".") for name in self.buffers)
        return tuple(dict.fromkeys(owner for owner, _, leaf in owners if leaf in _STATISTICS))

    @cached_property
    def children(self) -> tuple[str, ...]:
        """Direct children of the root: the model's own, else those that names show."""
        if self.structure is not None:
            return self.structure.children
        everything = (*self.names, *self.buffers)
        return tuple(dict.fromkeys(name.split(".")[0] for name in everything if "." in name))

    @cached_property
    def head(self) -> frozenset[str]:
        """Names of the output layer's parameters, auxiliary classifiers included.

        It is what the model says (``get_classifier``), else the module that owns the last parameter
        of two or more dimensions; a module with ``aux`` or ``dist`` in its path belongs to it if it
        ends with as many outputs.
        """
        if self.structure is not None and self.structure.classifier:
            said = self.structure.classifier
            return frozenset(n for p in self.parameters if said & {*p.names} for n in p.names)
        matrices = [p for p in self.parameters if len(p.shape) >= 2]
        if not matrices:
            return frozenset()
        last = matrices[-1]
        modules = {last.module}
        ends: dict[str, Parameter] = {}
        for parameter in matrices[:-1]:
            root = _auxiliary_root(parameter.module)
            if root is not None:
                ends[root] = parameter
        modules.update(p.module for p in ends.values() if p.shape[0] == last.shape[0])
        return frozenset(name for p in self.parameters if p.module in modules for name in p.names)

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The layer of each parameter, counted from the input: 0 is the stem, the last the head.

        A model may say them itself. Else this is timm's order (`param_groups_layer_decay` over
        `group_matcher(coarse=False)`, after BEiT's `get_num_layer_for_vit`): the stem, then every
        block, then the head; a normalisation between two layers belongs to the one before it.
        Blocks are found from names: the first run of numbered segments (``layer1.0``,
        ``blocks.11``, ``features.3``), and the blocks of a numbered stage (``stages.1.blocks.2``),
        of which the first has what else is in its stage.
        """
        said = None if self.structure is None else self.structure.layers
        if said is not None:
            last = max(said.values())
            return tuple(said.get(p.name, last) for p in self.parameters)
        keys = _layer_keys(self.parameters)
        matrices = {key for key, p in zip(keys, self.parameters, strict=True) if len(p.shape) > 1}
        numbers: dict[str, int] = {}
        count = 0
        for key, parameter in zip(keys, self.parameters, strict=True):
            if key not in numbers and parameter.name not in self.head:
                count += key in matrices or not count
                numbers[key] = count - 1
        return tuple(
            count if p.name in self.head else numbers[key]
            for key, p in zip(keys, self.parameters, strict=True)
        )

    def is_norm(self, parameter: Parameter) -> bool:
        """Return whether it belongs to a normalisation: by the module's kind, else one-dimensional.

        Without a model every parameter of at most one dimension that is no bias counts, which is
        timm's rule for what is spared from weight decay; a norm's bias counts as its weight does.
        """
        if self.structure is not None:
            return self.structure.modules.get(parameter.module) == "norm"
        return (
            parameter.module in self._one_dimensional
            if parameter.is_bias
            else (len(parameter.shape) <= 1)
        )

    @cached_property
    def _one_dimensional(self) -> frozenset[str]:
        """Modules that own a weight (not only a bias), but none of two or more dimensions."""
        weighted = {p.module for p in self.parameters if not p.is_bias}
        return frozenset(weighted - {p.module for p in self.parameters if len(p.shape) > 1})


def _hooked_buffers(names: Set[str]) -> set[str]:
    """Return buffers that pruning, spectral norm and parametrisations put beside a parameter.

    Pruning makes ``weight_mask`` beside ``weight_orig``, spectral norm ``weight_u`` and
    ``weight_v`` beside it, or ``_u`` and ``_v`` of a parametrisation; that of orthogonal weights
    has a ``base``. ``weight_v`` beside ``weight_g`` is a parameter of weight norm.
    """
    found: set[str] = set()
    for name in names:
        owner, _, leaf = name.rpartition(".")
        stem, _, suffix = name.rpartition("_")
        # PATH.parametrizations.NAME.NUMBER.LEAF; NAME is called original beside the numbers
        above = owner.split(".")
        numbered = above[-1].isdecimal() and above[-3:-2] == ["parametrizations"]
        in_parametrisation = numbered and leaf in {"_u", "_v", "base"}
        beside_original = suffix in {"mask", "u", "v"} and f"{stem}_orig" in names
        if in_parametrisation or beside_original:
            found.add(name)
    return found


def require_short(name: str) -> None:
    """Refuse a name that is longer than any honest one."""
    if len(name) > _LONGEST_NAME:
        raise LimitExceededError(
            f"a parameter's name has {len(name)} characters", entry=f"{name[:40]}…"
        )


def _entries(state_dict: StateDict) -> Iterator[NamedEntry]:
    for entry in state_dict.entries:
        tensor = entry.tensor
        if tensor is None:
            continue
        tie = None
        if tensor.storage is not None and tensor.numel:
            tie = tensor.identity
        yield NamedEntry(entry.name, tensor.shape, tensor.dtype.name, entry.role, tie)


def _is_parameter(entry: NamedEntry) -> bool:
    if entry.role != "unknown":
        return entry.role == "parameter"
    leaf = entry.name.rpartition(".")[2]
    return leaf not in _BUFFERS and BY_NAME[entry.dtype].kind in {"float", "complex"}


def _auxiliary_root(module: str) -> str | None:
    parts = module.split(".")
    for i, part in enumerate(parts):
        if _AUXILIARY.search(part):
            return ".".join(parts[: i + 1])
    return None


def _layer_keys(parameters: tuple[Parameter, ...]) -> list[str]:
    """Return what names a parameter's layer: its block, the stem
    before the first block, its module.
    """
    siblings: dict[tuple[str, ...], set[str]] = {}
    for parts in (tuple(p.name.split(".")) for p in parameters):
        for depth in range(1, len(parts) - 1):
            siblings.setdefault(parts[: depth - 1], set()).add(_stem(parts[depth - 1]))
    inner = {
        parts[:depth]
        for parts in (tuple(p.name.split(".")) for p in parameters)
        for depth in range(1, len(parts) - 1)
    }
    lists = {
        parent
        for parent, stems in siblings.items()
        if len(stems) == 1 and not _PARALLEL.search(min(stems))
    }
    blocks = [_block(tuple(p.module.split(".")), inner, lists) for p in parameters]
    firsts: dict[str, str] = {}  # of the stages that have blocks of their own
    for block in blocks:
        stage, found, _ = (block or "").rpartition(_NESTED)
        if found and block is not None:
            firsts.setdefault(stage, block)
    keys: list[str] = []
    seen_block = False
    for parameter, own in zip(parameters, blocks, strict=True):
        block = firsts.get(own, own) if own is not None else None
        seen_block = seen_block or block is not None
        keys.append(block or (f"module {parameter.module}" if seen_block else "stem"))
    return keys


def _block(
    path: tuple[str, ...], inner: set[tuple[str, ...]], lists: set[tuple[str, ...]]
) -> str | None:
    """Return the path up to the end of its first run of numbered segments.

    A bare number always counts (``features.3``). A name that ends in one counts if it has modules
    below it (``layer1``, not ``conv1``) and, within a run, if its siblings differ in nothing
    but the number and are no branches (``denseblock1.denselayer2``, not ``inception3a.branch2``).
    The blocks of a numbered stage count one by one.
    """
    end = None
    for depth, segment in enumerate(path, start=1):
        named = path[:depth] in inner and _NUMBERED.search(segment)
        if segment.isdecimal() or (named and (end is None or path[: depth - 1] in lists)):
            end = depth
        elif end is not None:
            break
    if end is None:
        return None
    nested = path[end : end + 2]
    if path[end - 1].isdecimal() and nested[:1] == ("blocks",) and nested[-1].isdecimal():
        end += 2
    return ".".join(path[:end])


def _stem(segment: str) -> str:
    return segment.rstrip("0123456789")
