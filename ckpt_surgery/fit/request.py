"""What a fit is asked to be, checked as far as it can be without its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, get_args

from ckpt_surgery.errors import PathLike, UsageError
from ckpt_surgery.fit.adaptations import Classes, parse_adaptations
from ckpt_surgery.fit.fills import parse_fills
from ckpt_surgery.fit.grids import parse_grids
from ckpt_surgery.fit.groups import GroupRule, parse_group_rules
from ckpt_surgery.fit.layouts import parse_layout_answers
from ckpt_surgery.fit.options import FitOptions
from ckpt_surgery.matching.correspondence import LEVELS, Level
from ckpt_surgery.matching.target_source import TargetRequest
from ckpt_surgery.names import Selection
from ckpt_surgery.startup.lazy_dataclass import dataclass

_FitOptimizer = Literal["resize", "reset", "keep", "drop"]
_OPTIMIZERS: Final = get_args(_FitOptimizer)
LAYOUT: Final = "layout"
"""The adaptation that is carried out before all others: whole tensors, put elsewhere."""


@dataclass(frozen=True, slots=True)
class FitRequest(TargetRequest):
    """How state dicts are fitted to one target: all, or those at the paths `at`.

    Names are paired no more boldly than `match` (``name``, ``prefix``, ``suffix``, ``order``),
    after what `renames` says (old name: new name); `emit_map` writes the pairing for review.
    `adapt` permits adaptations (``"channels=mean"``; `grid` is what positions are interpolated to
    if it is no square, ``"4x6"``; ``"layout"`` permits what is transposed, fused or split, and
    `layout` says what that is where names and shapes do not, ``"h.*.c_proj.weight=transposed"``),
    `fill` says what takes the place of initial
    values (``"fc=zeros"``), `classes` are the class names of the old and of the new head. With
    `initial`, any initial tensor outside this selection is an error. `dtype` is the type of the
    result's floating-point tensors, the target's if None; `seed` is what initial values are drawn
    from.

    An optimizer follows its model: what is left out leaves it, and what is initial begins anew. The
    moments of an adapted tensor are adapted the same way (``"resize"``) or begin anew
    (``"reset"``); ``"keep"`` leaves the optimizer as it is, ``"drop"`` leaves it out.
    `optimizer_group` says which of its groups new parameters join (``"head=1"``). With
    `state_dict_only` nothing is written beside the state dict.

    Raises `UsageError` for what is no adaptation, fill, grid, level or type.
    """

    match: str = "prefix"
    renames: Mapping[str, str] | None = None
    emit_map: PathLike | None = None
    adapt: Sequence[str] = ()
    layout: Sequence[str] = ()
    grid: str | None = None
    fill: Sequence[str] = ()
    classes: tuple[Sequence[str], Sequence[str]] | None = None
    initial: Selection | None = None
    dtype: str | None = None
    seed: int = 0
    at: Sequence[str] = ()
    optimizer: _FitOptimizer = "resize"
    optimizer_group: Sequence[str] = ()
    state_dict_only: bool = False

    def __post_init__(self) -> None:
        TargetRequest.__post_init__(self)
        if self.optimizer not in _OPTIMIZERS:
            raise UsageError(
                f"'optimizer {self.optimizer}' is none of {', '.join(_OPTIMIZERS)}",
                fields=("optimizer",),
            )
        if self.optimizer_group and self.optimizer in ("keep", "drop"):
            raise UsageError(
                f"'optimizer_group' has no meaning with 'optimizer {self.optimizer}'",
                fields=("optimizer_group", "optimizer"),
            )
        if self.layout and not self.in_layouts:
            raise UsageError(
                f"'layout {self.layout[0]}' says which layout is meant, and none is permitted",
                hint="add --adapt layout",
                fields=("layout",),
            )
        _ = self.level, self.options, self.groups, parse_layout_answers(self.layout)

    @property
    def in_layouts(self) -> bool:
        """Whether what is transposed, fused or split may be put into the target's layout."""
        return LAYOUT in self.adapt

    @property
    def level(self) -> Level:
        """How boldly names are paired."""
        for level in LEVELS:
            if self.match == level:
                return level
        raise UsageError(
            f"'{self.match}' is no way to match names", hint=f"there are {', '.join(LEVELS)}"
        )

    @property
    def groups(self) -> tuple[GroupRule, ...]:
        """Which groups of an optimizer new parameters join."""
        return parse_group_rules(self.optimizer_group)

    @property
    def options(self) -> FitOptions:
        """What may be done to make a checkpoint fit, but for what may be initial."""
        fills, channels = parse_fills(self.fill)
        grids = None if self.grid is None else parse_grids(self.grid)
        others = [text for text in self.adapt if text != LAYOUT]
        return FitOptions(
            rules=(*parse_adaptations(others, grids), *channels),
            fills=fills,
            classes=None if self.classes is None else Classes(*map(tuple, self.classes)),
            dtype=self.dtype,
        )
