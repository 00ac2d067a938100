"""The plan of a merge by layers: which entry is made of which, and the numbers for it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from ckpt_surgery.checkpoint.description import StateDict, join_path
from ckpt_surgery.checkpoint.select import the_state_dict
from ckpt_surgery.compute.jobs import Computing
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.drop import Drop
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.plan import Plan
from ckpt_surgery.edits.share import Untie
from ckpt_surgery.edits.take import Take
from ckpt_surgery.errors import UsageError
from ckpt_surgery.merge.arithmetic import written_report
from ckpt_surgery.merge.edit import Merge
from ckpt_surgery.merge.files import MergeFile, Sources
from ckpt_surgery.merge.layered import (
    LayeredRecipe,
    Layers,
    Slice,
    SliceSource,
    find_layers,
    place_of,
    resolved,
)
from ckpt_surgery.merge.planner import NumberPlanner, Numbers, Policies, Vocabulary
from ckpt_surgery.merge.recipe import MergeInput as RecipeInput
from ckpt_surgery.merge.recipe import MergeRecipe, Override
from ckpt_surgery.merge.result import Edited, Outcome, carry_out
from ckpt_surgery.merge.rows import require_indexed
from ckpt_surgery.merge.scope import MergeScope
from ckpt_surgery.names import Selection
from ckpt_surgery.reports.merging import MergeInput, MergeReport
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.writing.output import Output


def merge_layers(
    recipe: LayeredRecipe,
    output: Output,
    scope: MergeScope,
    policies: Policies,
    computing: Computing,
) -> MergeReport:
    """Carry out a recipe by layers; everything that is not merged comes from its first file."""
    files = recipe.files
    sources = Sources(list(files), files[0])
    with ExitStack() as stack:
        base, opened = sources.open(stack, scope.renames or {})
        inputs = Inputs(named={file.label: file.original for file in reversed(opened)})
        edited, outcome = _prepare(recipe, scope, policies, opened, inputs, output)
        return written_report(base, opened, edited, outcome, inputs, output, computing)


def _prepare(
    recipe: LayeredRecipe,
    scope: MergeScope,
    policies: Policies,
    files: Sequence[MergeFile],
    inputs: Inputs,
    output: Output,
) -> tuple[Edited, Outcome]:
    """Return the first file after the merge, whose numbers are computed when it is written."""
    from ckpt_surgery.compute.elements import require_torch

    require_torch()
    base = files[0]
    own = the_state_dict(base.checkpoint, scope.at)
    if scope.selection.rules:
        raise UsageError("a merge by layers has no selection; its filters narrow values")
    models = {
        name: _Model.of(file, own.path if file is base else None)
        for name, file in zip(recipe.files, files, strict=True)
    }
    require_indexed(recipe.vocabularies, own.names, base.label)
    planner = _LayeredPlan(recipe, policies, own, base, models)
    edits = planner.plan()
    edited = carry_out(edits, base, inputs, scope, output)
    outcome = Outcome(
        recipe.method.name,
        True,
        tuple(MergeInput(file.label, None, file is base) for file in files),
        {
            "keys": policies.keys,
            "on_shape": policies.on_shape,
            "int": "auto",
            "dtype": recipe.dtype or "of the base",
            "allow_nonfinite": policies.allow_nonfinite,
            "parameters": dict(recipe.settings),
            "seed": None,
            "other_state": "dropped" if scope.state_dict_only else f"from {base.label}",
        },
        recipe.notes,
        rules=(),
        taken=[(join_path(t.state_dict, t.name), t.file) for t in planner.takes],
        merged=planner.merged,
        copied=planner.copied,
        skipped=planner.skipped,
    )
    return edited, outcome


@dataclass(frozen=True, slots=True)
class _Model:
    """A file's state dict and where its layers are."""

    file: MergeFile
    state_dict: StateDict
    layers: Layers

    @classmethod
    def of(cls, file: MergeFile, path: str | None) -> _Model:
        state_dict = the_state_dict(file.checkpoint, () if path is None else (path,))
        names = [name for name, _ in state_dict.tensors]
        return cls(file, state_dict, find_layers(names, file.label))


class _SlicePlanner(NumberPlanner):
    """Plans the names of one slice, each with values of its own."""

    def __init__(
        self,
        recipe: LayeredRecipe,
        part: Slice,
        old_names: dict[str, tuple[tuple[str, ...], float]],
        policies: Policies,
        base: MergeFile,
        inputs: Sequence[MergeFile],
        vocabulary: Vocabulary | None,
    ) -> None:
        self._layered, self._part, self._old = recipe, part, old_names
        first = next(iter(old_names.values()))
        general = resolved(recipe.method, recipe, part, *first)
        made = MergeRecipe(
            method=recipe.method,
            inputs=tuple(RecipeInput(file.label) for file in inputs),
            base=base.label,
            values=general,
            dtype=recipe.dtype,
        )
        super().__init__(made, policies, base, inputs, vocabulary)
        self._known: dict[tuple[tuple[str, object], ...], int] = {}

    def _overrides(self, name: str) -> tuple[tuple[int, ...], list[Override]]:
        """Return the values for a name, and a number that they have among all there are."""
        names, t = self._old[name]
        values = resolved(self._layered.method, self._layered, self._part, names, t)
        key = tuple(sorted(values.items()))
        place = self._known.setdefault(key, len(self._known))
        return (place,), [Override("all", values=values)]


class _LayeredPlan:
    """Plans all slices, and what puts their entries into the base."""

    def __init__(
        self,
        recipe: LayeredRecipe,
        policies: Policies,
        own: StateDict,
        base: MergeFile,
        models: dict[str, _Model],
    ) -> None:
        self._recipe, self._policies = recipe, policies
        self._own, self._base, self._models = own, base, models
        self.takes: list[Take] = []
        self.merged: list[str] = []
        self.copied: list[tuple[str, str]] = []
        self.skipped: list[tuple[str, str]] = []

    def plan(self) -> tuple[Edit, ...]:
        """Return the edits: what goes, what is taken, what is computed."""
        numbers: list[Numbers] = []
        kept: dict[str, tuple[MergeFile, str, str]] = {}
        offset = 0
        for number, part in enumerate(self._recipe.slices):
            length = self._length(part)
            ends = (number == 0, number == len(self._recipe.slices) - 1)
            maps = [self._map(source, offset, length, ends) for source in part.sources]
            numbers.append(self._plan_slice(part, maps, offset, length, kept))
            offset += length
        drops = [Drop(self._own.path, name) for name in self._own.names if name not in kept]
        for name, (file, path, old) in kept.items():
            if file is not self._base or old != name:
                self.takes.append(Take(self._own.path, name, file.label, path, old))
        # a layer that is there twice is two layers, which may be trained apart
        used: set[tuple[int, str, str]] = set()
        copies: list[Untie] = []
        for name, (file, path, old) in kept.items():
            if (id(file), path, old) in used:
                copies.append(Untie(self._own.path, name))
            used.add((id(file), path, old))
        merges: list[Merge] = []
        for each in numbers:
            merges += (m for m in each.merges if not self._is_idle(m))
            drops += each.drops
            self.copied += each.copied
            self.skipped += each.skipped
        self.merged += (merge.path for merge in merges)
        return (*drops, *self.takes, *copies, *merges)

    def _is_idle(self, merge: Merge) -> bool:
        """Return whether a merge takes one entry as it is."""
        return self._recipe.method.name == "passthrough" and (
            merge.dtype is None and not merge.rows and merge.values.get("scale") == (1.0,)
        )

    def _length(self, part: Slice) -> int:
        lengths = set()
        for source in part.sources:
            count = self._models[source.file].layers.count
            stop = count if source.stop is None else source.stop
            if not 0 <= source.start <= stop <= count:
                raise UsageError(
                    f"there are no layers {source.start} to {stop}: it has {count}",
                    path=source.file,
                )
            lengths.add(stop - source.start)
        if len(lengths) > 1:
            raise UsageError(
                "the sources of a slice have different numbers of layers: "
                + ", ".join(map(str, sorted(lengths)))
            )
        return lengths.pop()

    def _map(
        self, source: SliceSource, offset: int, length: int, ends: tuple[bool, bool]
    ) -> dict[str, str]:
        """Return the source's name for each name that the slice has in the result."""
        model, wanted = self._models[source.file], set()
        wanted |= {"before"} if ends[0] else set()
        wanted |= {"after"} if ends[1] else set()
        found: dict[str, str] = {}
        for name in model.state_dict.names:
            where, index = place_of(model.layers, name)
            if where in wanted:
                found[name] = name
            elif where == "in" and source.start <= index < source.start + length:
                found[model.layers.renamed(name, offset + index - source.start)] = name
        return found

    def _plan_slice(
        self,
        part: Slice,
        maps: Sequence[dict[str, str]],
        offset: int,
        length: int,
        kept: dict[str, tuple[MergeFile, str, str]],
    ) -> Numbers:
        leading = part.base if part.base is not None and self._recipe.method.needs_base else 0
        virtual = [
            self._virtual(self._models[source.file], names, own=place == leading)
            for place, (source, names) in enumerate(zip(part.sources, maps, strict=True))
        ]
        base = virtual[leading]
        own = self._models[part.sources[leading].file]
        kept |= {n: (own.file, own.state_dict.path, o) for n, o in maps[leading].items()}
        inputs = [
            file
            for place, file in enumerate(virtual)
            if not (self._recipe.method.needs_base and place == leading)
        ]
        layers = own.layers
        old = {
            name: (
                tuple(names.get(name, name) for names in maps),
                _along(layers.index(name), offset, length),
            )
            for name in maps[leading]
        }
        vocabulary = self._vocabulary(part)
        planner = _SlicePlanner(self._recipe, part, old, self._policies, base, inputs, vocabulary)
        return planner.plan(base.checkpoint.state_dicts, Selection())

    def _vocabulary(self, part: Slice) -> Vocabulary | None:
        """Return which tokens the rows of the files are, if they are known."""
        known = self._recipe.vocabularies
        if known is None:
            return None
        labels = {name: model.file.label for name, model in self._models.items()}
        base = None if part.base is None else labels[part.sources[part.base].file]
        tokens = {labels[name]: each for name, each in known.files.items() if name in labels}
        return Vocabulary(tokens, known.wanted, base)

    def _virtual(self, model: _Model, names: dict[str, str], *, own: bool) -> MergeFile:
        """Return a file that has the names of the result."""
        entries = {entry.name: entry for entry in model.state_dict.entries}
        path = self._own.path if own else model.state_dict.path
        state_dict = replace(
            model.state_dict,
            path=path,
            entries=tuple(replace(entries[old], name=new) for new, old in names.items()),
        )
        checkpoint = replace(model.file.checkpoint, state_dicts=(state_dict,))
        old_names = {
            (path, new): model.file.old_name(model.state_dict.path, old)
            for new, old in names.items()
        }
        return MergeFile(
            model.file.label, model.file.original, checkpoint, Plan(), (), old_names, {}
        )


def _along(index: int | None, offset: int, length: int) -> float:
    """Return where a layer lies in its slice; 0 for what is no layer, as there."""
    if index is None:
        return 0.0
    return (index - offset) / (length - 1) if length > 1 else 1.0
