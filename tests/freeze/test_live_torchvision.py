"""Freeze plans for the classification models of torchvision, on the meta device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ckpt_surgery.errors import UsageError
from ckpt_surgery.freeze.build import FreezeRecipe, FreezeRule
from ckpt_surgery.freeze.live import FreezePlan, inventory_of
from ckpt_surgery.freeze.selectors import First, FirstChildren, _Head
from ckpt_surgery.models.torchvision_import import import_torchvision
from ckpt_surgery.training.parameters import Inventory, NamedEntry

models: Any = import_torchvision().models
NAMES = models.list_models(module=models)


@pytest.fixture(autouse=True)
def _regnet_on_meta(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """RegNet computes its widths with tensors, which must have values."""
    params = models.regnet.BlockParams
    original = params.from_init_params.__func__

    def on_cpu(cls: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.device("cpu"):
            return original(cls, *args, **kwargs)

    monkeypatch.setattr(params, "from_init_params", classmethod(on_cpu))
    return


def make(name: str, classes: int = 1000) -> torch.nn.Module:
    options: dict[str, Any] = {"num_classes": classes}
    if name in {"googlenet", "inception_v3"}:
        options |= {"aux_logits": True, "init_weights": False}
    with torch.device("meta"):
        model: torch.nn.Module = models.get_model(name, weights=None, **options)
    return model


def as_file(model: torch.nn.Module) -> Inventory:
    return Inventory.of(
        NamedEntry(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in model.state_dict().items()
    )


@pytest.mark.parametrize("name", NAMES)
def test_train_only_the_head_finds_exactly_the_head(name: str) -> None:
    model = make(name)
    other = dict(make(name, 17).named_parameters())
    head = {n for n, p in model.named_parameters() if p.shape != other[n].shape}
    for inventory in (inventory_of(model), as_file(model)):
        plan = FreezePlan.build(inventory, FreezeRecipe([FreezeRule("train", _Head())]))
        assert {p.name for p in plan.trainable} == head
        assert [p.name for p in plan.parameters] == [n for n, _ in model.named_parameters()]
    plan.apply(model)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == head


# timm 1.0: group_matcher(coarse=False) of resnet.py, vision_transformer.py: stem, blocks, head
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", 10),
        ("resnet50", 18),
        ("vit_b_16", 14),
        ("vit_l_16", 26),
        ("regnet_y_400mf", 18),
    ],
)
def test_layer_decay_counts_the_layers_that_timm_counts(name: str, layers: int) -> None:
    for inventory in (inventory_of(make(name)), as_file(make(name))):
        assert sorted(set(inventory.layers)) == list(range(layers))
        plan = FreezePlan.build(inventory, FreezeRecipe(lr=1.0, layer_decay=0.75))
        rates = {p.name: p.group for p in plan.parameters}
        first, last = plan.parameters[0].name, plan.parameters[-1].name
        options = {g.name: g.options["lr"] for g in plan.groups}
        assert options[rates[first] or ""] == 0.75 ** (layers - 1)
        assert options[rates[last] or ""] == 1.0


def test_the_last_norm_of_a_transformer_belongs_to_the_last_block() -> None:
    inventory = as_file(make("vit_b_16"))
    layers = {p.name: n for p, n in zip(inventory.parameters, inventory.layers, strict=True)}
    assert (
        layers["class_token"] == layers["conv_proj.weight"] == layers["encoder.pos_embedding"] == 0
    )
    assert layers["encoder.layers.encoder_layer_0.ln_1.weight"] == 1
    assert (
        layers["encoder.ln.weight"] == layers["encoder.layers.encoder_layer_11.ln_1.weight"] == 12
    )
    assert layers["heads.head.weight"] == 13


def test_first_165_takes_parameters_and_no_buffer() -> None:
    model = make("resnet101")
    plan = FreezePlan.build(as_file(model), FreezeRecipe([FreezeRule("freeze", First(165))]))
    assert [p.name for p in plan.parameters if plan.frozen(p)] == [
        name for name, _ in list(model.named_parameters())[:165]
    ]


def test_an_index_meant_for_the_state_dict_is_refused_where_there_are_fewer_parameters() -> None:
    recipe = FreezeRecipe([FreezeRule("freeze", First(165))])
    with pytest.raises(UsageError, match="there are 161 parameters"):
        FreezePlan.build(as_file(make("resnet50")), recipe)


def test_first_children_of_a_resnet_count_the_relu_and_the_pooling() -> None:
    model = make("resnet50")
    by_hand = {
        f"{child}.{name}"
        for child, module in list(model.named_children())[:6]
        for name, _ in module.named_parameters()
    }
    recipe = FreezeRecipe([FreezeRule("freeze", FirstChildren(6))])
    known = FreezePlan.for_model(model, recipe)
    assert {p.name for p in known.parameters if known.frozen(p)} == by_hand
    guessed = FreezePlan.build(as_file(model), recipe)
    assert {p.name.split(".")[0] for p in guessed.parameters if guessed.frozen(p)} == {
        "conv1", "bn1", "layer1", "layer2", "layer3", "layer4",
    }  # fmt: skip
    assert "named-children" in {w.code for w in guessed.warnings}
