"""Training files of timm, written by its CheckpointSaver, come through and resume there."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import are_equal, ckpt
from frameworks import framework
from torch import nn

NET = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2}
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
EMAS = ["ModelEmaV2", "ModelEmaV3"]


def make(classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = framework("timm").create_model(
        "vit_tiny_patch16_224", num_classes=classes, **NET
    )
    return net


def optimizer_of(net: nn.Module, layer_decay: float | None = 0.75) -> torch.optim.Optimizer:
    optim = framework("timm.optim")
    made: torch.optim.Optimizer = optim.create_optimizer_v2(
        net, opt="adamw", lr=0.01, weight_decay=0.05, layer_decay=layer_decay
    )
    return made


def step(net: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any, ema: Any) -> None:
    optimizer.zero_grad()
    scaler(nn.functional.cross_entropy(net(IMAGES), torch.tensor([0, 1])), optimizer)
    ema.update(net)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of one step each, with either kind of average."""
    utils = framework("timm.utils")
    folder = tmp_path_factory.mktemp("timm")
    for kind in EMAS:
        net = make()
        optimizer, scaler = optimizer_of(net), utils.NativeScaler(device="cpu")
        ema = getattr(utils, kind)(net, decay=0.9)
        saver = utils.CheckpointSaver(
            net, optimizer, args=argparse.Namespace(model="vit_tiny", lr=0.01), model_ema=ema,
            amp_scaler=scaler, checkpoint_dir=str(folder), recovery_dir=str(folder),
        )  # fmt: skip
        for epoch in range(2):
            step(net, optimizer, scaler, ema)
            saver.save_checkpoint(epoch, metric=0.5 + epoch)
        (folder / "last.pth.tar").rename(folder / f"{kind}.pth.tar")
    return folder


def resumed(file: Path, kind: str, classes: int = 5) -> dict[str, torch.Tensor]:
    """Weights and average after the next step, resumed by timm itself."""
    helpers, utils = framework("timm.models._helpers"), framework("timm.utils")
    net = make(classes)
    optimizer, scaler = optimizer_of(net), utils.NativeScaler(device="cpu")
    epoch = helpers.resume_checkpoint(
        net, str(file), optimizer, scaler, log_info=False, weights_only=False
    )
    assert epoch == 2
    ema = getattr(utils, kind)(net, decay=0.9)
    helpers.load_checkpoint(ema.module, str(file), use_ema=True, weights_only=False)
    step(net, optimizer, scaler, ema)
    average = {f"ema.{name}": value for name, value in ema.module.state_dict().items()}
    return dict(net.state_dict()) | average


@pytest.mark.parametrize("kind", EMAS)
def test_what_is_undone_or_beside_the_model_resumes_bit_for_bit(kind, folder):
    file, there, back = folder / f"{kind}.pth.tar", folder / "there.pth", folder / "back.pth"
    ckpt("rename", file, "--add-prefix", "net", "--wrap", "run", "-o", there, "--force")
    ckpt("strip", there, "--unwrap", "-o", back, "--force")
    ckpt("rename", back, "--strip-prefix", "net", "-i")
    ckpt("strip", back, "--entry", "saver", "--entry", "metric", "-i")
    ckpt("convert", back, "--plain", "-o", there, "--force")
    torch.load(there, weights_only=True)  # which it was not before
    wanted = resumed(file, kind)
    assert are_equal(resumed(back, kind), wanted)
    assert are_equal(resumed(there, kind), wanted)


@pytest.mark.parametrize("kind", EMAS)
def test_the_average_is_what_timm_s_clean_checkpoint_takes(kind, folder):
    helpers = framework("timm.models._helpers")
    file, out = folder / f"{kind}.pth.tar", folder / f"{kind}.pth"
    ckpt("strip", file, "--training-state", "--ema", "--state-dict-only", "-o", out)
    wanted = helpers.load_state_dict(str(file), use_ema=True, weights_only=False)
    assert are_equal(torch.load(out, weights_only=True), wanted)
    ckpt("strip", file, "--training-state", "--ema", "-o", out, "--force")
    assert are_equal(helpers.load_state_dict(str(out), weights_only=False), wanted)


def moments(file: Path, net: nn.Module) -> dict[str, torch.Tensor]:
    optimizer = optimizer_of(net)
    optimizer.load_state_dict(torch.load(file, weights_only=False)["optimizer"])
    return {
        n: optimizer.state[p]["exp_avg"] for n, p in net.named_parameters() if optimizer.state[p]
    }


def test_other_classes_resume_with_the_moments_of_all_that_stays(folder):
    file, out = folder / "ModelEmaV3.pth.tar", folder / "nine.pth"
    target = [f"{name}={value}" for name, value in NET.items()] + ["num_classes=9"]
    model = [word for each in target for word in ("--model-arg", each)]
    ckpt("fit", file, "--model", "timm:vit_tiny_patch16_224", *model, "-o", out)
    old, new = moments(file, make()), moments(out, make(9))
    assert old.keys() - new.keys() == {"head.weight", "head.bias"}
    assert all(torch.equal(value, old[name]) for name, value in new.items())
    assert resumed(out, "ModelEmaV3", classes=9)["head.weight"].shape == (9, 24)


def test_a_network_without_head_goes_on_as_one_whose_head_was_taken_off_in_timm(folder):
    """`reset_classifier(0)` and the optimizer built anew: the next step of the rest is the same."""
    file, out = folder / "ModelEmaV2.pth.tar", folder / "features.pth"
    ckpt("strip", file, "--prefix", "head", "-o", out)
    nets = []
    for each in (file, out):
        saved = torch.load(each, weights_only=False)
        net = make(5 if each is file else 0)
        optimizer = optimizer_of(net, None)
        plain = torch.load(each, weights_only=False)
        assert list(plain["state_dict"]) == list(net.state_dict())
        net.load_state_dict(saved["state_dict"])
        optimizer = optimizer_of(net)
        groups = [g for g in saved["optimizer"]["param_groups"] if g["params"]]
        assert len(groups) == len(optimizer.param_groups)
        saved["optimizer"]["param_groups"] = groups
        optimizer.load_state_dict(saved["optimizer"])
        for name, parameter in net.named_parameters():
            parameter.grad = parameter.detach() * (len(name) % 5 - 2.5) + 0.01
        optimizer.step()
        nets.append(dict(net.state_dict()))
    assert are_equal(nets[1], {n: v for n, v in nets[0].items() if not n.startswith("head.")})


@pytest.mark.parametrize("kind", EMAS)
def test_what_was_fitted_to_the_names_of_the_network_resumes_bit_for_bit(kind, folder, tmp_path):
    file, there, back = folder / f"{kind}.pth.tar", tmp_path / "there.pth", tmp_path / "back.pth"
    torch.save(make().state_dict(), tmp_path / "like.pth")
    ckpt("rename", file, "--add-prefix", "net", "-o", there)
    ckpt("fit", there, "--like", tmp_path / "like.pth", "-o", back)
    assert are_equal(resumed(back, kind), resumed(file, kind))


def test_after_another_head_the_next_step_of_all_else_is_that_of_the_whole_file(folder, tmp_path):
    """With the same gradients, through timm's own optimizer and its groups."""
    file, out = folder / "ModelEmaV3.pth.tar", tmp_path / "nine.pth"
    torch.save(make(9).state_dict(), tmp_path / "like.pth")
    ckpt("fit", file, "--like", tmp_path / "like.pth", "-o", out)
    nets = []
    for each, classes in ((file, 5), (out, 9)):
        saved = torch.load(each, weights_only=False)
        net = make(classes)
        net.load_state_dict(saved["state_dict"])
        optimizer = optimizer_of(net)
        optimizer.load_state_dict(saved["optimizer"])
        for name, parameter in net.named_parameters():
            parameter.grad = parameter.detach() * (len(name) % 5 - 2.5) + 0.01
        optimizer.step()
        body = {n: v for n, v in net.state_dict().items() if not n.startswith("head.")}
        nets.append(body)
    assert are_equal(*nets)
