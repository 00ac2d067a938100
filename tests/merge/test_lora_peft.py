"""Adapters folded into a base give what PEFT's ``merge_and_unload`` gives."""

from __future__ import annotations

import json

import pytest
import torch
from frameworks import framework
from safetensors.torch import load_file, save_file
from torch import nn

from ckpt_surgery.errors import CkptError
from ckpt_surgery.merge.request import MergeRequest
from ckpt_surgery.ops.merge import merge

peft = framework("peft")


class Small(nn.Module):
    """Every kind of layer that PEFT adapts."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(17, 6)
        self.first = nn.Linear(6, 10)
        self.square = nn.Linear(10, 10)
        self.conv = nn.Conv2d(3, 8, 3)
        self.point = nn.Conv2d(8, 4, 1)
        self.line = nn.Conv1d(5, 7, 3)
        self.norm = nn.LayerNorm(10)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        return self.head(self.norm(self.square(self.first(self.embed(x)))))


def adapted(model, folder, dtype=torch.float32, name="default", **choices):
    """Return the weights that PEFT merges, and leave the base and the adapter in `folder`."""
    base = folder / "base.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, base)
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, **choices})
    tuned = peft.get_peft_model(model, config)
    with torch.no_grad():
        for key, value in tuned.named_parameters():
            if "lora_" in key or value.requires_grad:
                value.add_(torch.randn_like(value) * 0.05)
    adapter = folder / f"adapter-{name}"
    tuned.save_pretrained(adapter)
    merged = tuned.merge_and_unload().state_dict()
    return base, adapter, merged


def within(places, found, expected):
    """Whether numbers differ by at most so many units in the last place of their type.

    The unit is that of the number itself, or of what a weight typically has where terms cancel.
    """
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        ours, eps = found[name], torch.finfo(found[name].dtype).eps
        scale = torch.maximum(value.abs().double(), 2 * value.double().square().mean().sqrt())
        assert ((ours.double() - value.double()).abs() <= places * eps * scale).all(), name


ALL = ["embed", "first", "square", "conv", "point", "line"]
CASES = {
    "plain": {"target_modules": ALL},
    "patterns": {
        "target_modules": ALL,
        "rank_pattern": {"square": 2, "^first": 3},
        "alpha_pattern": {"square": 5, "conv": 1},
    },
    "rslora": {"target_modules": ALL, "use_rslora": True},
    "dora": {"target_modules": ALL, "use_dora": True},
    "bias": {"target_modules": ["first", "square"], "bias": "all"},
    "own biases": {"target_modules": ["first", "conv"], "lora_bias": True},
    "whole modules": {"target_modules": ["first"], "modules_to_save": ["head", "norm"]},
}


BOTH = [*((case, torch.float32) for case in CASES), ("plain", torch.bfloat16)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("case", "dtype"), BOTH)
def test_folding_gives_what_peft_merges(case, dtype, tmp_path):
    torch.manual_seed(3)
    base, adapter, expected = adapted(Small().to(dtype), tmp_path, **CASES[case])
    merge([base, adapter], tmp_path / "out.safetensors", "lora")
    found = load_file(tmp_path / "out.safetensors")
    # PEFT rounds a DoRA five times in float32; below it is compared in float64
    within(3 if case == "dora" else 1, found, expected)


@pytest.mark.filterwarnings("ignore")
def test_a_dora_is_exact_to_one_rounding(tmp_path):
    torch.manual_seed(4)
    model = Small()
    exact = Small().double()
    exact.load_state_dict(model.state_dict())
    base, adapter, _ = adapted(model, tmp_path, target_modules=ALL, use_dora=True)
    merge([base, adapter], tmp_path / "out.safetensors", "lora")
    tuned = peft.PeftModel.from_pretrained(exact, adapter, autocast_adapter_dtype=False).double()
    within(0.5001, load_file(tmp_path / "out.safetensors"), tuned.merge_and_unload().state_dict())


@pytest.mark.filterwarnings("ignore")
def test_several_adapters_are_added_in_one_rounding(tmp_path):
    torch.manual_seed(5)
    weights = Small().state_dict()
    model = Small()
    model.load_state_dict(weights)
    base, one, _ = adapted(model, tmp_path, target_modules=["first"], name="one")
    model = Small()
    model.load_state_dict(weights)
    _, two, _ = adapted(model, tmp_path, target_modules=["first", "conv"], name="two")
    request = MergeRequest("lora", scales=[0.5, 2.0])
    merge([base, one, two], tmp_path / "out.safetensors", request)
    exact = Small()
    exact.load_state_dict(weights)
    tuned = peft.PeftModel.from_pretrained(exact, one, adapter_name="one").double()
    tuned.load_adapter(two, adapter_name="two", autocast_adapter_dtype=False)
    tuned = tuned.double()
    for module in tuned.modules():
        if hasattr(module, "scale_layer"):
            for name, factor in (("one", 0.5), ("two", 2.0)):
                if name in module.scaling:
                    module.scaling[name] *= factor
    expected = tuned.merge_and_unload(adapter_names=["one", "two"]).state_dict()
    within(0.5001, load_file(tmp_path / "out.safetensors"), expected)


@pytest.mark.filterwarnings("ignore")
def test_transposed_weights_and_sharded_bases_of_transformers(tmp_path):
    transformers = framework("transformers")
    torch.manual_seed(6)
    config = transformers.GPT2Config(vocab_size=50, n_positions=8, n_embd=16, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    tuned = peft.get_peft_model(
        model, peft.LoraConfig(r=2, lora_alpha=4, target_modules=["c_attn", "c_proj"])
    )
    with torch.no_grad():
        for key, value in tuned.named_parameters():
            value.add_(torch.randn_like(value) * 0.05 * ("lora_" in key))
    tuned.save_pretrained(tmp_path / "adapter")
    report = merge([tmp_path / "base", tmp_path / "adapter"], tmp_path / "out.safetensors", "lora")
    expected = tuned.merge_and_unload().state_dict()
    expected.pop("lm_head.weight")  # tied, and stored once
    found = load_file(tmp_path / "out.safetensors")
    within(1, found, expected)
    assert len(report.merged) == 6


@pytest.mark.filterwarnings("ignore")
def test_the_weight_inside_an_attention_is_one(tmp_path):
    """By hand: PEFT 0.21 adds the product of the output projection twice."""
    torch.manual_seed(7)
    model = nn.Sequential(nn.MultiheadAttention(8, 2)).eval()
    save_file(model.state_dict(), tmp_path / "base.safetensors")
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    config = peft.LoraConfig(r=2, lora_alpha=1, target_modules=["0"], init_lora_weights=False)
    tuned = peft.get_peft_model(model, config)
    tuned.save_pretrained(tmp_path / "adapter")
    trained = dict(tuned.named_parameters())
    for name, module in (("0.in_proj_weight", "0"), ("0.out_proj.weight", "0.base_layer.out_proj")):
        a, b = (trained[f"base_model.model.{module}.lora_{x}.default.weight"] for x in "AB")
        expected[name] += b.detach() @ a.detach() / 2
    merge([tmp_path / "base.safetensors", tmp_path / "adapter"], tmp_path / "out.pth", "lora")
    within(1, torch.load(tmp_path / "out.pth"), expected)


@pytest.mark.filterwarnings("ignore")
def test_what_was_trained_on_another_base_is_refused(tmp_path):
    torch.manual_seed(8)
    base, adapter, _ = adapted(Small(), tmp_path, target_modules=["first"])
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text())
    for change, words in (
        ({"init_lora_weights": "pissa"}, "changes the base"),
        ({"peft_type": "LOHA"}, "no LoRA"),
        ({"layer_replication": [[0, 1]]}, "cannot be folded"),
        ({"r": 5}, "have rank 4"),
        ({"rank_pattern": {"first": 2}}, "have rank 4"),
        ({"lora_alpha": "8"}, "no number"),
    ):
        file.write_text(json.dumps({**config, **change}))
        with pytest.raises(CkptError, match=words):
            merge([base, adapter], tmp_path / "out.safetensors", "lora")
    assert not (tmp_path / "out.safetensors").exists()
