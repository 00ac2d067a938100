"""What may be done to make a checkpoint fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ckpt_surgery.dtypes import NAMES, named
from ckpt_surgery.errors import UsageError
from ckpt_surgery.fit.adaptations import AdaptRule, Classes
from ckpt_surgery.fit.fills import Fill
from ckpt_surgery.names.suggest import near_hint
from ckpt_surgery.startup.lazy_dataclass import dataclass

_NOT_ONE_NUMBER = ("float8_e8m0fnu", "float4_e2m1fn_x2")
"""A block's scale, and numbers packed in bytes: nothing can be converted to these by itself."""


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
        dtype = named(self.dtype)
        if dtype is None:
            raise UsageError(
                f"there is no element type '{self.dtype}'", hint=near_hint(self.dtype, NAMES)
            )
        if dtype.kind != "float":
            raise UsageError(f"'{self.dtype}' is no floating-point type")
        if dtype.name in _NOT_ONE_NUMBER or not dtype.in_torch:
            raise UsageError(f"an element of '{self.dtype}' is not one number of its own")
        object.__setattr__(self, "dtype", dtype.name)
