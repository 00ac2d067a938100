"""The checkpoints that the sessions in README.md and docs/ name, made from code."""

from __future__ import annotations

import argparse
import json
import os
import sys
import types
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

from ckpt_surgery.models.torchvision_import import import_torchvision


def make(folder: Path) -> None:
    """Write every file into `folder`. The numbers in them are those of a fixed seed."""
    torch.manual_seed(0)
    resnet34 = import_torchvision().models.resnet34()
    torch.save(resnet34.state_dict(), folder / "resnet34.pth")
    _save_training(folder / "train.pth.tar")
    _save_module(folder / "model.pkl")
    _save_rows(folder / "rows.pth")
    _save_attack(folder / "evil.pth")
    whole = (folder / "rows.pth").read_bytes()
    (folder / "cut.pth").write_bytes(whole[: len(whole) // 2])
    save_file(
        {"weight": torch.zeros(5, 8), "bias": torch.zeros(5)},
        folder / "head.safetensors",
        metadata={"license": "MIT"},
    )
    torch.save(_net().state_dict(), folder / "old.pth", _use_new_zipfile_serialization=False)
    _save_finetuned(folder)
    _save_adapter(folder)
    save_layouts(folder)
    (folder / "publish.toml").write_text(_PUBLISH, encoding="utf-8")
    _save_on_gpu(folder / "gpu.pth")
    _save_ranks(folder)
    (folder / "names.toml").write_text('"conv.weight" = "stem.weight"\n', encoding="utf-8")


def _save_finetuned(folder: Path) -> None:
    """A pretrained network, and three that were trained further on from it."""
    pretrained = _net().state_dict()
    torch.save(pretrained, folder / "pretrained.pth")
    for number in (1, 2, 3):
        state_dict = {
            name: value + 0.01 * torch.randn(value.shape) if value.is_floating_point() else value
            for name, value in pretrained.items()
        }
        checkpoint = {"state_dict": state_dict, "epoch": number, "acc": 70.0 + number % 3}
        torch.save(checkpoint, folder / f"run{number}.pth")
    (folder / "merge.toml").write_text(_RECIPE, encoding="utf-8")


def save_layouts(folder: Path) -> None:
    """A block of GPT-2's form, and one of linear layers with q, k and v of their own."""
    shapes = {"attn.c_attn": (8, 24), "attn.c_proj": (8, 8), "mlp.c_fc": (8, 16)}
    shapes["mlp.c_proj"] = (16, 8)
    old = {f"h.0.{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    torch.save(old, folder / "conv1d.pth")
    new = {f"h.0.attn.{part}.weight": torch.randn(8, 8) for part in "qkv"}
    new |= {name: value.T.contiguous() for name, value in list(old.items())[1:]}
    torch.save(new, folder / "linear.pth")


def _save_adapter(folder: Path) -> None:
    """Two layers of a language model in bfloat16, and an adapter as PEFT saves it."""
    names = [f"layers.{i}.self_attn.{name}_proj" for i in range(2) for name in "qv"]
    generator = torch.Generator().manual_seed(1)  # the other files keep their numbers
    weights = {f"{n}.weight": torch.randn(64, 64, generator=generator) * 0.05 for n in names}
    weights["norm.weight"] = torch.ones(64)
    save_file({n: w.to(torch.bfloat16) for n, w in weights.items()}, folder / "llm.safetensors")
    factors = {}
    for name in names:
        start = f"base_model.model.{name}"
        factors[f"{start}.lora_A.weight"] = torch.randn(4, 64, generator=generator) * 0.05
        factors[f"{start}.lora_B.weight"] = torch.randn(64, 4, generator=generator) * 0.01
    (folder / "adapter").mkdir()
    save_file(factors, folder / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


_RECIPE = """\
method = "ties"
base = "pretrained.pth"

[parameters]
density = 0.5

[[inputs]]
file = "run1.pth"
weight = 0.7

[[inputs]]
file = "run2.pth"
weight = 0.3

[[for]]
select = "prefix:fc"
skip = true
"""


_PUBLISH = """\
[inputs]
training = "train.pth.tar"

[variables]
prefix = "backbone"

[[steps]]
strip = { training-state = true, ema = true, state-dict-only = true }

[[steps]]
rename = { strip-prefix = "module", add-prefix = "${prefix}" }

[[steps]]
expect = { count = 8, keys = "${prefix}.conv.weight", dtype = "float32", finite = true }

[[outputs]]
file = "net.pth"
"""


def _net() -> torch.nn.Module:
    return torch.nn.Sequential(
        OrderedDict(
            conv=torch.nn.Conv2d(3, 8, 3, bias=False),
            bn=torch.nn.BatchNorm2d(8),
            fc=torch.nn.Linear(8, 5),
        )
    )


def _save_training(path: Path) -> None:
    """What a training script keeps: a wrapped model, its moving average, an optimizer."""
    model = torch.nn.Module()
    model.module = net = _net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.save(
        {
            "epoch": 3,
            "arch": "net",
            "state_dict": model.state_dict(),
            "state_dict_ema": {k: v.clone() for k, v in model.state_dict().items()},
            "best_acc1": 71.5,
            "optimizer": optimizer.state_dict(),
            "args": argparse.Namespace(lr=0.1, data="/data/imagenet"),
        },
        path,
    )


def _save_ranks(folder: Path) -> None:
    """What two ranks of tensor parallelism have: rows of one layer, columns of the next."""
    for rank in range(2):
        state = {
            "up.weight": torch.randn(8, 4),
            "down.weight": torch.randn(4, 8),
            "norm.weight": torch.ones(4),
        }
        torch.save(state, folder / f"rank{rank}.pth")


def _save_on_gpu(path: Path) -> None:
    """What torch saves where the model lies on a GPU: each storage has that for its tag."""
    own = torch.serialization.location_tag
    torch.serialization.location_tag = lambda _: "cuda:0"
    try:
        torch.save({"state_dict": _net().state_dict(), "epoch": 3}, path)
    finally:
        torch.serialization.location_tag = own


def _save_module(path: Path) -> None:
    """A whole pickled model, of a class that cannot be imported when the file is read."""
    module = types.ModuleType("my_project")

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = torch.nn.Conv2d(3, 4, 3)
            self.norm = torch.nn.BatchNorm2d(4)

    Classifier.__module__, Classifier.__qualname__ = module.__name__, "Classifier"
    module.Classifier = Classifier
    sys.modules[module.__name__] = module
    try:
        torch.save(Classifier(), path)
    finally:
        del sys.modules[module.__name__]


def _save_rows(path: Path) -> None:
    """Ten rows of a large table, a tied pair of weights, a moment's NaN."""
    table = torch.arange(80_000, dtype=torch.float32).reshape(10_000, 8)
    weight = torch.tensor([[1.0, 0.0], [-1.0, float("nan")]])
    torch.save({"table": table[:10], "encoder.weight": weight, "decoder.weight": weight}, path)


class _Attack:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch owned",)


def _save_attack(path: Path) -> None:
    """Good weights, and beside them an object that unpickling would run."""
    torch.save({"state_dict": {"fc.weight": torch.zeros(2, 2)}, "config": _Attack()}, path)
