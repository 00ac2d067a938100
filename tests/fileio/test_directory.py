"""A directory's files are found and opened by safe names only."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_surgery.errors import DamagedFileError, LimitExceededError, ReadError
from ckpt_surgery.fileio import directory as module
from ckpt_surgery.fileio.directory import DirectorySource
from ckpt_surgery.fileio.sources import is_at


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.bin").write_bytes(b"bb")
    (folder / "a.bin").write_bytes(b"aaa")
    (folder / "sub" / "c.bin").write_bytes(b"c")
    (tmp_path / "outside.bin").write_bytes(b"secret")
    (folder / "out.bin").symlink_to(tmp_path / "outside.bin")
    (folder / "in.bin").symlink_to("a.bin")
    (folder / "up").symlink_to(tmp_path)
    return folder


def test_files_are_listed_with_their_bytes(folder: Path) -> None:
    source = DirectorySource.open(folder)
    assert source.names == ["a.bin", "b.bin", "sub/c.bin"]
    assert (source.size, source.name) == (6, str(folder))
    assert is_at(source, folder)
    assert "3 files" in repr(source)


def test_members_are_opened_once_and_closed_with_it(folder: Path) -> None:
    source = DirectorySource.open(folder)
    member = source.member("sub/c.bin")
    assert member.read_at(0, 1) == b"c"
    assert source.member("sub/c.bin") is member
    assert source.member("in.bin").read_at(0, 3) == b"aaa"
    source.close()
    with pytest.raises(ReadError, match="closed"):
        member.read_at(0, 1)


@pytest.mark.parametrize(
    "name",
    ["../outside.bin", "sub/../../outside.bin", "/etc/passwd", "..", "", ".", "C:x", "a\\b", "a\0"],
)
def test_name_that_leads_out_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(DamagedFileError, match="leads out"):
        DirectorySource.open(folder).member(name)


@pytest.mark.parametrize("name", ["out.bin", "up/outside.bin"])
def test_link_that_leads_out_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(DamagedFileError, match="link that leads out"):
        DirectorySource.open(folder).member(name)


def test_missing_member_is_damage(folder: Path) -> None:
    with pytest.raises(DamagedFileError, match="missing") as refused:
        DirectorySource.open(folder).member("d.bin")
    assert refused.value.entry == "d.bin"


def test_directory_itself_has_no_bytes(folder: Path) -> None:
    source = DirectorySource.open(folder)
    for attempt in (
        lambda: source.read_at(0, 1),
        lambda: source.read_into(0, memoryview(bytearray(1))),
        lambda: source.read_ranges([(0, 1)]),
    ):
        with pytest.raises(ReadError, match="is a directory"):
            attempt()
    assert source.descriptor_at(0) is None


def test_missing_directory_and_too_many_files_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ReadError, match="no such file"):
        DirectorySource.open(folder / "no")
    monkeypatch.setattr(module, "_MOST_FILES", 2)
    with pytest.raises(LimitExceededError, match="more than 2 files"):
        DirectorySource.open(folder)
