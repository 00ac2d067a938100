"""Megatron-LM's ranks of tensor parallelism make the model whose weights they were cut from."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_checks import assert_same

from ckpt_surgery import DamagedFileError, Output, ReadError, UsageError, consolidate

WIDTH, HIDDEN, WORDS, RANKS = 8, 12, 16, 2
ARGS = Namespace(swiglu=True, num_layers=1, tensor_model_parallel_size=RANKS)


def core(gated: bool) -> dict[str, torch.Tensor]:
    """A layer of Megatron-Core's GPT, with its names."""
    torch.manual_seed(0)
    layer, rows = "decoder.layers.0.", 2 * HIDDEN if gated else HIDDEN
    return {
        "embedding.word_embeddings.weight": torch.randn(WORDS, WIDTH),
        "embedding.position_embeddings.weight": torch.randn(4, WIDTH),
        f"{layer}self_attention.linear_qkv.layer_norm_weight": torch.randn(WIDTH),
        f"{layer}self_attention.linear_qkv.weight": torch.randn(3 * WIDTH, WIDTH),
        f"{layer}self_attention.linear_qkv.bias": torch.randn(3 * WIDTH),
        f"{layer}self_attention.linear_proj.weight": torch.randn(WIDTH, WIDTH),
        f"{layer}self_attention.linear_proj.bias": torch.randn(WIDTH),
        f"{layer}pre_mlp_layernorm.weight": torch.randn(WIDTH),
        f"{layer}mlp.linear_fc1.layer_norm_bias": torch.randn(WIDTH),
        f"{layer}mlp.linear_fc1.weight": torch.randn(rows, WIDTH),
        f"{layer}mlp.linear_fc1.bias": torch.randn(rows),
        f"{layer}mlp.linear_fc2.weight": torch.randn(WIDTH, HIDDEN),
        f"{layer}mlp.linear_fc2.bias": torch.randn(WIDTH),
        "decoder.final_layernorm.weight": torch.randn(WIDTH),
        "output_layer.weight": torch.randn(WORDS, WIDTH),
    }


def legacy() -> dict[str, torch.Tensor]:
    """The names before Megatron-Core, where dictionaries lie in each other."""
    names = {
        "linear_qkv": "query_key_value", "linear_proj": "dense", "linear_fc1": "dense_h_to_4h",
        "linear_fc2": "dense_4h_to_h", "decoder.": "language_model.encoder.",
        "embedding.word": "language_model.embedding.word",
        "output_layer": "language_model.output_layer",
    }  # fmt: skip
    found = {}
    for name, value in core(False).items():
        for new, old in names.items():
            name = name.replace(new, old)  # noqa: PLW2901
        if "layer_norm_" not in name and "position" not in name:
            found[name] = value
    return found


def share(name: str, value: torch.Tensor, rank: int, *, gated: bool) -> torch.Tensor:
    """Return what ColumnParallelLinear and RowParallelLinear keep on a rank."""
    if "norm" in name or "position" in name:
        return value
    if any(part in name for part in ("linear_proj", "linear_fc2", ".dense.", "dense_4h_to_h")):
        return value.chunk(RANKS, 1)[rank] if name.endswith("weight") else value
    if gated and "linear_fc1" in name:
        gate, up = value.chunk(2)
        return torch.cat([gate.chunk(RANKS)[rank], up.chunk(RANKS)[rank]])
    return value.chunk(RANKS)[rank]


def nested(flat: dict[str, torch.Tensor]) -> dict[str, Any]:
    """As ``state_dict_for_save_checkpoint`` nests it: modules as far as the layers' names."""
    found: dict[str, Any] = {}
    for name, value in flat.items():
        parts = name.split(".")
        depth = 2 if "encoder" in name else len(parts) - 1
        place = found
        for part in parts[:depth]:
            place = place.setdefault(part, {})
        place[".".join(parts[depth:])] = value
    return found


def saved(
    folder: Path, state: dict[str, torch.Tensor], *, gated: bool = False, nest: bool = False,
    **more: Any,
) -> Path:  # fmt: skip
    step = folder / "iter_0000007"
    for rank in range(RANKS):
        place = step / f"mp_rank_{rank:02}"
        place.mkdir(parents=True)
        own = {name: share(name, v, rank, gated=gated).clone() for name, v in state.items()}
        everything = {
            "args": ARGS, "checkpoint_version": 3.0, "iteration": 7,
            "model": nested(own) if nest else own,
            "optimizer": {"fp32_from_fp16_params": [[torch.ones(2)]]}, **more,
        }  # fmt: skip
        torch.save(everything, place / "model_optim_rng.pt")
    (folder / "latest_checkpointed_iteration.txt").write_text("7")
    return folder


@pytest.mark.parametrize("below", ["", "iter_0000007"])
def test_gated_layers_come_together_half_by_half(tmp_path, below):
    state = core(True)
    folder = saved(tmp_path / "m", state, gated=True)
    report = consolidate(folder / below, tmp_path / "whole.safetensors")
    consolidate(folder, tmp_path / "whole.pth")
    assert_same(dict(torch.load(tmp_path / "whole.pth", weights_only=True)), state)
    hows = {each.name.rpartition("layers.0.")[2]: each.how for each in report.joined}
    assert hows["mlp.linear_fc1.weight"] == "placement"
    assert hows["self_attention.linear_proj.weight"] == 1
    assert hows["pre_mlp_layernorm.weight"] == "copies"
    assert report.writer == "megatron"
    assert report.dropped == ("optimizer", "args", "checkpoint_version", "iteration")
    assert "pads" in report.warnings[0]


def test_plain_layers_follow_their_names_old_and_new(tmp_path):
    for number, (state, nest) in enumerate(((core(False), False), (legacy(), True))):
        plain = Namespace(swiglu=False)
        folder = saved(tmp_path / str(number), state, nest=nest, args=plain)
        consolidate(folder, Output(tmp_path / "whole.pth", force=True))
        assert_same(dict(torch.load(tmp_path / "whole.pth", weights_only=True)), state)


def test_what_the_files_do_not_say_is_asked_for(tmp_path):
    """Whether the first layer is gated stands in ``args``, and is not guessed without."""
    state = core(False) | {"head.weight": torch.randn(4, WIDTH)}
    folder = saved(tmp_path / "m", state, args=None)
    with pytest.raises(UsageError, match=r"linear_fc1\.weight'.*'head\.weight'") as asked:
        consolidate(folder, tmp_path / "whole.pth")
    assert "--axis" in str(asked.value.hint)
    consolidate(
        folder,
        tmp_path / "whole.pth",
        axes=["**.linear_fc1.weight=0", "**.linear_fc1.bias=0", "head.weight=0"],
    )
    assert_same(dict(torch.load(tmp_path / "whole.pth", weights_only=True)), state)
    with pytest.raises(UsageError, match="matches nothing"):
        consolidate(folder, tmp_path / "o.pth", axes=["none=0"])


def test_one_rank_is_whole(tmp_path):
    folder = saved(tmp_path / "m", core(True), gated=True)
    alone = Namespace(swiglu=True, tensor_model_parallel_size=1)
    torch.save({"model": core(True), "args": alone}, folder / "one.pt")
    place = tmp_path / "one" / "iter_0000001" / "mp_rank_00"
    place.mkdir(parents=True)
    (folder / "one.pt").rename(place / "model_optim_rng.pt")
    consolidate(place.parent, tmp_path / "whole.pth")
    assert_same(dict(torch.load(tmp_path / "whole.pth", weights_only=True)), core(True))


def test_ranks_that_are_not_there_are_missed(tmp_path):
    """The last one as well, whose place no other shows to be empty."""
    folder = saved(tmp_path / "m", core(True), gated=True)
    (folder / "iter_0000007" / "mp_rank_01").rename(tmp_path / "elsewhere")
    with pytest.raises(ReadError, match="holds 1 of the 2 ranks that saved it") as refused:
        consolidate(folder, tmp_path / "whole.pth")
    assert "tensor_model_parallel_size" in str(refused.value.hint)
    assert not (tmp_path / "whole.pth").exists()


def test_what_is_split_otherwise_is_refused_with_the_tool_for_it(tmp_path):
    step = saved(tmp_path / "m", core(False)) / "iter_0000007"
    out = tmp_path / "whole.pth"
    for change, said in (
        ({"checkpoint_version": 0.0}, "checkpoint_version 0 "),
        ({"model": {}, "model0": core(False), "model1": {}}, "virtual pipeline"),
    ):
        folder = saved(tmp_path / said[:4], core(False), **change)
        with pytest.raises(UsageError, match=said) as refused:
            consolidate(folder, out)
        assert "convert.py" in str(refused.value.hint)
    (step / "mp_rank_01").rename(step / "mp_rank_00_001")
    with pytest.raises(UsageError, match="a pipeline's stages or among experts") as refused:
        consolidate(step, out)
    assert "convert.py" in str(refused.value.hint)
    (step / "mp_rank_00_001").rename(step / "mp_rank_02")
    with pytest.raises(ReadError, match="these ranks are missing: 1"):
        consolidate(step, out)
    (step.parent / "latest_checkpointed_iteration.txt").write_text("../7")
    with pytest.raises(ReadError, match="does not name a directory"):
        consolidate(step.parent, out)
    assert not out.exists()


def test_files_of_no_model_are_refused(tmp_path):
    with pytest.raises(DamagedFileError, match="no weights under 'model'"):
        consolidate(saved(tmp_path / "a", core(False), model={}), tmp_path / "o.pth")
    odd = {"decoder.layers.0.mlp.linear_fc1.weight": torch.ones(3, 2)}
    with pytest.raises(UsageError, match="no tensor of two halves"):
        consolidate(saved(tmp_path / "b", core(False), model=odd), tmp_path / "o.pth")
