"""More jobs that people ask about in public: files of GPUs, of Python 2, of ranks, cut ones."""

from __future__ import annotations

import copy
import io
import json
import math
import pickletools
import struct
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytest
import torch
from averages_as_written import LatentDiffusion
from click.testing import CliRunner
from commands import ckpt
from small_nets import Classifier
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from ckpt_surgery.cli.main import cli

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Classifier().eval()


def answers_as(path_or_state: Any, net: nn.Module) -> bool:
    """Return whether a state dict loads strictly and the network gives the same to the bit."""
    state = load(path_or_state) if isinstance(path_or_state, Path) else path_or_state
    fresh = Classifier().eval()
    fresh.load_state_dict(state)
    return torch.equal(fresh(IMAGE), net(IMAGE))


def test_12_a_pickled_model_is_published_without_its_training(net, tmp_path):
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    average = copy.deepcopy(net)
    for parameter in average.parameters():
        parameter.data.mul_(0.5)
    whole = {"epoch": 9, "model": net, "ema": average, "updates": 5}
    torch.save(whole | {"optimizer": optimizer.state_dict()}, tmp_path / "last.pt")
    ckpt("strip", tmp_path / "last.pt", "--training-state", "--ema", "-o", tmp_path / "best.pt")
    found = torch.load(tmp_path / "best.pt", weights_only=False)
    assert list(found) == ["epoch", "model"]
    assert torch.equal(found["model"](IMAGE), average(IMAGE))


def test_14_the_average_of_latent_diffusion_takes_its_model_s_place(tmp_path):
    model = LatentDiffusion()
    for name, value in model.model_ema.named_buffers():
        if value.ndim:
            value.copy_(torch.randn_like(value))
        assert name
    torch.save({"global_step": 7, "state_dict": model.state_dict()}, tmp_path / "in.ckpt")
    ckpt("strip", tmp_path / "in.ckpt", "--training-state", "--ema", "-o", tmp_path / "out.ckpt")
    state = load(tmp_path / "out.ckpt")["state_dict"]
    assert not any(name.startswith("model_ema") for name in state)
    averaged = dict(model.model_ema.named_buffers())
    for name, parameter in model.model.named_parameters():
        parameter.data.copy_(averaged[name.replace(".", "")])  # as its ema_scope() does
    inputs = torch.randn(3, 4)
    wanted = model.eval().model.diffusion_model(inputs)
    fresh = LatentDiffusion().eval()
    fresh.load_state_dict(state, strict=False)
    assert torch.equal(fresh.model.diffusion_model(inputs), wanted)


def groups(net: nn.Module) -> list[dict[str, Any]]:
    flat = [p for p in net.parameters() if p.ndim < 2]
    rest = [p for p in net.parameters() if p.ndim > 1]
    return [{"params": flat, "weight_decay": 0.0}, {"params": rest}]


def test_19_with_a_layer_more_the_optimizer_of_two_groups_goes_on(tmp_path):
    torch.manual_seed(0)
    old = nn.ModuleDict({"a": nn.Linear(4, 4), "head": nn.Linear(4, 2)})
    grown = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "head": nn.Linear(4, 2)})
    optimizer = torch.optim.AdamW(groups(old))
    for parameter in old.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    torch.save({"model": old.state_dict(), "optim": optimizer.state_dict()}, tmp_path / "in.pth")
    torch.save(grown.state_dict(), tmp_path / "like.pth")
    out = tmp_path / "out.pth"
    ckpt("fit", tmp_path / "in.pth", "--like", tmp_path / "like.pth", "-o", out)
    found = load(out)
    grown.load_state_dict(found["model"])
    other = torch.optim.AdamW(groups(grown))
    other.load_state_dict(found["optim"])
    for (name, parameter), each in zip(
        old.named_parameters(), optimizer.state.values(), strict=True
    ):
        held = other.state[grown.get_parameter(name)]
        assert torch.equal(grown.get_parameter(name), parameter)
        assert held.keys() == each.keys()
    for parameter in (*old.parameters(), *grown.parameters()):
        parameter.grad = parameter.detach() * 0.5 + 1
    optimizer.step()
    other.step()
    for name, parameter in old.named_parameters():
        assert torch.equal(grown.get_parameter(name), parameter)


class Patches(nn.Module):
    """A network of patches with one prefix token, for a grid that need not be square."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.grid = rows, columns
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + rows * columns, 8))
        self.out = nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.out(tokens + self.pos_embed).mean(1)
        return found


def test_21_position_embeddings_go_to_a_grid_that_is_no_square(tmp_path):
    square, wide = Patches(4, 4), Patches(4, 6)
    torch.save(square.state_dict(), tmp_path / "in.pth")
    torch.save(wide.state_dict(), tmp_path / "like.pth")
    ckpt("fit", tmp_path / "in.pth", "--like", tmp_path / "like.pth", "--adapt",
         "interpolate", "--grid", "4x6", "-o", tmp_path / "out.pth")  # fmt: skip
    wide.load_state_dict(load(tmp_path / "out.pth"))
    token, grid = square.pos_embed[:, :1], square.pos_embed[:, 1:]
    grid = grid.reshape(1, 4, 4, 8).permute(0, 3, 1, 2)
    larger = F.interpolate(grid, (4, 6), mode="bicubic", align_corners=False, antialias=True)
    square.pos_embed = nn.Parameter(torch.cat([token, larger.flatten(2).mT], 1))
    tokens = torch.randn(2, 25, 8)
    torch.testing.assert_close(wide(tokens), square(tokens))


def test_33_the_ranks_of_zero_3_are_put_together(net, tmp_path):
    """Each rank has its third of every parameter, padded, and the buffers in bfloat16's stead."""
    step, ranks = tmp_path / "global_step5", 3
    step.mkdir()
    (tmp_path / "latest").write_text("global_step5\n")
    own = dict(net.named_parameters())
    for rank in range(ranks):
        parts = [F.pad(p.detach().flatten(), (0, -p.numel() % ranks)) for p in own.values()]
        flat = torch.cat([part.chunk(ranks)[rank] for part in parts])
        optimizer = {"zero_stage": 3, "partition_count": ranks, "fp32_flat_groups": [flat],
                     "optimizer_state_dict": {"state": {0: {"exp_avg": flat.clone()}}}}  # fmt: skip
        name = f"zero_pp_rank_{rank}_mp_rank_00"
        torch.save({"optimizer_state_dict": optimizer, "ds_version": "0.15"},
                   step / f"{name}_optim_states.pt")  # fmt: skip
        buffers = dict(net.named_buffers())
        model = {
            "module": buffers, "buffer_names": list(buffers), "shared_params": {},
            "param_shapes": [{key: value.shape for key, value in own.items()}],
            "frozen_param_shapes": None, "frozen_param_fragments": None, "ds_version": "0.15",
        }  # fmt: skip
        torch.save(model, step / f"{name}_model_states.pt")
    ckpt("consolidate", tmp_path, "-o", tmp_path / "whole.pth")
    ckpt("convert", tmp_path / "whole.pth", "--state-dict-only", "-o", tmp_path / "out.pth")
    assert answers_as(tmp_path / "out.pth", net)


def test_38_a_file_of_a_gpu_opens_without_one(net, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("torch.serialization.location_tag", lambda _: "cuda:1")
        torch.save(net.state_dict(), tmp_path / "gpu.pth")
    with pytest.raises(RuntimeError, match="CUDA"):
        load(tmp_path / "gpu.pth")
    ckpt("convert", tmp_path / "gpu.pth", "--device", "cpu", "-o", tmp_path / "cpu.pth")
    assert answers_as(tmp_path / "cpu.pth", net)


def as_python_2(value: Any) -> bytes:
    """What torch under Python 2 wrote of `value`: every text is one of bytes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    parts = []
    buffer.seek(0)
    for _ in range(5):  # magic number, protocol, system, object, keys
        start = buffer.tell()
        list(pickletools.genops(buffer))
        parts.append(buffer.getvalue()[start : buffer.tell()])
    return b"".join((*parts[:3], *map(_byte_texts, parts[3:]), buffer.read()))


def _byte_texts(pickle: bytes) -> bytes:
    out, operations = b"", list(pickletools.genops(pickle))
    ends = [place for _, _, place in operations[1:]] + [len(pickle)]
    for (operation, argument, start), end in zip(operations, ends, strict=True):
        if operation.name == "BINUNICODE":
            out += b"T" + struct.pack("<i", len(argument)) + argument.encode("latin1")
        else:
            out += pickle[start:end]
    return out


def test_39_a_file_of_python_2_loads(net, tmp_path):
    (tmp_path / "py2.pth").write_bytes(as_python_2({"note": "café", "net": net.state_dict()}))
    with pytest.raises((UnicodeError, UnpicklingError)):
        load(tmp_path / "py2.pth")
    ckpt("convert", tmp_path / "py2.pth", "-o", tmp_path / "out.pth")
    found = load(tmp_path / "out.pth")
    assert found["note"] == "café"
    assert answers_as(found["net"], net)


def test_40_of_a_truncated_file_it_is_said_what_is_wrong_and_saved_what_is_whole(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "in.pth")
    data = (tmp_path / "in.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) * 2 // 3])
    result = CliRunner().invoke(cli, ["verify", str(tmp_path / "cut.pth")])
    assert result.exit_code == 1
    assert "truncated" in result.output
    line = ["verify", str(tmp_path / "cut.pth"), "--salvage", str(tmp_path / "rest.pth")]
    assert CliRunner().invoke(cli, line).exit_code == 1
    saved, whole = load(tmp_path / "rest.pth"), net.state_dict()
    assert 0 < len(saved) < len(whole)
    assert all(torch.equal(value, whole[name]) for name, value in saved.items())


def test_42_43_attention_of_gpt_2_is_that_of_torch(tmp_path):
    """Conv1D keeps its matrix transposed, and q, k and v in one: two rules, and a join back."""
    torch.manual_seed(0)
    weight, bias = torch.randn(8, 24), torch.randn(24)
    torch.save({"h.0.c_attn.weight": weight, "h.0.c_attn.bias": bias}, tmp_path / "in.pth")
    ckpt("edit", tmp_path / "in.pth", "--transpose", "h.*.c_attn.weight",
         "--split", "h.*.c_attn.weight=q.weight,k.weight,v.weight",
         "--split", "h.*.c_attn.bias=q.bias,k.bias,v.bias", "-o", tmp_path / "out.pth")  # fmt: skip
    state, x = load(tmp_path / "out.pth"), torch.randn(5, 8)
    wanted = (x @ weight + bias).chunk(3, 1)
    for name, value in zip("qkv", wanted, strict=True):
        layer = nn.Linear(8, 8)
        prefix = next(key for key in state if key.endswith(f"{name}.weight"))[: -len("weight")]
        layer.load_state_dict({key: state[prefix + key] for key in ("weight", "bias")})
        torch.testing.assert_close(layer(x), value)


def test_44_lora_is_folded_in_or_taken_out(tmp_path):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    down, up = torch.randn(2, 6) * 0.1, torch.randn(5, 2) * 0.1
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    names = {"lora_A": down, "lora_B": up}
    torch.save({f"base_model.model.0.{name}.weight": value for name, value in names.items()},
               adapter / "adapter_model.bin")  # fmt: skip
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["0"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    torch.save(base.state_dict(), tmp_path / "base.pth")
    ckpt("merge", "-m", "lora", tmp_path / "base.pth", adapter, "-o", tmp_path / "out.pth")
    folded = copy.deepcopy(base)
    folded.load_state_dict(load(tmp_path / "out.pth"))
    x = torch.randn(3, 6)
    wanted = base[2](F.relu(base[0](x) + 3 * x @ down.T @ up.T))
    torch.testing.assert_close(folded(x), wanted)
    inside = {f"base_model.model.{n.replace('0.', '0.base_layer.')}": v
              for n, v in base.state_dict().items()}  # fmt: skip
    inside |= {f"base_model.model.0.{name}.default.weight": v for name, v in names.items()}
    torch.save(inside, tmp_path / "wrapped.pth")
    ckpt("strip", tmp_path / "wrapped.pth", "--pattern", "lora_", "-o", tmp_path / "1.pth")
    ckpt("rename", tmp_path / "1.pth", "--strip-prefix", "base_model.model",
         "--delete", "base_layer.", "-o", tmp_path / "2.pth")  # fmt: skip
    folded.load_state_dict(load(tmp_path / "2.pth"))
    assert torch.equal(folded(x), base(x))


def test_46_kernels_of_spconv_1_are_those_of_spconv_2(tmp_path):
    """They keep (depth, height, width, in, out) and (out, depth, height, width, in)."""
    conv = nn.Conv3d(3, 4, 2)
    old = conv.weight.detach().permute(2, 3, 4, 1, 0)
    torch.save({"conv.weight": old.contiguous(), "conv.bias": conv.bias}, tmp_path / "in.pth")
    ckpt("edit", tmp_path / "in.pth", "--permute", "conv.weight=4,0,1,2,3",
         "-o", tmp_path / "out.pth")  # fmt: skip
    state, x = load(tmp_path / "out.pth"), torch.randn(1, 3, 4, 4, 4)
    as_torch = state["conv.weight"].permute(0, 4, 1, 2, 3)
    assert torch.equal(F.conv3d(x, as_torch, state["conv.bias"]), conv(x))


def test_51_float8_and_extra_state_keep_what_they_are_under_other_names(tmp_path):
    state = {
        "a.weight": torch.randn(4, 4).to(torch.float8_e4m3fn),
        "a.scale": torch.tensor(math.pi),
        "a._extra_state": {"amax": 3.5, "history": torch.ones(2)},
    }
    torch.save(state, tmp_path / "in.pth")
    ckpt("rename", tmp_path / "in.pth", "--add-prefix", "net", "-o", tmp_path / "out.pth")
    found = load(tmp_path / "out.pth")
    assert list(found) == [f"net.{name}" for name in state]
    assert torch.equal(found["net.a.weight"].view(torch.uint8), state["a.weight"].view(torch.uint8))
    assert found["net.a._extra_state"]["amax"] == 3.5
    state["a._extra_state"] = state["_extra_state"] = {"history": torch.ones(2)}  # tensors alone
    torch.save(state, tmp_path / "in.pth")
    ckpt("rename", tmp_path / "in.pth", "--add-prefix", "net", "-o", tmp_path / "alone.pth")
    found = load(tmp_path / "alone.pth")
    assert list(found) == [f"net.{name}" for name in state]
    assert list(found["net._extra_state"]) == list(found["net.a._extra_state"]) == ["history"]


# ------------------------------------------------------- the second table: short ways to say it


@pytest.fixture
def folder(net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    for name in ("f.pth", "runs/a/last.pth", "runs/a/best.pth"):
        torch.save(net.state_dict(), tmp_path / name)
    return tmp_path


def test_many_files_are_looked_at_in_one_table_or_a_document_a_line(folder):
    said = ckpt("inspect", "runs/", "*.pth")
    assert "3 files" in said
    lines = [json.loads(line) for line in ckpt("inspect", "runs/", "*.pth", "--jsonl").splitlines()]
    assert [Path(each["file"]).as_posix() for each in lines] == [
        "runs/a/best.pth", "runs/a/last.pth", "f.pth",
    ]  # fmt: skip


def test_one_key_is_dropped_by_its_name_and_a_line_can_be_run_again(folder, net):
    ckpt("strip", "f.pth", "head.bias", "-o", "g.pth")
    assert list(load(folder / "g.pth")) == [n for n in net.state_dict() if n != "head.bias"]
    before = (folder / "g.pth").stat()
    assert "holds this already" in ckpt("strip", "f.pth", "head.bias", "-o", "g.pth")
    ckpt("strip", "f.pth", "head.bias", "-o", "g.pth", "--if-changed")
    assert (folder / "g.pth").stat().st_ino == before.st_ino
    ckpt("strip", "f.pth", "head.weight", "-o", "g.pth", exit_code=2)


def test_the_first_keys_of_a_state_dict_are_frozen_by_their_number(folder, net):
    plan = json.loads(ckpt("freeze-plan", "f.pth", "--first-keys", "4", "--emit", "json"))
    first = set(list(net.state_dict())[:4])
    frozen = {each["name"] for each in plan["parameters"] if each["frozen"]}
    assert frozen == first & {name for name, _ in net.named_parameters()}


def test_a_text_is_deleted_from_names(folder, net):
    torch.save({f"x.net.{n}": v for n, v in net.state_dict().items()}, "named.pth")
    ckpt("rename", "named.pth", "--delete", ".net", "-o", "out.pth")
    ckpt("rename", "named.pth", "--replace", ".net", "", "-o", "same.pth")
    assert list(load(folder / "out.pth")) == [f"x.{name}" for name in net.state_dict()]
    assert load(folder / "same.pth").keys() == load(folder / "out.pth").keys()


def test_two_files_are_compared_and_one_is_looked_after(folder):
    assert "no difference" in ckpt("diff", "f.pth", "runs/a/last.pth", "--values")
    ckpt("strip", "f.pth", "head.bias", "-o", "g.pth")
    ckpt("diff", "f.pth", "g.pth", exit_code=1)
    ckpt("verify", "f.pth", "g.pth")
