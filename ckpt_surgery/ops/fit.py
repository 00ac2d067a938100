"""Write a checkpoint that loads strictly into a target, from as much of another as fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ckpt_surgery.checkpoint.compact import in_own_storage
from ckpt_surgery.checkpoint.description import Checkpoint, Entry, StateDict, Tensor, join_path
from ckpt_surgery.checkpoint.select import choose_state_dicts
from ckpt_surgery.compute.elements import can_load, require_torch
from ckpt_surgery.compute.lazy import computed_tensor
from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.edits.inline_optimizer import inside, refusal
from ckpt_surgery.errors import CkptError, LossyEditError, PathLike, PlanError, UsageError
from ckpt_surgery.fileio import Source
from ckpt_surgery.fileio.atomic import atomic_output
from ckpt_surgery.fileio.distinct import Role
from ckpt_surgery.fit.adaptations import Classes, parse_adaptations
from ckpt_surgery.fit.checks import check_adaptations
from ckpt_surgery.fit.fills import parse_fills
from ckpt_surgery.fit.grids import parse_grids
from ckpt_surgery.fit.items import FitItem
from ckpt_surgery.fit.moments import AdaptMoment, elements_of
from ckpt_surgery.fit.options import FitOptions
from ckpt_surgery.fit.plan import plan_fit
from ckpt_surgery.formats import read
from ckpt_surgery.matching.correspondence import LEVELS, Correspondence, Level, correspond
from ckpt_surgery.matching.maps import check_map, format_proposal
from ckpt_surgery.matching.target_source import Aim, describe, opened
from ckpt_surgery.models.specs import Value
from ckpt_surgery.models.target import Target
from ckpt_surgery.names import Selection
from ckpt_surgery.names.suggest import near_hint
from ckpt_surgery.pickles import Object, PersistentId
from ckpt_surgery.reports.fitting import FitReport, Fitted
from ckpt_surgery.torch_objects.tensors import relocated
from ckpt_surgery.training.documents import OptimizerChange
from ckpt_surgery.training.optimizers import InStep, keep_in_step
from ckpt_surgery.training.parameters import Inventory, NamedEntry, Parameter
from ckpt_surgery.writing.output import Output
from ckpt_surgery.writing.target import for_output
from ckpt_surgery.writing.write import left_out, write

if TYPE_CHECKING:
    from ckpt_surgery.fit.initial import InitialValues

FitOptimizer = Literal["resize", "reset", "keep", "drop"]

_Elements = Any
"""``torch.Tensor``, which is not imported here."""


def fit(
    source: PathLike | Source,
    output: Output | PathLike,
    *,
    model: str | None = None,
    model_args: Mapping[str, Value] | None = None,
    settings: Sequence[str] = (),
    like: PathLike | Source | None = None,
    match: str = "prefix",
    renames: Mapping[str, str] | None = None,
    emit_map: PathLike | None = None,
    adapt: Sequence[str] = (),
    grid: str | None = None,
    fill: Sequence[str] = (),
    classes: tuple[Sequence[str], Sequence[str]] | None = None,
    initial: Selection | None = None,
    dtype: str | None = None,
    seed: int = 0,
    at: Sequence[str] = (),
    optimizer: FitOptimizer = "resize",
) -> FitReport:
    """Fit the state dicts of `source`, or those at the paths `at`, to one target; see `match`.

    Names are paired no more boldly than `match` (``name``, ``prefix``, ``suffix``, ``order``),
    after what `renames` says (old name: new name); `emit_map` writes the pairing for review.
    `adapt` permits adaptations (``"channels=mean"``; `grid` is what positions are interpolated to
    if it is no square, ``"4x6"``), `fill` says what takes the place of initial
    values (``"fc=zeros"``), `classes` are the class names of the old and of the new head. With
    `initial`, any initial tensor outside this selection is an error. `dtype` is the type of the
    result's floating-point tensors, the target's if None. What lies beside the state dicts is
    carried over.

    An optimizer follows its model: what is left out leaves it, and what is initial begins anew. The
    moments of an adapted tensor are adapted the same way (``"resize"``) or begin anew
    (``"reset"``); ``"keep"`` leaves the optimizer as it is, ``"drop"`` leaves it out.

    Raises `PlanError` if nothing fits, a tensor may not be initial, or it is not certain which of
    an optimizer's state belongs to which parameter, `AmbiguousMatchError` for
    names with two equally good partners, `WriteError` for a bad output, and what `match` raises.
    Nothing is then written.
    """
    target = output if isinstance(output, Output) else Output(output)
    target.check()
    fills, channels = parse_fills(fill)
    options = FitOptions(
        rules=(*parse_adaptations(adapt, None if grid is None else parse_grids(grid)), *channels),
        fills=fills,
        classes=None if classes is None else Classes(*map(tuple, classes)),
        dtype=dtype,
    )
    level = _level(match)
    if emit_map is not None:
        target = replace(target, beside=(*target.beside, Role("'--emit-map'", emit_map)))
    with read(source) as checkpoint, opened(model, model_args, settings, like) as aim:
        target.refuse_inputs([*checkpoint.sources, *aim.sources])
        if initial is not None:
            options = replace(options, may_be_initial=_permitted(initial, aim))
        chosen = choose_state_dicts(checkpoint, at)
        fitted = []
        for each in chosen:
            with _naming(checkpoint, each, several=len(chosen) > 1):
                fitted.append(_plan(each, aim, options, level, renames or {}))
        with _naming(checkpoint, chosen[0], several=False):
            check_adaptations([i for each in fitted for i in each.plan.items], options.rules)
        big_endian = any(_is_big_endian(t) for _, t in checkpoint.tensors)
        values = _Values(aim, seed, big_endian=big_endian)
        archive = for_output(checkpoint, target)
        result = replace(archive, state_dicts=_replaced(archive, fitted, values))
        step = _in_step(archive, result, fitted, aim.target, optimizer)
        result = step.checkpoint
        if emit_map is not None:
            _write_map(emit_map, fitted, force=target.force)
        written = write(result, target, inputs=aim.sources)
        result = written.checkpoint
        return FitReport(
            inputs=(checkpoint.file.name, *aim.inputs),
            output=written.output,
            format=written.format,
            target=aim.target.title,
            fitted=tuple(fitted),
            carried=tuple(other.path for other in result.others),
            dropped_others=(*left_out(checkpoint, result), *_left_out(chosen, result)),
            optimizers=step.changes,
            warnings=(
                *checkpoint.notes,
                *_warnings(result, chosen, fitted),
                *step.warnings,
                *written.warnings,
            ),
            seed=seed,
            nbytes_before=checkpoint.size,
            nbytes_after=written.nbytes,
        )


def _in_step(
    before: Checkpoint,
    after: Checkpoint,
    fitted: Sequence[Fitted],
    target: Target,
    choice: FitOptimizer,
) -> InStep:
    """The result with its optimizers following the fit."""
    items = {each.path: {item.name: item for item in each.plan.items} for each in fitted}
    sources = {
        path: {name: None if i.status == "initial" else i.source for name, i in own.items()}
        for path, own in items.items()
    }

    moments = {
        path: {
            name: AdaptMoment(item.adaptation, item.shape)
            for name, item in own.items()
            if item.adaptation is not None
        }
        for path, own in items.items()
    }
    held = inside(s for s in before.state_dicts if s.path in items)
    if held and choice != "drop":
        raise refusal(held, before, "--optimizer drop leaves it out")
    dropped = tuple(OptimizerChange(join_path(s.path, entry.name), "dropped") for s, entry in held)
    if not before.others:  # bare weights: nothing that could be an optimizer
        return InStep(after, dropped)
    try:
        step = keep_in_step(
            before,
            after,
            choice if choice in {"keep", "drop"} else "auto",
            sources=sources,
            moments=moments if choice == "resize" else None,
            parameters=dict.fromkeys(items, _parameters(target)),
        )
    except CkptError as error:
        if error.path is None:
            error.name_file(before.file.name)
        raise
    return replace(step, changes=dropped + step.changes)


def _parameters(target: Target) -> Sequence[Parameter]:
    """The target's parameters, of which the file may have two in one tensor, and two of one."""
    leaders = {name: group[0] for group in target.ties for name in group}
    return Inventory.of(
        NamedEntry(spec.name, spec.shape, spec.dtype, spec.role, leaders.get(spec.name))
        for spec in target.tensors
    ).parameters


def _left_out(chosen: Sequence[StateDict], result: Checkpoint) -> Iterator[str]:
    """What is among the weights without being a tensor, and not in the result."""
    fitted = {state_dict.path: state_dict for state_dict in result.state_dicts}
    for state_dict in chosen:
        kept = set(fitted[state_dict.path].names)
        for entry in state_dict.entries:
            if entry.tensor is None and entry.name not in kept:
                yield join_path(state_dict.path, entry.name)


def _level(text: str) -> Level:
    for level in LEVELS:
        if text == level:
            return level
    raise UsageError(f"'{text}' is no way to match names", hint=f"there are {', '.join(LEVELS)}")


def _permitted(initial: Selection, aim: Aim) -> Callable[[str], bool]:
    names = aim.target.names
    chosen = initial.choose(names)
    unmatched = (rule.text for rule, count in chosen.counts if not count)
    text = None if initial.allow_unmatched else next(unmatched, None)
    if text is not None:
        raise UsageError(
            f"'--initial {text}' matches nothing in the target", hint=near_hint(text, names)
        )
    initial.require_matches(chosen.counts, names)
    return chosen.chosen.__contains__


@contextmanager
def _naming(checkpoint: Checkpoint, state_dict: StateDict, *, several: bool) -> Iterator[None]:
    """Say in an error which file and which of several state dicts it is about."""
    try:
        yield
    except CkptError as error:
        if error.path is None:
            error.name_file(checkpoint.file.name)
        if several and error.entry is None:
            error.entry = state_dict.path
            error.hint = error.hint or "--at chooses which state dicts to fit"
        raise


def _plan(
    state_dict: StateDict, aim: Aim, options: FitOptions, level: Level, renames: Mapping[str, str]
) -> Fitted:
    source = describe(state_dict)
    check_map(renames, (spec.name for spec in source.specs), aim.target.names)
    found = correspond(
        source.specs,
        aim.target.tensors,
        level=level,
        upgraded=aim.upgraded(source),
        renames=renames,
    )
    plan = plan_fit(
        source.specs,
        aim.target,
        found,
        options,
        source_ties=source.ties,
        source_metadata=source.metadata,
    )
    tensors = dict(state_dict.tensors)
    for item in plan.items:
        computes = item.tie_of is None and not item.is_verbatim and item.status != "initial"
        if computes and item.source is not None and not can_load(tensors[item.source]):
            raise LossyEditError(
                f"'{item.source}' is no plain tensor, so it can only be copied as it is",
                hint=f"the target wants {item.dtype} {list(item.shape)}",
            )
    return Fitted(state_dict.path, state_dict.kind, found, plan)


@dataclass(slots=True)
class _Values:
    """Entries of the result: bytes of the files where they stay, computed tensors elsewhere."""

    aim: Aim
    seed: int
    big_endian: bool
    _drawn: dict[int, InitialValues] = field(default_factory=dict)

    def entries(self, state_dict: StateDict, fitted: Fitted) -> list[Entry]:
        sources = {entry.name: entry for entry in state_dict.entries}
        made: dict[str, Entry] = {}
        for item in fitted.plan.items:
            if item.tie_of is not None:
                made[item.name] = replace(made[item.tie_of], name=item.name, key_node=None)
            else:
                made[item.name] = self._entry(item, sources, fitted)
        for name in self.aim.target.extra_state:
            made[name] = self._extra_state(name, sources)
        return list(made.values())

    def _extra_state(self, name: str, sources: Mapping[str, Entry]) -> Entry:
        entry = sources.get(name) or self.aim.entry(name)
        if entry is None:
            raise PlanError(
                f"'{name}' is no tensor but a state that the model keeps, and the checkpoint "
                "does not have it",
                hint="save the model's own state dict and use --like",
            )
        return replace(entry, key_node=None)

    def _entry(self, item: FitItem, sources: Mapping[str, Entry], fitted: Fitted) -> Entry:
        entry = sources[item.source] if item.is_verbatim and item.source is not None else None
        if entry is None and _keeps_own_value(item):
            entry = self.aim.entry(item.name)
        kept = None if entry is None or entry.tensor is None else self._kept(item, entry.tensor)
        if entry is not None and kept is not None:
            role = self.aim.target.by_name[item.name].role
            node = entry.node if kept is entry.tensor else kept.node
            return Entry(item.name, kept, role, node=node)

        def compute() -> _Elements:
            from ckpt_surgery.fit.values import fitted as value

            return value(item, lambda name: _load(sources[name]), self._initial(fitted))

        tensor = computed_tensor(
            item.shape, BY_NAME[item.dtype], compute, key=item.name, big_endian=self.big_endian
        )
        return Entry(item.name, tensor, self.aim.target.by_name[item.name].role)

    def _kept(self, item: FitItem, tensor: Tensor) -> Tensor | None:
        """`tensor` if its bytes can stay as they are; None if they have to be computed."""
        if tensor.dtype.name != item.dtype or _is_big_endian(tensor) != self.big_endian:
            return None if can_load(tensor) else tensor
        if tensor.shape != item.shape:  # one element, which torch 0.3 wrote with an axis
            tensor = replace(tensor, shape=item.shape, stride=(), node=None)
        return tensor if item.untied_from is None or tensor.storage is None else _alone(tensor)

    def _initial(self, fitted: Fitted) -> Callable[[FitItem], _Elements]:
        from ckpt_surgery.fit.values import initial_value

        return lambda item: initial_value(item, self.seed, lambda name: self._own(name, fitted))

    def _own(self, name: str, fitted: Fitted) -> _Elements:
        """The target's own value: of its file, or drawn as its constructor does."""
        entry = self.aim.entry(name)
        if entry is not None:
            return _load(entry)
        if self.aim.spec is None:
            raise PlanError(f"the target has no value for '{name}'")
        drawn = self._drawn.get(id(fitted))
        if drawn is None:
            from ckpt_surgery.fit.initial import InitialValues

            names = [
                item.name
                for item in fitted.plan.items
                if item.needs_initial and _takes_own_value(item)
            ]
            drawn = self._drawn[id(fitted)] = InitialValues(self.aim.spec, names, self.seed)
        return drawn.tensor(name)


def _alone(tensor: Tensor) -> Tensor:
    """`tensor` with bytes that no other tensor shares."""
    moved = in_own_storage(tensor)
    if not isinstance(tensor.node, Object) or moved.storage is None:
        return replace(moved, node=None)
    return replace(moved, node=relocated(tensor.node, PersistentId(None, moved.storage), moved))


def _takes_own_value(item: FitItem) -> bool:
    return item.fill is None or item.fill.kind == "init"


def _keeps_own_value(item: FitItem) -> bool:
    """Whether the target's own value is all of it."""
    return item.status == "initial" and _takes_own_value(item)


def _is_big_endian(tensor: Tensor) -> bool:
    return tensor.storage is not None and tensor.storage.big_endian


def _load(entry: Entry) -> _Elements:
    return elements_of(entry.tensor, entry.name)


def _replaced(
    checkpoint: Checkpoint, fitted: Sequence[Fitted], values: _Values
) -> tuple[StateDict, ...]:
    by_path = {each.path: each for each in fitted}
    if any(not item.is_verbatim for each in fitted for item in each.plan.items):
        require_torch()
    return tuple(
        replace(
            each,
            entries=tuple(values.entries(each, by_path[each.path])),
            metadata=values.aim.metadata,
        )
        if each.path in by_path
        else each
        for each in checkpoint.state_dicts
    )


def _write_map(path: PathLike, fitted: Sequence[Fitted], *, force: bool) -> None:
    found: list[Correspondence] = [each.found for each in fitted]
    if any(each.renames != found[0].renames for each in found):
        raise UsageError(
            "the state dicts differ in how their names are paired, so one map cannot say it",
            hint="--at chooses one of them",
        )
    form = "json" if Path(path).suffix.lower() == ".json" else "toml"
    text = format_proposal(found[0], "json" if form == "json" else "toml")
    with atomic_output(path, force=force) as sink:
        sink.write(text.encode())


def _warnings(
    result: Checkpoint, chosen: Sequence[StateDict], fitted: Sequence[Fitted]
) -> Iterator[str]:
    for each in fitted:
        for note in each.plan.notes:
            yield join_path(each.path, note) if len(fitted) > 1 else note
    paths = {each.path for each in chosen}
    for state_dict in result.state_dicts:
        if state_dict.path not in paths:
            yield f"'{state_dict.path}' is carried over as it was, and may not load into the target"
