"""`verify` of an archive of other files: its structure, every member, every checkpoint in it."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from ckpt_surgery import digest, verify
from ckpt_surgery.cli.main import cli
from ckpt_surgery.ops.digest_lists import DigestList
from ckpt_surgery.ops.verify_checks import Checks
from ckpt_surgery.ops.verify_policy import parse_policy
from ckpt_surgery.reports.verification import Verdict

WEIGHTS = torch.arange(100.0)


def saved(state: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


FILES = {"config.json": b'{"a": 1}' * 9, "m/policy.pth": saved({"w": WEIGHTS}), "notes": b"hello"}


def zipped(path: Path, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


ARCHIVES = {
    "zip": zipped,
    "deflated zip": lambda at: zipped(at, zipfile.ZIP_DEFLATED),
    "lzma zip": lambda at: zipped(at, zipfile.ZIP_LZMA),
    "tar": tarred,
    "tar.gz": lambda at: tarred(at, "w:gz"),
    "tar.xz": lambda at: tarred(at, "w:xz"),
}


def patched(path: Path, at: int, data: bytes) -> Path:
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)
    return path


def verdicts(path: Path, **checks: Any) -> list[Verdict]:
    report = verify([path], Checks(**checks))
    assert not report.failures, report.failures
    return list(report.verdicts)


def found(path: Path, **checks: Any) -> set[tuple[str, str, str | None]]:
    """Severity, rule and place of what is found of the archive itself."""
    return {(f.severity, f.rule, f.entry) for f in verdicts(path, **checks)[0].findings}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_and_each_checkpoint_in_it_are_whole(kind: str, tmp_path: Path) -> None:
    path = ARCHIVES[kind](tmp_path / "model.mar")
    whole, inside = verdicts(path)
    assert (whole.format, inside.format) == (kind.rsplit(maxsplit=1)[-1][:3], "torch-zip")
    assert (whole.file, inside.file) == (str(path), f"{path}:m/policy.pth")
    assert not inside.findings
    nbytes = sum(map(len, FILES.values()))
    if kind == "tar":
        assert found(path) == {("note", "no-checksum", None)}
        assert found(path, require_checksums=True) == {("error", "no-checksum", None)}
        policy = parse_policy("[file]\nchecksums = true\n", "p.toml")
        assert ("error", "no-checksum", None) in found(path, policy=policy)
        assert (whole.checksums.absent, whole.checksums.absent_nbytes) == (3, nbytes)
    else:
        assert not whole.findings
        assert (whole.checksums.checked, whole.checksums.checked_nbytes) == (3, nbytes)
    assert verify([path]).exit_code == 0


@pytest.mark.parametrize("kind", ["zip", "deflated zip", "tar.gz"])
def test_a_wrong_byte_is_found_and_the_member_named(kind: str, tmp_path: Path) -> None:
    path = ARCHIVES[kind](tmp_path / "model.mar")
    if kind == "tar.gz":
        inside = bytearray(gzip.decompress(path.read_bytes()))
        packed = gzip.compress(bytes(inside))
        path.write_bytes(packed[:-8] + b"\0\0\0\0" + packed[-4:])
        (finding,) = verdicts(path)[0].findings
        assert (finding.rule, finding.entry) == ("checksum", "gzip stream")
        return
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("m/policy.pth")
    patched(path, info.header_offset + len(info.FileHeader()) + info.compress_size // 2, b"\xa5")
    member = [f for f in verdicts(path)[0].findings if f.severity == "error"]
    assert {each.entry for each in member} == {"m/policy.pth"}
    assert verify([path]).exit_code == 1
    if kind == "zip":
        assert {f.rule for f in member} == {"checksum"}
        assert any(f.rule == "checksum" for f in verdicts(path)[1].findings)


def test_a_member_without_checksums_of_its_own_has_that_of_the_archive(tmp_path: Path) -> None:
    legacy = io.BytesIO()
    torch.save({"w": WEIGHTS}, legacy, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("w.pth", legacy.getvalue())
    whole, inside = verdicts(tmp_path / "m.zip", require_checksums=True)
    assert not whole.findings
    assert not inside.findings
    data = (tmp_path / "m.zip").read_bytes()
    patched(tmp_path / "m.zip", data.index(WEIGHTS.numpy().tobytes()) + 7, b"\xff")
    whole, inside = verdicts(tmp_path / "m.zip")
    assert [f.entry for f in whole.findings] == ["w.pth"]
    assert [f.rule for f in inside.findings] == ["no-checksum"]


def _local(path: Path, field: int, data: bytes) -> Path:
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("notes").header_offset
    return patched(path, at + field, data)


@pytest.mark.parametrize("field", [4, 6, 10, 14, 18, 22, 30])
def test_a_header_that_contradicts_the_directory_is_told(field: int, tmp_path: Path) -> None:
    """Version, flags, time, checksum, sizes and name, where most readers look at few of them."""
    path = _local(zipped(tmp_path / "m.zip"), field, b"\x51")
    assert ("error", "damaged", "notes") in found(path)
    what = "has another name than in the directory" if field == 30 else "contradicts the directory"
    assert what in verdicts(path)[0].findings[0].message


def test_the_end_of_a_zip_archive_is_compared(tmp_path: Path) -> None:
    path = zipped(tmp_path / "m.zip")
    size = path.stat().st_size
    patched(path, size - 12, b"\x07")  # the number of members, which `zipfile` does not read
    assert found(path) == {("error", "damaged", None)}


@pytest.mark.parametrize("nbytes", [6, 12, 16, 20, 24, 30])
def test_bytes_between_members_are_told(nbytes: int, tmp_path: Path) -> None:
    """Also as many as a data descriptor has, which begins with its signature."""
    path = tmp_path / "m.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.pth", FILES["m/policy.pth"])
        assert archive.fp is not None
        archive.fp.write(b"x" * nbytes)
        archive.start_dir = archive.fp.tell()
    assert found(path) == {("warning", "hidden-bytes", None)}


def test_streamed_members_with_descriptors_are_whole(tmp_path: Path) -> None:
    class Pipe(io.RawIOBase):
        data = b""

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.data += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    (tmp_path / "m.zip").write_bytes(pipe.data)
    assert found(tmp_path / "m.zip") == set()


def test_two_members_of_one_name_are_told(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            archive.writestr("w.pth", FILES["m/policy.pth"])
    assert ("error", "damaged", "w.pth") in found(tmp_path / "m.zip")


def test_a_tar_archive_that_ends_early_or_goes_on(tmp_path: Path) -> None:
    path = tarred(tmp_path / "m.tar")
    data = path.read_bytes()
    with tarfile.open(path) as archive:
        notes = archive.getmember("notes")
    path.write_bytes(data[: notes.offset_data + 512])
    assert ("error", "truncated", None) in found(path)
    path.write_bytes(data[: notes.offset_data + 512 + 1024])  # the least end that there may be
    assert found(path) == {("note", "no-checksum", None)}
    path.write_bytes(data)
    patched(path, notes.offset + 3, b"X")  # the checksum of the header is wrong: readers stop
    assert ("error", "damaged", None) in found(path)
    path.write_bytes(data)
    patched(path, notes.offset_data + notes.size + 1, b"X")
    assert ("warning", "hidden-bytes", "notes") in found(path)


def test_what_pickles_beside_the_checkpoints_would_run_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("w.pth", FILES["m/policy.pth"])
        archive.writestr("beside.pkl", b"cos\nsystem\n(S'touch owned'\ntR.")
    (whole, _) = verdicts(tmp_path / "m.zip")
    (finding,) = whole.findings
    assert (finding.rule, finding.entry) == ("dangerous-global", "os.system")
    assert "beside.pkl" in finding.message
    assert [risk.name for risk in whole.globals] == ["os.system"]


def test_an_encrypted_member_is_said_not_to_be_looked_at(tmp_path: Path) -> None:
    path = zipped(tmp_path / "m.zip")
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.rindex(mark) + at] |= 1
    path.write_bytes(data)
    assert ("warning", "structure", "notes") in found(path)


def test_digests_are_of_the_archive_or_of_a_model_in_it(tmp_path: Path) -> None:
    path = zipped(tmp_path / "m.zip")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    model = digest([f"{path}:m/policy.pth"]).models[0].digest
    assert verdicts(path, digests=[sha256])[0].checksums.sha256 == sha256
    assert verdicts(path, digests=[model])[1].digests == (model,)
    assert verify([path], Checks(digests=["0" * 64])).exit_code == 1
    right = DigestList.parse(f"{sha256}  {path}\n{model}  {path}:m/policy.pth\n", "LIST")
    assert verify([path], Checks(lists=[right])).exit_code == 0
    for text in (f"{'0' * 64}  {path}\n", f"{'0' * 64}  {path}:m/policy.pth\n", f"{sha256}  x\n"):
        assert verify([path], Checks(lists=[DigestList.parse(text, "LIST")])).exit_code == 1


def test_a_folder_of_files_in_an_archive_without_a_checkpoint_is_none(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("a.txt", b"hello")
    report = verify([tmp_path / "m.zip"])
    assert report.exit_code == 2
    assert "no checkpoint was found" in report.failures[0].message


@pytest.mark.parametrize("form", ["--json", "--jsonl", "--sarif"])
def test_every_form_has_the_archive_and_its_checkpoints(form: str, tmp_path: Path) -> None:
    path = zipped(tmp_path / "m.zip")
    data = path.read_bytes()
    patched(path, data.index(WEIGHTS.numpy().tobytes()) + 5, b"\xff")
    done = CliRunner().invoke(cli, ["verify", str(path), form])
    assert done.exit_code == 1
    if form == "--jsonl":
        assert len(done.stdout.splitlines()) == 2
    sign = "%3A" if form == "--sarif" else ":"
    assert f"{os.fspath(path)}{sign}m/policy.pth" in done.stdout


@pytest.mark.parametrize("kind", ["file", "zip"])
def test_the_progress_bar_is_told_of_every_byte_that_is_compared(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(FILES["m/policy.pth"])
    if kind == "zip":
        path = zipped(tmp_path / "m.zip")
    totals: list[int] = []
    told: list[int] = []

    @contextmanager
    def bar(total: int) -> Iterator[Callable[[int], object]]:
        totals.append(total)
        yield told.append

    report = verify([path], Checks(values=True), progress=bar)
    compared = sum(each.checksums.checked_nbytes for each in report.verdicts)
    assert sum(told) == sum(totals) == compared + WEIGHTS.nbytes
