"""Safetensors that ranks saved each for themselves are read as torch's own reader reads them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from click.testing import CliRunner
from save_dcp import WHOLE
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch_checks import quiet

from ckpt_surgery import DamagedFileError, Output, consolidate, convert, inspect, salvage, verify
from ckpt_surgery.cli.main import cli

safetensors = pytest.importorskip("safetensors.torch")
safetensors_torch = pytest.importorskip("safetensors")

PARTS = [
    {"rows": ([0, 0], WHOLE["rows"][:4]), "columns": ([0, 0], WHOLE["columns"][:, :3])},
    {
        "rows": ([4, 0], WHOLE["rows"][4:]),
        "columns": ([0, 3], WHOLE["columns"][:, 3:]),
        "copied": ([0], WHOLE["copied"]),
    },
]


def save(folder: Path, rank: int, parts: dict, info: object = None) -> None:
    """Write a rank's file as torch's writer does: its parts, and where each of them begins."""
    places = {name: {"saved_offsets": at} for name, (at, _) in parts.items()}
    metadata = {"DCP_SHARDING_INFO": json.dumps(places if info is None else info)}
    metadata |= {"DCP_VERSION": "1.0", "format": "pt"}
    tensors = {name: part.contiguous() for name, (_, part) in parts.items()}
    name = f"shard-{rank:05}-model-00001-of-00001.safetensors"
    safetensors.save_file(tensors, folder / name, metadata)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    folder.mkdir()
    for rank, parts in enumerate(PARTS, 1):
        save(folder, rank, parts)
    return folder


def test_parts_are_put_together_as_torchs_reader_does(saved, tmp_path):
    report = convert(saved, tmp_path / "whole.safetensors")
    found = safetensors.load_file(tmp_path / "whole.safetensors")
    theirs = {name: torch.zeros_like(WHOLE[name]) for name in found}
    with quiet():
        dcp.load(theirs, storage_reader=HuggingFaceStorageReader(str(saved)), no_dist=True)
    assert found.keys() == {"rows", "columns", "copied"}
    for name, value in found.items():
        assert torch.equal(value, theirs[name])
        assert torch.equal(value, WHOLE[name])
    assert {"edit": "convert", "from": "dcp-safetensors", "to": "safetensors"} in report.plan
    consolidate(saved, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "whole.safetensors"
    ).read_bytes()


def test_what_torchs_writer_writes_is_read(tmp_path):
    writer = HuggingFaceStorageWriter(str(tmp_path / "one"), save_distributed=True)
    with quiet():
        dcp.save(dict(WHOLE), storage_writer=writer, no_dist=True)
    report = inspect(tmp_path / "one")
    assert report.format == "dcp-safetensors"
    shapes = {entry.name: entry.tensor.shape for entry in report.state_dicts[0].entries}
    assert shapes == {name: tuple(value.shape) for name, value in WHOLE.items()}


@pytest.mark.parametrize(
    ("parts", "info", "said"),
    [
        (PARTS[1], {"rows": {}}, "where its part"),
        (PARTS[1], {"rows": {"saved_offsets": [-1, 0]}}, "where its part"),
        (PARTS[1], {"rows": {"saved_offsets": [0]}}, "where its part"),
        ({"rows": ([3, 0], WHOLE["rows"][4:])}, None, "overlap"),
        ({"rows": ([5, 0], WHOLE["rows"][4:])}, None, "leave a gap"),
        ({"rows": ([4, 0], WHOLE["rows"][4:].double())}, None, "several types"),
    ],
)
def test_places_that_lie_are_refused(parts, info, said, saved):
    save(saved, 2, parts, info)
    with pytest.raises(DamagedFileError, match=said):
        inspect(saved)


def test_ranks_and_files_of_which_nothing_is_there_are_noted(saved):
    assert inspect(saved).notes == ()
    second = saved / "shard-00002-model-00001-of-00001.safetensors"
    second.rename(saved / "shard-00004-model-00003-of-00003.safetensors")
    assert [note.partition(":")[0] for note in inspect(saved).notes] == [
        "nothing is there of rank 2, 3",
        "nothing is there of model file 2",
    ]
    (verdict,) = verify([saved]).verdicts
    assert sum("nothing is there of" in each.message for each in verdict.findings) == 2


def test_file_without_places_is_refused(saved):
    name = "shard-00002-model-00001-of-00001.safetensors"
    safetensors.save_file({"rows": torch.ones(1)}, saved / name)
    with pytest.raises(DamagedFileError, match="DCP_SHARDING_INFO"):
        inspect(saved)


def test_of_a_rank_that_is_cut_the_tensors_whose_parts_are_whole_are_salvaged(saved, tmp_path):
    """The parts of a rank lie in the order of their names: columns, copied, rows."""
    file = saved / "shard-00002-model-00001-of-00001.safetensors"
    data, out = file.read_bytes(), tmp_path / "out.pth"
    order = sorted(PARTS[1], key=lambda name: data.index(_bytes(PARTS[1][name][1])))
    seen = set()
    for name in order:
        end = data.index(_bytes(PARTS[1][name][1])) + PARTS[1][name][1].nbytes
        for cut in (end - 1, end):
            file.write_bytes(data[:cut])
            kept = set(order[: order.index(name) + (cut == end)])
            if not kept:
                with pytest.raises(DamagedFileError, match="none of its tensors is whole"):
                    salvage(saved, Output(out, force=True))
                continue
            report = salvage(saved, Output(out, force=True))
            found = torch.load(out)
            assert found.keys() == kept
            assert {each.path for each in report.lost} == WHOLE.keys() - kept - {"both"}
            assert all(torch.equal(found[each], WHOLE[each]) for each in kept)
            if cut < len(data):
                (finding, _) = verify([saved]).verdicts[0].findings
                assert (finding.rule, finding.entry) == ("truncated", file.name)
            seen.add(len(kept))
    assert seen == {1, 2, 3}
    file.write_bytes(data[:50])
    with pytest.raises(DamagedFileError, match="its header, which names the tensors"):
        salvage(saved, Output(out, force=True))


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def test_a_report_of_a_directory_is_applied_to_all_of_it(saved, tmp_path):
    report, out = tmp_path / "report.json", tmp_path / "again.safetensors"
    arguments = ["convert", str(saved), "-o", str(tmp_path / "whole.safetensors"), "--json"]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    report.write_text(done.stdout)
    assert json.loads(done.stdout)["inputs"] == [str(saved)]
    CliRunner().invoke(cli, ["apply", str(report), "-o", str(out)], catch_exceptions=False)
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_one_ranks_file_alone_says_that_it_has_parts(saved, tmp_path):
    file = saved / "shard-00001-model-00001-of-00001.safetensors"
    (note,) = inspect(file).notes
    assert "one rank's file of a distributed checkpoint" in note
    assert note in convert(file, tmp_path / "part.pth").warnings
    assert inspect(saved).notes == ()


def test_every_ranks_file_is_verified_and_named_in_what_is_kept(saved, tmp_path):
    (verdict,) = verify([saved]).verdicts
    assert verdict.file == str(saved)
    assert verdict.checksums.absent == 5
    report = convert(saved, Output(tmp_path / "w.pth", provenance=True))
    assert report.inputs == (str(saved),)
    (step,) = inspect(tmp_path / "w.pth").provenance
    files = sorted(saved.iterdir())
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert step["inputs"] == [
        {"file": str(file), "sha256": digest} for file, digest in zip(files, digests, strict=True)
    ]


def test_files_that_one_rank_wrote_are_shards_with_an_index(tmp_path):
    """What torch says in each file of that file alone is no part of the model."""
    folder, order = tmp_path / "one", {name: at % 2 + 1 for at, name in enumerate(WHOLE)}
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=order)
    with quiet():
        dcp.save(dict(WHOLE), storage_writer=writer, no_dist=True)
    assert len(list(folder.glob("*.safetensors"))) == 2
    report = inspect(folder)
    assert (report.format, report.notes) == ("safetensors-index", ())
    convert(folder, tmp_path / "whole.safetensors")
    found = safetensors.load_file(tmp_path / "whole.safetensors")
    assert {name: torch.equal(found[name], WHOLE[name]) for name in WHOLE} == dict.fromkeys(
        WHOLE, True
    )
    with safetensors_torch.safe_open(tmp_path / "whole.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_part_that_an_index_takes_for_a_whole_is_refused(tmp_path):
    save(tmp_path, 1, PARTS[1])
    (file,) = tmp_path.glob("*.safetensors")
    file.rename(tmp_path / "model.safetensors")
    index = {"weight_map": dict.fromkeys(PARTS[1], "model.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DamagedFileError, match="a part of a tensor"):
        inspect(tmp_path / "model.safetensors.index.json")
