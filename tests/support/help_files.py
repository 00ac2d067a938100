"""The checkpoints that the examples in the help of every command name, as small as they can be."""

from __future__ import annotations

import argparse
import json
import runpy
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docs_files
import torch
from safetensors.torch import save_file
from torch import nn

from ckpt_surgery.models.torchvision_import import import_torchvision

_TESTS = Path(__file__).resolve().parents[1]
_CLASSES = ("cat", "dog", "owl", "fox", "cow", "ant")


def net(names: str = "conv1 bn1 layer1.0.conv1 layer4.0.conv1 head.fc fc") -> dict[str, Any]:
    """Weights under some names of modules: convolutions, norms and a last layer of 6 rows."""
    found: dict[str, torch.Tensor] = {}
    for name in names.split():
        last = name.rpartition(".")[2]
        if last.startswith("bn"):
            found |= {f"{name}.{k}": torch.ones(4) for k in ("weight", "bias", "running_var")}
            found[f"{name}.running_mean"] = torch.zeros(4)
            found[f"{name}.num_batches_tracked"] = torch.tensor(0)
        elif last.startswith(("conv", "0")):
            found[f"{name}.weight"] = torch.ones(4, 3 if name == "conv1" else 4, 3, 3)
        else:
            found |= {f"{name}.weight": torch.ones(6, 4), f"{name}.bias": torch.zeros(6)}
    return found


def training(prefix: str = "", **more: Any) -> dict[str, Any]:
    """A training checkpoint with an optimizer, its moments, and a moving average."""
    module = nn.Module()
    for name, value in net("conv1 fc").items():
        parent, _, last = name.rpartition(".")
        if not hasattr(module, parent):
            module.add_module(parent, nn.Module())
        getattr(module, parent).register_parameter(last, nn.Parameter(value))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    sum(p.sum() for p in module.parameters()).backward()
    optimizer.step()
    weights = {prefix + name: value for name, value in module.state_dict().items()}
    return {
        "state_dict": weights,
        "state_dict_ema": {name: value * 0.5 for name, value in weights.items()},
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        **more,
    }


def save(value: Any, *files: str) -> None:
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        torch.save(value, file)


def torchvision(name: str, file: str, **choices: Any) -> None:
    """Weights of a model of torchvision, all zeros: quick to make."""
    with torch.device("meta"):
        model = getattr(import_torchvision().models, name)(**choices)
    state = {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in model.state_dict().items()}
    save(state, file)


def _inspect() -> None:
    save(net(), "alexnet.pth", "vit.pth", "model.pth", "runs/1.pth")
    save(training(), "train.pth.tar")


def _strip() -> None:
    save(net(), "resnet34.pth", "model.pth")
    save({"features.0.weight": torch.ones(2), "classifier.0.weight": torch.ones(2)}, "vgg16.pth")
    args = argparse.Namespace(lr=0.1)
    value = training(args=args, hyper_parameters={"lr": 0.1, "depth": 2})
    save(value, "train.pth", "train.pth.tar", "runs/1.pth", "runs/2.pth")
    save({"model": net()}, "wrapped.pth")
    Path("lean").mkdir()


def _rename() -> None:
    save(training("module."), "train.pth", "runs/1.pth", "runs/2.pth")
    save({f"_orig_mod.{k}": v for k, v in net().items()}, "compiled.pth")
    save(net("conv1 layer1.0.net.conv1"), "m.pth")
    save(net(), "model.pth", "net.pth", "weights.pth")
    Path("names.toml").write_text('"conv1.weight" = "stem.weight"\n', encoding="utf-8")


def _edit() -> None:
    save({"h.0.attn.c_attn.weight": torch.ones(4, 12)}, "gpt2.pth")
    save({"blocks.0.qkv.weight": torch.ones(12, 4)}, "vit.pth")
    save(net(), "r50.pth")
    blocks = "layer1.0.conv1 layer1.0.bn1 layer1.0.downsample.0"
    state = net(f"conv1 bn1 {blocks}")
    state |= {k.replace("bn1", "layer1.0.downsample.1"): v for k, v in net("bn1").items()}
    save(state, "r18.pth")
    save({"embed.weight": torch.ones(3, 2)}, "lm.pth")


def _values() -> None:
    import numpy as np

    args = argparse.Namespace(data="/old", resume="x", batch_size=8)
    save(training(args=args, best=np.float64(0.25)), "train.pth", "a.pth", "b.pth")
    save_file(net(), "m.safetensors")


class _Statistics(nn.Module):
    """Has statistics that are no buffers, as every script of 2019 had them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Linear(1, 2)
        self.norm.running_mean = torch.zeros(2)  # type: ignore[assignment]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x) - self.norm.running_mean


def _convert() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated
        torch.jit.save(torch.jit.script(_Statistics()), "script2019.pt")
    with torch.random.fork_rng():
        torch.save(nn.Linear(2, 2), "model.pkl")
    save(training(), "train.pth.tar", "untrusted.pth", "train.pth")
    save_file(net(), "silero.safetensors")
    save(net(), "model.pth", "m.pth", "runs/1.pth", "runs/2.pth")


def _consolidate() -> None:
    from torch.distributed.checkpoint.format_utils import torch_save_to_dcp

    save(net(), "whole.pth")
    torch_save_to_dcp("whole.pth", "DIR")
    parts = ({"up.weight": torch.randn(4, 4), "norm.scale": torch.ones(4)} for _ in range(2))
    for rank, part in enumerate(parts):
        save(part, f"tp/rank{rank}.pt")
    for rank in range(4):
        script = str(_TESTS / "support" / "save_dtensors.py")
        _run(sys.executable, "-W", "ignore", script, str(rank), ".")
        state = torch.load(f"rank{rank}.pth", weights_only=False)
        del state["summed"]  # which the ranks have to add up before they save
        save(state, f"rank{rank}.pt")
    made = runpy.run_path(str(_TESTS / "ranks" / "test_deepspeed.py"))["save"](Path("ds"), 2)
    shutil.copytree(made / "global_step5", "global_step100")


def _match() -> None:
    torchvision("resnet34", "resnet34.pth")
    torchvision("resnet34", "r.pth", num_classes=5)
    shutil.copy("resnet34.pth", Path("runs").mkdir() or "runs/1.pth")
    Path("my_project").mkdir()
    Path("my_project/models.py").write_text(
        "from torchvision.models import resnet34\n\n\n"
        "def build(depth):\n    return resnet34(num_classes=5)\n",
        encoding="utf-8",
    )
    save(training(), "train.pth")
    save(training()["state_dict"], "init.pth")


def _fit() -> None:
    docs_files.save_layouts(Path())
    torchvision("resnet34", "r34.pth", num_classes=len(_CLASSES))
    torchvision("resnet50", "r50.pth")
    save(net("conv1 fc"), "alexnet.pth", "spp_init.pth")
    save(net("conv1 fc"), "old.pth")
    Path("my").mkdir()
    lines = "from torch import nn\n\n\ndef net():\n    model = nn.Module()\n"
    lines += "    model.fc = nn.Linear(4, 6)\n    return model\n"
    Path("my/models.py").write_text(lines, encoding="utf-8")
    Path("imagenet.txt").write_text("\n".join(_CLASSES) + "\n", encoding="utf-8")
    Path("mine.txt").write_text("owl\ndog\nant\ncat\nelk\n", encoding="utf-8")


def _merge() -> None:
    for name in ("init", "pretrained", "backbone", "a", "b", "c", "base", "math", "code"):
        state = {k: v + torch.rand(v.shape) if v.dim() > 1 else v for k, v in net().items()}
        save(state, f"{name}.pth")
    save({"weight": torch.ones(6, 4), "bias": torch.ones(6)}, "head.pth")
    for number in range(6):
        save(
            {"state_dict": net(), "epoch": number, "best_acc1": 70.0 + number}, f"run/{number}.pth"
        )
    docs_files._save_adapter(Path())
    kind = ("--format", "safetensors-index", "--max-shard-size", "20KB")
    _run("ckpt", "convert", "llm.safetensors", *kind, "-o", "llama")
    lines = 'method = "average"\n[[inputs]]\nfile = "a.pth"\n[[inputs]]\nfile = "b.pth"\n'
    Path("merge.toml").write_text(lines, encoding="utf-8")


def _adapter(folder: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    start = "base_model.model.layers.0.self_attn.q_proj"
    Path(folder).mkdir()
    factors = {
        f"{start}.lora_A.weight": torch.randn(32, 64, generator=generator),
        f"{start}.lora_B.weight": torch.randn(64, 32, generator=generator),
    }
    save_file(factors, f"{folder}/adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 32, "lora_alpha": 32, "target_modules": ["q_proj"]}
    Path(f"{folder}/adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def _lora() -> None:
    for number, name in enumerate(("base", "tuned")):
        torch.manual_seed(number)
        state = {f"layers.{i}.self_attn.q_proj.weight": torch.randn(128, 128) for i in range(2)}
        save_file(state, f"{name}.safetensors")
        Path(name).mkdir()
        save_file(state, f"{name}/model.safetensors")
    for number, name in enumerate(("style", "subject")):
        _adapter(name, number)


def _apply() -> None:
    save(net(), "a.pth", "other.pth")
    Path("recipe.toml").write_text(
        '[inputs]\nbase = "a.pth"\n[variables]\nclasses = 6\n[[steps]]\n'
        'rename = { add-prefix = "net" }\n[[steps]]\n'
        'expect = { keys = "net.fc.weight" }\n[[outputs]]\nfile = "recipe-out.pth"\n',
        encoding="utf-8",
    )


def _freeze_plan() -> None:
    torchvision("resnet34", "resnet34.pth")
    torchvision("resnet34", "r34.pth")


def _verify() -> None:
    save(net(), "resnet34.pth", "model.pth", "checkpoints/1.pth", "checkpoints/2.pth", "cut.pth")
    whole = Path("cut.pth").read_bytes()
    Path("cut.pth").write_bytes(whole[: len(whole) // 2])
    Path("policy.toml").write_text("[file]\nweights_only = true\n", encoding="utf-8")
    digests = _run("ckpt", "hash", "checkpoints/")
    Path("DIGESTS").write_text(digests, encoding="utf-8")
    _keys()
    _run("ckpt", "sign", "model.pth", "--key", "key.pem")


def _keys() -> None:
    kind = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    _run("openssl", "genpkey", *kind, "-out", "key.pem")
    _run("openssl", "pkey", "-in", "key.pem", "-pubout", "-out", "key.pub")


def _run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, encoding="utf-8").stdout


def _diff() -> None:
    save(net(), "before.pth", "pretrained.pth", "a.pth", "b.pth")
    save(net("conv1 fc"), "after.pth")
    save_file(net(), "finetuned.safetensors")
    Path("names.toml").write_text('"conv1.weight" = "stem.weight"\n', encoding="utf-8")
    _run("git", "init", "-q", ".")


def _hash() -> None:
    save(net(), "resnet34.pth", "checkpoints/1.pth", "checkpoints/2.pth")
    save_file(net(), "resnet34.safetensors")
    save(training(), "train.pth")


def _sign() -> None:
    save(training(), "run.pth")
    save_file(net(), "model.safetensors")
    Path("weights").mkdir()
    save_file(net(), "weights/model.safetensors")
    _keys()
    locked = ("-aes256", "-passout", "env:KEY_PASSWORD", "-out", "own.pem")
    _run("openssl", "pkey", "-in", "key.pem", *locked)


def _bom() -> None:
    save(training(), "run.pth")
    save_file(net(), "model.safetensors")
    _run("ckpt", "strip", "run.pth", "--training-state", "-o", "net.pth", "--record", "net.json")


def _completion() -> None:
    Path(".config/fish/completions").mkdir(parents=True)


MAKE: dict[str, Callable[[], None]] = {
    "inspect": _inspect, "strip": _strip, "rename": _rename, "edit": _edit, "set": _values,
    "get": _values, "convert": _convert, "consolidate": _consolidate, "match": _match, "fit": _fit,
    "merge": _merge, "lora": _lora, "apply": _apply, "freeze-plan": _freeze_plan,
    "verify": _verify, "diff": _diff, "hash": _hash, "sign": _sign, "bom": _bom,
    "completion": _completion,
}  # fmt: skip
"""What makes the files of a command's examples, in the current directory."""
