"""Merges that compute: what is done with the tensors of each name, and with what numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Final, cast

from ckpt_surgery.checkpoint.description import Entry, StateDict, Tensor, join_path
from ckpt_surgery.checkpoint.select import RuleCount, select
from ckpt_surgery.dtypes import BY_NAME, DType
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.drop import Drop
from ckpt_surgery.errors import MismatchError, UsageError
from ckpt_surgery.merge.copying import Taking, add_takes
from ckpt_surgery.merge.edit import Merge, MergeSource
from ckpt_surgery.merge.files import MergeFile, partner
from ckpt_surgery.merge.parameters import Settings
from ckpt_surgery.merge.policies import KeyPolicy, Region, ShapePolicy, agree
from ckpt_surgery.merge.recipe import MergeRecipe, Override
from ckpt_surgery.merge.rows import ITSELF, Rows, is_indexed, rows_of
from ckpt_surgery.names import Rule, RuleKind, Selection
from ckpt_surgery.startup.lazy_dataclass import dataclass

_STATISTICS: Final = frozenset({"running_mean", "running_var"})


@dataclass(frozen=True, slots=True)
class Policies:
    """What to do where files differ: `keys`, `on_shape`, integers (in the recipe), NaN."""

    keys: KeyPolicy = "strict"
    on_shape: ShapePolicy = "error"
    allow_nonfinite: bool = False


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Which token each row of each file is, by the files' labels, and of the result (`wanted`).

    `base` is the label of the file whose rows are taken for tokens that another lacks.
    """

    tokens: Mapping[str, Mapping[str, int]]
    wanted: Sequence[str]
    base: str | None = None


@dataclass(slots=True)
class Numbers:
    """What is planned for the numbers: edits, and what the report says of them."""

    taking: Taking = field(default_factory=Taking)
    drops: list[Drop] = field(default_factory=list)
    merges: list[Merge] = field(default_factory=list)
    merged: list[str] = field(default_factory=list)
    copied: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    rules: tuple[RuleCount, ...] = ()
    statistics: int = 0
    overlapping: list[str] = field(default_factory=list)

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All edits in order: what goes, what is computed, what is taken."""
        return (*self.drops, *self.merges, *self.taking.edits)


@dataclass(frozen=True, slots=True)
class _Name:
    """One name of a state dict of the base, and its entries: the base's, and those of all files.

    `sources` say where the latter are.
    """

    state_dict: str
    name: str
    own: Entry
    inputs: tuple[Entry, ...]
    sources: tuple[MergeSource, ...]

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
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self._vocabulary = vocabulary
        self._recipe = recipe
        self._policies = policies
        self._base = base
        self._inputs = inputs
        self._dtype = None if recipe.dtype is None else BY_NAME[recipe.dtype]
        self._rules = [_rule(override) for override in recipe.overrides]
        self._matched = [0] * len(self._rules)
        self._settings: dict[tuple[int, ...], Settings] = {}
        self._source_of: dict[MergeSource, MergeSource] = {}
        self.result = Numbers()

    @property
    def _files(self) -> list[MergeFile]:
        """All files, the base first."""
        return [self._base, *(file for file in self._inputs if file is not self._base)]

    def plan(self, state_dicts: Sequence[StateDict], selection: Selection) -> Numbers:
        """Return what becomes of each entry of `state_dicts`.

        Raises `UsageError` if names differ under the policy ``strict`` or none is common,
        `MismatchError` for shapes, types or integers that differ, and whatever reading raises.
        """
        chosen = None
        if selection.rules:
            found, self.result.rules = select(list(state_dicts), selection)
            chosen = {s.path: each.chosen for s, each in zip(state_dicts, found, strict=True)}
        for state_dict in state_dicts:
            self._plan_one(state_dict, None if chosen is None else chosen[state_dict.path])
        for rule, count in zip(self._rules, self._matched, strict=True):
            if rule is not None and not count:
                raise UsageError(f"'{rule.kind}:{rule.text}' selects no tensor that is merged")
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
                sources = tuple(
                    self._source(file, state_dict.path, partners[id(file)].path, entry.name)
                    for file in self._inputs
                )
                self._plan_name(_Name(state_dict.path, entry.name, entry, inputs, sources))
            else:
                self._plan_lonely(state_dict.path, entry.name)
        if self._policies.keys == "union" and chosen is None:
            self._take_missing(state_dict, tables)

    def _source(self, file: MergeFile, path: str, theirs: str, name: str) -> MergeSource:
        """Return where the entry `name` of the base's state dict at `path` is in a file."""
        if file is self._base:
            return MergeSource()
        old = file.old_name(theirs, name)
        source = MergeSource(
            file.label, None if theirs == path else theirs, None if old == name else old
        )
        return self._source_of.setdefault(source, source)  # one of a file mostly says it for all

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
        """Plan a name of the base that not all files have."""
        if self._policies.keys == "union":
            self.result.copied.append((join_path(path, name), "not in every file"))
        else:
            self._skip(path, name, "not in every file")

    def _skip(self, path: str, name: str, why: str) -> None:
        self.result.drops.append(Drop(path, name))
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
        rows = self._rows_of(name)
        if rows is not None:
            tails = [tensor.shape[1:] for tensor in tensors]
            agree(name.path, tails, "error", labels)
            self._plan_tensors(name, which, overrides, Region("merge", tensors[0].shape), rows)
            return
        region = agree(name.path, [t.shape for t in tensors], self._policies.on_shape, labels)
        if region.action == "skip":
            self._skip(name.state_dict, name.name, "the shapes differ")
        elif region.action == "base":
            self.result.copied.append((name.path, "the shapes differ"))
        else:
            self._plan_tensors(name, which, overrides, region)

    def _overrides(self, name: str) -> tuple[tuple[int, ...], list[Override]]:
        """Return the overrides that choose a name, and their places,
        which its settings follow from.
        """
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

    def _rows_of(self, name: _Name) -> list[tuple[Rows, ...]] | None:
        """Return the rows of each input, and of the base last if that is none, or None."""
        known = self._vocabulary
        if known is None or not is_indexed(name.name):
            return None
        files = [*self._inputs, *([] if self._base in self._inputs else [self._base])]
        entries = [*name.inputs, *([] if self._base in self._inputs else [name.own])]
        sizes = [cast("Tensor", entry.tensor).shape[0] for entry in entries]
        places = [*range(len(name.inputs)), ITSELF][: len(files)]
        tokens = [
            {token: row for token, row in known.tokens[file.label].items() if row < size}
            for file, size in zip(files, sizes, strict=True)
        ]
        labels = [file.label for file in files]
        base = labels.index(known.base) if known.base in labels else None
        rows = rows_of(known.wanted, places, tokens, base)
        stays = all(
            each == (Rows(size, (place,), (0,)),)
            for each, size, place in zip(rows, sizes, places, strict=True)
        )
        return None if stays else rows

    def _plan_tensors(
        self,
        name: _Name,
        which: tuple[int, ...],
        overrides: Sequence[Override],
        region: Region,
        rows: Sequence[tuple[Rows, ...]] | None = None,
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
            self._plan_method(name, settings, region, rows)

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
        from ckpt_surgery.merge.jobs import require_equal_integers

        policy = self._recipe.integers
        counter = name.name.rpartition(".")[2] == COUNTER
        labels = tuple(file.label for file in self._files)
        if region.action == "overlap" or policy == "base" or (policy == "auto" and counter):
            self.result.copied.append((name.path, "integers of the base"))
        elif policy in {"auto", "error"}:
            require_equal_integers(name.path, tensors, labels)
            self.result.copied.append((name.path, "integers, equal in all files"))
        else:
            method = self._recipe.method.name
            self._merge(Merge(name.state_dict, name.name, method, name.sources, integers=policy))

    def _plan_method(
        self,
        name: _Name,
        settings: Settings,
        region: Region,
        rows: Sequence[tuple[Rows, ...]] | None = None,
    ) -> None:
        own = cast("Tensor", name.own.tensor)
        sources = name.sources
        if rows is not None:
            sources = tuple(
                replace(source, rows=each) for source, each in zip(sources, rows, strict=False)
            )
            mine = [r for file, r in zip(self._inputs, rows, strict=False) if file is self._base]
        dtype = self._result_dtype(own.dtype)
        if region.action == "overlap":
            self.result.overlapping.append(name.path)
        self._merge(
            Merge(
                name.state_dict,
                name.name,
                self._recipe.method.name,
                sources,
                settings.weights if self._recipe.method.weighted else (),
                settings.values,
                dtype=None if dtype == own.dtype else dtype.name,
                overlap=region.shape if region.action == "overlap" else None,
                seed=self._recipe.seed,
                allow_nonfinite=self._policies.allow_nonfinite,
                rows=() if rows is None else (mine[0] if mine else rows[-1]),
            )
        )
        if name.name.rpartition(".")[2] in _STATISTICS:
            self.result.statistics += 1

    def _merge(self, edit: Merge) -> None:
        self.result.merges.append(edit)
        self.result.merged.append(edit.path)

    def _result_dtype(self, own: DType) -> DType:
        if self._dtype is None or self._dtype.kind != own.kind:
            return own
        return self._dtype


def _rule(override: Override) -> Rule | None:
    """Return what an override selects; None for everything."""
    return None if override.kind == "all" else Rule(cast("RuleKind", override.kind), override.text)


def _some(names: Sequence[str], how: str) -> str:
    if len(names) == 1:
        return f"the name '{names[0]}' is {how}"
    return f"{len(names)} names are {how}, such as '{names[0]}'"
