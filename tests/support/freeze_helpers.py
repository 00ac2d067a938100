"""Inventories and rules on names for the tests of freeze plans."""

from __future__ import annotations

from ckpt_surgery.freeze.build import FreezeRecipe, build
from ckpt_surgery.freeze.plan import FreezeSchedule
from ckpt_surgery.freeze.selectors import ByName
from ckpt_surgery.names import Rule as NameRule
from ckpt_surgery.training.parameters import Inventory, NamedEntry


def prefix(text: str) -> ByName:
    return ByName(NameRule("prefix", text), text, f"--prefix {text}")


def conv(name: str, inputs: int, outputs: int) -> list[NamedEntry]:
    return [NamedEntry(f"{name}.weight", (outputs, inputs, 3, 3))]


def norm(name: str, width: int) -> list[NamedEntry]:
    return [
        NamedEntry(f"{name}.weight", (width,)),
        NamedEntry(f"{name}.bias", (width,)),
        NamedEntry(f"{name}.running_mean", (width,)),
        NamedEntry(f"{name}.running_var", (width,)),
        NamedEntry(f"{name}.num_batches_tracked", (), "int64"),
    ]


def linear(name: str, inputs: int, outputs: int) -> list[NamedEntry]:
    return [NamedEntry(f"{name}.weight", (outputs, inputs)), NamedEntry(f"{name}.bias", (outputs,))]


NET = [
    *conv("conv1", 3, 4),
    *norm("bn1", 4),
    *conv("layer1.0.conv1", 4, 4),
    *norm("layer1.0.bn1", 4),
    *conv("layer1.1.conv1", 4, 4),
    *norm("layer1.1.bn1", 4),
    *linear("fc", 4, 10),
]
"""Eleven parameters in a stem, two blocks and a head."""


def net() -> Inventory:
    return Inventory.of(NET)


def plan(recipe: FreezeRecipe, inventory: Inventory | None = None) -> FreezeSchedule:
    return build(inventory or net(), recipe, FreezeSchedule)


def trainable(made: FreezeSchedule) -> list[str]:
    return [p.name for p in made.trainable]


def frozen(made: FreezeSchedule) -> list[str]:
    return [p.name for p in made.parameters if made.frozen(p)]


def codes(made: FreezeSchedule) -> list[str]:
    return [warning.code for warning in made.warnings]
