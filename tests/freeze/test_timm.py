"""Layer decay is timm's where a model says its layers, and near it where only names do."""

from __future__ import annotations

import runpy
import warnings
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from frameworks import framework
from torch import nn

from ckpt_surgery.errors import ConstructionError
from ckpt_surgery.freeze import asked
from ckpt_surgery.freeze.build import FreezeRecipe
from ckpt_surgery.freeze.live import FreezePlan, inventory_of
from ckpt_surgery.models.building import build_module
from ckpt_surgery.models.specs import ModelSpec
from ckpt_surgery.training.parameters import Inventory

RECIPE = FreezeRecipe(lr=1.0, weight_decay=0.05, layer_decay=0.75, no_decay=("bias", "norm"))
ROOT = Path(__file__).parents[2]


@pytest.fixture
def make():
    framework("timm")

    def build(name: str) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return build_module(ModelSpec("timm:create_model", {"model_name": name}))

    return build


def rates(inventory: Inventory) -> dict[str, tuple[float, float]]:
    plan = FreezePlan.build(inventory, RECIPE)
    options = {group.name: group.options for group in plan.groups}
    return {
        p.name: (round(options[p.group]["lr"], 12), options[p.group]["weight_decay"])
        for p in plan.parameters
    }


def test_rates_and_decay_are_those_of_timm_for_a_model_of_every_family():
    """What differs by names alone is in docs/freeze-plan.md, in so many of all parameters."""
    framework("timm")
    sweep = runpy.run_path(str(ROOT / "scripts" / "sweep_timm.py"))
    families = sweep["families"]()
    assert len(families) > 90
    wrong, by_names = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in families:
            theirs, ours, named = sweep["compare"](name)
            wrong += [f"{name}: {path}" for path in theirs if ours[path] != theirs[path]]
            differing = sum(named[path][0] != rate for path, (rate, _) in theirs.items())
            by_names += [f"{name} {differing}/{len(theirs)}"] if differing else []
    assert wrong == []
    documented = (ROOT / "docs" / "freeze-plan.md").read_text(encoding="utf-8")
    if f"families ({version('timm')})" in documented:
        assert ", ".join(by_names) in " ".join(documented.split())


@pytest.mark.parametrize(
    ("name", "layers"), [("convnext_tiny", 20), ("swin_tiny_patch4_window7_224", 14)]
)
def test_blocks_of_stages_are_counted_one_by_one_from_names_too(name, layers, make):
    """All of a stage was one layer: 6 for convnext_tiny."""
    inventory = replace(inventory_of(make(name)), structure=None)
    assert sorted(set(inventory.layers)) == list(range(layers))


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("resnet50", {"fc"}),
        ("deit_base_distilled_patch16_224", {"head", "head_dist"}),
        ("convnext_tiny", {"head.fc"}),
    ],
)
def test_the_head_is_what_the_model_says(name, heads, make):
    inventory = inventory_of(make(name))
    assert {path.rpartition(".")[0] for path in inventory.head} == heads


def test_wrappers_are_seen_through_and_inner_ones_are_not_asked(make):
    model = make("convnext_tiny")
    wrapped = nn.Module()
    wrapped._orig_mod = model
    assert inventory_of(wrapped).layers == inventory_of(model).layers
    inner = nn.Module()
    inner._checkpoint_wrapped_module = model.stages[0]
    model.stages[0] = inner
    assert inventory_of(model).structure.layers is None


class Says(nn.Module):
    """A model outside of timm that has opinions."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out, self.after = nn.Linear(2, 2), nn.Linear(2, 3), nn.Linear(3, 3)

    def group_matcher(self, coarse: bool = False):
        return {"stem": r"^body", "blocks": [(r"^out", None)]}

    def no_weight_decay(self):
        return {"body.w*"}

    def get_classifier(self):
        return self.out


def test_any_model_may_answer():
    framework("timm")
    inventory = inventory_of(Says())
    assert inventory.layers == (0, 0, 1, 1, 2, 2)
    assert inventory.head == {"out.weight", "out.bias"}
    plan = rates(inventory)
    assert {name for name, (_, decay) in plan.items() if not decay} == {
        "body.weight", "body.bias", "out.bias", "after.bias",
    }  # fmt: skip


def test_without_timm_layers_go_by_names(monkeypatch):
    monkeypatch.setattr(asked, "find_spec", lambda name: None)
    said = asked.ask(Says())
    assert said.layers is None
    assert said.classifier == {"out.weight", "out.bias"}
    assert "body.weight" in said.undecayed
    assert asked.ask(nn.Linear(2, 2)) == asked.Answers()


def test_code_that_raises_when_asked_is_named():
    class Broken(Says):
        def get_classifier(self):
            raise ZeroDivisionError("no")

    with pytest.raises(ConstructionError, match="'Broken' cannot be asked about its layers: Zero"):
        inventory_of(Broken())


def test_a_head_without_parameters_says_nothing():
    class Headless(Says):
        def get_classifier(self):
            return nn.Identity()

    assert asked.ask(Headless()).classifier == frozenset()
    assert inventory_of(Headless()).head == {"after.weight", "after.bias"}


def test_a_method_of_the_same_name_that_wants_arguments_is_another():
    class Other(Says):
        def get_classifier(self, which):
            raise AssertionError

        def no_weight_decay(self, which):
            raise AssertionError

    said = asked.ask(Other())
    assert said.classifier == frozenset()
    assert inventory_of(Other()).head == {"after.weight", "after.bias"}
