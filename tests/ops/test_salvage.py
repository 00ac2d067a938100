"""What is whole of a truncated or damaged file is written, and the rest is listed."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from archives import big_endian, generation, rewrite
from safetensors.torch import save_file
from torch.utils.serialization import config
from torch_checks import assert_same, load, save

from ckpt_surgery import DamagedFileError, Output, ReadError, convert, read, salvage, verify
from ckpt_surgery.fileio import ByteRange, FileSource, read_zip
from ckpt_surgery.formats.base import LayoutOptions


def tensors() -> OrderedDict[str, torch.Tensor]:
    torch.manual_seed(0)
    shared = torch.randn(6, 4)
    return OrderedDict(
        {
            "a": torch.randn(40),
            "b": shared[:2],
            "c": shared[3:].t(),
            "tied": shared[:2],
            "d": torch.arange(7),
            "e": torch.randn(3, 3).to(torch.bfloat16),
            "empty": torch.empty(0, 2),
            "f": torch.tensor(1.5),
        }
    )


def salvaged(path: Path, tmp_path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors that were written, and why others were lost."""
    out = tmp_path / "out.pth"
    report = salvage(path, Output(out, force=True))
    found = dict(load(out))
    assert set(report.tensors) == set(found)
    return found, {each.path: each.why for each in report.lost}


def whole_at(path: Path) -> dict[str, int]:
    """The length that the file must have for each tensor to be complete."""
    ends = {}
    with read(path) as checkpoint:
        for name, tensor in checkpoint.tensors:
            end = 0
            for part in tensor.strided_parts():
                assert part.storage is not None
                assert isinstance(part.storage.data, ByteRange)
                last = part.dtype.nbytes(part.offset + part.extent) if part.extent else 0
                end = max(end, part.storage.data.offset + last) if last else end
            ends[name] = end
    return ends


def cuts(path: Path) -> list[int]:
    """Every border of a record, and places beside it."""
    with FileSource.open(path) as file:
        places = {file.size}
        for record in read_zip(file).records:
            start, end = record.data.offset, record.data.offset + record.data.nbytes
            places |= {record.header_offset, start, end, end + 16, (start + end) // 2}
    return sorted(place for place in places if place < path.stat().st_size)


def test_truncated_at_every_border_every_complete_tensor_is_recovered(tmp_path: Path) -> None:
    path = save(tensors(), tmp_path / "w.pth")
    whole, ends, data = tensors(), whole_at(path), path.read_bytes()
    pickle_end = data.index(b".format_version") - 60
    recovered = 0
    for cut in cuts(path):
        path.write_bytes(data[:cut])
        expected = {name: whole[name] for name, end in ends.items() if end <= cut}
        if cut < pickle_end:
            with pytest.raises((DamagedFileError, ReadError)):
                salvage(path, Output(tmp_path / "out.pth", force=True))
            continue
        found, lost = salvaged(path, tmp_path)
        assert list(found) == list(expected)
        for name, tensor in expected.items():  # views of a cut storage have one of their own
            assert_same(found[name], tensor)
        assert set(lost) == set(whole) - set(expected)
        recovered += len(found)
    assert recovered > 50


@pytest.mark.parametrize("kind", ["legacy", "safetensors"])
def test_truncated_files_of_other_formats(kind: str, tmp_path: Path) -> None:
    whole = OrderedDict({name: t.contiguous().clone() for name, t in tensors().items()})
    path = tmp_path / "w.safetensors"
    if kind == "legacy":
        torch.save(whole, path, _use_new_zipfile_serialization=False)
    else:
        save_file(whole, path)
    ends, data = whole_at(path), path.read_bytes()
    first = min(end for name, end in ends.items() if end and whole[name].numel())
    for cut in sorted({first, *ends.values(), *(end - 1 for end in ends.values())}):
        if cut < first:
            continue
        path.write_bytes(data[:cut])
        found, lost = salvaged(path, tmp_path)
        assert_same(found, {name: whole[name] for name in found})
        assert set(found) == {name for name, end in ends.items() if end <= cut}
        assert set(lost) == set(whole) - set(found)


def test_a_whole_file_is_written_whole(tmp_path: Path) -> None:
    path = save({"state_dict": tensors(), "epoch": 3}, tmp_path / "w.pth")
    out = tmp_path / "out.pth"
    report = salvage(path, Output(out))
    assert report.lost == ()
    assert_same(load(out), load(path))


def test_a_damaged_storage_is_lost_with_the_tensors_in_it(tmp_path: Path) -> None:
    path = save(tensors(), tmp_path / "w.pth")
    data = bytearray(path.read_bytes())
    data[data.index(tensors()["b"].contiguous().numpy().tobytes())] ^= 1
    path.write_bytes(data)
    found, lost = salvaged(path, tmp_path)
    assert set(lost) == {"b", "c", "tied"}
    assert_same(found, {name: each for name, each in tensors().items() if name not in lost})


def test_ties_are_kept(tmp_path: Path) -> None:
    path = save(tensors(), tmp_path / "w.pth")
    path.write_bytes(path.read_bytes()[:-300])
    found, _ = salvaged(path, tmp_path)
    assert found["b"].data_ptr() == found["tied"].data_ptr()


def test_a_damaged_directory_loses_nothing(tmp_path: Path) -> None:
    path = save(tensors(), tmp_path / "w.pth")
    data = path.read_bytes()
    for mark in (b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x07\x08"):
        path.write_bytes(data.replace(mark, b"XXXX", 1))
        found, lost = salvaged(path, tmp_path)
        assert lost == {}
        assert_same(found, dict(tensors()))


def test_bytes_after_the_end_are_left_behind(tmp_path: Path) -> None:
    path = save(tensors(), tmp_path / "w.pth")
    path.write_bytes(path.read_bytes() + b"more")
    assert_same(salvaged(path, tmp_path)[0], dict(tensors()))
    plain = {"a": torch.ones(4)}
    save_file(plain, tmp_path / "w.safetensors")
    with (tmp_path / "w.safetensors").open("ab") as file:
        file.write(b"more")
    assert_same(salvaged(tmp_path / "w.safetensors", tmp_path)[0], plain)


def test_an_optimizer_goes_if_a_part_of_it_is_lost(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.grad = torch.full((3,), 2.0)
    optimizer.step()
    value = {"model": {"w": torch.arange(5.0)}, "epoch": 3, "optimizer": optimizer.state_dict()}
    path = save(value, tmp_path / "w.pth")
    data = path.read_bytes()
    path.write_bytes(data[: data.index(torch.full((3,), 2.0).numpy().tobytes()) + 3])
    report = salvage(path, Output(tmp_path / "out.pth"))
    assert [(each.path, each.why) for each in report.lost] == [
        ("optimizer", "1 of its 1 tensors are not whole")
    ]
    assert_same(load(tmp_path / "out.pth"), {"model": value["model"], "epoch": 3})


def test_a_pickle_with_a_wrong_checksum_is_believed_with_a_warning(tmp_path: Path) -> None:
    path = save({"state_dict": tensors(), "epoch": 3}, tmp_path / "w.pth")
    data = path.read_bytes()
    at = data.index(b"epoch")
    path.write_bytes(data[:at] + b"epoxh" + data[at + 5 :])
    report = salvage(path, Output(tmp_path / "out.pth"))
    assert any("checksum of its pickle is wrong" in warning for warning in report.warnings)
    assert load(tmp_path / "out.pth")["epoxh"] == 3


def test_without_checksums_what_is_there_is_taken(tmp_path: Path) -> None:
    with mock.patch.object(config.save, "compute_crc32", False):
        path = save(tensors(), tmp_path / "w.pth")
    path.write_bytes(path.read_bytes()[:-400])
    found, _ = salvaged(path, tmp_path)
    assert "a" in found


def test_numbers_that_are_turned_round_stay_what_they_are(tmp_path: Path) -> None:
    path = generation("big endian", tmp_path / "w.pth")
    whole = load(path)
    path.write_bytes(path.read_bytes()[:-200])
    found, lost = salvaged(path, tmp_path)
    assert_same({name: found[name] for name in found}, {name: whole[name] for name in found})
    assert len(found) > len(lost)
    assert big_endian is not None


def test_a_wrong_count_before_a_legacy_storage_is_put_right(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    whole = {"a": torch.arange(9.0), "b": torch.ones(3)}
    torch.save(whole, path, _use_new_zipfile_serialization=False)
    data = bytearray(path.read_bytes())
    data[data.index(torch.arange(9.0).numpy().tobytes()) - 8] = 77
    path.write_bytes(data)
    report = salvage(path, Output(tmp_path / "out.pth"))
    assert any("the element count before storage" in warning for warning in report.warnings)
    assert_same(load(tmp_path / "out.pth"), whole)


def _no_pickle(path: Path) -> Any:
    return rewrite(path, lambda records: {**records, "data.pkl": b"\xff"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:100]), "nothing can be salvaged"),
        (_no_pickle, "its pickle cannot be read"),
        (lambda p: p.write_bytes(p.read_bytes()[:900]), "none of its tensors is whole"),
        (lambda p: p.write_bytes(b"\x20\0\0\0\0\0\0\0{"), "its header, which names the tensors"),
        (lambda p: p.write_bytes(b"hello"), "cannot be put together"),
        (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(40)), "its pickle, which names"),
    ],
    ids=["cut", "no pickle", "no tensor", "header", "text", "other archive"],
)
def test_if_nothing_is_left_nothing_is_written(spoil: Any, message: str, tmp_path: Path) -> None:
    path = save({"a": torch.randn(400)}, tmp_path / "w.pth")
    spoil(path)
    with pytest.raises(ReadError, match=message):
        salvage(path, Output(tmp_path / "out.pth"))
    assert not (tmp_path / "out.pth").exists()


# --- shards


def sharded(kind: str, tmp_path: Path) -> tuple[OrderedDict[str, torch.Tensor], Path]:
    """Tensors, and a directory that holds them in several shards."""
    whole = OrderedDict((f"l{n}.w", torch.arange(40.0) + n) for n in range(6))
    target = Output(tmp_path / "model", format=kind, options=LayoutOptions(max_shard_size=400))
    convert(save(whole, tmp_path / "w.pth"), target)
    return whole, tmp_path / "model"


@pytest.mark.parametrize("kind", ["safetensors-index", "torch-index"])
def test_of_truncated_shards_every_complete_tensor_is_recovered(kind: str, tmp_path: Path) -> None:
    whole, folder = sharded(kind, tmp_path)
    shard = min(folder.glob("*-00002-of-*"))
    data, ends = shard.read_bytes(), whole_at(shard)
    assert len(ends) == 2
    out, seen = tmp_path / "out.pth", set()
    for cut in sorted(
        {place + d for place in ends.values() for d in (-1, 0)} | {len(data) - 1, 10}
    ):
        shard.write_bytes(data[:cut])
        report = salvage(folder, Output(out, force=True))
        found = dict(load(out))
        kept = {name for name in whole if name not in ends or ends[name] <= cut}
        assert set(found) == set(report.tensors) == kept
        assert_same(found, {name: whole[name] for name in found})
        assert {each.path for each in report.lost} == set(whole) - kept
        seen.add(len(kept))
        if cut < len(data):
            (verdict,) = verify([folder]).verdicts
            named = {f.entry for f in verdict.findings if f.severity == "error"}
            assert any((each or "").startswith(shard.name) for each in named)
    assert seen == {4, 5, 6}


def test_of_a_missing_shard_the_index_says_what_is_lost(tmp_path: Path) -> None:
    whole, folder = sharded("safetensors-index", tmp_path)
    gone = min(folder.glob("*-00001-of-*"))
    gone.unlink()
    for source in (folder, folder / "model.safetensors.index.json"):
        report = salvage(source, Output(tmp_path / "out.pth", force=True))
        assert [each.path for each in report.lost] == ["l0.w", "l1.w"]
        assert {each.why for each in report.lost} == {f"{gone.name}: the file is missing"}
        assert_same(dict(load(tmp_path / "out.pth")), dict(list(whole.items())[2:]))
        (finding,) = verify([source]).verdicts[0].findings
        assert (finding.severity, finding.entry) == ("error", gone.name)


def test_a_shard_with_a_wrong_checksum_is_salvaged_like_a_file(tmp_path: Path) -> None:
    _, folder = sharded("torch-index", tmp_path)
    shard = min(folder.glob("*-00003-of-*"))
    data = bytearray(shard.read_bytes())
    data[data.index((torch.arange(40.0) + 5).numpy().tobytes()) + 9] ^= 1
    shard.write_bytes(data)
    report = salvage(folder, Output(tmp_path / "out.pth"))
    assert [each.path for each in report.lost] == ["l5.w"]


def test_what_is_no_checkpoint_is_not_salvaged_from_a_directory(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_bytes(b"hello")
    with pytest.raises(ReadError):
        salvage(tmp_path / "folder", Output(tmp_path / "out.pth"))


def test_every_shard_of_torch_cut_at_every_border_of_a_record(tmp_path: Path) -> None:
    whole, folder = sharded("torch-index", tmp_path)
    counts = set()
    for shard in sorted(folder.glob("*.bin")):
        data, ends = shard.read_bytes(), whole_at(shard)
        for cut in cuts(shard):
            shard.write_bytes(data[:cut])
            report = salvage(folder, Output(tmp_path / "out.pth", force=True))
            found = dict(load(tmp_path / "out.pth"))
            lost = {each.path for each in report.lost}
            assert set(found) | lost == set(whole)
            assert set(ends) >= lost
            assert_same(found, {name: whole[name] for name in found})
            (verdict,) = verify([folder]).verdicts
            wrong = [f for f in verdict.findings if f.severity == "error"]
            assert "truncated" in {f.rule for f in wrong} or not cut
            assert all(str(f.entry).startswith(shard.name) for f in wrong)
            counts.add(len(lost))
            shard.write_bytes(data)
    assert counts == {0, 1, 2}
