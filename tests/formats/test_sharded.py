"""Sharded checkpoints are read as one; an index is hostile input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from frameworks import framework
from safetensors.torch import save_file
from torch_checks import assert_same

from ckpt_surgery import DamagedFileError, ReadError, convert, inspect, read
from ckpt_surgery.cli.main import cli

A = {"embed.weight": torch.arange(12.0).view(3, 4), "embed.bias": torch.ones(3)}
B = {"head.weight": torch.full((2, 2), 0.5, dtype=torch.bfloat16), "steps": torch.tensor(7)}


def invoke(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def assert_same_weights(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Safetensors files have an order of their own."""
    assert_same(dict(sorted(found.items())), dict(sorted(wanted.items())))


def index(folder: Path, files: dict[str, dict[str, Any]], **changes: Any) -> Path:
    suffix = ".safetensors" if next(iter(files)).endswith(".safetensors") else ".bin"
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    size = sum(t.nbytes for tensors in files.values() for t in tensors.values())
    document = {"metadata": {"total_size": size}, "weight_map": weight_map} | changes
    path = folder / f"{stem}{suffix}.index.json"
    path.write_text(json.dumps(document, sort_keys=True))
    return path


@pytest.fixture
def safetensors(tmp_path: Path) -> Path:
    files = {"model-00001-of-00002.safetensors": A, "model-00002-of-00002.safetensors": B}
    for name, tensors in files.items():
        save_file(tensors, tmp_path / name, metadata={"format": "pt"})
    return index(tmp_path, files)


@pytest.fixture
def torch_shards(tmp_path: Path) -> Path:
    files = {"pytorch_model-00001-of-00002.bin": A, "pytorch_model-00002-of-00002.bin": B}
    for name, tensors in files.items():
        torch.save(tensors, tmp_path / name)
    return index(tmp_path, files)


@pytest.mark.parametrize("kind", ["safetensors", "torch_shards"])
@pytest.mark.parametrize("named", ["index", "directory"])
def test_shards_are_one_checkpoint(kind, named, request, tmp_path):
    path = request.getfixturevalue(kind)
    given = path if named == "index" else path.parent
    report = inspect(given)
    assert report.format == ("safetensors-index" if kind == "safetensors" else "torch-index")
    assert {entry.name for entry in report.state_dicts[0].entries} == {*A, *B}
    assert report.notes == ()
    assert report.to_dict()["shards"] == [
        str(path.parent / name)
        for name in sorted(set(json.loads(path.read_text())["weight_map"].values()))
    ]
    convert(given, tmp_path / "one.pth")
    assert_same_weights(torch.load(tmp_path / "one.pth", weights_only=True), A | B)


def test_order_is_that_of_the_shards(torch_shards):
    with read(torch_shards) as checkpoint:
        assert checkpoint.state_dicts[0].names == [*A, *B]


def test_ties_and_metadata_of_shards_survive(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    state = model.state_dict()
    first = type(state)((n, t) for n, t in state.items() if n.startswith("0."))
    first["tied"] = first["0.weight"]
    first._metadata = state._metadata
    second = {n: t for n, t in state.items() if n.startswith("1.")}
    files = {"pytorch_model-00001-of-00002.bin": first, "pytorch_model-00002-of-00002.bin": second}
    for name, tensors in files.items():
        torch.save(tensors, tmp_path / name)
    convert(index(tmp_path, files), tmp_path / "one.pth")
    loaded = torch.load(tmp_path / "one.pth", weights_only=True)
    assert loaded._metadata == state._metadata
    assert loaded["tied"].data_ptr() == loaded["0.weight"].data_ptr()
    del loaded["tied"]
    model.load_state_dict(loaded)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight_map": {"w": "../x.safetensors"}}, "leads out of the directory"),
        ({"weight_map": {"w": "/etc/passwd"}}, "leads out of the directory"),
        ({"weight_map": {"w": "C:\\x.safetensors"}}, "leads out of the directory"),
        ({"weight_map": {"w": "link.safetensors"}}, "link that leads out"),
        ({"weight_map": {"w": "none.safetensors"}}, "the file is missing"),
        ({"weight_map": {"w": 3}}, "does not map names"),
        ({"weight_map": []}, "does not map names"),
        ({"weight_map": {"w": "model-00001-of-00002.safetensors"}}, "it is in none"),
        (
            {"weight_map": dict.fromkeys(B, "model-00002-of-00002.safetensors") | {
                "embed.weight": "model-00002-of-00002.safetensors",
                "embed.bias": "model-00001-of-00002.safetensors"}},
            "but it is in 'model-00001-of-00002.safetensors'",
        ),
        (
            {"weight_map": {"embed.weight": "model-00001-of-00002.safetensors",
                            "embed.bias": "copy.safetensors"}},
            "in two shards",
        ),
    ],
)  # fmt: skip
def test_hostile_index_is_refused(change, said, safetensors):
    folder = safetensors.parent
    outside = folder.parent / f"{folder.name}-outside.safetensors"
    save_file(A, outside)
    (folder / "link.safetensors").symlink_to(outside)
    save_file(A, folder / "copy.safetensors")
    safetensors.write_text(json.dumps(json.loads(safetensors.read_text()) | change))
    with pytest.raises(DamagedFileError, match=said):
        inspect(safetensors)
    result = invoke("inspect", safetensors)
    assert result.exit_code == 2


@pytest.mark.parametrize(
    "text",
    ['{"weight_map": {"a": "x", "a": "y"}}', '{"weight_map": NaN}',
     '{"weight_map": {"\\ud800": "x"}}', '{"weight_map"', '{"weight_map": ' + "[" * 100_000],
)  # fmt: skip
def test_index_that_is_no_json_is_damaged(text, tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(DamagedFileError, match="the index is"):
        inspect(path)


def test_stale_size_and_unnamed_tensors_are_noted(safetensors):
    document = json.loads(safetensors.read_text())
    document["metadata"]["total_size"] = 5
    del document["weight_map"]["embed.bias"]
    safetensors.write_text(json.dumps(document))
    notes = inspect(safetensors).notes
    assert "in the shards, but not in the index: 'embed.bias'" in notes
    assert any(note.startswith("the index says 5 bytes") for note in notes)


def test_shard_that_is_no_state_dict_is_refused(torch_shards):
    torch.save({"epoch": 3, "model": A}, torch_shards.parent / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(DamagedFileError, match="no plain state dict"):
        inspect(torch_shards)


def test_shards_that_differ_in_metadata_are_refused(safetensors):
    save_file(A, safetensors.parent / "model-00001-of-00002.safetensors", metadata={"format": "tf"})
    with pytest.raises(DamagedFileError, match="differ in the metadata 'format'"):
        inspect(safetensors)


def test_index_from_a_pipe_has_no_shards(safetensors):
    result = CliRunner().invoke(cli, ["inspect", "-"], input=safetensors.read_bytes())
    assert result.exit_code == 2
    assert "does not say where its shards are" in result.stderr


def test_directory_of_a_model_is_its_one_file(tmp_path):
    save_file(A, tmp_path / "model.safetensors")
    torch.save({"lr": 1}, tmp_path / "training_args.bin")
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    report = inspect(tmp_path)
    assert (report.format, report.declared) == ("safetensors", "LlamaForCausalLM")
    assert "architecture: LlamaForCausalLM\n" in invoke("inspect", tmp_path).stdout
    assert report.to_dict()["declared_architecture"] == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("text", "note"), [("{", "is not valid"), (" " * (1 << 20) + "{}", "it has")]
)
def test_config_that_cannot_be_read_is_noted(text, note, tmp_path):
    save_file(A, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    report = inspect(tmp_path)
    assert report.to_dict()["declared_architecture"] is None
    assert note in report.notes[-1]


def test_directory_of_several_checkpoints_is_refused(tmp_path):
    for name in ("a.pth", "b.pth"):
        torch.save(A, tmp_path / name)
    with pytest.raises(ReadError, match=r"2 checkpoints are in it: 'a\.pth', 'b\.pth'"):
        inspect(tmp_path)


def test_directory_without_weights_is_no_checkpoint(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ReadError, match="is a directory"):
        inspect(tmp_path)


def test_in_place_edit_of_an_index_is_refused(safetensors):
    before = safetensors.read_bytes()
    result = invoke("strip", safetensors, "steps", "-i")
    assert result.exit_code == 2
    assert safetensors.read_bytes() == before


def test_what_transformers_writes_is_read(tmp_path):
    transformers = framework("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=100, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    report = convert(tmp_path / "model", tmp_path / "one.pth")
    assert report.nbytes_after > 100_000
    loaded = torch.load(tmp_path / "one.pth", weights_only=True)
    assert_same_weights(loaded, model.state_dict())
    model.load_state_dict(loaded)
    assert inspect(tmp_path / "model").declared == "LlamaForCausalLM"


@pytest.mark.parametrize("blobs", ["blobs", "elsewhere"])
def test_snapshot_of_a_cache_leads_to_the_files_of_its_repository_only(blobs, safetensors):
    repository = safetensors.parent / "models--a--b"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / blobs).mkdir()
    for number, path in enumerate(sorted(safetensors.parent.glob("*.*"))):
        path.rename(repository / blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../{blobs}/{number}")
    index = snapshot / safetensors.name
    if blobs == "blobs":
        assert inspect(snapshot).format == inspect(index).format == "safetensors-index"
        return
    with pytest.raises(ReadError, match="is a directory"):
        inspect(snapshot)
    with pytest.raises(DamagedFileError, match="leads out of the directory"):
        inspect(index)


def test_snapshot_whose_blobs_are_a_link_is_refused(safetensors):
    snapshot = safetensors.parent / "r" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (safetensors.parent / "r" / "blobs").symlink_to(safetensors.parent)
    for path in safetensors.parent.glob("*.*"):
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    with pytest.raises(DamagedFileError, match="leads out of the directory"):
        inspect(snapshot / safetensors.name)


def test_index_that_is_named_bare_is_blamed_by_its_name(safetensors, monkeypatch):
    monkeypatch.chdir(safetensors.parent)
    index = json.loads(safetensors.read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = "gone.safetensors"
    safetensors.write_text(json.dumps(index))
    with pytest.raises(DamagedFileError, match="the file is missing") as told:
        inspect(safetensors.name)
    assert str(told.value.path) == safetensors.name
