"""What `match` and `fit` found and did, as data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_surgery.checkpoint.description import StateDictKind, join_path
from ckpt_surgery.compute.casts import Cast
from ckpt_surgery.fit.decided import Decided
from ckpt_surgery.fit.items import STATUSES, FitItem, FitPlan
from ckpt_surgery.matching.comparison import Comparison
from ckpt_surgery.matching.correspondence import Correspondence
from ckpt_surgery.matching.layouts import Layout
from ckpt_surgery.reports import envelope, once
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.training.documents import OptimizerChange


@dataclass(frozen=True, slots=True)
class Matched:
    """A state dict of the file against the target, and what of it would match in other layouts."""

    path: str
    kind: StateDictKind
    comparison: Comparison
    layouts: tuple[Layout, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of the JSON report of ``ckpt match``."""
        sure = [layout for layout in self.layouts if layout.is_certain]
        return self.comparison.to_dict() | {
            "would_match_after": [[n, each.how] for each in sure for n in each.targets],
            "ambiguous_layouts": [
                [n, each.how] for each in self.layouts if each.doubt for n in each.targets
            ],
        }


@dataclass(frozen=True, slots=True)
class MatchReport:
    """What ``load_state_dict`` would say about each state dict that was asked about.

    `target` is the model or file as it was asked for, `class_name` the model's own class.
    """

    inputs: tuple[str, ...]
    target: str
    class_name: str
    matched: tuple[Matched, ...]
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "warnings", once(self.warnings))

    @property
    def exit_code(self) -> int:
        """1 if one of the state dicts does not load strictly."""
        return max((each.comparison.exit_code for each in self.matched), default=0)

    def to_dict(self) -> dict[str, Any]:
        """Return where several state dicts were compared, every name is ``path/name``."""
        fields: dict[str, Any] = {}
        for each in self.matched:
            for key, value in each.to_dict().items():
                if isinstance(value, int):
                    fields[key] = fields.get(key, 0) + value
                else:
                    fields.setdefault(key, []).extend(
                        _qualified(each.path if len(self.matched) > 1 else "", entry)
                        for entry in value
                    )
        return {
            **envelope(
                "match", exit_code=self.exit_code, inputs=self.inputs, warnings=self.warnings
            ),
            "target": self.target,
            "paths": [each.path for each in self.matched],
            **fields,
        }


def _qualified(path: str, entry: Any) -> Any:
    """Return a name, or a list that begins with one, as ``path/name``."""
    if isinstance(entry, str):
        return join_path(path, entry)
    return [join_path(path, entry[0]), *entry[1:]]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A state dict of the file, how its names were paired with the target's, and what became.

    `layouts` are what is, or would be, in another layout than the target's.
    """

    path: str
    kind: StateDictKind
    found: Correspondence
    plan: FitPlan
    layouts: tuple[Decided, ...] = ()


@dataclass(frozen=True, slots=True)
class FitReport:
    """Where each tensor of the result comes from, for every state dict that was fitted.

    `carried` and `dropped_others` are the paths of what lies beside the state dicts, `optimizers`
    say what became of those whose model changed, `casts` what a change of element type did to the
    tensors that take their values from the checkpoint. `seed` is
    what initial values were drawn from. `output` is None if nothing was written.
    """

    inputs: tuple[str, ...]
    output: str | None
    format: str
    target: str
    plan: tuple[Mapping[str, Any], ...]
    fitted: tuple[Fitted, ...]
    carried: tuple[str, ...]
    dropped_others: tuple[str, ...] = ()
    optimizers: tuple[OptimizerChange, ...] = ()
    casts: tuple[Cast, ...] = ()
    warnings: tuple[str, ...] = ()
    seed: int = 0
    nbytes_before: int = 0
    nbytes_after: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "warnings", once(self.warnings))

    @property
    def exit_code(self) -> int:
        return 0

    @property
    def _items(self) -> Iterator[tuple[str, FitItem]]:
        for each in self.fitted:
            for item in each.plan.items:
                yield self._name(each, item.name), item

    def _name(self, each: Fitted, name: str) -> str:
        return join_path(each.path, name) if len(self.fitted) > 1 else name

    def to_dict(self) -> dict[str, Any]:
        """Return where several state dicts were fitted, every name is ``path/name``."""
        sums = [each.plan.elements for each in self.fitted]
        return {
            **envelope(
                "fit",
                exit_code=self.exit_code,
                inputs=self.inputs,
                output=self.output,
                warnings=self.warnings,
            ),
            "output_format": self.format,
            "target": self.target,
            "plan": [dict(edit) for edit in self.plan],
            "paths": [each.path for each in self.fitted],
            "copied": [name for name, item in self._items if item.status == "copied"],
            "cast": [name for name, item in self._items if item.status == "cast"],
            "casts": [cast.to_dict() for cast in self.casts],
            "layouts": [
                _layout(self._name(each, ""), decided)
                for each in self.fitted
                for decided in each.layouts
            ],
            "adapted": [
                {
                    "name": name,
                    "how": str(item.adaptation),
                    "from_shape": list(item.source_shape or ()),
                    "to_shape": list(item.shape),
                }
                for name, item in self._items
                if item.status == "adapted"
            ],
            "initial": [name for name, item in self._items if item.status == "initial"],
            "initial_values": [
                _initial(name, item) for name, item in self._items if item.status == "initial"
            ],
            "square_beside_transposed": [name for name, item in self._items if item.is_suspect],
            "untied": [
                [self._name(each, item.name), self._name(each, item.untied_from)]
                for each in self.fitted
                for item in each.plan.items
                if item.untied_from is not None
            ],
            "dropped": [
                self._name(each, spec.name) for each in self.fitted for spec in each.plan.dropped
            ],
            "elements": {key: sum(each[key] for each in sums) for key in _SUMS},
            "renamed": [
                [self._name(each, old), self._name(each, new)]
                for each in self.fitted
                for old, new in each.found.renames.items()
            ],
            "seed": self.seed,
            "carried": list(self.carried),
            "dropped_others": list(self.dropped_others),
            "optimizers": [change.to_dict() for change in self.optimizers],
            "nbytes_before": self.nbytes_before,
            "nbytes_after": self.nbytes_after,
        }


_SUMS = (*STATUSES, "dropped")


def _layout(path: str, decided: Decided) -> dict[str, Any]:
    layout = decided.layout
    return {
        "names": [path + name for name in layout.sources],
        "targets": [path + name for name in layout.targets],
        "how": decided.how,
        "from_shapes": [list(shape) for shape in layout.from_shapes],
        "to_shapes": [list(shape) for shape in layout.to_shapes],
        "doubt": layout.doubt or None,
        "ways": [way.name for way in layout.ways],
        "applied": decided.is_applied,
    }


def _initial(name: str, item: FitItem) -> dict[str, Any]:
    return {
        "name": name,
        "shape": list(item.shape),
        "from_shape": None if item.source_shape is None else list(item.source_shape),
        "fill": str(item.fill or "init"),
        "reason": item.reason,
        "would_adapt": list(item.would_adapt),
        "looks_transposed": item.looks_transposed,
    }
