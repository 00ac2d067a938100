"""`verify`: what is found in a file, by its rule, and what is not."""

from __future__ import annotations

import argparse
import io
import json
import os
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed.checkpoint as dcp
from archives import GENERATIONS, generation, read_records, state_dict, write_records
from legacy_files import Call, dumps
from safetensors.torch import save_file
from torch.utils.serialization import config
from torch_checks import quiet, save

from ckpt_surgery import digest, verify
from ckpt_surgery.checkpoint.findings import Finding
from ckpt_surgery.fileio import MemorySource, read_zip
from ckpt_surgery.ops.verify_checks import Checks
from ckpt_surgery.reports.verification import Verdict


def verdict(path: Path, **checks: Any) -> Verdict:
    report = verify([path], Checks(**checks))
    assert not report.failures, report.failures
    (found,) = report.verdicts
    return found


def found(path: Path, **checks: Any) -> list[tuple[str, str, str | None]]:
    return [(f.severity, f.rule, f.entry) for f in verdict(path, **checks).findings]


def one(path: Path, rule: str, **checks: Any) -> Finding:
    (finding,) = [f for f in verdict(path, **checks).findings if f.rule == rule]
    return finding


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return save(state_dict(), tmp_path / "w.pth")


def patched(path: Path, at: int, data: bytes) -> Path:
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)
    return path


# --- whole files


@pytest.mark.parametrize("name", GENERATIONS)
def test_nothing_is_wrong_with_an_archive_of_any_generation(name: str, tmp_path: Path) -> None:
    path = generation(name, tmp_path / "w.pth")
    assert found(path) == []
    assert verify([path]).exit_code == 0


def test_what_was_looked_at_is_counted(weights: Path) -> None:
    said = verdict(weights)
    records = [data for _, data in read_records(weights) if data]
    assert said.checksums.checked == len(records)
    assert said.checksums.checked_nbytes == sum(map(len, records))
    assert said.checksums.absent == 0
    assert said.weights_only is not None
    assert said.weights_only.loads
    assert {risk.level for risk in said.globals} == {"harmless"}
    assert said.to_dict(strict=False)["ok"]


@pytest.mark.parametrize("kind", ["legacy", "safetensors"])
def test_formats_without_checksums_are_said_to_have_none(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    tensors = {"a": torch.ones(3), "b": torch.arange(2)}
    if kind == "legacy":
        torch.save(tensors, path, _use_new_zipfile_serialization=False)
    else:
        save_file(tensors, path)
    assert found(path) == [("note", "no-checksum", None)]
    assert found(path, require_checksums=True) == [("error", "no-checksum", None)]
    assert verdict(path).checksums.absent_nbytes == 28
    assert verdict(path).weights_only is None or verdict(path).weights_only.loads  # type: ignore[union-attr]


def test_an_archive_saved_without_checksums(tmp_path: Path) -> None:
    with mock.patch.object(config.save, "compute_crc32", False):
        path = save(state_dict(), tmp_path / "w.pth")
    assert found(path) == [("note", "no-checksum", None)]
    said = verdict(path).checksums
    assert (said.checked, said.absent > 10) == (0, True)


def test_a_torchscript_archive_is_whole_and_a_program(tmp_path: Path) -> None:
    with quiet():
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "s.pt"))
    assert found(tmp_path / "s.pt") == [("warning", "weights-only", None)]
    assert verdict(tmp_path / "s.pt").globals == ()


# --- damage


def test_a_flipped_byte_is_found_and_its_tensors_named(weights: Path) -> None:
    at = weights.read_bytes().index(torch.arange(5.0).numpy().tobytes())
    patched(weights, at + 2, b"\x7f")
    finding = one(weights, "checksum")
    assert (finding.severity, finding.entry, finding.offset) == ("error", "data/1", at)
    assert finding.message.endswith(": 'layer.1', 'tie'")
    assert verify([weights]).exit_code == 1


@pytest.mark.parametrize("record", [".format_version", "version", ".data/serialization_id"])
def test_flipped_byte_of_a_small_record_is_found(record: str, weights: Path) -> None:
    data = read_zip(MemorySource(weights.read_bytes(), name="w.pth")).get(record)
    assert data is not None
    patched(weights, data.data.offset, b"7")
    assert {f.entry for f in verdict(weights).findings if f.rule == "checksum"} == {record}
    assert verify([weights]).exit_code == 1


def test_many_tensors_in_a_damaged_storage_are_counted(tmp_path: Path) -> None:
    base = torch.arange(50.0)
    path = save({f"w{i}": base[i:] for i in range(9)}, tmp_path / "w.pth")
    patched(path, path.read_bytes().index(base.numpy().tobytes()) + 1, b"\x7f")
    assert one(path, "checksum").message.endswith("'w0', 'w1', 'w2' and 6 more")


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_truncated_archive_is_told_from_a_damaged_one(weights: Path, share: float) -> None:
    data = weights.read_bytes()
    weights.write_bytes(data[: int(len(data) * share)])
    said = verdict(weights)
    assert said.format is None
    assert said.findings[0].rule == "truncated"
    assert {f.rule for f in said.findings} <= {"truncated", "damaged"}
    assert verify([weights]).exit_code == 1


def test_a_truncated_file_of_another_format(tmp_path: Path) -> None:
    for name in ("w.safetensors", "legacy.pth"):
        path = tmp_path / name
        if name.startswith("w"):
            save_file({"a": torch.ones(100)}, path)
        else:
            torch.save({"a": torch.ones(100)}, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:-50])
        assert [f.rule for f in verdict(path).findings] == ["truncated"]


def test_what_is_whole_of_a_damaged_archive_is_said(weights: Path) -> None:
    data = weights.read_bytes()
    patched(weights, data.index(b"PK\x01\x02"), b"XX")
    said = [f.message for f in verdict(weights).findings]
    assert said[0].startswith("the central directory is damaged")
    assert said[-1].endswith("records are whole by their checksums")


def test_compressed_code_has_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "s.pt"
    with quiet():
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    source = MemorySource(path.read_bytes(), name="s.pt")
    record = next(r for r in read_zip(source).records if r.compressed and r.nbytes > 300)
    for shift in range(20, 60):
        data = bytearray(path.read_bytes())
        data[record.data.offset + shift] ^= 4
        (said,) = verify([MemorySource(bytes(data), name="s.pt")]).verdicts
        assert [f.severity for f in said.findings if f.rule in {"checksum", "damaged"}]


# --- structure


def test_padding_that_torch_would_not_write_is_found(weights: Path) -> None:
    at = weights.read_bytes().index(b"ZZZZ")
    patched(weights, at, b"hide")
    places = [f for f in verdict(weights).findings if f.rule == "structure"]
    assert [f.offset for f in places] == [at, at + 1, at + 2, at + 3]
    assert {f.entry for f in places} == {"data.pkl"}
    assert verify([weights]).exit_code == 0
    assert verify([weights], Checks(strict=True)).exit_code == 1


def test_many_odd_bytes_are_counted(tmp_path: Path) -> None:
    path = save({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.pth")
    path.write_bytes(path.read_bytes().replace(b"ZZZZZZ", b"hidden"))
    places = [f for f in verdict(path).findings if f.rule == "structure"]
    assert len(places) == 21
    assert "more bytes beside the data" in places[-1].message


def test_an_archive_of_another_writer(tmp_path: Path) -> None:
    source = save({"a": torch.ones(2)}, tmp_path / "w.pth")
    records = read_records(source)

    def written(name: str, *without: str) -> Path:
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as other:
            for record, data in records:
                if record not in without:
                    other.writestr(f"w/{record}", data)
        return path

    assert found(written("other.pth", ".format_version")) == [("note", "structure", None)]
    promising = written("promise.pth")
    assert found(promising) == [("error", "layout-promise", ".format_version")]
    assert verify([promising]).exit_code == 1


def test_storages_out_of_order_break_the_promise(tmp_path: Path) -> None:
    path = save({"a": torch.ones(2), "b": torch.zeros(2)}, tmp_path / "w.pth")
    records = dict(read_records(path))
    order = [*records]
    first, second = order.index("data/0"), order.index("data/1")
    order[first], order[second] = order[second], order[first]
    write_records(path, [(name, records[name]) for name in order])
    assert found(path) == [("error", "layout-promise", ".format_version")]
    without = [(name, records[name]) for name in order if name != ".format_version"]
    assert found(write_records(path, without)) == []


def test_idle_storages_are_hidden_bytes(tmp_path: Path) -> None:
    path = save({"a": torch.ones(2)}, tmp_path / "w.pth")
    records = dict(read_records(path))
    del records[".format_version"]
    records = {**records, "data/7": b"hidden"}
    write_records(path, list(records.items()))
    assert ("warning", "hidden-bytes", "data/7") in found(path)


def test_bytes_after_the_end_of_a_legacy_file(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes() + b"more")
    assert ("warning", "hidden-bytes", None) in found(path)


def test_a_file_that_is_a_zip_archive_as_well(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as other:
        other.writestr("a", b"b")
    path = tmp_path / "w.pth"
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes() + buffer.getvalue())
    finding = one(path, "polyglot")
    assert finding.message == "the file is a zip archive, which its last bytes say, as well"


def test_a_file_that_is_a_tar_archive_as_well(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    header = b'{"a":{"dtype":"U8","shape":[400],"data_offsets":[0,400]}}'
    data = bytearray(400)
    data[257 - 8 - len(header) : 262 - 8 - len(header)] = b"ustar"
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    assert "a tar archive" in one(path, "polyglot").message


# --- names


def test_a_dangerous_name_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    records = dict(read_records(save({"a": torch.ones(2)}, path)))
    records["data.pkl"] = dumps({"evil": Call(os.system, "echo")})
    write_records(path, list(records.items()))
    finding = one(path, "dangerous-global")
    assert (finding.severity, finding.entry) == ("error", "posix.system")
    assert finding.message == (
        "loading the file may call it: it runs a command or starts a program"
    )
    assert verify([path]).exit_code == 1


def test_unknown_names_are_warnings(tmp_path: Path) -> None:
    path = save({"a": torch.ones(2), "args": argparse.Namespace(x=Finding)}, tmp_path / "w.pth")
    said = found(path)
    assert ("warning", "unknown-global", "ckpt_surgery.checkpoint.findings.Finding") in said
    assert ("warning", "weights-only", None) in said
    assert "argparse.Namespace" in str(one(path, "weights-only").message)


def test_a_broken_pickle_counts_up_to_where_it_breaks(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    records = dict(read_records(save({"a": torch.ones(2)}, path)))
    records["data.pkl"] = b"cos\nsystem\n(S'echo'\ntR\xff\xff"
    write_records(path, list(records.items()))
    rules = [(f.severity, f.rule) for f in verdict(path).findings]
    assert ("error", "dangerous-global") in rules


@pytest.mark.parametrize(
    ("data", "exit_code"),
    [
        (b"cos\nsystem\n(S'echo'\ntR.", 1),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", 1),
        (b"not a checkpoint", 2),
        (b"", 2),
        (b"7z\xbc\xaf\x27\x1c", 2),
    ],
)
def test_what_is_no_checkpoint(data: bytes, exit_code: int) -> None:
    report = verify([MemorySource(data, name="x")])
    assert report.exit_code == exit_code
    assert len(report.verdicts) + len(report.failures) == 1


# --- values, digests, several files


def test_values(tmp_path: Path) -> None:
    path = save(
        OrderedDict(
            {
                "nan": torch.tensor([1.0, float("nan"), 2.0]),
                "bfloat16": torch.tensor([1.0, float("nan")], dtype=torch.bfloat16),
                "float8": torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn),
                "inf": torch.tensor([1.0, float("inf"), float("-inf")]),
                "zero": torch.zeros(3, 3),
                "small": torch.tensor([1e-40, 1.0]),
                "fine": torch.tensor([1.0, -2.0]),
                "complex": torch.tensor([1 + 0j, complex(0, float("inf"))]),
                "count": torch.tensor(7),
                "flags": torch.tensor([True, True]),
            }
        ),
        tmp_path / "w.pth",
    )
    said = {f.entry: (f.severity, f.rule, f.message) for f in verdict(path, values=True).findings}
    assert said == {
        "nan": ("error", "not-finite", "of 3 numbers 1 are NaN"),
        "bfloat16": ("error", "not-finite", "of 2 numbers 1 are NaN"),
        "float8": ("error", "not-finite", "of 2 numbers 1 are NaN"),
        "inf": ("error", "not-finite", "of 3 numbers 2 are infinite"),
        "complex": ("error", "not-finite", "of 4 numbers 1 are infinite"),
        "zero": ("note", "values", "all 9 numbers are 0"),
        "small": ("note", "values", "1 of 2 numbers are subnormal"),
        "flags": ("note", "values", "all 2 numbers are 1"),
    }
    assert verdict(path, values=True).tensors == 10
    assert verdict(path).tensors is None


def test_tensors_without_numbers_are_not_looked_at(tmp_path: Path) -> None:
    with quiet():
        path = save({"a": torch.ones(2, device="meta"), "b": torch.ones(1)}, tmp_path / "w.pth")
    assert ("note", "values", "a") in found(path, values=True)
    assert verdict(path, values=True).tensors == 1


def test_digests(weights: Path) -> None:
    model = digest([weights]).models[0].digest
    whole = digest([weights], files=True).files[0].digest
    other = "ckpt1:" + "0" * 64
    assert found(weights, digests=[model]) == []
    assert found(weights, digests=[whole]) == []
    assert found(weights, digests=[f"sha256:{whole.upper()}"]) == []
    assert found(weights, digests=[other, model]) == []
    assert found(weights, digests=[other]) == [("error", "digest", None)]
    assert verdict(weights, digests=[other]).digests == (model,)


def test_one_bad_file_does_not_stop_the_others(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    report = verify([tmp_path / "missing", weights, tmp_path / "text"])
    assert [v.file for v in report.verdicts] == [str(weights)]
    assert [Path(f.file).name for f in report.failures] == ["missing", "text"]
    assert report.exit_code == 2
    assert report.to_dict()["exit_code"] == 2


def sharded(folder: Path, *, suffix: str = ".bin") -> Path:
    folder.mkdir()
    names = [f"model-0000{i}-of-00002{suffix}" for i in (1, 2)]
    for i, name in enumerate(names):
        tensors = {f"w{i}": torch.arange(4.0) + i}
        if suffix == ".bin":
            save(tensors, folder / name)
        else:
            save_file(tensors, folder / name)
    index = {
        "metadata": {"total_size": 32},
        "weight_map": {f"w{i}": n for i, n in enumerate(names)},
    }
    stem = "pytorch_model.bin" if suffix == ".bin" else "model.safetensors"
    path = folder / f"{stem}.index.json"
    path.write_text(json.dumps(index))
    return path


def test_every_shard_is_checked(tmp_path: Path) -> None:
    index = sharded(tmp_path / "m")
    assert found(index) == []
    assert verdict(index).checksums.checked > 4
    shard = tmp_path / "m" / "model-00002-of-00002.bin"
    at = shard.read_bytes().index((torch.arange(4.0) + 1).numpy().tobytes())
    patched(shard, at, b"\x7f")
    finding = one(index, "checksum")
    assert finding.entry == "model-00002-of-00002.bin: data/0"
    assert finding.message.endswith(": 'w1'")
    safe = sharded(tmp_path / "s", suffix=".safetensors")
    assert found(safe) == [("note", "no-checksum", None)]


def test_a_distributed_checkpoint_is_checked_by_its_storages(tmp_path: Path) -> None:
    with quiet():
        tensors = {"v": torch.ones(4), "w": torch.arange(64.0)}
        dcp.save(tensors, checkpoint_id=str(tmp_path / "d"), no_dist=True)
    said = verdict(tmp_path / "d")
    assert [f for f in said.findings if f.severity == "error"] == []
    assert said.checksums.checked_nbytes == 272
    (file,) = (tmp_path / "d").glob("*.distcp")
    patched(file, file.read_bytes().index(torch.arange(64.0).numpy().tobytes()) + 3, b"\x7f")
    assert one(tmp_path / "d", "checksum").message.endswith(": 'w'")
