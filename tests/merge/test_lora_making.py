"""Adapters that are made: of two models, and of several adapters."""

from __future__ import annotations

import json

import pytest
import torch
from frameworks import framework
from safetensors.torch import load_file, save_file
from torch import nn

from ckpt_surgery.errors import CkptError, MismatchError, UsageError
from ckpt_surgery.merge.lora.factors import recompressed, truncated
from ckpt_surgery.names import Rule, Selection
from ckpt_surgery.ops.lora import extract_lora, merge_loras
from ckpt_surgery.ops.merge import merge
from ckpt_surgery.writing.output import Output


def optimum(matrix, rank):
    s = torch.linalg.svdvals(matrix.double())
    return float((s[rank:].square().sum() / s.square().sum()).sqrt())


@pytest.mark.parametrize("shape", [(30, 20), (700, 900)])
def test_factors_have_the_least_error(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape[0], 40) @ torch.randn(40, shape[1]) + torch.randn(shape)
    matrix = matrix.double()
    for rank in (1, 8):
        up, down, error = truncated(matrix, rank)
        assert (up.shape, down.shape) == ((shape[0], rank), (rank, shape[1]))
        assert error == pytest.approx(float((matrix - up @ down).norm() / matrix.norm()))
        assert error == pytest.approx(optimum(matrix, rank), rel=1e-5)
    up, down, error = recompressed(*truncated(matrix, 8)[:2], 3)
    assert error == pytest.approx(optimum(torch.mm(*truncated(matrix, 8)[:2]), 3), rel=1e-5)
    torch.testing.assert_close(up @ down, torch.mm(*truncated(matrix, 3)[:2]), rtol=1e-2, atol=1e-2)


def test_nothing_is_left_of_what_has_the_rank_itself():
    assert truncated(torch.zeros(3, 4), 2)[2] == 0
    exact = torch.randn(800, 3) @ torch.randn(3, 900)
    assert truncated(exact, 5)[2] < 1e-6


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(13, 6)
        self.conv = nn.Conv2d(2, 6, 3)
        self.first = nn.Linear(6, 8)
        self.last = nn.Linear(8, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x, y):
        return self.norm(self.last(self.first(self.embed_tokens(x) + self.conv(y).mean((2, 3)))))


def models(tmp_path, rank):
    """Write a base and a model that differs by products of a rank; return the latter."""
    torch.manual_seed(1)
    base, tuned = Net(), Net()
    tuned.load_state_dict(base.state_dict())
    with torch.no_grad():
        for name in ("embed_tokens", "conv", "first"):
            weight = getattr(tuned, name).weight
            rows, columns = weight.flatten(1).shape
            more = torch.randn(rows, rank) @ torch.randn(rank, columns) * 0.1
            weight += more.view(weight.shape)
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    save_file(tuned.state_dict(), tmp_path / "tuned.safetensors")
    return base, tuned


def extracted(tmp_path, name="adapter", **choices):
    files = (tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")
    return extract_lora(*files, Output(tmp_path / name, force=True), **choices)


def test_what_was_extracted_is_folded_in_again(tmp_path):
    _, tuned = models(tmp_path, 2)
    report = extracted(tmp_path, rank=2)
    assert {layer.module for layer in report.layers} == {"embed_tokens", "conv", "first"}
    assert all(layer.error < 1e-6 and layer.rank == 2 for layer in report.layers)
    assert report.left_out == []
    files = [tmp_path / "base.safetensors", tmp_path / "adapter"]
    merge(files, tmp_path / "again.safetensors", "lora")
    found = load_file(tmp_path / "again.safetensors")
    for name, value in tuned.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_peft_loads_what_was_extracted(tmp_path):
    peft = framework("peft")
    base, tuned = models(tmp_path, 3)
    extracted(tmp_path, rank=3)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    x, y = torch.arange(5), torch.randn(5, 2, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x, y), tuned.eval()(x, y), rtol=1e-4, atol=1e-5)


def test_errors_and_what_is_left_out_are_told(tmp_path):
    models(tmp_path, 4)
    tuned = load_file(tmp_path / "tuned.safetensors")
    tuned["norm.bias"] += 1
    save_file(tuned, tmp_path / "tuned.safetensors")
    selection = Selection([Rule("prefix", "first"), Rule("prefix", "conv")])
    report = extracted(tmp_path, rank=1, selection=selection, dtype="float16")
    base = load_file(tmp_path / "base.safetensors")
    for layer in report.layers:
        name = f"{layer.module}.weight"
        assert layer.error == pytest.approx(
            optimum((tuned[name] - base[name]).flatten(1), 1), rel=1e-4
        )
    assert dict(report.left_out).keys() == {"embed_tokens.weight", "norm.bias"}
    assert dict(report.left_out)["norm.bias"] == pytest.approx(1)
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert report.to_dict()["layers"][0].keys() == {"module", "rank", "error"}


def test_small_layers_have_ranks_of_their_own(tmp_path):
    models(tmp_path, 6)
    extracted(tmp_path, rank=7)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"]) == (6, {})
    weights = {
        "a.b.weight": torch.zeros(9, 9),
        "c.weight": torch.zeros(9, 3),
        "d.weight": torch.zeros(8, 8),
    }
    save_file(weights, tmp_path / "base.safetensors")
    save_file({n: torch.randn(w.shape) for n, w in weights.items()}, tmp_path / "tuned.safetensors")
    extracted(tmp_path, rank=5)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"]) == (5, {"^c": 3})
    files = [tmp_path / "base.safetensors", tmp_path / "adapter"]
    assert len(merge(files, tmp_path / "o.safetensors", "lora").merged) == 3


def test_inputs_first_are_said_in_the_configuration(tmp_path):
    torch.manual_seed(2)
    before = {"c_attn.weight": torch.randn(6, 6)}
    after = {"c_attn.weight": before["c_attn.weight"] + torch.randn(6, 1) @ torch.randn(1, 6)}
    save_file(before, tmp_path / "base.safetensors")
    save_file(after, tmp_path / "tuned.safetensors")
    extracted(tmp_path, rank=1, fan_in_fan_out=True)
    files = [tmp_path / "base.safetensors", tmp_path / "adapter"]
    merge(files, tmp_path / "again.safetensors", "lora")
    torch.testing.assert_close(load_file(tmp_path / "again.safetensors"), after)


@pytest.mark.parametrize(
    ("change", "choices", "words"),
    [
        ({"norm.bias": None}, {}, "'norm.bias' is not in the tuned model"),
        ({"more": torch.ones(2)}, {}, "'more' is not in the base"),
        ({"norm.bias": torch.ones(5)}, {}, "has the shapes"),
        ({"norm.bias": torch.full((4,), float("nan"))}, {}, "NaN"),
        ({}, {"rank": 0}, "no rank"),
        ({}, {"dtype": "int8"}, "floating type"),
        ({}, {"name": "a.safetensors"}, "called like a file"),
    ],
)
def test_what_cannot_be_extracted_is_refused(change, choices, words, tmp_path):
    models(tmp_path, 1)
    weights = {**load_file(tmp_path / "tuned.safetensors"), **change}
    save_file({n: w for n, w in weights.items() if w is not None}, tmp_path / "tuned.safetensors")
    with pytest.raises(CkptError, match=words):
        extracted(tmp_path, **{"rank": 2, **choices})
    assert not (tmp_path / "adapter").exists()
    save_file(load_file(tmp_path / "base.safetensors"), tmp_path / "tuned.safetensors")
    with pytest.raises(UsageError, match="no matrix differs"):
        extracted(tmp_path, rank=2)


def adapter(tmp_path, name, rank, alpha, modules=("first",), shape=(8, 6)):
    weights = {}
    for module in modules:
        weights[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, shape[1])
        weights[f"base_model.model.{module}.lora_B.weight"] = torch.randn(shape[0], rank)
    (tmp_path / name).mkdir()
    save_file(weights, tmp_path / name / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha}
    (tmp_path / name / "adapter_config.json").write_text(json.dumps(said))
    return tmp_path / name


def test_several_adapters_are_one_without_loss_or_of_a_rank(tmp_path):
    torch.manual_seed(3)
    models(tmp_path, 1)
    base = tmp_path / "base.safetensors"
    one = adapter(tmp_path, "one", 2, 6)
    two = adapter(tmp_path, "two", 3, 3, ("first",))
    report = merge_loras([one, two], tmp_path / "both", scales=[0.5, 2.0])
    assert [(x.module, x.rank, x.error) for x in report.layers] == [("first", 5, 0.0)]
    merge([base, one, two], tmp_path / "a.safetensors", "lora", scales=[0.5, 2.0])
    merge([base, tmp_path / "both"], tmp_path / "b.safetensors", "lora")
    expected, found = (load_file(tmp_path / f"{n}.safetensors") for n in "ab")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    report = merge_loras([one, two], tmp_path / "cut", scales=[0.5, 2.0], rank=2)
    change = expected["first.weight"] - load_file(base)["first.weight"]
    assert report.layers[0].rank == 2
    assert report.layers[0].error == pytest.approx(optimum(change, 2), rel=1e-3)


def test_files_of_other_namings_stay_files(tmp_path):
    torch.manual_seed(4)
    kohya, dotted = {}, {}
    for weights, name, ends in (
        (kohya, "lora_unet_a_b", ("lora_down", "lora_up")),
        (dotted, "unet.a.b", ("lora_A", "lora_B")),
    ):
        weights[f"{name}.{ends[0]}.weight"] = torch.randn(2, 4, 1, 1)
        weights[f"{name}.{ends[1]}.weight"] = torch.randn(5, 2, 1, 1)
    kohya["lora_unet_a_b.alpha"] = torch.tensor(1.0)
    save_file({"a.b.weight": torch.zeros(5, 4, 1, 1)}, tmp_path / "base.safetensors")
    for number, weights in enumerate((kohya, dotted)):
        file, double = tmp_path / f"{number}.safetensors", tmp_path / f"{number}d.safetensors"
        save_file(weights, file)
        merge_loras([file, file], double, dtype="float32")
        merge([tmp_path / "base.safetensors", file], tmp_path / "o.safetensors", "lora", scales=[2])
        files = [tmp_path / "base.safetensors", double]
        merge(files, Output(tmp_path / "p.safetensors", force=True), "lora")
        expected, found = (load_file(tmp_path / f"{n}.safetensors") for n in "op")
        torch.testing.assert_close(found, expected)
        (tmp_path / "o.safetensors").unlink()
    peft_one = adapter(tmp_path, "peft", 1, 1)
    with pytest.raises(UsageError, match="different namings"):
        merge_loras([tmp_path / "0.safetensors", peft_one], tmp_path / "x.safetensors")


def test_adapters_that_do_not_add_up_are_refused(tmp_path):
    one = adapter(tmp_path, "one", 2, 6)
    other = adapter(tmp_path, "other", 2, 6, shape=(8, 7))
    with pytest.raises(MismatchError, match="other shapes"):
        merge_loras([one, other], tmp_path / "x")
    with pytest.raises(UsageError, match="one adapter is nothing to merge"):
        merge_loras([one], tmp_path / "x")
    with pytest.raises(UsageError, match="3 scales for 2 adapters"):
        merge_loras([one, one], tmp_path / "x", scales=[1, 2, 3])
    for more in ("lora_magnitude_vector", "weight"):
        file = tmp_path / "other" / "adapter_model.safetensors"
        weights = load_file(one / "adapter_model.safetensors")
        save_file({**weights, f"base_model.model.first.{more}": torch.ones(8)}, file)
        with pytest.raises(UsageError, match=r"is more than a product|is a whole weight"):
            merge_loras([one, tmp_path / "other"], tmp_path / "x")
    with pytest.raises(UsageError, match="new directory"):
        merge_loras([one, one], Output(stream=1))
    assert not (tmp_path / "x").exists()
    merge_loras([one, one], Output(tmp_path / "x", dry_run=True))
    assert not (tmp_path / "x").exists()
