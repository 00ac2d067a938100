"""Where every tensor of a target takes its value from: copied, adapted or initial."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.errors import PlanError, UsageError
from ckpt_surgery.fit.adaptations import (
    KINDS,
    Adaptation,
    AdaptRule,
    Classes,
    Fill,
    Kind,
    adaptation,
    below,
    possible,
    require_fillable,
)
from ckpt_surgery.matching.comparison import lacks_counter, loads_into
from ckpt_surgery.matching.correspondence import Correspondence
from ckpt_surgery.models.target import Metadata, Shape, Target, TensorSpec
from ckpt_surgery.names.suggest import near_hint

Status = Literal["copied", "adapted", "initial"]


@dataclass(frozen=True, slots=True)
class FitItem:
    """One tensor of the result, named, shaped and ordered as in the target.

    `source` is the tensor of the checkpoint that it takes values from, or would take if its shape
    fitted; `source_shape` and `source_dtype` describe that one. `dtype` is the result's element
    type. `tie_of` is the tied tensor that it shares its bytes with, which comes before it;
    `untied_from` one that it shared them with in the checkpoint, but does not in the target.
    `reason` says why a tensor is initial and `would_adapt` what would have carried it over.
    `is_optional`: torch does without it in a checkpoint as old as this one.
    """

    name: str
    status: Status
    shape: Shape
    dtype: str
    source: str | None = None
    source_shape: Shape | None = None
    source_dtype: str | None = None
    adaptation: Adaptation | None = None
    fill: Fill | None = None
    tie_of: str | None = None
    untied_from: str | None = None
    reason: str | None = None
    would_adapt: tuple[Kind, ...] = ()
    is_optional: bool = False

    @property
    def numel(self) -> int:
        return TensorSpec(self.name, self.shape).numel

    @property
    def needs_initial(self) -> bool:
        """Whether an initial value has to be made for it (or for a part of it)."""
        if self.tie_of is not None:
            return False
        if self.adaptation is not None:
            return self.adaptation.needs_initial
        return self.status == "initial"

    @property
    def is_verbatim(self) -> bool:
        """Whether its bytes are the source's own: the same numbers of the same type."""
        return self.status == "copied" and self.dtype == self.source_dtype


@dataclass(frozen=True, slots=True)
class FitPlan:
    """The result's tensors in the target's order, and the checkpoint's that it has no use for."""

    items: tuple[FitItem, ...]
    dropped: tuple[TensorSpec, ...] = ()
    notes: tuple[str, ...] = ()

    def having(self, status: Status) -> list[FitItem]:
        return [item for item in self.items if item.status == status]

    @property
    def elements(self) -> dict[str, int]:
        """How many elements were copied, adapted, left initial, and dropped."""
        sums = {
            status: sum(item.numel for item in self.items if item.status == status)
            for status in ("copied", "adapted", "initial")
        }
        return sums | {"dropped": sum(spec.numel for spec in self.dropped)}

    def to_dict(self) -> dict[str, Any]:
        """The fields of the JSON report of ``ckpt fit``."""
        return {
            "copied": [item.name for item in self.having("copied")],
            "adapted": [
                {
                    "name": item.name,
                    "how": str(item.adaptation),
                    "from_shape": list(item.source_shape or ()),
                    "to_shape": list(item.shape),
                }
                for item in self.having("adapted")
            ],
            "initial": [item.name for item in self.having("initial")],
            "dropped": [spec.name for spec in self.dropped],
            "elements": self.elements,
        }


@dataclass(frozen=True, slots=True)
class FitOptions:
    """What may be done to make a checkpoint fit.

    `may_be_initial` is ``--initial``: None permits all. `dtype` is the element type of the
    result's floating-point tensors (None: as the target has them); all others keep the target's.
    """

    rules: Sequence[AdaptRule] = ()
    fills: Sequence[Fill] = ()
    classes: Classes | None = None
    may_be_initial: Callable[[str], bool] | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.dtype is None:
            return
        if self.dtype not in BY_NAME:
            raise UsageError(
                f"there is no element type '{self.dtype}'", hint=near_hint(self.dtype, BY_NAME)
            )
        if BY_NAME[self.dtype].kind != "float":
            raise UsageError(f"'{self.dtype}' is no floating-point type")


def plan_fit(
    source: Sequence[TensorSpec],
    target: Target,
    found: Correspondence,
    options: FitOptions | None = None,
    *,
    source_ties: Sequence[Sequence[str]] = (),
    source_metadata: Metadata | None = None,
) -> FitPlan:
    """Decide for every tensor of `target` where its value comes from.

    `source_ties` are groups of names of one tensor in the checkpoint. Of names that are tied in
    the target but not in the checkpoint, the last one's values are taken, as ``load_state_dict``
    does, and a note says so.
    `source_metadata` tells how old the checkpoint's batch norms are.

    Raises PlanError if nothing at all is copied or adapted, or if a tensor is initial that
    ``may_be_initial`` does not permit; UsageError if a fill or a confined adaptation applies to
    nothing, if a fill cannot give a tensor its values, or if the class lists do not describe any
    head.
    """
    chosen = options or FitOptions()
    planner = _Planner(
        {spec.name: spec for spec in source}, target, found.by_target, chosen, source_metadata
    )
    one_tensor = {name: group[0] for group in source_ties for name in group}
    planned = [planner.item(want) for want in target.tensors]
    joined = _join_ties(planned, target, found.by_target, one_tensor)
    items = list(_untied(joined, one_tensor))
    used = {item.source for item in items if item.status != "initial"}
    _check(items, chosen)
    return FitPlan(
        items=tuple(items),
        dropped=tuple(spec for spec in source if spec.name not in used),
        notes=tuple(_tie_notes(items, found.by_target, one_tensor)),
    )


class _Planner:
    def __init__(
        self,
        source: Mapping[str, TensorSpec],
        target: Target,
        by_target: Mapping[str, str],
        options: FitOptions,
        metadata: Metadata | None,
    ) -> None:
        self.source = source
        self.target = target
        self.by_target = by_target
        self.options = options
        self.metadata = metadata
        self._sources_of_ties = {group[0]: self._source_of_tie(group) for group in target.ties}

    def item(self, want: TensorSpec) -> FitItem:
        dtype = self._dtype(want)
        have = self._source_of(want)
        if have is None:
            optional = self._is_optional(want)
            return FitItem(
                want.name,
                "initial",
                want.shape,
                dtype,
                fill=self._fill(want, dtype),
                reason="not in the checkpoint" + (", like all before torch 0.4.1" * optional),
                is_optional=optional,
            )
        status: Status = "initial"
        adapted: Adaptation | None = None
        reason: str | None = None
        would_adapt: tuple[Kind, ...] = ()
        if _is_complex(have.dtype) and not _is_complex(want.dtype):
            reason = f"complex numbers do not fit {want.dtype}"
        elif loads_into(have.shape, want.shape):
            status = "copied"
        else:
            kinds = _adaptable(have.dtype, want.dtype)
            rules = [rule for rule in self.options.rules if rule.kind in kinds]
            adapted = adaptation(want.name, have.shape, want.shape, rules, self.options.classes)
            status = "adapted" if adapted else "initial"
            if adapted is None:
                reason = f"shape {list(have.shape)} does not fit {list(want.shape)}"
                others = possible(want.name, have.shape, want.shape)
                would_adapt = tuple(kind for kind in others if kind in kinds)
        needs_fill = status == "initial" or (adapted is not None and adapted.needs_initial)
        return FitItem(
            want.name,
            status,
            want.shape,
            dtype,
            source=have.name,
            source_shape=have.shape,
            source_dtype=have.dtype,
            adaptation=adapted,
            fill=self._fill(want, dtype) if needs_fill else None,
            reason=reason,
            would_adapt=would_adapt,
        )

    def _source_of(self, want: TensorSpec) -> TensorSpec | None:
        """Its own source, or that of the tied tensors that it is one of."""
        leader = self.target.leader_of.get(want.name)
        if leader is not None:
            return self._sources_of_ties[leader]
        name = self.by_target.get(want.name)
        return None if name is None else self.source[name]

    def _source_of_tie(self, group: Sequence[str]) -> TensorSpec | None:
        """The last source of a fitting shape, since ``load_state_dict`` copies one after another.

        If none has such a shape, it is the first.
        """
        sources = [self.source[self.by_target[name]] for name in group if name in self.by_target]
        shape = self.target.by_name[group[0]].shape
        fitting = [source for source in sources if loads_into(source.shape, shape)]
        return next(iter(fitting[-1:] or sources[:1]), None)

    def _dtype(self, want: TensorSpec) -> str:
        chosen = self.options.dtype
        if chosen is None or BY_NAME[want.dtype].kind != "float":
            return want.dtype
        return BY_NAME[chosen].name

    def _is_optional(self, want: TensorSpec) -> bool:
        """Whether it is the counter of a batch norm that comes from before there were counters."""
        module, dot, leaf = want.name.rpartition(".")
        if leaf != "num_batches_tracked" or want.shape != ():
            return False
        mean = self.by_target.get(f"{module}{dot}running_mean")
        return mean is not None and lacks_counter(mean.rpartition(".")[0], self.metadata)

    def _fill(self, want: TensorSpec, dtype: str) -> Fill | None:
        """The most confined fill for it; a buffer is filled only if it is named in full."""
        fitting = [
            fill
            for fill in self.options.fills
            if fill.prefix == want.name or (below(want.name, fill.prefix) and _may_be_filled(want))
        ]
        chosen = max(fitting, key=lambda fill: len(fill.prefix), default=None)
        if chosen is not None:
            require_fillable(chosen, want.name, want.shape, dtype)
        return chosen


def _adaptable(*dtypes: str) -> Sequence[Kind]:
    """The adaptations that mean anything for these element types.

    An integer is an index, a count or a code: part of one table in another gives neither.
    """
    kinds = {BY_NAME[dtype].kind for dtype in dtypes}
    if not kinds <= {"float", "complex"}:
        return ("squeeze",)
    return KINDS if kinds == {"float"} else [kind for kind in KINDS if kind != "interpolate"]


def _may_be_filled(want: TensorSpec) -> bool:
    """Whether it is a parameter as far as can be told: zeros would ruin a running variance."""
    leaf = want.name.rpartition(".")[2]
    return (
        want.role != "buffer"
        and leaf not in ("running_mean", "running_var", "num_batches_tracked")
        and BY_NAME[want.dtype].kind in ("float", "complex")
    )


def _is_complex(dtype: str) -> bool:
    return BY_NAME[dtype].kind == "complex"


def _join_ties(
    items: Sequence[FitItem],
    target: Target,
    by_target: Mapping[str, str],
    one_tensor: Mapping[str, str],
) -> Iterator[FitItem]:
    """Make every tied tensor after the first one share that one's bytes and its status."""
    by_name = {item.name: item for item in items}
    for item in items:
        leader = by_name[target.leader_of.get(item.name, item.name)]
        own, taken = by_target.get(item.name), leader.source
        same = own and taken and one_tensor.get(own, own) == one_tensor.get(taken, taken)
        source = own if same else taken
        if leader is item:
            yield replace(item, source=source)
        else:
            yield replace(leader, name=item.name, source=source, fill=None, tie_of=leader.name)


def _untied(items: Iterable[FitItem], one_tensor: Mapping[str, str]) -> Iterator[FitItem]:
    """Give each tensor of the target its own bytes where several share them in the checkpoint."""
    takers: dict[str, str] = {}
    for item in items:
        if item.source is None or item.status != "copied" or item.tie_of is not None:
            yield item
            continue
        first = takers.setdefault(one_tensor.get(item.source, item.source), item.name)
        yield item if first == item.name else replace(item, untied_from=first)


def _tie_notes(
    items: Sequence[FitItem], by_target: Mapping[str, str], one_tensor: Mapping[str, str]
) -> Iterator[str]:
    """Say of tensors that are one in the target, and were several in the checkpoint, which it is.

    `one_tensor` has a name for every tied tensor of the checkpoint, the same for all that are one.
    """
    for item in items:
        own, taken = by_target.get(item.name), item.source
        if own and taken and one_tensor.get(own, own) != one_tensor.get(taken, taken):
            yield (
                f"'{item.name}' is tied in the target: '{taken}' of the checkpoint is taken "
                f"for it, not '{own}'"
            )


def _check(items: Sequence[FitItem], options: FitOptions) -> None:
    if items and all(item.status == "initial" for item in items):
        misfits = sum(item.source is not None for item in items)
        raise PlanError(
            "nothing in the checkpoint fits the target: "
            + (f"{misfits} names agree, but no shape" if misfits else "no name agrees"),
            hint="allow an adaptation with --adapt"
            if misfits
            else "try a bolder --match, or give the names in a map with --rename-map",
        )
    if options.may_be_initial is not None:
        initial = [i.name for i in items if i.status == "initial" and not i.is_optional]
        _refuse_initial(initial, options.may_be_initial)
    filled = {item.fill for item in items if item.needs_initial}
    names = [item.name for item in items]
    for fill in options.fills:
        if fill.prefix and fill not in filled:
            _refuse_unused(f"fill '{fill.prefix}={fill}'", fill.prefix, names)
    for rule in options.rules:
        used = any(
            item.adaptation is not None
            and item.adaptation.kind == rule.kind
            and below(item.name, rule.prefix)
            for item in items
        )
        if rule.prefix and not used:
            _refuse_unused(f"fill '{rule.prefix}={rule.method}'", rule.prefix, names)
    if options.classes is not None and not any(
        item.adaptation is not None and item.adaptation.kind == "rows" for item in items
    ):
        raise UsageError(
            "the class lists are used by no tensor",
            hint="--classes goes with '--adapt rows', and the head must differ in its rows",
        )


def _refuse_initial(initial: Sequence[str], permitted: Callable[[str], bool]) -> None:
    refused = [name for name in initial if not permitted(name)]
    if refused:
        shown = ", ".join(f"'{name}'" for name in refused[:8])
        more = f" and {len(refused) - 8} more" if len(refused) > 8 else ""
        raise PlanError(
            f"{shown}{more} would take {'its' if len(refused) == 1 else 'their'} initial value",
            hint="--initial does not select them; without it the report says what would adapt them",
        )


def _refuse_unused(what: str, prefix: str, names: Sequence[str]) -> None:
    if any(below(name, prefix) for name in names):
        raise UsageError(
            f"{what} applies to nothing", hint=f"'{prefix}' takes its values from the checkpoint"
        )
    children = ", ".join(dict.fromkeys(f"'{name.partition('.')[0]}'" for name in names[:1000]))
    raise UsageError(
        f"{what} applies to nothing: the target has no '{prefix}'",
        hint=near_hint(prefix, names) or f"it has {children}",
    )
