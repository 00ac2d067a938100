"""The options that an optimizer's parameter group may carry, so that a typo is found at once.

torch accepts any key in a group and ignores those it does not know; the misspelt learning rate of
a new head is then noticed after the training, if ever.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

from ckpt_surgery.errors import UsageError
from ckpt_surgery.names.suggest import near_hint

OptionValue: TypeAlias = float | bool | tuple[float, ...]
Options: TypeAlias = Mapping[str, OptionValue]

# Keys of `defaults` in torch.optim (2.4 to 2.13); "number" is a finite number of at least 0.
_KINDS: Final[dict[str, Literal["number", "flag", "pair"]]] = {
    "lr": "number",
    "weight_decay": "number",
    "momentum": "number",
    "dampening": "number",
    "nesterov": "flag",
    "betas": "pair",
    "eps": "number",
    "amsgrad": "flag",
    "alpha": "number",
    "centered": "flag",
    "rho": "number",
    "lr_decay": "number",
    "lambd": "number",
    "t0": "number",
    "momentum_decay": "number",
    "decoupled_weight_decay": "flag",
    "etas": "pair",
    "step_sizes": "pair",
    "max_lr": "number",
    "min_lr": "number",
    "maximize": "flag",
    "foreach": "flag",
    "fused": "flag",
    "capturable": "flag",
    "differentiable": "flag",
}


def check_options(options: Mapping[str, object], where: str) -> dict[str, OptionValue]:
    """Return the options, each known and of the right kind; UsageError names `where` otherwise."""
    return {name: _check(name, value, where) for name, value in options.items()}


def parse_options(text: str, where: str) -> dict[str, OptionValue]:
    """Return what ``lr=1e-2,weight_decay=0,betas=0.9/0.95,nesterov=true`` says."""
    options: dict[str, OptionValue] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise UsageError(
                f"'{where}': '{part.strip()}' is not an option of the form name=value",
                hint="for example lr=1e-2,weight_decay=0",
            )
        if name in options:
            raise UsageError(f"'{where}' gives '{name}' twice")
        options[name] = _check(name, _parse(value), where)
    return options


def check_number(value: object, where: str) -> float:
    """Return a finite number of at least 0, as given (an integer stays one)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(f"'{where}' is no number")
    if not math.isfinite(value) or value < 0:
        raise UsageError(f"'{where}' is {value}, but must be finite and at least 0")
    return value


def _parse(text: str) -> object:
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    try:
        numbers = tuple(float(part) for part in text.split("/"))
    except ValueError:
        return text
    return numbers if len(numbers) > 1 else numbers[0]


def _check(name: str, value: object, where: str) -> OptionValue:
    kind = _KINDS.get(name)
    if kind is None:
        raise UsageError(
            f"'{where}': no torch optimizer has a group option '{name}'",
            hint=near_hint(name, _KINDS) or f"known: {', '.join(_KINDS)}",
        )
    if kind == "number":
        return check_number(value, f"{where}: {name}")
    if kind == "flag":
        if isinstance(value, bool):
            return value
        raise UsageError(f"'{where}': '{name}' must be true or false")
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return tuple(check_number(part, f"{where}: {name}") for part in value)
    raise UsageError(f"'{where}': '{name}' must be two numbers", hint=f"write {name}=0.9/0.999")
