"""peft and diffusers load what is written, bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from frameworks import framework
from torch_checks import assert_same

from ckpt_surgery import Output, convert, rename
from ckpt_surgery.formats.base import LayoutOptions
from ckpt_surgery.names.rewrite import Replace


@pytest.mark.filterwarnings("ignore::FutureWarning")  # between peft and transformers
def test_peft_loads_an_adapter_in_both_formats(tmp_path):
    transformers, peft = framework("transformers"), framework("peft")
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=50,
    )  # fmt: skip
    base = transformers.LlamaForCausalLM(config)
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(base, settings)
    model.save_pretrained(tmp_path / "own")
    wanted = peft.get_peft_model_state_dict(model)
    source = tmp_path / "own" / "adapter_model.safetensors"
    for name in ("adapter_model.bin", "adapter_model.safetensors"):
        folder = tmp_path / Path(name).suffix[1:]
        folder.mkdir()
        shutil.copy(tmp_path / "own" / "adapter_config.json", folder)
        convert(source, folder / name)
        source = folder / name  # the second is written from the first
        loaded = peft.PeftModel.from_pretrained(transformers.LlamaForCausalLM(config), folder)
        assert_same(dict(peft.get_peft_model_state_dict(loaded)), dict(wanted))


def test_diffusers_loads_one_file_and_shards(tmp_path):
    diffusers = framework("diffusers")
    model = diffusers.UNet2DModel(
        sample_size=8, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    model.save_pretrained(tmp_path / "own")
    whole = tmp_path / "whole"
    whole.mkdir()
    convert(tmp_path / "own", whole / "diffusion_pytorch_model.safetensors")
    options = LayoutOptions(max_shard_size=20_000)
    convert(whole, Output(tmp_path / "shards", format="safetensors-index", options=options))
    index = tmp_path / "shards" / "diffusion_pytorch_model.safetensors.index.json"
    assert len(set(json.loads(index.read_text())["weight_map"].values())) > 1
    convert(tmp_path / "shards", Output(tmp_path / "again", options=options))
    rename(whole, tmp_path / "there.safetensors", [Replace("conv_in", "first")])
    back = tmp_path / "back"
    back.mkdir()
    rename(
        tmp_path / "there.safetensors",
        back / "diffusion_pytorch_model.safetensors",
        [Replace("first", "conv_in")],
    )
    for folder in ("whole", "shards", "again", "back"):
        shutil.copy(tmp_path / "own" / "config.json", tmp_path / folder)
        loaded = diffusers.UNet2DModel.from_pretrained(tmp_path / folder)
        assert_same(dict(loaded.state_dict()), dict(model.state_dict()))
        assert all(torch.isfinite(value).all() for value in loaded.state_dict().values())
