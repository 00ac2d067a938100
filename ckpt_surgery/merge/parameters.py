"""What a method lets its user choose: names, types, ranges, defaults. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, cast

from ckpt_surgery.errors import UsageError
from ckpt_surgery.names.suggest import near_hint
from ckpt_surgery.startup.lazy_dataclass import dataclass

Value = float | int | bool | str
_Kind = Literal["float", "int", "bool", "str"]

_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class MethodParameter:
    """One choice of a method. `default` None: the user must choose.

    `low` and `high` bound a number, both included unless `low_open`. A parameter that is
    `per_input` may have one value for each input (the base not counted).
    """

    name: str
    kind: _Kind
    help: str
    default: Value | None = None
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    choices: tuple[str, ...] = ()
    per_input: bool = False

    @property
    def range(self) -> str:
        """What is allowed, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.kind == "bool":
            return "true or false"
        noun = "a whole number" if self.kind == "int" else "a number"
        above = "above" if self.low_open else "at least"
        if self.low is not None and self.high is not None and not self.low_open:
            return f"{noun} from {self.low:g} to {self.high:g}"
        bounds = [f"{above} {self.low:g}"] if self.low is not None else []
        bounds += [f"at most {self.high:g}"] if self.high is not None else []
        return " ".join([noun, " and ".join(bounds)]).strip()

    def check(self, value: object) -> Value:
        """`value` as this parameter's type; a text is read as what it spells.

        Raises `UsageError` when the type or the range is wrong.
        """
        checked = self._convert(value)
        if checked is None or not self._in_range(checked):
            raise UsageError(f"'{self.name}' must be {self.range}, got {value!r}")
        return checked

    def _convert(self, value: object) -> Value | None:
        if self.kind == "str":
            return value if isinstance(value, str) else None
        if self.kind == "bool":
            if isinstance(value, str):
                return _TRUTH.get(value.lower())
            return value if isinstance(value, bool) else None
        number = as_number(value)
        if number is None or self.kind == "float":
            return number
        return int(number) if number == int(number) else None

    def _in_range(self, value: Value) -> bool:
        if isinstance(value, str):
            return value in self.choices
        if self.low is not None and (value < self.low or (self.low_open and value == self.low)):
            return False
        return self.high is None or value <= self.high


def as_number(value: object) -> float | None:
    """`value` as a finite float, or None; a bool is no number, a text may spell one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def numbers_of(option: str, text: str) -> tuple[float, ...]:
    """Return the numbers between the commas of an option. Raises `UsageError` if one is none."""
    found = [as_number(part.strip()) for part in text.split(",")]
    if None in found:
        raise UsageError(f"'{option} {text}' is no number", hint=f"write {option} 0.8, or 0.8,0.5")
    return tuple(number for number in found if number is not None)


@dataclass(frozen=True, slots=True)
class Settings:
    """A method's choices, checked: a weight for each input, and a value for each parameter.

    A parameter that is `per_input` has a tuple with one value for each input.
    """

    weights: tuple[float, ...]
    values: Mapping[str, Value | tuple[Value, ...]]

    def number(self, name: str) -> float:
        return cast("float", self.values[name])

    def flag(self, name: str) -> bool:
        return self.values[name] is True

    def text(self, name: str) -> str:
        return cast("str", self.values[name])

    def each(self, name: str) -> tuple[float, ...]:
        """Return the values of a number that is `per_input`, in the order of the inputs."""
        return cast("tuple[float, ...]", self.values[name])


def check_weights(weights: Sequence[object] | None, inputs: int) -> tuple[float, ...]:
    """Return one finite weight for each of `inputs` files; 1 each if none is given.

    Raises `UsageError` when the numbers do not fit or a weight is no finite number.
    """
    if weights is None:
        return (1.0,) * inputs
    if len(weights) != inputs:
        raise UsageError(
            f"{len(weights)} weight{'s' if len(weights) != 1 else ''} for {inputs} inputs",
            hint="give one weight for each input, in their order; the base has none",
        )
    checked = [as_number(weight) for weight in weights]
    for given, weight in zip(weights, checked, strict=True):
        if weight is None:
            raise UsageError(f"a weight must be a finite number, got {given!r}")
    return tuple(weight for weight in checked if weight is not None)


def check_values(
    parameters: Sequence[MethodParameter], given: Mapping[str, object], inputs: int, method: str
) -> dict[str, Value | tuple[Value, ...]]:
    """Return a value for each of `parameters`: as given, or its default.

    Raises `UsageError` for an unknown name, a missing value, one out of range, or a list whose
    length is not `inputs`.
    """
    known = {parameter.name: parameter for parameter in parameters}
    for name in given:
        if name not in known:
            takes = ", ".join(known) or "no parameters"
            raise UsageError(
                f"method '{method}' has no parameter '{name}'",
                hint=near_hint(name, known) or f"it takes {takes}",
            )
    values: dict[str, Value | tuple[Value, ...]] = {}
    for parameter in parameters:
        value = given.get(parameter.name)
        value = parameter.default if value is None else value
        if value is None:
            raise UsageError(f"method '{method}' needs '{parameter.name}': {parameter.help}")
        values[parameter.name] = _fit(parameter, value, inputs)
    return values


def _fit(parameter: MethodParameter, value: object, inputs: int) -> Value | tuple[Value, ...]:
    if isinstance(value, list | tuple):
        if not parameter.per_input:
            raise UsageError(f"'{parameter.name}' takes one value, got {len(value)}")
        if len(value) != inputs:
            raise UsageError(
                f"'{parameter.name}' has {len(value)} values for {inputs} inputs",
                hint="give one value, or one for each input; the base has none",
            )
        # None stands for an input that leaves the value to the default
        filled = [parameter.default if item is None else item for item in value]
        return tuple(parameter.check(item) for item in filled)
    checked = parameter.check(value)
    return (checked,) * inputs if parameter.per_input else checked
