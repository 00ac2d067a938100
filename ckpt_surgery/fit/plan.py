"""Where every tensor of a target takes its value from: copied, adapted or initial."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.fit.adaptations import KINDS, Adaptation, Kind, adaptation, below, possible
from ckpt_surgery.fit.checks import check
from ckpt_surgery.fit.fills import Fill, require_fillable
from ckpt_surgery.fit.items import FitItem, FitPlan, Status
from ckpt_surgery.fit.options import FitOptions
from ckpt_surgery.fit.remarks import (
    grid_notes,
    input_notes,
    mark_suspects,
    suspect_notes,
    tie_notes,
)
from ckpt_surgery.matching.comparison import copies_into, lacks_counter, loads_into
from ckpt_surgery.matching.correspondence import Correspondence
from ckpt_surgery.models.target import Metadata, Target, TensorSpec


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
    items = mark_suspects(list(_untied(joined, one_tensor)))
    used = {item.source for item in items if item.status != "initial"}
    check(items, chosen)
    return FitPlan(
        items=tuple(items),
        dropped=tuple(spec for spec in source if spec.name not in used),
        notes=(
            *tie_notes(items, found.by_target, one_tensor),
            *input_notes(items),
            *grid_notes(items),
            *suspect_notes(items),
        ),
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
        if not copies_into(have, replace(want, dtype=dtype)):
            what = have.layout if have.layout != want.layout else have.dtype
            reason = f"the checkpoint's is a {what} tensor, which load_state_dict cannot copy"
        elif _is_complex(have.dtype) and not _is_complex(want.dtype):
            reason = f"complex numbers do not fit {want.dtype}"
        elif loads_into(have.shape, want.shape) and not self._has_other_grid(want):
            status = "copied" if have.dtype == dtype else "cast"
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

    def _has_other_grid(self, want: TensorSpec) -> bool:
        """Return whether it is asked to be interpolated although the
        two grids have as many positions.
        """
        rules = [rule for rule in self.options.rules if rule.grids and rule.grids.old]
        found = adaptation(want.name, want.shape, want.shape, rules) if rules else None
        return found is not None and found.old_size != found.new_size

    def _source_of(self, want: TensorSpec) -> TensorSpec | None:
        """Its own source, or that of the tied tensors that it is one of."""
        leader = self.target.leader_of.get(want.name)
        if leader is not None:
            return self._sources_of_ties[leader]
        name = self.by_target.get(want.name)
        return None if name is None else self.source[name]

    def _source_of_tie(self, group: Sequence[str]) -> TensorSpec | None:
        """Return the last source of a fitting shape, since
        ``load_state_dict`` copies one after another.

        If none has such a shape, it is the first.
        """
        sources = [self.source[self.by_target[name]] for name in group if name in self.by_target]
        want = self.target.by_name[group[0]]
        fitting = [
            source
            for source in sources
            if loads_into(source.shape, want.shape) and copies_into(source, want)
        ]
        return next(iter(fitting[-1:] or sources[:1]), None)

    def _dtype(self, want: TensorSpec) -> str:
        chosen = self.options.dtype
        if chosen is None or BY_NAME[want.dtype].kind != "float":
            return want.dtype
        return BY_NAME[chosen].name

    def _is_optional(self, want: TensorSpec) -> bool:
        """Return whether it is the counter of a batch norm that comes
        from before there were counters.
        """
        module, dot, leaf = want.name.rpartition(".")
        if leaf != "num_batches_tracked" or want.shape != ():
            return False
        mean = self.by_target.get(f"{module}{dot}running_mean")
        return mean is not None and lacks_counter(mean.rpartition(".")[0], self.metadata)

    def _fill(self, want: TensorSpec, dtype: str) -> Fill | None:
        """Return the most confined fill for it; a buffer is filled only if it is named in full."""
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
    """Return the adaptations that mean anything for these element types.

    An integer is an index, a count or a code: part of one table in another gives neither.
    """
    kinds = {BY_NAME[dtype].kind for dtype in dtypes}
    if not kinds <= {"float", "complex"}:
        return ("squeeze", "reshape")
    return KINDS if kinds == {"float"} else [kind for kind in KINDS if kind != "interpolate"]


def _may_be_filled(want: TensorSpec) -> bool:
    """Return whether it is a parameter as far as can be told: zeros
    would ruin a running variance.
    """
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
        if item.source is None or item.status not in ("copied", "cast") or item.tie_of is not None:
            yield item
            continue
        first = takers.setdefault(one_tensor.get(item.source, item.source), item.name)
        yield item if first == item.name else replace(item, untied_from=first)
