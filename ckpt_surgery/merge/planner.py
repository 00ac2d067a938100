"""Merges that compute: what is done with the tensors of each name, and with what numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, cast

from ckpt_surgery.checkpoint.description import Entry, StateDict, Storage, Tensor, join_path
from ckpt_surgery.checkpoint.select import RuleCount, select
from ckpt_surgery.dtypes import BY_NAME, UNTYPED, DType
from ckpt_surgery.edits.plan import Drop, Edit, Merge
from ckpt_surgery.errors import MismatchError, UsageError
from ckpt_surgery.merge.copying import Taking, add_takes, big_endian
from ckpt_surgery.merge.files import MergeFile, partner
from ckpt_surgery.merge.parameters import Settings
from ckpt_surgery.merge.policies import KeyPolicy, Region, ShapePolicy, agree
from ckpt_surgery.merge.recipe import MergeRecipe, Override
from ckpt_surgery.names import Rule, RuleKind, Selection
from ckpt_surgery.pickles import Object
from ckpt_surgery.torch_objects.tensors import math_bits

if TYPE_CHECKING:
    from ckpt_surgery.compute.scheduler import Job, Stream
    from ckpt_surgery.merge.pieces import Tally

_STATISTICS: Final = frozenset({"running_mean", "running_var"})


@dataclass(frozen=True, slots=True)
class Policies:
    """What to do where files differ: `keys`, `on_shape`, integers (in the recipe), NaN."""

    keys: KeyPolicy = "strict"
    on_shape: ShapePolicy = "error"
    allow_nonfinite: bool = False


@dataclass(slots=True)
class Numbers:
    """What is planned for the numbers: edits, entries to put in, what the report says."""

    taking: Taking = field(default_factory=Taking)
    edits: list[Edit] = field(default_factory=list)
    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    moved: dict[int, Tensor] = field(default_factory=dict)
    merged: list[str] = field(default_factory=list)
    copied: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    rules: tuple[RuleCount, ...] = ()
    workspace: int = 0
    computed_nbytes: int = 0
    statistics: int = 0
    overlapping: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Name:
    """One name of a state dict of the base, and its entries: the base's, and those of all files.

    `origin` is the entry of the method's base, None for a method without one.
    """

    state_dict: str
    name: str
    own: Entry
    inputs: tuple[Entry, ...]
    origin: Entry | None

    @property
    def path(self) -> str:
        return join_path(self.state_dict, self.name)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The base's first."""
        return (self.own, *(entry for entry in self.inputs if entry is not self.own))


class NumberPlanner:
    """Plans the merge of every name, in the order of the base.

    `base` gives what is not merged; with a method that needs one it is what task vectors are
    measured from, and not among `inputs`.
    """

    def __init__(
        self,
        recipe: MergeRecipe,
        policies: Policies,
        base: MergeFile,
        inputs: Sequence[MergeFile],
        stream: Stream,
        tally: Tally,
    ) -> None:
        self._recipe = recipe
        self._policies = policies
        self._base = base
        self._inputs = inputs
        self._stream = stream
        self._tally = tally
        self._dtype = None if recipe.dtype is None else BY_NAME[recipe.dtype]
        self._rules = [_rule(override) for override in recipe.overrides]
        self._matched = [0] * len(self._rules)
        self._settings: dict[tuple[int, ...], Settings] = {}
        self._ties: dict[object, Tensor] = {}
        self._same_type: set[tuple[str, str]] = set()
        self._big_endian = False
        self.result = Numbers()

    @property
    def _files(self) -> list[MergeFile]:
        """All files, the base first."""
        return [self._base, *(file for file in self._inputs if file is not self._base)]

    def plan(self, state_dicts: Sequence[StateDict], selection: Selection) -> Numbers:
        """What becomes of each entry of `state_dicts`.

        Raises `UsageError` if names differ under the policy ``strict`` or none is common,
        `MismatchError` for shapes, types or integers that differ, and whatever reading raises.
        """
        chosen = None
        if selection.rules:
            found, self.result.rules = select(list(state_dicts), selection)
            chosen = {s.path: each.chosen for s, each in zip(state_dicts, found, strict=True)}
        self._big_endian = bool(big_endian(t for s in state_dicts for _, t in s.tensors))
        for state_dict in state_dicts:
            self._plan_one(state_dict, None if chosen is None else chosen[state_dict.path])
        for rule, count in zip(self._rules, self._matched, strict=True):
            if rule is not None and not count:
                raise UsageError(f"'{rule.kind}:{rule.text}' selects no tensor that is merged")
        self._keep_nodes()
        return self.result

    def _plan_one(self, state_dict: StateDict, chosen: frozenset[str] | None) -> None:
        partners = {
            id(file): state_dict if file is self._base else partner(state_dict, file)
            for file in self._files
        }
        tables = {
            place: {entry.name: entry for entry in found.entries}
            for place, found in partners.items()
        }
        common = self._common(state_dict, list(tables.values()), chosen)
        for entry in state_dict.entries:
            if chosen is not None and entry.name not in chosen:
                self.result.copied.append((join_path(state_dict.path, entry.name), "not selected"))
            elif entry.name in common:
                inputs = tuple(tables[id(file)][entry.name] for file in self._inputs)
                origin = entry if self._recipe.method.needs_base else None
                self._plan_name(_Name(state_dict.path, entry.name, entry, inputs, origin))
            else:
                self._plan_lonely(state_dict.path, entry.name)
        if self._policies.keys == "union" and chosen is None:
            self._take_missing(state_dict, tables)

    def _common(
        self,
        state_dict: StateDict,
        tables: Sequence[Mapping[str, Entry]],
        chosen: frozenset[str] | None,
    ) -> set[str]:
        common = set(tables[0]).intersection(*tables[1:])
        if chosen is not None:
            common &= chosen
        if not common:
            raise UsageError(
                "the files have no name in common",
                entry=state_dict.path or None,
                hint="'ckpt inspect --keys' lists them; --strip-prefix changes those of a file",
            )
        if self._policies.keys == "strict":
            for file, table in zip(self._files[1:], tables[1:], strict=True):
                self._require_same_names(tables[0], table, file.label, chosen)
        return common

    def _require_same_names(
        self,
        own: Mapping[str, Entry],
        theirs: Mapping[str, Entry],
        label: str,
        chosen: frozenset[str] | None,
    ) -> None:
        wanted = own if chosen is None else chosen
        only_own = [name for name in wanted if name not in theirs]
        only_theirs = [n for n in theirs if n not in own] if chosen is None else []
        if not only_own and not only_theirs:
            return
        what = [_some(only_own, "missing")] if only_own else []
        if only_theirs:
            what.append(_some(only_theirs, "not the base's"))
        raise UsageError(
            "; ".join(what),
            path=label,
            hint="--keys intersection drops such names, --keys union keeps them unmerged",
        )

    def _plan_lonely(self, path: str, name: str) -> None:
        """A name of the base that not all files have."""
        if self._policies.keys == "union":
            self.result.copied.append((join_path(path, name), "not in every file"))
        else:
            self._skip(path, name, "not in every file")

    def _skip(self, path: str, name: str, why: str) -> None:
        self.result.edits.append(Drop(path, name))
        self.result.skipped.append((join_path(path, name), why))

    def _take_missing(
        self, state_dict: StateDict, tables: Mapping[int, Mapping[str, Entry]]
    ) -> None:
        """Take the names that the base does not have, each from the first file that has it."""
        missing: dict[str, tuple[int, Entry]] = {}
        own = tables[id(self._base)]
        for place, file in enumerate(self._inputs):
            for name, entry in tables[id(file)].items():
                if name not in own and name not in missing:
                    missing[name] = (place, entry)
        add_takes(self.result.taking, state_dict, self._inputs, missing)
        self.result.copied += (
            (join_path(state_dict.path, name), "not in every file") for name in missing
        )

    def _plan_name(self, name: _Name) -> None:
        which, overrides = self._overrides(name.name)
        why = self._why_copied(name, overrides)
        if why:
            self.result.copied.append((name.path, why))
            return
        tensors = [cast("Tensor", entry.tensor) for entry in name.entries]
        labels = [file.label for file in self._files]
        region = agree(name.path, [t.shape for t in tensors], self._policies.on_shape, labels)
        if region.action == "skip":
            self._skip(name.state_dict, name.name, "the shapes differ")
        elif region.action == "base":
            self.result.copied.append((name.path, "the shapes differ"))
        else:
            self._plan_tensors(name, which, overrides, region)

    def _overrides(self, name: str) -> tuple[tuple[int, ...], list[Override]]:
        """The overrides that choose a name, and their places, which its settings follow from."""
        which = tuple(
            place for place, rule in enumerate(self._rules) if rule is None or rule.matches(name)
        )
        for place in which:
            self._matched[place] += 1
        return which, [self._recipe.overrides[place] for place in which]

    def _why_copied(self, name: _Name, overrides: Sequence[Override]) -> str:
        if any(override.skip for override in overrides):
            return "skipped by the recipe"
        tensors = [entry.tensor for entry in name.entries]
        if any(tensor is None for tensor in tensors):
            return "no tensor"
        if any(tensor is not None and tensor.storage is None for tensor in tensors):
            return "not a strided tensor"
        return ""

    def _plan_tensors(
        self, name: _Name, which: tuple[int, ...], overrides: Sequence[Override], region: Region
    ) -> None:
        from ckpt_surgery.compute.casting import category

        tensors = [cast("Tensor", entry.tensor) for entry in name.entries]
        kinds = {category(tensor.dtype) for tensor in tensors}
        if len(kinds) > 1:
            names = " and ".join(sorted({tensor.dtype.name for tensor in tensors}))
            raise MismatchError(f"'{name.path}' cannot be merged from {names}", entry=name.path)
        (kind,) = kinds
        if kind == "opaque":
            self._require_equal(name, tensors)
        elif kind == "integer":
            self._plan_integers(name, tensors, region)
        else:
            settings = self._settings.get(which)
            if settings is None:
                settings = self._settings[which] = self._recipe.settings(overrides)
            self._plan_method(name, which, settings, region)

    def _require_equal(self, name: _Name, tensors: Sequence[Tensor]) -> None:
        from ckpt_surgery.merge.jobs import are_equal

        for file, tensor in zip(self._files[1:], tensors[1:], strict=True):
            if not are_equal(tensors[0], tensor):
                raise MismatchError(
                    f"the {tensors[0].dtype.name} tensor '{name.path}' differs in "
                    f"'{self._base.label}' and '{file.label}'",
                    entry=name.path,
                    hint="such a type has no arithmetic; leave the name out with a selection",
                )
        self.result.copied.append((name.path, f"{tensors[0].dtype.name}, equal in all files"))

    def _plan_integers(self, name: _Name, tensors: list[Tensor], region: Region) -> None:
        from ckpt_surgery.merge.integers import COUNTER
        from ckpt_surgery.merge.jobs import IntegerJob, require_equal_integers

        policy = self._recipe.integers
        counter = name.name.rpartition(".")[2] == COUNTER
        labels = tuple(file.label for file in self._files)
        if region.action == "overlap" or policy == "base" or (policy == "auto" and counter):
            self.result.copied.append((name.path, "integers of the base"))
        elif policy in {"auto", "error"}:
            require_equal_integers(name.path, tensors, labels)
            self.result.copied.append((name.path, "integers, equal in all files"))
        else:
            job = IntegerJob(name.path, tuple(tensors), policy, labels, big_endian=self._big_endian)
            self._put(name, tensors[0].dtype, job, (policy,))

    def _plan_method(
        self, name: _Name, which: tuple[int, ...], settings: Settings, region: Region
    ) -> None:
        from ckpt_surgery.merge.jobs import MethodJob, OverlapJob, Task

        own = cast("Tensor", name.own.tensor)
        inputs = tuple(cast("Tensor", entry.tensor) for entry in name.inputs)
        origin = name.origin.tensor if name.origin is not None else None
        files = [*self._inputs, *([self._base] if origin is not None else [])]
        task = Task(
            name=name.path,
            tensors=inputs,
            base=origin,
            labels=tuple(file.label for file in files),
            dtype=self._result_dtype(own.dtype),
            method=self._recipe.method,
            settings=settings,
            seed=self._recipe.seed,
            allow_nonfinite=self._policies.allow_nonfinite,
            tally=self._tally,
        )
        job: Job
        if region.action == "overlap":
            job = OverlapJob(task, own, region.shape, big_endian=self._big_endian)
            self.result.overlapping.append(name.path)
        else:
            job = MethodJob(task, own.shape, big_endian=self._big_endian)
        self._put(name, task.dtype, job, which)
        if name.name.rpartition(".")[2] in _STATISTICS:
            self.result.statistics += 1

    def _result_dtype(self, own: DType) -> DType:
        if self._dtype is None or self._dtype.kind != own.kind:
            return own
        return self._dtype

    def _put(self, name: _Name, dtype: DType, job: Job, settings: tuple[object, ...]) -> None:
        """Put what `job` computes in the place of an entry; once, where all files tie names."""
        own = cast("Tensor", name.own.tensor)
        place = (settings, dtype.name, *(_place(entry.tensor) for entry in name.entries))
        tensor = self._ties.get(place)
        if tensor is None:
            untyped = dtype.storage_class is None
            if own.storage is not None and own.dtype == dtype:
                untyped = own.storage.untyped
            storage = Storage(
                "merged",
                UNTYPED if untyped else dtype,
                own.storage.device if own.storage is not None else own.device,
                self._stream.add(job),
                untyped=untyped,
                big_endian=self._big_endian,
            )
            stride = _contiguous(own.shape)
            tensor = replace(own, dtype=dtype, stride=stride, offset=0, storage=storage)
            self._ties[place] = tensor
            self.result.workspace = max(self.result.workspace, job.workspace)
            self.result.computed_nbytes += job.nbytes
        tensor = replace(
            tensor,
            node=own.node,
            requires_grad=own.requires_grad,
            is_parameter=own.is_parameter,
        )
        if dtype == own.dtype:
            self._same_type.add((name.state_dict, name.name))
        self.result.entries[name.state_dict, name.name] = replace(name.own, tensor=tensor)
        self.result.edits.append(Merge(name.state_dict, name.name, self._recipe.method.name))
        self.result.merged.append(name.path)

    def _keep_nodes(self) -> None:
        """Let entries keep the node they were read with, and with it what torch never sees.

        A node can be moved to another place if it stays one tensor of one type.
        """
        by_node: dict[int, set[int]] = {}
        for entry in self.result.entries.values():
            tensor = cast("Tensor", entry.tensor)
            by_node.setdefault(id(tensor.node), set()).add(id(tensor.storage))
        for key, entry in self.result.entries.items():
            tensor = cast("Tensor", entry.tensor)
            movable = key in self._same_type and isinstance(tensor.node, Object)
            if movable and not any(math_bits(tensor)) and len(by_node[id(tensor.node)]) == 1:
                self.result.moved[id(tensor.node)] = tensor
            else:
                bare = replace(tensor, node=None)
                self.result.entries[key] = replace(entry, node=None, tensor=bare)


def _rule(override: Override) -> Rule | None:
    """What an override selects; None for everything."""
    return None if override.kind == "all" else Rule(cast("RuleKind", override.kind), override.text)


def _some(names: Sequence[str], how: str) -> str:
    if len(names) == 1:
        return f"the name '{names[0]}' is {how}"
    return f"{len(names)} names are {how}, such as '{names[0]}'"


def _place(tensor: Tensor | None) -> tuple[object, ...]:
    if tensor is None or not tensor.numel:
        return (id(tensor),)
    return id(tensor.storage), tensor.offset, tensor.shape, tensor.stride


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    steps: list[int] = []
    step = 1
    for n in reversed(shape):
        steps.append(step)
        step *= max(n, 1)
    return tuple(reversed(steps))


def rounding_warnings(tally: Tally) -> Iterator[str]:
    """What the report says about rounding, after the numbers are written."""
    if tally.overflowed:
        yield f"{tally.overflowed:,} elements became infinite in the result's element type"
    if tally.underflowed:
        yield f"{tally.underflowed:,} elements became zero in the result's element type"
