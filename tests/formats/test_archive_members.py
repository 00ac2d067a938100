"""Members of archives are files: every verb reads ``model.zip:policy.pth``."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save
from torch_checks import assert_same

from ckpt_surgery import (
    CkptError,
    DamagedFileError,
    LimitExceededError,
    ReadError,
    UnknownFormatError,
    convert,
    inspect,
    read,
    selection,
    strip,
)
from ckpt_surgery.cli.main import cli
from ckpt_surgery.formats import archive_members, streams

STATE = {"w": torch.arange(1000.0), "b": torch.ones(3)}


def saved(state: object = STATE) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


FILES = {"data": b'{"policy": 1}', "models/policy.pth": saved(), "empty.pth": saved(None)}


def zipped(path: Path, method: int = zipfile.ZIP_STORED, files: dict[str, bytes] = FILES) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(zipfile.ZipInfo("models/"), b"")
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in FILES.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


ARCHIVES = {
    "stored zip": zipped,
    "deflated zip": lambda at: zipped(at, zipfile.ZIP_DEFLATED),
    "bzip2 zip": lambda at: zipped(at, zipfile.ZIP_BZIP2),
    "tar": tarred,
    "tar.gz": lambda at: tarred(at, "w:gz"),
    "tar.xz": lambda at: tarred(at, "w:xz"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
@pytest.mark.parametrize("in_memory", [16, 1 << 20])
def test_member_is_read_as_the_file_that_it_is(kind, in_memory, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "_IN_MEMORY", in_memory)
    archive = ARCHIVES[kind](tmp_path / "model.mar")
    before = archive.read_bytes()
    member = f"{archive}:models/policy.pth"
    report = inspect(member)
    assert (report.file, report.format) == (member, "torch-zip")
    assert report.size == len(FILES["models/policy.pth"])
    convert(member, tmp_path / "out.pth")
    assert (tmp_path / "out.pth").read_bytes() == FILES["models/policy.pth"]
    strip(Path(member), tmp_path / "less.pth", selection(name="b"))
    assert_same(torch.load(tmp_path / "less.pth", weights_only=True), {"w": STATE["w"]})
    assert archive.read_bytes() == before


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archive_names_its_checkpoints_and_how_to_address_them(kind, tmp_path):
    archive = ARCHIVES[kind](tmp_path / "model.mar")
    with pytest.raises(
        UnknownFormatError, match=r"checkpoints in it: 'models/policy\.pth'$"
    ) as told:
        inspect(archive)
    assert told.value.hint == f"name one as FILE: '{archive}:models/policy.pth'"
    with pytest.raises(ReadError, match="has no member 'policy") as told:
        inspect(f"{archive}:policy.pth")
    assert told.value.hint == "checkpoints in it: 'models/policy.pth'"


@pytest.mark.parametrize("verb", ["inspect", "verify", "hash", "get", "ls"])
def test_every_verb_that_reads_takes_a_member(verb, tmp_path):
    member = f"{zipped(tmp_path / 'm.zip')}:models/policy.pth"
    for arguments in ([verb, member], ["hash", "--files", member], ["diff", member, member]):
        done = CliRunner().invoke(cli, arguments)
        assert (done.exit_code, done.stderr) == (0, "")


def test_file_whose_own_name_has_a_colon_comes_first(tmp_path):
    zipped(tmp_path / "a", files={"b.pth": saved({"x": torch.ones(1)})})
    (tmp_path / "a:b.pth").write_bytes(saved())
    assert [name for name, _ in read(tmp_path / "a:b.pth").tensors] == ["w", "b"]
    (tmp_path / "a:b.pth").unlink()
    assert [name for name, _ in read(tmp_path / "a:b.pth").tensors] == ["x"]


def test_members_of_torch_and_numpy_archives_are_addressed_alike(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(save(STATE))
    zipped(tmp_path / "m.zip", files={"w.safetensors": save(STATE), "notes.txt": b"x" * 50})
    assert inspect(f"{tmp_path}/m.zip:w.safetensors").format == "safetensors"


@pytest.mark.parametrize("name", ["w.pth:x", "w.pth:x/y"])
def test_file_that_is_no_archive_has_no_members(name, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"some text that is longer than the end of an archive" * 20)
    with pytest.raises(ReadError, match="is no archive, and so has no member") as told:
        read(tmp_path / name)
    assert "zip and tar" in (told.value.hint or "")


def test_name_with_a_colon_of_nothing_is_a_missing_file(tmp_path):
    with pytest.raises(ReadError, match="no such file"):
        read(tmp_path / "nothing.zip:w.pth")


def test_two_members_of_one_name_are_refused(tmp_path):
    zipped(tmp_path / "m", files={"a.pth": saved(), "b.pth": saved(None)})
    data = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(data.replace(b"a.pth", b"w.pth").replace(b"b.pth", b"w.pth"))
    with pytest.raises(DamagedFileError, match="two members have this name"):
        read(tmp_path / "m:w.pth")


def test_damaged_member_is_said(tmp_path):
    archive = zipped(tmp_path / "m", zipfile.ZIP_DEFLATED, {"w.pth": saved()})
    data = bytearray(archive.read_bytes())
    data[data.index(b"w.pth") + 300] ^= 0xFF
    archive.write_bytes(data)
    with pytest.raises(DamagedFileError, match="the archive cannot be read"):
        read(tmp_path / "m:w.pth")


def test_encrypted_member_is_said(tmp_path):
    archive = zipped(tmp_path / "m", files={"w.pth": saved()})
    data = bytearray(archive.read_bytes())
    data[6] |= 1
    data[data.rindex(b"PK\1\2") + 8] |= 1
    archive.write_bytes(data)
    with pytest.raises(DamagedFileError, match="encrypted"):
        read(tmp_path / "m:w.pth")
    with pytest.raises(UnknownFormatError, match="no checkpoint was found"):
        read(tmp_path / "m")


def test_member_that_becomes_far_more_than_it_is_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_members, "_ALWAYS", 1 << 16)
    zipped(tmp_path / "m", zipfile.ZIP_DEFLATED, {"w.pth": bytes(8 << 20)})
    with pytest.raises(LimitExceededError, match="far more than it takes"):
        read(tmp_path / "m:w.pth")


def test_members_too_large_to_look_into_are_named_by_their_suffix(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_members, "_LOOKED_BYTES", 100)
    zipped(tmp_path / "m", zipfile.ZIP_DEFLATED, {"a.txt": bytes(200), "w.pth": saved()})
    with pytest.raises(UnknownFormatError, match=r"checkpoints in it: 'w\.pth'$"):
        read(tmp_path / "m")


def test_many_checkpoints_are_counted(tmp_path):
    data = saved({"w": torch.ones(1)})
    zipped(tmp_path / "m", files={f"{n}.pth": data for n in range(10)})
    with pytest.raises(UnknownFormatError, match=r"'7\.pth' and 2 more"):
        read(tmp_path / "m")


def test_archive_of_nothing_and_a_cut_archive_are_said(tmp_path):
    zipped(tmp_path / "nothing", files={}).read_bytes()
    whole = tarred(tmp_path / "t.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:700])
    (tmp_path / "cut.gz").write_bytes(gzip.compress(whole)[:500])
    for name in ("nothing:w", "cut.tar:w.pth", "cut.tar", "cut.gz:w.pth"):
        with pytest.raises(CkptError):
            read(tmp_path / name)


def test_archive_that_is_no_file_is_to_be_written_to_one(tmp_path):
    zipped(tmp_path / "out", files={"in.zip": zipped(tmp_path / "in.zip").read_bytes()})
    with pytest.raises(UnknownFormatError, match="a zip archive of 3 files") as told:
        read(tmp_path / "out:in.zip")
    assert told.value.hint == "write it to a file, and name a member as 'FILE:MEMBER'"
