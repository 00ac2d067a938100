"""The edit that gives a tensor another element type, and what it refuses."""

from __future__ import annotations

from collections.abc import Container
from typing import ClassVar, Final, Literal

from ckpt_surgery.checkpoint.description import Tensor, join_path
from ckpt_surgery.compute.elements import can_load
from ckpt_surgery.dtypes import BY_NAME, DType
from ckpt_surgery.edits.values import Elements, ValueEdit
from ckpt_surgery.errors import PlanError
from ckpt_surgery.startup.lazy_dataclass import dataclass

# What cannot be converted to or from one by one: a block's scale, two numbers in a byte.
_NOT_ONE_NUMBER: Final = frozenset({"float8_e8m0fnu", "float4_e2m1fn_x2"})
_KINDS: Final = {"float": "real", "int": "real", "bool": "real", "complex": "complex"}


@dataclass(frozen=True, slots=True)
class Cast(ValueEdit):
    """Give a tensor another element type, each number rounded once, to nearest.

    Numbers that it makes infinite or other ones refuse to be written without leave; with
    `max_loss` also those that it changes by a larger share of them (a zero is a loss of 1).
    """

    kind: ClassVar[str] = "cast"
    moments: ClassVar[Literal["move", "anew", "stay"]] = "stay"
    dtype: str
    max_loss: float | None = None

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the same sizes."""
        return shape

    def tensor(self, tensor: Tensor) -> Tensor:
        """Return the tensor in the other type, converted when it is written.

        Raises `PlanError` for types between which numbers cannot be converted one by one.
        """
        dtype = BY_NAME.get(self.dtype)
        path = join_path(self.state_dict, self.name)
        if dtype is None:
            raise PlanError(f"there is no element type '{self.dtype}'", entry=path)
        if not is_castable(tensor) or kind_of(dtype) != kind_of(tensor.dtype):
            was = tensor.dtype.name if tensor.storage is not None else tensor.layout
            raise PlanError(f"a tensor of '{was}' cannot be cast to '{dtype.name}'", entry=path)
        if tensor.dtype is dtype:
            return tensor
        from ckpt_surgery.compute.cast_job import cast_tensor

        return cast_tensor(tensor, dtype, path, most=self.max_loss)

    def compute(self, values: Elements) -> Elements:
        """Return the elements as they are: `tensor` converts them."""
        return values


def is_castable(tensor: Tensor) -> bool:
    """Return whether the elements of a tensor are numbers by themselves."""
    return can_load(tensor) and kind_of(tensor.dtype) is not None


def kind_of(dtype: DType) -> str | None:
    """Return ``real`` or ``complex`` for a type between which of its kind numbers are converted."""
    if dtype.name in _NOT_ONE_NUMBER or dtype.name == "complex32" or not dtype.in_torch:
        return None
    return _KINDS.get(dtype.kind)


def require_no_scale(
    path: str, name: str, tensor: Tensor, names: Container[str], rule: str
) -> None:
    """Raise `PlanError` for numbers that are only half of what they stand for.

    `rule` is what asks for the cast, of which another may take other tensors.
    """
    scale = _scale_of(name, tensor.dtype, names)
    if scale is not None:
        raise PlanError(
            f"its {tensor.dtype.name} numbers mean what they do only with '{scale}' beside them, "
            "which a cast does not apply",
            entry=join_path(path, name),
            hint=f"{rule} 'SELECTION=TYPE' casts other tensors",
        )


def _scale_of(name: str, dtype: DType, names: Container[str]) -> str | None:
    """Return the name of the scale that the numbers of a tensor are to be multiplied by.

    None if none lies beside it. So do DeepSeek (``weight_scale_inv``, ``scale``), FBGEMM and
    compressed-tensors (``weight_scale``) and ComfyUI (``scale_weight``) keep types of one byte.
    """
    if dtype.itemsize > 1 or dtype.kind == "bool":
        return None
    module, dot, leaf = name.rpartition(".")
    beside = (f"{leaf}_scale_inv", f"{leaf}_scale", f"scale_{leaf}", "scale")
    found = (f"{module}{dot}{each}" for each in beside if each != leaf)
    return next((each for each in found if each in names), None)
