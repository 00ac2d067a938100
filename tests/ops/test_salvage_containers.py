"""Salvage of every other container: cut anywhere, what is complete comes back bit for bit."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from click.testing import CliRunner
from torch_checks import assert_same, load, quiet, save

from ckpt_surgery import (
    DamagedFileError,
    LimitExceededError,
    Output,
    ReadError,
    read,
    salvage,
    verify,
)
from ckpt_surgery.cli.main import cli
from ckpt_surgery.fileio import ByteRange, FileSource
from ckpt_surgery.formats import archive_salvage
from ckpt_surgery.formats.dcp_metadata import read_metadata
from ckpt_surgery.pickles import DEFAULT_LIMITS
from ckpt_surgery.reports.verification import SalvageReport


def salvaged(path: Path | str, tmp_path: Path) -> tuple[SalvageReport, Any]:
    report = salvage(path, Output(tmp_path / "out.pth", force=True))
    return report, load(tmp_path / "out.pth")


def rules(path: Path | str) -> set[str]:
    (verdict,) = verify([path]).verdicts
    return {finding.rule for finding in verdict.findings if finding.severity == "error"}


# --- TorchScript


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        self.register_buffer("table", torch.arange(6).view(2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


def scripted(path: Path) -> dict[str, torch.Tensor]:
    with quiet():
        torch.jit.script(Net()).save(str(path))
        return {**torch.jit.load(str(path)).state_dict()}


def test_torchscript_cut_at_every_border_of_a_record(tmp_path: Path) -> None:
    path = tmp_path / "s.pt"
    whole, data = scripted(path), path.read_bytes() if path.exists() else b""
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    at = next(info.header_offset for info in infos if info.filename == "s/data.pkl")
    end = next(i.header_offset for i in infos if i.header_offset > at)
    seen = set()
    for cut in [info.header_offset for info in infos if info.header_offset] + [len(data) - 1]:
        path.write_bytes(data[:cut])
        assert rules(path) >= {"truncated"}
        if cut < end:  # all storages come before the pickle that names them
            with pytest.raises(DamagedFileError, match="its pickle, which names the tensors"):
                salvaged(path, tmp_path)
            continue
        report, found = salvaged(path, tmp_path)
        assert {each.part for each in report.lost} <= {"record"}  # the code, of no state dict
        assert_same(dict(sorted(found.items())), dict(sorted(whole.items())))
        seen.add(any("code is missing" in warning for warning in report.warnings))
    assert seen == {True, False}


def test_of_torchscript_a_damaged_storage_is_lost_with_its_tensor(tmp_path: Path) -> None:
    path = tmp_path / "s.pt"
    whole = scripted(path)
    data = bytearray(path.read_bytes())
    data[data.index(whole["table"].numpy().tobytes()) + 8] ^= 4
    path.write_bytes(data)
    report, found = salvaged(path, tmp_path)
    assert [each.path for each in report.lost if each.part != "record"] == ["table"]
    assert_same(dict(found)["layer.0.weight"], whole["layer.0.weight"])


# --- tar archives of torch 0.1


def test_torch_tar_cut_at_every_border_of_a_storage(shared_dir: Path, tmp_path: Path) -> None:
    source = shared_dir / "real" / "practical-pytorch" / "tar_module_2017_char-rnn.pt"
    ends, numbers = {}, {}
    with read(source) as checkpoint:
        for name, tensor in checkpoint.tensors:
            assert tensor.storage is not None
            assert isinstance(tensor.storage.data, ByteRange)
            ends[name] = tensor.storage.data.offset + tensor.storage.nbytes
            numbers[name] = b"".join(map(bytes, tensor.storage.data.chunks()))
    data, path = source.read_bytes(), tmp_path / "cut.pt"
    for cut in sorted({at - back for at in ends.values() for back in (0, 1)}):
        path.write_bytes(data[:cut])
        assert rules(path) >= {"truncated"}
        kept = {name for name, end in ends.items() if end <= cut}
        if not kept:
            with pytest.raises(DamagedFileError, match="none of its tensors is whole"):
                salvaged(path, tmp_path)
            continue
        report = salvage(path, Output(tmp_path / "out.pth", force=True))
        assert set(report.tensors) == kept
        assert {each.path for each in report.lost} == set(ends) - kept
        with read(tmp_path / "out.pth") as checkpoint:
            for name, tensor in checkpoint.tensors:
                assert tensor.storage is not None
                assert b"".join(map(bytes, tensor.storage.data.chunks())) == numbers[name]
    for cut in (1024, 6000, len(data) - 1100, len(data) - 1):  # between members, and in the end
        path.write_bytes(data[:cut])
        assert rules(path) == {"truncated"}
    path.write_bytes(data[:6000])
    with pytest.raises(DamagedFileError, match="its member 'tensors' is missing"):
        salvaged(path, tmp_path)


# --- distributed checkpoints

STATE = {
    "model": {"w": torch.arange(40.0).view(8, 5), "b": torch.ones(3), "n": torch.tensor(7)},
    "epoch": 3,
}


def distributed(tmp_path: Path, state: Any = STATE) -> Path:
    with quiet():
        dcp.save(state, checkpoint_id=tmp_path / "dcp")
    return tmp_path / "dcp"


def places(folder: Path) -> dict[str, tuple[int, int]]:
    """The first and the last byte of each entry's archive."""
    with FileSource.open(folder / ".metadata") as source:
        items = read_metadata(source, DEFAULT_LIMITS).items
    found = {}
    for name, item in items.items():
        place = item.chunks[0] if hasattr(item, "chunks") else item
        found[name.replace(".", "/")] = (place.offset, place.offset + place.length)
    return found


def test_dcp_cut_at_every_border_of_an_archive(tmp_path: Path) -> None:
    folder = distributed(tmp_path)
    file, spans = folder / "__0_0.distcp", places(folder)
    data = file.read_bytes()
    counts = set()
    borders = {at + more for span in spans.values() for at in span for more in (0, 3, 700)}
    for cut in sorted(at for at in borders if at < len(data)):
        file.write_bytes(data[:cut])
        assert rules(folder) == {"truncated"}
        named = {f.entry for f in verify([folder]).verdicts[0].findings if f.severity == "error"}
        lost = {str(name).replace(".", "/") for name in named}
        assert {name for name, span in spans.items() if span[0] >= cut} <= lost
        assert lost <= {name for name, span in spans.items() if span[1] > cut}
        kept = {name for name in spans if name.startswith("model/")} - lost
        if not kept:
            with pytest.raises(DamagedFileError, match="none of its tensors is whole"):
                salvaged(folder, tmp_path)
            continue
        report, found = salvaged(folder, tmp_path)
        assert set(report.tensors) == kept
        assert {each.path for each in report.lost} == lost
        assert all("__0_0.distcp" in each.why for each in report.lost)
        for name in kept:
            key = name.removeprefix("model/")
            assert_same(found["model"][key], STATE["model"][key])  # type: ignore[index]
        counts.add(len(kept))
    assert counts >= {1, 2}


def test_of_dcp_a_wrong_byte_costs_one_tensor(tmp_path: Path) -> None:
    folder = distributed(tmp_path)
    file = folder / "__0_0.distcp"
    data = bytearray(file.read_bytes())
    data[data.index(torch.arange(40.0).numpy().tobytes()) + 9] ^= 1
    file.write_bytes(data)
    (finding,) = [f for f in verify([folder]).verdicts[0].findings if f.severity == "error"]
    at = places(folder)["model/w"][0]
    assert (finding.rule, finding.entry) == ("checksum", f"model.w in __0_0.distcp:{at}")
    report, found = salvaged(folder, tmp_path)
    assert [each.path for each in report.lost] == ["model/w"]
    assert_same(found, {"model": {k: STATE["model"][k] for k in ("b", "n")}, "epoch": 3})  # type: ignore[index]


def test_of_dcp_without_its_metadata_it_is_said_what_is_there(tmp_path: Path) -> None:
    folder = distributed(tmp_path)
    metadata = (folder / ".metadata").read_bytes()
    (folder / ".metadata").unlink()
    (finding,) = verify([folder]).verdicts[0].findings
    assert (finding.severity, finding.entry) == ("error", ".metadata")
    assert "1 file of 4 archives in all" in finding.message
    with pytest.raises(DamagedFileError, match="nothing can be salvaged: it is missing"):
        salvaged(folder, tmp_path)
    (folder / ".metadata").write_bytes(metadata[:-20])
    assert rules(folder) == {"truncated"}
    with pytest.raises(DamagedFileError, match="nothing can be salvaged"):
        salvaged(folder, tmp_path)


def test_of_dcp_without_a_file_all_that_was_in_it_is_listed(tmp_path: Path) -> None:
    folder = distributed(tmp_path)
    (folder / "__0_0.distcp").unlink()
    findings = verify([folder]).verdicts[0].findings
    named = {f.entry for f in findings if f.severity == "error"}
    assert named == {"model.w", "model.b", "model.n", "epoch"}
    assert all("the file is missing" in f.message for f in findings if f.severity == "error")


def test_of_dcp_an_optimizer_goes_with_a_part_of_it(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.5, momentum=0.9)
    weight.grad = torch.full((3,), 2.0)
    optimizer.step()
    state = {"model": {"w": torch.arange(5.0)}, "optim": optimizer.state_dict(), "epoch": 3}
    folder = distributed(tmp_path, state)
    file = folder / "__0_0.distcp"
    at, end = places(folder)["optim/param_groups/0/lr"]
    data = bytearray(file.read_bytes())
    data[at:end] = bytes(end - at)
    file.write_bytes(data)
    report, found = salvaged(folder, tmp_path)
    assert_same(found, {"model": {"w": torch.arange(5.0)}, "epoch": 3})
    assert any("which belongs to it, is lost" in each.why for each in report.lost)


# --- streams

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "bzip2": lambda data: bz2.compress(data, 1),
}


def zstd(data: bytes) -> bytes:
    return bytes(pytest.importorskip("zstandard").ZstdCompressor().compress(data))


@pytest.mark.parametrize("kind", [*PACKERS, "zstd"])
def test_a_stream_that_is_cut_gives_what_it_holds_until_then(kind: str, tmp_path: Path) -> None:
    whole = {f"w{n}": torch.randn(20_000) for n in range(8)}
    packed = PACKERS.get(kind, zstd)(save(whole, tmp_path / "w.pth").read_bytes())
    path, counts = tmp_path / "w.pth.packed", []
    for eighth in (3, 5, 7):
        path.write_bytes(packed[: len(packed) * eighth // 8])
        assert rules(path) == {"truncated"}
        report, found = salvaged(path, tmp_path)
        assert_same(dict(found), {name: whole[name] for name in found})
        assert set(found) | {each.path for each in report.lost} == set(whole)
        assert any("has no end" in warning for warning in report.warnings)
        counts.append(len(found))
    assert counts == sorted(counts)
    assert counts[-1] >= 6


def test_in_a_stream_as_in_a_file_the_records_of_others_are_listed_as_lost(tmp_path: Path) -> None:
    whole = {f"w{n}": torch.randn(2_000) for n in range(4)}
    path = tmp_path / "w.pth"
    save(whole, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("w/notes.txt", "of another program")
        archive.writestr("w/data/4", bytes(8_000))
    data = path.read_bytes()
    cut = data[: data.index(b"w/notes.txt") + 5_000]
    for name, content in (("plain.pth", cut), ("packed.pth.gz", gzip.compress(cut))):
        (tmp_path / name).write_bytes(content)
        report, found = salvaged(tmp_path / name, tmp_path)
        assert_same(dict(found), whole)
        assert [(each.path, each.part) for each in report.lost] == [("notes.txt", "record")]


# --- archives of other files


def packed(path: Path, files: dict[str, bytes], kind: str) -> Path:
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    if kind == "deflated":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    with tarfile.open(path, kind) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def saved(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "deflated", "w", "w:gz"])
def test_the_checkpoint_in_an_archive_that_is_cut(kind: str, tmp_path: Path) -> None:
    whole = {f"w{n}": torch.randn(20_000) for n in range(4)}
    files = {"config.json": b"{}", "m/w.pth": saved(whole), "notes": b"more" * 100}
    path = packed(tmp_path / "model.mar", files, kind)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 4 // 5])
    for name in (path, f"{path}:m/w.pth"):
        report, found = salvaged(name, tmp_path)
        assert 2 <= len(found) < 4
        assert_same(dict(found), {key: whole[key] for key in found})
        assert {each.path for each in report.lost} == set(whole) - set(found)
    assert "truncated" in rules(path)
    assert verify([f"{path}:m/w.pth"]).exit_code in {1, 2}


def test_of_two_checkpoints_in_an_archive_one_is_to_be_named(tmp_path: Path) -> None:
    """Both have the same names of records, and neither gets the other's bytes."""
    one, two = {"w": torch.zeros(500)}, {"w": torch.ones(500)}
    path = packed(tmp_path / "m.zip", {"1.pth": saved(one), "2.pth": saved(two)}, "zip")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ReadError, match=r"checkpoints in the archive: '1\.pth', '2\.pth'"):
        salvaged(path, tmp_path)
    assert_same(dict(salvaged(f"{path}:1.pth", tmp_path)[1]), one)
    assert_same(dict(salvaged(f"{path}:2.pth", tmp_path)[1]), two)
    packed(path, {"a.txt": b"hello", "b.txt": b"world"}, "zip")
    with pytest.raises(DamagedFileError, match="no checkpoint is left in the archive"):
        salvaged(path, tmp_path)
    with pytest.raises(ReadError, match="no member"):
        salvaged(f"{path}:c.pth", tmp_path)


def test_members_are_told_apart_when_the_directory_of_their_archive_is_gone(tmp_path: Path) -> None:
    """The directories of what is stored in it count from elsewhere, and rename nothing."""
    one, two = ({f"w{n}": torch.full((50,), float(n + at)) for n in range(5)} for at in (0, 100))
    path = packed(tmp_path / "m.zip", {"1.pth": saved(one), "2.pth": saved(two)}, "zip")
    with zipfile.ZipFile(path) as archive:
        end = archive.start_dir
    for cut in (end, end - 200, end - 1000):
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(ReadError, match=r"checkpoints in the archive: '1\.pth', '2\.pth'"):
            salvaged(path, tmp_path)
        assert_same(dict(salvaged(f"{path}:1.pth", tmp_path)[1]), one)


def test_members_of_a_cut_tar_have_the_names_of_extended_headers(tmp_path: Path) -> None:
    files = {
        name: saved({"w": torch.full((5,), float(len(name)))}) for name in ("модель", "модуль")
    }
    path = packed(tmp_path / "m.tar", files, "w")
    path.write_bytes(path.read_bytes()[:-3500])
    with pytest.raises(ReadError, match="'модель', 'модуль'"):
        salvaged(path, tmp_path)
    assert rules(path) == {"truncated"}


def negative(path: Path, name: str) -> Path:
    """Let a member's header say that the next one is where it is itself."""
    data = bytearray(path.read_bytes())
    at = next(at for at in range(0, len(data), 512) if data.startswith(name.encode() + b"\0", at))
    data[at + 124 : at + 136] = (256**12 - 512).to_bytes(12, "big")
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = f"{sum(data[at : at + 512]):06o}\0 ".encode()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("names", [("w.pth", "z"), ("z", "w.pth"), ("pickle", "z")])
def test_a_tar_whose_header_says_a_negative_size_has_an_end(
    names: tuple[str, str], tmp_path: Path
) -> None:
    files = {name: saved({"w": torch.ones(3)}) if name == "w.pth" else b"Z" for name in names}
    path = negative(packed(tmp_path / "m.tar", files, "w"), "z" if "w.pth" in names else "pickle")
    assert "damaged" in rules(path)
    with pytest.raises(ReadError):
        read(path)
    if names[0] == "w.pth":
        assert_same(dict(salvaged(path, tmp_path)[1]), {"w": torch.ones(3)})
    else:
        with pytest.raises(ReadError):
            salvaged(path, tmp_path)


def test_to_list_the_members_of_a_cut_archive_inflates_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = packed(tmp_path / "m.zip", {"a": bytes(9 << 20), "b": b"b" * 40}, "deflated")
    path.write_bytes(path.read_bytes()[:-110])
    monkeypatch.setattr(archive_salvage, "_MOST", 1 << 10)
    assert rules(path) == {"truncated"}
    assert list(archive_salvage.left_members(FileSource.open(path))) == ["a", "b"]
    with pytest.raises(LimitExceededError, match="inflates to more than 1024 bytes"):
        salvaged(path, tmp_path)


def test_the_command_salvages_a_member_of_a_cut_archive(tmp_path: Path) -> None:
    whole = {"a": torch.randn(5000), "b": torch.randn(5000)}
    path = packed(tmp_path / "m.tar.gz", {"w.pth": saved(whole)}, "w:gz")
    path.write_bytes(path.read_bytes()[:-9000])
    out = tmp_path / "rest.pth"
    done = CliRunner().invoke(cli, ["verify", f"{path}:w.pth", "--salvage", str(out)])
    assert done.exit_code == 1
    assert "salvaged 1 tensor" in done.stdout
    assert_same(dict(load(out)), {"a": whole["a"]})
