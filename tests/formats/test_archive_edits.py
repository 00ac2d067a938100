"""A member is edited and put back: the rest of its archive stays what it was, byte for byte."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save as save_safetensors
from torch_checks import assert_same

from ckpt_surgery import (
    DamagedFileError,
    ReadError,
    UsageError,
    convert,
    digest,
    read,
    selection,
    set_values,
    strip,
    verify,
)
from ckpt_surgery.cli.main import cli
from ckpt_surgery.errors import WriteError
from ckpt_surgery.fileio.member import MemberSource
from ckpt_surgery.writing.output import Output

IN_PLACE = Output(in_place=True)
POLICY = {"w": torch.arange(3000.0), "b": torch.ones(3)}


def saved(state: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


# What stable-baselines3, torchserve and AllenNLP put into their archives, in their order.
SB3 = {
    "data": b'{"policy_class": "MlpPolicy"}',
    "pytorch_variables.pth": saved(None),
    "policy.pth": saved(POLICY),
    "policy.optimizer.pth": saved(torch.optim.SGD([torch.ones(1)], lr=0.1).state_dict()),
    "_stable_baselines3_version": b"2.3.0",
    "system_info.txt": b"- OS: Linux\n",
}
MAR = {
    "model.pth": saved({"model": POLICY, "epoch": 3}),
    "handler.py": b"class Handler: ...\n" * 50,
    "MAR-INF/MANIFEST.json": b'{"model": {"serializedFile": "model.pth"}}',
}
ALLENNLP = {
    "config.json": b'{"model": {"type": "tagger"}}',
    "vocabulary/tokens.txt": "größe\n".encode() * 300,
    "weights.th": saved(POLICY),
    "meta.json": b"{}",
}


def zipped(path: Path, files: dict[str, bytes], method: int) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for number, (name, data) in enumerate(files.items()):
            info = zipfile.ZipInfo(name, (2020, 2, 1 + number, 10, 20, 30))
            info.compress_type, info.external_attr = method, 0o644 << 16
            info.comment = f"number {number}".encode()
            archive.writestr(info, data)
        archive.comment = b"of the archive"
    return path


def tarred(path: Path, mode: str, **options: object) -> Path:
    with tarfile.open(path, mode, **options) as archive:  # type: ignore[call-overload]
        for number, (name, data) in enumerate(ALLENNLP.items()):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = len(data), 1_000_000 + number, "somebody"
            archive.addfile(info, io.BytesIO(data))
    return path


def raw_members(path: Path) -> dict[str, tuple[object, ...]]:
    """Return of each member of a zip archive, in order, its bytes as they lie and its entry."""
    data, found = path.read_bytes(), {}
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            at = info.header_offset
            name, extra = struct.unpack("<HH", data[at + 26 : at + 30])
            end = at + 30 + name + extra + info.compress_size
            found[info.filename] = (
                data[at:end], info.date_time, info.external_attr, info.comment, info.compress_type,
                info.create_system, info.extra,
            )  # fmt: skip
        found[""] = (archive.comment,)
    return found


def member(path: Path, name: str) -> bytes:
    if tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            stream = archive.extractfile(name)
            assert stream is not None
            return stream.read()
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


def loaded(path: Path, name: str) -> object:
    return torch.load(io.BytesIO(member(path, name)), weights_only=True)


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_other_members_of_a_zip_stay_as_they_lie(method, tmp_path):
    path = zipped(tmp_path / "model.zip", SB3, method)
    before = raw_members(path)
    path.chmod(0o640)
    report = strip(f"{path}:policy.pth", IN_PLACE, selection(name="b"))
    assert (report.output, report.removed) == (f"{path}:policy.pth", ("b",))
    after = raw_members(path)
    assert list(after) == list(before)
    assert after["policy.pth"][1:] == before["policy.pth"][1:]
    assert {n: m for n, m in after.items() if n != "policy.pth"} == {
        n: m for n, m in before.items() if n != "policy.pth"
    }
    assert path.stat().st_mode & 0o777 == 0o640
    strip(save_beside(tmp_path, SB3["policy.pth"]), tmp_path / "o.pth", selection(name="b"))
    assert member(path, "policy.pth") == (tmp_path / "o.pth").read_bytes()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["alone.pth", "model.zip", "o.pth"]


def save_beside(folder: Path, data: bytes) -> Path:
    path = folder / "alone.pth"
    path.write_bytes(data)
    return path


PACKERS = {
    "w": lambda data: data,
    "w:gz": gzip.decompress,
    "w:bz2": bz2.decompress,
    "w:xz": lzma.decompress,
}


@pytest.mark.parametrize("mode", PACKERS)
@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_other_members_of_a_tar_stay_as_they_lie(mode, format_, tmp_path):
    path = tarred(tmp_path / "model.tar", mode, format=format_)
    before = PACKERS[mode](path.read_bytes())
    start = path.read_bytes()[:4]
    strip(f"{path}:weights.th", IN_PLACE, selection(name="w"))
    after = PACKERS[mode](path.read_bytes())
    assert path.read_bytes()[:4] == start
    assert_same(loaded(path, "weights.th"), {"b": POLICY["b"]})
    with tarfile.open(fileobj=io.BytesIO(before)) as old, tarfile.open(path) as new:
        one, other = old.getmember("weights.th"), new.getmember("weights.th")
        assert (one.name, one.mtime, one.uname, one.mode) == (
            other.name, other.mtime, other.uname, other.mode,
        )  # fmt: skip
        ends = [i.offset_data + -(-i.size // 512) * 512 for i in (one, other)]
        assert [i.name for i in new] == list(ALLENNLP)
    assert after[: one.offset] == before[: one.offset]
    assert after[ends[1] :] == before[ends[0] :]


def test_size_in_an_extended_header_is_that_of_the_new_member(tmp_path):
    path, data = tmp_path / "m.tar", saved(POLICY)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("größe/" + "long/" * 40 + "weights.th")
        info.size, info.pax_headers = len(data), {"size": str(len(data)), "comment": "kept"}
        archive.addfile(info, io.BytesIO(data))
    strip(f"{path}:{info.name}", IN_PLACE, selection(name="w"))
    with tarfile.open(path) as archive:
        (found,) = archive.getmembers()
        assert (found.name, found.pax_headers["comment"]) == (info.name, "kept")
        assert found.size < 3000
    assert_same(loaded(path, info.name), {"b": POLICY["b"]})


def test_stream_of_gzip_keeps_its_name_time_and_level(tmp_path):
    tar = tarred(tmp_path / "model.tar", "w").read_bytes()
    for name, level in (("model.tar", 9), ("", 1), ("", 6)):
        path = tmp_path / "model.tar.gz"
        with path.open("wb") as raw, gzip.GzipFile(name, "wb", level, raw, 1234567) as stream:
            stream.write(tar)
        head = path.read_bytes()[: 10 + len(name)]
        strip(f"{path}:weights.th", IN_PLACE, selection(name="w"))
        assert path.read_bytes()[: len(head)] == head


def test_zstd_is_compressed_again(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    tar = tarred(tmp_path / "model.tar", "w").read_bytes()
    path = tmp_path / "model.tar.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(tar))
    strip(f"{path}:weights.th", IN_PLACE, selection(name="b"))
    with read(f"{path}:weights.th") as checkpoint:
        assert [name for name, _ in checkpoint.tensors] == ["w"]


def test_every_verb_puts_a_member_back(tmp_path):
    path = zipped(tmp_path / "model.mar", MAR, zipfile.ZIP_DEFLATED)
    before = raw_members(path)
    for line in (
        ["rename", "--add-prefix", "m."],
        ["strip", "--name", "m.b"],
        ["edit", "--cast", "m.w=bf16"],
        ["convert", "--state-dict-only"],
    ):
        done = CliRunner().invoke(cli, [line[0], f"{path}:model.pth", *line[1:], "-i"])
        assert (done.exit_code, done.stderr) == (0, ""), line
    assert_same(loaded(path, "model.pth"), {"m.w": POLICY["w"].bfloat16()})
    after = raw_members(path)
    del after["model.pth"], before["model.pth"]
    assert after == before


def test_members_of_several_archives_are_edited_in_one_line(tmp_path):
    one = zipped(tmp_path / "one.zip", SB3, zipfile.ZIP_STORED)
    other = zipped(tmp_path / "other.zip", SB3, zipfile.ZIP_DEFLATED)
    line = ["strip", f"{one}:policy.pth", f"{other}:policy.pth", "--name", "b", "-i"]
    assert CliRunner().invoke(cli, line).exit_code == 0
    for path in (one, other):
        assert_same(loaded(path, "policy.pth"), {"w": POLICY["w"]})


def test_plain_value_is_set_in_a_member(tmp_path):
    path = zipped(tmp_path / "model.mar", MAR, zipfile.ZIP_STORED)
    set_values(f"{path}:model.pth", IN_PLACE, {"epoch": 0})
    assert loaded(path, "model.pth")["epoch"] == 0


def test_nothing_is_written_in_a_dry_run_nor_where_something_is_wrong(tmp_path, monkeypatch):
    path = zipped(tmp_path / "model.zip", SB3, zipfile.ZIP_DEFLATED)
    before = path.read_bytes()
    name = f"{path}:policy.pth"
    assert strip(name, Output(in_place=True, dry_run=True), selection(name="b")).removed == ("b",)
    with pytest.raises(UsageError, match="not replaced in place"):
        convert(name, Output(in_place=True, format="safetensors-index"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("ckpt_surgery.fileio.file_sink.FileSink.finish", full)
        with pytest.raises((WriteError, OSError)):
            strip(name, IN_PLACE, selection(name="b"))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_archive_that_changed_meanwhile_is_left_alone(tmp_path):
    path = zipped(tmp_path / "model.zip", SB3, zipfile.ZIP_STORED)
    with read(f"{path}:policy.pth") as checkpoint:
        source = checkpoint.file
        assert isinstance(source, MemberSource)

        def edit(source: MemberSource = source) -> None:
            with source.put_back([], None, None) as sink:
                sink.write(b"x")
                path.write_bytes(path.read_bytes() + b"y")

        with pytest.raises((ReadError, WriteError)):
            edit()
    assert path.read_bytes().endswith(b"y")


def test_archive_that_would_not_come_out_as_it_is_is_refused(tmp_path):
    path = zipped(tmp_path / "model.zip", {"é.txt": b"", **SB3}, zipfile.ZIP_STORED)
    data = path.read_bytes().replace("é.txt".encode(), b"\x82_.txt")  # in the old code page
    data = bytearray(data)
    with zipfile.ZipFile(path) as archive:
        for at in (6, archive.start_dir + 8):  # the flags of the first member
            data[at : at + 2] = b"\0\0"
    path.write_bytes(data)
    with pytest.raises(ReadError, match="no UTF-8") as refused:
        strip(f"{path}:policy.pth", IN_PLACE, selection(name="b"))
    assert "-o FILE" in str(refused.value.hint)
    assert path.read_bytes() == data


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_member_that_is_not_as_its_checksum_says_is_refused(method, tmp_path):
    content = save_safetensors({"w": torch.zeros(2000)})
    path = zipped(tmp_path / "m.zip", {"m.safetensors": content}, method)
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack("<I", zipfile.ZipFile(path).infolist()[0].CRC))
    data[at] ^= 1
    data[data.rindex(struct.pack("<I", zipfile.ZipFile(path).infolist()[0].CRC))] ^= 1
    path.write_bytes(data)
    name = f"{path}:m.safetensors"
    for refused in (
        lambda: convert(name, tmp_path / "o.pth"),
        lambda: convert(name, IN_PLACE),
        lambda: digest([name]),
        lambda: digest([name], files=True),
    ):
        report = None
        try:
            report = refused()
        except DamagedFileError as error:
            assert "checksum" in error.message or "crc" in error.message  # noqa: PT017
        if report is not None:
            assert report.failures
    report = verify([name])
    assert report.exit_code != 0
    assert not (tmp_path / "o.pth").exists()
    assert path.read_bytes() == data


def test_stream_of_gzip_with_a_field_before_its_name_gets_no_name(tmp_path):
    path, whole = tmp_path / "m.tar.gz", io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        info = tarfile.TarInfo("w.pth")
        info.size = len(ALLENNLP["weights.th"])
        archive.addfile(info, io.BytesIO(ALLENNLP["weights.th"]))
    plain = gzip.compress(whole.getvalue(), mtime=7)
    field = struct.pack("<H", 5) + b"AB\1\0C"
    path.write_bytes(plain[:3] + b"\x0c" + plain[4:10] + field + b"name.tar\0" + plain[10:])
    strip(f"{path}:w.pth", IN_PLACE, selection(name="b"))
    assert path.read_bytes()[3] & 0x0C == 0
    assert [name for name, _ in read(f"{path}:w.pth").tensors] == ["w"]


def test_stream_of_gzip_that_is_damaged_is_refused(tmp_path):
    path = tarred(tmp_path / "m.tar.gz", "w:gz")
    data = bytearray(path.read_bytes())
    data[-8] ^= 1  # of the checksum
    path.write_bytes(data)
    with pytest.raises(DamagedFileError, match="crc check failed"):
        read(f"{path}:weights.th")
