"""A directory that appears with all its files or not at all, whatever happens meanwhile."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from ckpt_surgery.errors import DamagedFileError, ReadError, WriteError
from ckpt_surgery.fileio import atomic_directory as module
from ckpt_surgery.fileio.atomic_directory import atomic_directory
from ckpt_surgery.fileio.directory import DirectorySource

NEW = {"a.bin": b"new a", "sub/b.bin": b"new b" * 9999}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"old a")
    (folder / "c.bin").write_bytes(b"old c")
    return folder


def write(path: Path, files: dict[str, bytes] = NEW, **options: Any) -> None:
    options.setdefault("replaceable", ("*.bin",))
    with atomic_directory(path, **options) as new_file:
        for name, data in files.items():
            with new_file(name) as sink:
                sink.write(data)


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_new_directory_has_all_files(tmp_path: Path) -> None:
    seen: list[int] = []
    write(tmp_path / "new", progress=seen.append)
    assert content(tmp_path / "new") == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert sum(seen) == sum(map(len, NEW.values()))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_one_leaves_nothing(
    tmp_path: Path, old: Path, error: type[BaseException]
) -> None:
    before = content(old)

    def interrupt(path: Path, **options: Any) -> None:
        with atomic_directory(path, replaceable=("*",), **options) as new_file:
            with new_file("a.bin") as sink:
                sink.write(b"half")
            assert not (path / "sub").exists()
            raise error

    for path, options in ((tmp_path / "new", {}), (old, {"force": True})):
        with pytest.raises(error):
            interrupt(path, **options)
    assert content(old) == before
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_existing_one_is_replaced_only_with_force(old: Path) -> None:
    with pytest.raises(WriteError, match="already exists"):
        write(old)
    old.chmod(0o750)
    write(old, force=True)
    assert content(old) == NEW
    assert stat.S_IMODE(old.stat().st_mode) == 0o750
    assert [path.name for path in old.parent.iterdir()] == ["old"]


def test_empty_one_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    write(tmp_path / "empty")
    assert content(tmp_path / "empty") == NEW


def test_nothing_else_is_ever_removed(old: Path) -> None:
    (old / "notes.txt").write_text("mine")
    (old / "link.bin").symlink_to("/nowhere")
    before = content(old)
    for options in ({"force": True}, {"replacing": DirectorySource.open(old)}):
        with pytest.raises(WriteError, match=r"no part of a checkpoint: 'notes\.txt'$"):
            write(old, replaceable=("*.bin",), **options)
    with pytest.raises(WriteError, match=r"'a\.bin', 'c\.bin', 'link\.bin' and 1 more"):
        write(old, replaceable=(), force=True)
    assert content(old) == before


def test_input_is_replaced_only_in_place(old: Path) -> None:
    source = DirectorySource.open(old)
    with pytest.raises(WriteError, match="the output is the input"):
        write(old, force=True, inputs=[source])
    write(old, replacing=source, inputs=[source])
    assert content(old) == NEW
    with pytest.raises(WriteError, match="no longer the directory that was read"):
        write(old, replacing=source)


def test_link_stays_a_link(tmp_path: Path, old: Path) -> None:
    (tmp_path / "link").symlink_to("old")
    write(tmp_path / "link", force=True)
    assert (tmp_path / "link").is_symlink()
    assert content(old) == NEW


def test_one_without_a_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WriteError, match="is a file"):
        write(tmp_path / "file", force=True)
    with pytest.raises(WriteError, match="does not exist"):
        write(tmp_path / "no" / "new")


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", ""])
def test_no_file_goes_outside(tmp_path: Path, name: str) -> None:
    with pytest.raises(DamagedFileError, match="leads out"):
        write(tmp_path / "new", {name: b""})
    assert list(tmp_path.iterdir()) == []


def test_another_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "new"

    def write_while_another_appears() -> None:
        with atomic_directory(path):
            path.mkdir()
            (path / "theirs").write_bytes(b"theirs")

    with pytest.raises(WriteError, match="another program created it meanwhile"):
        write_while_another_appears()
    assert content(path) == {"theirs": b"theirs"}
    assert list(tmp_path.iterdir()) == [path]


class TestWithoutExchange:
    """Where the system cannot exchange two directories: moved aside, and back if need be."""

    @pytest.fixture(autouse=True)
    def no_exchange(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_exchanged", lambda *_: False)

    def test_it_is_replaced(self, old: Path) -> None:
        write(old, force=True)
        assert content(old) == NEW
        assert list(old.parent.iterdir()) == [old]

    def test_it_comes_back_if_the_new_one_cannot_take_its_place(
        self, old: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before, rename = content(old), Path.rename

        def fails(path: Path, target: Path) -> Path:
            if target == old and path.name.endswith(".tmp") and (path / "sub").exists():
                raise OSError(5, os.strerror(5))
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", fails)
        with pytest.raises(WriteError, match="input/output error"):
            write(old, force=True)
        assert content(old) == before
        assert list(old.parent.iterdir()) == [old]


def test_bytes_reach_the_disk_where_a_directory_is_replaced(
    tmp_path: Path, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    write(tmp_path / "new")
    assert not synced
    write(tmp_path / "durable", fsync=True)
    assert len(synced) == len(NEW) + 3  # the directory, the one in it, and that it is in
    synced.clear()
    write(old, force=True)
    assert synced


def test_of_two_edits_at_once_none_is_lost(tmp_path: Path, old: Path) -> None:
    """Another edit that comes while the new directory is written wins; this one is refused."""

    def edit(source: DirectorySource) -> None:
        with atomic_directory(old, replacing=source, replaceable=("*",)) as new_file:
            with new_file("c.bin") as sink:
                sink.write(b"lost")
            write(old, replacing=DirectorySource.open(old), replaceable=("*",))

    with pytest.raises(WriteError, match="another program replaced it"):
        edit(DirectorySource.open(old))
    assert content(old) == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_directory_whose_files_change_is_not_replaced(old: Path) -> None:
    source = DirectorySource.open(old)
    name = source.names[0]
    source.member(name)
    os.utime(old / name, ns=(1, 1))
    before = content(old)
    with pytest.raises(ReadError, match="another program changed it"):
        write(old, replacing=source, replaceable=("*",))
    assert content(old) == before
