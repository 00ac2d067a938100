"""How plain tensors are joined is known from published names or asked for, never guessed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ckpt_surgery import DamagedFileError, ReadError, UsageError, consolidate, merge

WIDTH, HIDDEN, WORDS = 8, 12, 20
COLUMNS = ("attention.wq", "attention.wk", "attention.wv", "feed_forward.w1", "feed_forward.w3")


def llama() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = {"tok_embeddings.weight": torch.randn(WORDS, WIDTH)}
    for layer in ("layers.0.", "layers.1."):
        state |= {
            f"{layer}attention.{w}.weight": torch.randn(WIDTH, WIDTH)
            for w in ("wq", "wk", "wv", "wo")
        }
        state |= {
            f"{layer}feed_forward.{w}.weight": torch.randn(HIDDEN, WIDTH) for w in ("w1", "w3")
        }
        state[f"{layer}feed_forward.w2.weight"] = torch.randn(WIDTH, HIDDEN)
        state |= {
            f"{layer}{norm}.weight": torch.randn(WIDTH) for norm in ("attention_norm", "ffn_norm")
        }
    state |= {"norm.weight": torch.randn(WIDTH), "output.weight": torch.randn(WORDS, WIDTH)}
    return {name: value.bfloat16() for name, value in state.items()} | {
        "rope.freqs": torch.arange(4.0)
    }


def axis_of(name: str, embedding: int) -> int | None:
    if name == "tok_embeddings.weight":
        return embedding
    if "norm" in name or "rope" in name:
        return None
    return 0 if name == "output.weight" or any(part in name for part in COLUMNS) else 1


def split(state: dict[str, torch.Tensor], folder: Path, embedding: int, name: str) -> Path:
    folder.mkdir()
    for rank in range(2):
        own = {}
        for key, value in state.items():
            axis = axis_of(key, embedding)
            own[key] = value if axis is None else value.chunk(2, axis)[rank].clone()
        torch.save(own, folder / name.format(rank))
    return folder


@pytest.mark.parametrize("embedding", [0, 1])
def test_llama_is_joined_by_its_names(tmp_path, embedding):
    """LLaMA 3 splits the words of the embedding, 1 and 2 split its columns."""
    state = llama()
    folder = split(state, tmp_path / "llama", embedding, "consolidated.{:02}.pth")
    (folder / "params.json").write_text("{}")
    report = consolidate(folder, tmp_path / "whole.pth")
    loaded = torch.load(tmp_path / "whole.pth")
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    assert report.writer == "llama"
    assert {each.name: each.how for each in report.joined}["tok_embeddings.weight"] == embedding
    with pytest.raises(UsageError, match="other ranks' files lie beside it"):
        merge(sorted(folder.glob("*.pth")), tmp_path / "merged.pth")


def test_llama_of_one_rank_is_whole(tmp_path):
    (tmp_path / "one").mkdir()
    torch.save(llama(), tmp_path / "one" / "consolidated.00.pth")
    consolidate(tmp_path / "one", tmp_path / "whole.pth")
    assert torch.load(tmp_path / "whole.pth").keys() == llama().keys()
    merge([tmp_path / "one" / "consolidated.00.pth"] * 2, tmp_path / "m.pth", method="average")


def test_axes_are_asked_for(tmp_path):
    state = llama()
    folder = split(state, tmp_path / "tp", 1, "mp_rank_{:02}_model_states.pt")
    with pytest.raises(UsageError, match="do not say how these tensors are split") as caught:
        consolidate(folder, tmp_path / "whole.pth")
    assert "--axis" in str(caught.value.hint)
    axes = ["**norm.weight=copies", "rope.freqs=copies", "tok_embeddings.weight=-1"]
    axes += ["**.wo.weight=1", "**.w2.weight=1", "**.weight=0"]
    consolidate(folder, tmp_path / "whole.pth", axes=axes)
    loaded = torch.load(tmp_path / "whole.pth")
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        (["**=1"], "has 1 axes"),
        (["nose=0", "**=0"], "matches nothing"),
        (["nose"], "GLOB=AXIS"),
        (["=1"], "GLOB=AXIS"),
        (["**=one"], "no axis"),
        (["**=copies"], "differs between"),
    ],
)
def test_axis_that_does_not_fit_is_refused(axes, said, tmp_path):
    folder = split(llama(), tmp_path / "tp", 1, "rank{}.pth")
    with pytest.raises(UsageError, match=said):
        consolidate(folder, tmp_path / "whole.pth", axes=axes)


def test_parts_of_other_shapes_do_not_continue_each_other(tmp_path):
    for rank, shape in enumerate(((2, 3), (2, 4))):
        torch.save({"w": torch.ones(shape)}, tmp_path / f"rank{rank}.pt")
    with pytest.raises(DamagedFileError, match="does not continue"):
        consolidate(tmp_path, tmp_path / "o.pth", axes=["w=0"])
    consolidate(tmp_path, tmp_path / "o.pth", axes=["w=1"])
    assert torch.load(tmp_path / "o.pth")["w"].shape == (2, 7)


def test_files_of_ranks_are_found_by_their_numbers(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for rank in range(12):
        torch.save(
            {"w": torch.full((1,), float(rank))}, folder / f"model_world_size_12_rank_{rank}.pt"
        )
    torch.save({"w": torch.ones(1)}, folder / "full.pt")
    consolidate(folder, tmp_path / "o.pth", axes=["w=0"])
    assert torch.load(tmp_path / "o.pth")["w"].tolist() == list(range(12))
    torch.save({"w": torch.ones(1)}, folder / "optim_world_size_12_rank_0.pt")
    with pytest.raises(UsageError, match="several groups") as caught:
        consolidate(folder, tmp_path / "o.pth", axes=["w=0"])
    assert "model_world_size_12_rank_*.pt" in str(caught.value.hint)
    (folder / "optim_world_size_12_rank_0.pt").unlink()
    (folder / "model_world_size_12_rank_11.pt").unlink()
    with pytest.raises(ReadError, match="missing: 11"):
        consolidate(folder, tmp_path / "o.pth", axes=["w=0"])


def test_directories_without_files_of_ranks_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no files of ranks"):
        consolidate(tmp_path / "empty", tmp_path / "o.pth")
    with pytest.raises(UsageError, match="among several inputs"):
        consolidate([tmp_path / "empty", tmp_path / "empty"], tmp_path / "o.pth")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UsageError, match="one checkpoint in shards"):
        consolidate(tmp_path / "hf", tmp_path / "o.pth")
    torch.save({"epoch": 1}, tmp_path / "rank0.pt")
    with pytest.raises(UsageError, match="no tensor"):
        consolidate([tmp_path / "rank0.pt"], tmp_path / "o.pth")


def test_sparse_parts_are_refused(tmp_path):
    for rank in range(2):
        torch.save({"w": torch.ones(2).to_sparse()}, tmp_path / f"rank{rank}.pt")
    with pytest.raises(Exception, match="sparse_coo tensor cannot be put together"):
        consolidate(tmp_path, tmp_path / "o.pth", axes=["w=0"])


def test_safetensors_of_ranks_are_joined(tmp_path):
    from safetensors.torch import load_file, save_file

    whole = torch.arange(12.0).view(3, 4)
    for rank in range(2):
        part = whole.chunk(2, 1)[rank].contiguous()
        save_file({"w": part}, tmp_path / f"rank{rank}.safetensors")
    consolidate(tmp_path, tmp_path / "o.safetensors", axes=["w=1"])
    assert torch.equal(load_file(tmp_path / "o.safetensors")["w"], whole)
