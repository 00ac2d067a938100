"""Sharded checkpoints are written as huggingface_hub splits them and as transformers loads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from frameworks import framework
from safetensors.torch import load_file, save_file
from torch_checks import assert_same

from ckpt_surgery import Output, UsageError, convert, inspect
from ckpt_surgery.cli.main import cli
from ckpt_surgery.formats.base import LayoutOptions
from ckpt_surgery.formats.sharded_write import parse_shard_size

KINDS = {
    "safetensors-index": ("model", ".safetensors"),
    "torch-index": ("pytorch_model", ".bin"),
}


def invoke(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def saved(path: Path, state: Any) -> Path:
    torch.save(state, path)
    return path


def sharded(source: Path, out: Path, kind: str, most: int | None = None, **more: Any) -> Path:
    options = LayoutOptions(max_shard_size=most, **more)
    convert(source, Output(out, format=kind, options=options))
    return out


def index_of(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*.index.json")
    document: dict[str, Any] = json.loads(path.read_text())
    assert path.read_text() == json.dumps(document, indent=2, sort_keys=True) + "\n"
    return document


def floats(*sizes: int) -> dict[str, torch.Tensor]:
    return {f"w{n}": torch.full((size,), float(n)) for n, size in enumerate(sizes)}


TIED = torch.arange(6.0)
STATES = {
    "even": floats(10, 10, 10, 10),
    "one too large": floats(3, 40, 3, 3, 60, 10),
    "all too large": floats(30, 30),
    "exactly full": floats(20, 5, 15, 20),
    "tied apart": {"a": TIED, **floats(18, 3), "b": TIED, "c": TIED},
    "tied, too large": {"x": torch.ones(2), "a": (big := torch.ones(50)), "y": TIED, "b": big},
    "empty tensors": {"e": torch.ones(0), **floats(19, 19), "f": torch.ones(0, 3)},
    "scalars": {"s": torch.tensor(3), **floats(19, 1), "t": torch.tensor(2.0)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", STATES.values(), ids=STATES.keys())
def test_tensors_are_split_as_huggingface_hub_does(state, kind, tmp_path):
    hub = framework("huggingface_hub")
    stem, suffix = KINDS[kind]
    out = sharded(saved(tmp_path / "a.pth", state), tmp_path / "out", kind, 80)
    wanted = hub.split_torch_state_dict_into_shards(
        state, filename_pattern=f"{stem}{{suffix}}{suffix}", max_shard_size=80
    )
    files = set(wanted.filename_to_tensors)
    if not wanted.is_sharded:
        assert {path.name for path in out.iterdir()} == files
        return
    assert {p.name for p in out.iterdir()} == files | {f"{stem}{suffix}.index.json"}
    found = index_of(out)
    assert wanted.metadata.items() <= found["metadata"].items()  # and what is tied
    assert found["weight_map"].items() <= wanted.tensor_to_filename.items()
    if suffix == ".bin":
        assert found["weight_map"] == wanted.tensor_to_filename
        for file, names in wanted.filename_to_tensors.items():
            loaded = torch.load(out / file, weights_only=True)
            assert_same(dict(sorted(loaded.items())), {n: state[n] for n in sorted(names)})
    else:
        assert {n: f for f in files for n in load_file(out / f)} == found["weight_map"]
    assert inspect(out).notes == ()
    convert(out, tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert_same(dict(sorted(back.items())), dict(sorted(state.items())))


def test_one_shard_needs_no_index(tmp_path):
    source = saved(tmp_path / "a.pth", floats(3, 3))
    out = sharded(source, tmp_path / "out", "safetensors-index")
    assert [path.name for path in out.iterdir()] == ["model.safetensors"]
    assert_same(load_file(out / "model.safetensors"), floats(3, 3))


def test_nested_state_dict_is_the_whole_of_its_shards(tmp_path):
    source = saved(tmp_path / "a.pth", {"state_dict": floats(3)})
    out = sharded(source, tmp_path / "out", "torch-index")
    assert_same(torch.load(out / "pytorch_model.bin", weights_only=True), floats(3))


@pytest.mark.parametrize("most", [200, 10**6])
def test_order_ties_and_metadata_come_back_from_shards_of_torch(most, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU())
    state = model.state_dict()
    state["2.tied"] = state["1.running_var"]
    out = sharded(saved(tmp_path / "a.pth", state), tmp_path / "out", "torch-index", most)
    convert(out, tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert_same(back, state)
    assert list(back._metadata.items()) == list(state._metadata.items())


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_keeps_the_shards_and_copies_those_without_any(kind, tmp_path):
    source = saved(tmp_path / "a.pth", torch.nn.ModuleList([torch.nn.Linear(4, 4),
        torch.nn.BatchNorm1d(8), torch.nn.Linear(4, 5)]).state_dict())  # fmt: skip
    old = sharded(source, tmp_path / "old", kind, 100)
    result = invoke("strip", old, "2.weight", "-o", tmp_path / "new")
    assert result.exit_code == 0, result.stderr
    before, after = index_of(old)["weight_map"], index_of(tmp_path / "new")["weight_map"]
    home = before.pop("2.weight")
    assert after == before
    for path in old.glob(f"*{KINDS[kind][1]}"):
        same = path.read_bytes() == (tmp_path / "new" / path.name).read_bytes()
        assert same is (path.name != home)
    convert(tmp_path / "new", tmp_path / "back.pth")
    wanted = torch.load(source, weights_only=True)
    del wanted["2.weight"]
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert_same(dict(sorted(back.items())), dict(sorted(wanted.items())))


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_that_loses_everything_goes(kind, tmp_path):
    old = sharded(saved(tmp_path / "a.pth", floats(10, 10, 10)), tmp_path / "old", kind, 40)
    assert invoke("strip", old, "w1", "-o", tmp_path / "new").exit_code == 0
    assert sorted(index_of(tmp_path / "new")["weight_map"]) == ["w0", "w2"]
    assert len(list((tmp_path / "new").iterdir())) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_renamed_tensors_stay_in_their_shards(kind, tmp_path):
    old = sharded(saved(tmp_path / "a.pth", floats(10, 10, 10)), tmp_path / "old", kind, 40)
    result = invoke("rename", old, "--sub", "w2", "a2", "-o", tmp_path / "new")
    assert result.exit_code == 0, result.stderr
    stem, suffix = KINDS[kind]
    assert index_of(tmp_path / "new")["weight_map"] == {
        "w0": f"{stem}-00001-of-00003{suffix}",
        "w1": f"{stem}-00002-of-00003{suffix}",
        "a2": f"{stem}-00003-of-00003{suffix}",
    }


def test_nothing_edited_is_copied_with_its_index(tmp_path):
    old = sharded(saved(tmp_path / "a.pth", floats(10, 10)), tmp_path / "old", "torch-index", 40)
    path = old / "pytorch_model.bin.index.json"
    document = index_of(old)
    document["metadata"]["total_parameters"] = 20
    path.write_text(json.dumps(document))
    convert(old, tmp_path / "same")
    for each in old.iterdir():
        assert (tmp_path / "same" / each.name).read_bytes() == each.read_bytes()
    invoke("strip", old, "w0", "-o", tmp_path / "less")
    assert index_of(tmp_path / "less")["metadata"] == {"total_size": 40}


def test_shards_change_their_kind_and_stay_apart(tmp_path):
    old = sharded(saved(tmp_path / "a.pth", floats(10, 10)), tmp_path / "old", "torch-index", 40)
    new = sharded(old, tmp_path / "new", "safetensors-index")
    assert set(index_of(new)["weight_map"].values()) == {
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    }  # fmt: skip
    one = sharded(old, tmp_path / "one", "safetensors-index", 10**9)
    assert_same(load_file(one / "model.safetensors"), floats(10, 10))


def test_names_of_other_models_files_are_kept_when_split_anew(tmp_path):
    tensors = floats(10, 10)
    save_file(tensors, tmp_path / "x.safetensors")
    (tmp_path / "diffusion.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(tensors, "x.safetensors")})
    )
    new = sharded(tmp_path, tmp_path.with_name("new"), "safetensors-index", 40)
    assert (new / "diffusion-00002-of-00002.safetensors").exists()


def test_metadata_stands_in_every_shard(tmp_path):
    out = sharded(
        saved(tmp_path / "a.pth", floats(10, 10)), tmp_path / "out", "safetensors-index", 40,
        metadata={"format": "pt"},
    )  # fmt: skip
    assert inspect(out).notes == ()
    assert invoke("strip", out, "w0", "--metadata", "k=v", "-o", tmp_path / "new").exit_code == 0
    (file,) = (tmp_path / "new").glob("*.safetensors")
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt", "k": "v"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_beside_the_weights_is_refused(kind, tmp_path):
    source = saved(tmp_path / "a.pth", {"state_dict": floats(3), "epoch": 3})
    result = invoke("convert", source, "--format", kind, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "'epoch'" in result.stderr
    assert not (tmp_path / "out").exists()
    args = ("--format", kind, "--state-dict-only", "-o", tmp_path / "out")
    assert invoke("convert", source, *args).exit_code == 0


@pytest.mark.parametrize("state", [{"a": {"x": TIED}, "b": {"x": TIED}}, {"epoch": 3}])
def test_shards_of_torch_are_of_one_state_dict(state, tmp_path):
    source = saved(tmp_path / "a.pth", state)
    result = invoke("convert", source, "--format", "torch-index", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_outputs_that_shards_cannot_have_are_refused(tmp_path):
    source = saved(tmp_path / "a.pth", floats(10, 10))
    old = sharded(source, tmp_path / "old", "torch-index", 40)
    with pytest.raises(UsageError, match="the output is a directory"):
        convert(source, Output(stream=1, format="torch-index"))
    for args, said in (
        (("strip", old, "w0", "-i"), "not replaced in place"),
        (
            ("convert", source, "-o", tmp_path / "b.pth", "--max-shard-size", "1KB"),
            "not split by size",
        ),
        (("convert", source, "-o", old, "--format", "torch-index"), "already exists"),
    ):
        result = invoke(*args)
        assert (result.exit_code, said in result.stderr) == (2, True), result.stderr
    again = ("convert", source, "-o", old, "--format", "torch-index", "--force")
    assert invoke(*again).exit_code == 0
    assert [path.name for path in old.iterdir()] == ["pytorch_model.bin"]
    (old / "config.json").write_text("{}")
    result = invoke(*again)
    assert result.exit_code == 2
    assert "'config.json'" in result.stderr


def test_sizes_are_read_as_huggingface_hub_reads_them():
    base = framework("huggingface_hub.serialization._base")
    for text in ("5GB", "200MB", "10kb", "1.5 TB", " 3Kb "):
        assert parse_shard_size(text) == base.parse_size_to_int(text)
    assert parse_shard_size("4096") == 4096
    for text in ("", "GB", "-5GB", "0", "nanGB", "infGB", "5GiB", "1e400MB", "1.5"):
        with pytest.raises(UsageError, match="is no size"):
            parse_shard_size(text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tie", [False, True])
def test_transformers_and_accelerate_load_what_is_written(kind, tie, tmp_path):
    transformers, accelerate = framework("transformers"), framework("accelerate")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=100, tie_word_embeddings=tie,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    source = saved(tmp_path / "a.pth", model.state_dict())
    texts = {"metadata": {"format": "pt"}} if kind == "safetensors-index" else {}
    out = sharded(source, tmp_path / "out", kind, 20_000, **texts)
    config.save_pretrained(out)
    loaded = transformers.LlamaForCausalLM.from_pretrained(out)
    assert_same(dict(loaded.state_dict()), dict(model.state_dict()))
    other = transformers.LlamaForCausalLM(config)
    index = next(out.glob("*.index.json"))
    accelerate.load_checkpoint_in_model(other, str(index))
    assert_same(dict(other.state_dict()), dict(model.state_dict()))
