"""Compare `freeze-plan --layer-decay --no-decay` with timm's own groups, one model a family.

    python scripts/sweep_timm.py [PART OF A NAME ...]

Models are built without weights. With the model every learning rate and weight decay has to be
timm's (`param_groups_layer_decay`); what differs by names alone is listed as
``model differing/all``, for docs/freeze-plan.md. Needs timm, and no network.
"""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import replace

from ckpt_surgery.freeze.build import FreezeRecipe
from ckpt_surgery.freeze.live import FreezePlan, inventory_of
from ckpt_surgery.models.building import build_module
from ckpt_surgery.models.specs import ModelSpec
from ckpt_surgery.models.torchvision_import import import_torchvision
from ckpt_surgery.training.parameters import Inventory

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.simplefilter("ignore")
import_torchvision()
import timm  # noqa: E402 after torchvision
from timm.optim import param_groups_layer_decay  # noqa: E402 as above

Rates = dict[str, tuple[float, float]]
_DECAY = 0.75
_RECIPE = FreezeRecipe(lr=1.0, weight_decay=0.05, layer_decay=_DECAY, no_decay=("bias", "norm"))


def families() -> list[str]:
    """The first model of each of timm's modules."""
    listed = (timm.list_models(module=module) for module in timm.list_modules())
    return [names[0] for names in listed if names]


def compare(name: str) -> tuple[Rates, Rates, Rates]:
    """Learning rate and weight decay by parameter: timm's, ours of the model, ours of names."""
    model = build_module(ModelSpec("timm:create_model", {"model_name": name}))
    names = {id(p): path for path, p in model.named_parameters()}
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    groups = param_groups_layer_decay(
        model, weight_decay=0.05, no_weight_decay_list=spared, layer_decay=_DECAY
    )
    theirs = {
        names[id(p)]: (round(group["lr_scale"], 12), group["weight_decay"])
        for group in groups
        for p in group["params"]
    }
    inventory = inventory_of(model)
    return theirs, _planned(inventory), _planned(replace(inventory, structure=None))


def _planned(inventory: Inventory) -> Rates:
    plan = FreezePlan.build(inventory, _RECIPE)
    options = {group.name: group.options for group in plan.groups}
    return {
        p.name: (round(options[p.group]["lr"], 12), options[p.group]["weight_decay"])
        for p in plan.parameters
    }


def main() -> None:
    wrong: list[str] = []
    by_names: list[str] = []
    chosen = [n for n in families() if not sys.argv[1:] or any(a in n for a in sys.argv[1:])]
    for name in chosen:
        theirs, ours, named = compare(name)
        wrong += [f"{name}: {path}" for path, rates in theirs.items() if ours[path] != rates]
        other = sum(named[path][0] != rates[0] for path, rates in theirs.items())
        if other:
            by_names.append(f"{name} {other}/{len(theirs)}")
    print(f"{len(chosen)} models, timm {timm.__version__}: {len(wrong)} parameters differ")
    print("\n".join(wrong))
    print(f"by names alone the rates of {len(by_names)} models differ: {', '.join(by_names)}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
