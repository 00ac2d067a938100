"""Folded networks give what the networks gave: their outputs before and after are the test."""

from __future__ import annotations

import json

import pytest
import torch
from frameworks import framework
from torch import nn
from torch.nn.utils import parametrizations

from ckpt_surgery.edits.plan import Plan
from ckpt_surgery.edits.value_rules import ValueRule
from ckpt_surgery.errors import CkptError, PlanError, UsageError
from ckpt_surgery.formats import read
from ckpt_surgery.models.torchvision_import import import_torchvision
from ckpt_surgery.ops.edit import edit
from ckpt_surgery.writing.output import Output


def rules(option, *texts):
    return [ValueRule(option, text) for text in texts]


def edited(model, tmp_path, chosen, **choices):
    torch.save(model.state_dict(), tmp_path / "in.pth")
    report = edit(tmp_path / "in.pth", Output(tmp_path / "out.pth", force=True), chosen, **choices)
    return torch.load(tmp_path / "out.pth"), report


def lively(model):
    """Give every batch norm statistics and factors of its own."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
    return model.eval()


def same_output(before, after, x):
    with torch.no_grad():
        torch.testing.assert_close(after.eval()(x), before.eval()(x), rtol=1e-4, atol=1e-5)


def test_a_resnet_without_batch_norms(tmp_path):
    torch.manual_seed(0)
    models = import_torchvision().models
    before = lively(models.resnet18())
    texts = ("conv1=bn1", "**.conv*=**.bn*", "**.downsample.0=1")
    found, report = edited(before, tmp_path, rules("fold-batch-norm", *texts))
    after = models.resnet18(norm_layer=nn.Identity)
    for module in after.modules():
        if isinstance(module, nn.Conv2d):
            module.bias = nn.Parameter(torch.zeros(module.out_channels))
    after.load_state_dict(found)
    same_output(before, after, torch.randn(2, 3, 64, 64))
    assert [count["matched"] for count in report.to_dict()["rules"]] == [1, 16, 3]
    assert set(found._metadata) == {m for m, _ in before.named_modules() if "bn" not in m} - {
        f"layer{n}.0.downsample.1" for n in (2, 3, 4)
    }


LAYERS = {
    "linear": (nn.Linear(4, 6), nn.BatchNorm1d(6), (3, 4), ""),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6, affine=False), (2, 4, 5, 5), ""),
    "another ε": (
        nn.Conv2d(4, 6, 1, bias=False),
        nn.BatchNorm2d(6, eps=1e-2),
        (2, 4, 5, 5),
        ":eps=1e-2",
    ),
    "transposed": (nn.ConvTranspose2d(4, 6, 3), nn.BatchNorm2d(6), (2, 4, 5, 5), ":dim=1"),
    "transposed in groups": (
        nn.ConvTranspose2d(4, 6, 3, groups=2),
        nn.BatchNorm2d(6),
        (2, 4, 5, 5),
        ":dim=1",
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_every_layer_before_a_batch_norm(kind, tmp_path):
    torch.manual_seed(1)
    layer, norm, shape, options = LAYERS[kind]
    before = lively(nn.Sequential(layer, norm))
    found, _ = edited(before, tmp_path, rules("fold-batch-norm", f"0=1{options}"))
    after = nn.Sequential(layer.__class__(**_arguments(layer)), nn.Identity())
    after.load_state_dict(found)
    same_output(before, after, torch.randn(shape))


def _arguments(layer):
    if isinstance(layer, nn.Linear):
        return {"in_features": layer.in_features, "out_features": layer.out_features}
    names = ("in_channels", "out_channels", "kernel_size", "groups")
    return {name: getattr(layer, name) for name in names}


@pytest.mark.parametrize(
    ("option", "text", "words"),
    [
        ("fold-batch-norm", "0=2", "'2' is no batch norm"),
        ("fold-batch-norm", "0", "there is no '='"),
        ("fold-batch-norm", "5=1", "matches nothing"),
        ("fold-batch-norm", "0=1:eps=x", "could not convert"),
        ("fold-batch-norm", "0=3", "does not fit"),
        ("fold-batch-norm", "0=1:dim=7", "has no dimension 7"),
        ("fold-weight-norm", "**", "matches nothing"),
        ("fold-spectral-norm", "**", "matches nothing"),
        ("fold-repvgg", "**", "matches nothing"),
    ],
)
def test_what_is_no_fold_is_refused(option, text, words, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(5))
    with pytest.raises(CkptError, match=words):
        edited(model, tmp_path, rules(option, text))
    assert not (tmp_path / "out.pth").exists()


def test_a_norm_goes_into_one_layer_only(tmp_path):
    model = nn.ModuleDict({n: nn.Conv2d(3, 6, 3) for n in ("conv1", "conv2")})
    model["bn"] = nn.BatchNorm2d(6)
    with pytest.raises(PlanError, match="folded twice"):
        edited(model, tmp_path, rules("fold-batch-norm", "conv*=bn"))


def test_an_optimizer_is_told(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(saved, tmp_path / "in.pth")
    chosen = rules("fold-batch-norm", "0=1")
    with pytest.raises(PlanError, match="optimizer"):
        edit(tmp_path / "in.pth", tmp_path / "out.pth", chosen)
    edit(tmp_path / "in.pth", tmp_path / "out.pth", chosen, optimizer="reset")
    found = torch.load(tmp_path / "out.pth")
    after = nn.Sequential(nn.Conv2d(3, 6, 3))
    after.load_state_dict(found["model"])
    torch.optim.Adam(after.parameters()).load_state_dict(found["optimizer"])


def normed(make, old):
    norm = torch.nn.utils.weight_norm if old else parametrizations.weight_norm
    return nn.Sequential(
        norm(nn.Conv1d(4, 6, 3)),
        norm(nn.ConvTranspose1d(6, 5, 3), dim=1),
        norm(nn.Conv1d(5, 4, 1), dim=None) if old else norm(nn.Conv1d(5, 4, 1)),
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("old", [True, False])
def test_weight_norms_of_both_styles_become_plain_weights(old, tmp_path):
    torch.manual_seed(2)
    before = normed(nn.Conv1d, old)
    found, report = edited(before, tmp_path, rules("fold-weight-norm", "**"))
    after = nn.Sequential(nn.Conv1d(4, 6, 3), nn.ConvTranspose1d(6, 5, 3), nn.Conv1d(5, 4, 1))
    after.load_state_dict(found)
    same_output(before, after, torch.randn(2, 4, 9))
    assert not any("parametrizations" in module for module in found._metadata)
    assert report.to_dict()["rules"][0]["matched"] == 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("old", [True, False])
def test_spectral_norms_of_both_styles_become_plain_weights(old, tmp_path):
    torch.manual_seed(3)
    norm = torch.nn.utils.spectral_norm if old else parametrizations.spectral_norm
    before = nn.Sequential(norm(nn.Conv1d(4, 6, 3)), norm(nn.ConvTranspose1d(6, 5, 3)))
    before.train()(torch.randn(2, 4, 9))
    found, _ = edited(before, tmp_path, rules("fold-spectral-norm", "**"))
    after = nn.Sequential(nn.Conv1d(4, 6, 3), nn.ConvTranspose1d(6, 5, 3))
    after.load_state_dict(found)
    same_output(before, after, torch.randn(2, 4, 9))


def test_a_selection_narrows_and_shapes_are_checked(tmp_path):
    before = nn.Sequential(*(parametrizations.weight_norm(nn.Linear(3, 3)) for _ in range(2)))
    found, _ = edited(before, tmp_path, rules("fold-weight-norm", "1.weight"))
    assert "1.weight" in found
    assert "0.parametrizations.weight.original0" in found
    for bad in (
        {"a.weight_g": torch.ones(2, 1), "a.weight_v": torch.ones(3, 3)},
        {"a.weight_g": torch.ones(3, 1, dtype=torch.int64), "a.weight_v": torch.ones(3, 3)},
    ):
        torch.save(bad, tmp_path / "in.pth")
        with pytest.raises(PlanError):
            edit(tmp_path / "in.pth", tmp_path / "x.pth", rules("fold-weight-norm", "**"))
    bad = {
        "a.weight_orig": torch.ones(3, 3),
        "a.weight_u": torch.ones(2),
        "a.weight_v": torch.ones(3),
    }
    torch.save(bad, tmp_path / "in.pth")
    with pytest.raises(PlanError, match="do not fit"):
        edit(tmp_path / "in.pth", tmp_path / "x.pth", rules("fold-spectral-norm", "**"))


@pytest.mark.filterwarnings("ignore")
def test_blocks_of_timm_are_what_it_makes_of_them_itself(tmp_path):
    blocks = framework("timm.models.byobnet")
    torch.manual_seed(4)
    before = lively(
        nn.Sequential(
            blocks.RepVggBlock(4, 8),
            blocks.RepVggBlock(8, 8, group_size=4),
            blocks.MobileOneBlock(8, 8, num_conv_branches=2),
            blocks.MobileOneBlock(8, 6, stride=2, num_conv_branches=1),
        )
    )
    found, report = edited(before, tmp_path, rules("fold-repvgg", "**"))
    x = torch.randn(2, 4, 9, 9)
    with torch.no_grad():
        expected = before(x)
        for block in before:
            block.reparameterize()
        before.load_state_dict(found)
        torch.testing.assert_close(before(x), expected, rtol=1e-4, atol=1e-5)
    assert report.to_dict()["rules"][0]["matched"] == 4


class Original(nn.Module):
    """A block with the names of the original code of RepVGG."""

    def __init__(self, channels):
        super().__init__()
        named = {"rbr_dense": 3, "rbr_1x1": 1}
        for name, size in named.items():
            branch = nn.Sequential()
            branch.add_module(
                "conv", nn.Conv2d(channels, channels, size, padding=size // 2, bias=False)
            )
            branch.add_module("bn", nn.BatchNorm2d(channels))
            self.add_module(name, branch)
        self.rbr_identity = nn.BatchNorm2d(channels)

    def forward(self, x):
        return self.rbr_dense(x) + self.rbr_1x1(x) + self.rbr_identity(x)


def test_blocks_of_the_original_code_at_any_depth(tmp_path):
    torch.manual_seed(5)
    block = lively(Original(4))
    x = torch.randn(1, 4, 6, 6)
    for before, name in ((block, ""), (nn.ModuleDict({"stage": block}), "stage.")):
        found, _ = edited(before, tmp_path, rules("fold-repvgg", "**"))
        after = nn.Conv2d(4, 4, 3, padding=1)
        after.load_state_dict({n.removeprefix(f"{name}rbr_reparam."): v for n, v in found.items()})
        same_output(block, after, x)


def test_branches_that_do_not_add_up_are_refused(tmp_path):
    for shape, words in (((4, 4, 2, 2), "do not add up"), ((4, 2, 1, 1), "do not add up")):
        weights = Original(4).state_dict()
        weights["rbr_1x1.conv.weight"] = torch.ones(shape)
        torch.save(weights, tmp_path / "in.pth")
        with pytest.raises(PlanError, match=words):
            edit(tmp_path / "in.pth", tmp_path / "x.pth", rules("fold-repvgg", "**"))
    weights = {n: v for n, v in Original(4).state_dict().items() if "dense" not in n}
    weights["rbr_identity.weight"] = torch.ones(5)
    torch.save(weights, tmp_path / "in.pth")
    with pytest.raises(PlanError, match="differ in shape"):
        edit(tmp_path / "in.pth", tmp_path / "x.pth", rules("fold-repvgg", "**"))


def test_a_fold_is_replayed_to_the_same_bytes(tmp_path):
    from ckpt_surgery.writing.write import write

    before = lively(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)))
    _, report = edited(before, tmp_path, rules("fold-batch-norm", "0=1"))
    plan = Plan.from_dict(json.loads(json.dumps(report.to_dict()))["plan"])
    with read(tmp_path / "in.pth") as checkpoint:
        (tmp_path / "again").mkdir()
        write(plan.apply(checkpoint), Output(tmp_path / "again" / "out.pth"))
    again = (tmp_path / "again" / "out.pth").read_bytes()
    assert again == (tmp_path / "out.pth").read_bytes()


def test_half_precision_is_rounded_once(tmp_path):
    before = lively(nn.Sequential(nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7)))
    weights = {**before.state_dict(), "0.weight": before[0].weight.detach().half()}
    torch.save(weights, tmp_path / "in.pth")
    edit(tmp_path / "in.pth", tmp_path / "out.pth", rules("fold-batch-norm", "0=1"))
    found = torch.load(tmp_path / "out.pth")
    norm = before[1]
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    exact = weights["0.weight"].double() * factor[:, None]
    assert found["0.weight"].dtype == found["0.bias"].dtype == torch.float16
    torch.testing.assert_close(found["0.weight"].double(), exact, rtol=2**-11, atol=0)
    with pytest.raises(UsageError):
        edit(tmp_path / "in.pth", tmp_path / "y.pth", rules("fold-batch-norm", "=1"))


@pytest.mark.filterwarnings("ignore")
def test_numbers_that_cannot_be_folded_are_refused(tmp_path):
    norm = {f"bn.{name}": value for name, value in nn.BatchNorm2d(2).state_dict().items()}
    for weight, words in (
        (torch.ones(2, 3, dtype=torch.int32), "has no fractions"),
        (torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8), "more to it than its"),
    ):
        torch.save({"conv.weight": weight, **norm}, tmp_path / "in.pth")
        with pytest.raises(PlanError, match=words):
            edit(tmp_path / "in.pth", tmp_path / "x.pth", rules("fold-batch-norm", "conv=bn"))
    weights = Original(4).state_dict()
    for name in ("rbr_dense", "rbr_1x1"):
        weights[f"{name}.conv.weight"] = weights[f"{name}.conv.weight"][:, :3].clone()
    torch.save(weights, tmp_path / "in.pth")
    with pytest.raises(PlanError, match="has no identity"):
        edit(tmp_path / "in.pth", tmp_path / "x.pth", rules("fold-repvgg", "**"))
