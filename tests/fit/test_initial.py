"""A target's own initial values, of chosen tensors only."""

from __future__ import annotations

import random
from math import sqrt

import pytest
import torch

from ckpt_surgery.fit.initial import InitialValues
from ckpt_surgery.models.building import build_target, find_factory, run_factory
from ckpt_surgery.models.construction import ParametersOnMeta, derive_seed, seeded
from ckpt_surgery.models.specs import ModelSpec, parse_settings


def constructed(spec: ModelSpec, seed: int) -> dict[str, torch.Tensor]:
    """The whole state dict of the model, really constructed."""
    context = seeded(seed, ParametersOnMeta(keep=None))
    return dict(run_factory(spec, find_factory(spec), context).state_dict())


@pytest.mark.parametrize(
    "text",
    [
        "torchvision:resnet18",
        "torchvision:swin_t",
        "torchvision:regnet_y_400mf",
        "torchvision:raft_small",
        "model_factories:tied",
        "model_factories:SharedParameter",
        "model_factories:Drawn",
        "model_factories:Derived",
        "model_factories:RunsItself",
        "model_factories:reads_values",
    ],
)
def test_chosen_values_are_those_of_the_whole_model(text: str) -> None:
    spec = ModelSpec(text)
    whole = constructed(spec, 5)
    names = list(whole)
    grouped = InitialValues(spec, names, 5, budget=16 * 2**20)
    for name in names:
        assert torch.equal(grouped.tensor(name), whole[name]), name
    for name in (names[-1], names[0], names[len(names) // 2]):
        assert torch.equal(InitialValues(spec, [name], 5).tensor(name), whole[name]), name


def test_values_depend_on_the_seed_and_on_nothing_else() -> None:
    spec = ModelSpec("torchvision:resnet18")
    torch.manual_seed(1)
    one = InitialValues(spec, ["fc.weight"], 3).tensor("fc.weight")
    torch.manual_seed(2)
    both = InitialValues(spec, ["conv1.weight", "fc.weight"], 3)
    assert torch.equal(both.tensor("fc.weight"), one)
    assert both.tensor("conv1.weight").shape == (64, 3, 7, 7)
    assert torch.equal(both.tensor("fc.weight"), one)
    assert not torch.equal(InitialValues(spec, ["fc.weight"], 4).tensor("fc.weight"), one)


def test_values_are_distributed_as_the_model_draws_them() -> None:
    spec = ModelSpec("torchvision:resnet18", {}, parse_settings(["fc.out_features=400"]))
    values = InitialValues(spec, ["layer4.0.conv1.weight", "fc.weight", "bn1.running_var"], 0)
    conv = values.tensor("layer4.0.conv1.weight")  # kaiming_normal_, fan out, ReLU
    assert conv.std().item() == pytest.approx(sqrt(2 / (512 * 9)), rel=0.01)
    assert conv.mean().item() == pytest.approx(0, abs=1e-4)
    head = values.tensor("fc.weight")  # the rebuilt layer's own: uniform within 1/sqrt(512)
    bound = 1 / sqrt(512)
    assert head.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert head.std().item() == pytest.approx(bound / sqrt(3), rel=0.01)
    assert torch.equal(values.tensor("bn1.running_var"), torch.ones(64))


def test_no_two_tensors_are_drawn_alike() -> None:
    spec = ModelSpec("torchvision:resnet18")
    names = ["layer1.0.conv1.weight", "layer1.0.conv2.weight", "layer1.1.conv1.weight"]
    values = InitialValues(spec, names, 0, budget=1)
    drawn = [values.tensor(name).clone() for name in names]
    for index, one in enumerate(drawn):
        for other in drawn[index + 1 :]:
            assert abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) < 0.02


def test_only_one_group_is_held_at_a_time() -> None:
    target = build_target("torchvision:alexnet")
    budget = 64 * 2**20
    values = InitialValues(ModelSpec("torchvision:alexnet"), target.names, 0, budget=budget)
    for name in target.names:
        values.tensor(name)
        held = [tensor.nbytes for tensor in values._held.values()]
        assert sum(held) <= budget or len(held) == 1


def test_an_unchosen_name_is_a_key_error() -> None:
    values = InitialValues(ModelSpec("model_factories:Drawn"), ["head.weight"], 0)
    with pytest.raises(KeyError):
        values.tensor("token")


def test_the_callers_generators_are_left_alone() -> None:
    torch.manual_seed(11)
    random.seed(11)
    expected = torch.rand(3), random.random()
    torch.manual_seed(11)
    random.seed(11)
    InitialValues(ModelSpec("model_factories:Drawn"), ["head.weight"], 0).tensor("head.weight")
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]


def test_derived_seeds_are_fixed_forever() -> None:
    # written files must come out the same in every version
    assert derive_seed(0, "parameter 0 0") == 1_740_681_361_001_020_484
    assert derive_seed(0, "a") != derive_seed(1, "a")
