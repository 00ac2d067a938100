"""A file that appears whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ckpt_surgery.errors import CkptError, WriteError
from ckpt_surgery.fileio import ByteRange, FileSource, read_zip
from ckpt_surgery.fileio.atomic import atomic_output

OLD, NEW = b"the old file", b"the new file " * 9999


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old.pth"
    path.write_bytes(OLD)
    return path


def write(path: Path, data: bytes = NEW, **options: Any) -> None:
    with atomic_output(path, **options) as sink:
        sink.write(data)


def interrupt(path: Path, error: type[BaseException], **options: Any) -> None:
    with atomic_output(path, **options) as sink:
        sink.write(NEW)
        raise error


def write_while_another_appears(path: Path) -> None:
    with atomic_output(path) as sink:
        sink.write(NEW)
        path.write_bytes(b"theirs")


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestAppearing:
    def test_file_is_there_only_when_it_is_complete(self, tmp_path: Path) -> None:
        path = tmp_path / "new.pth"
        with atomic_output(path) as sink:
            sink.write(NEW)
            assert not path.exists()
            (temporary,) = names(tmp_path)
            assert temporary.startswith(".new.pth.")
        assert path.read_bytes() == NEW
        assert names(tmp_path) == {"new.pth"}

    def test_empty_file_is_a_file(self, tmp_path: Path) -> None:
        write(tmp_path / "new.pth", b"")
        assert (tmp_path / "new.pth").read_bytes() == b""

    @pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
    def test_new_file_has_the_mode_of_the_umask(self, mask: int, tmp_path: Path) -> None:
        before = os.umask(mask)
        try:
            write(tmp_path / "new.pth")
        finally:
            os.umask(before)
        assert mode(tmp_path / "new.pth") == 0o666 & ~mask

    @pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, ".hidden", " spaced name "])
    def test_every_name_can_be_written(self, name: str, tmp_path: Path) -> None:
        write(tmp_path / name)
        assert names(tmp_path) == {name}

    @pytest.mark.parametrize(
        "error", [ValueError, OSError, KeyboardInterrupt, SystemExit, GeneratorExit]
    )
    def test_interrupted_write_leaves_nothing(
        self, error: type[BaseException], tmp_path: Path
    ) -> None:
        with pytest.raises(error):
            interrupt(tmp_path / "new.pth", error)
        assert names(tmp_path) == set()

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_interrupted_write_leaves_destination_untouched(
        self, error: type[BaseException], old: Path
    ) -> None:
        before = old.stat()
        with pytest.raises(error):
            interrupt(old, error, force=True)
        assert old.read_bytes() == OLD
        assert old.stat().st_ino == before.st_ino
        assert names(old.parent) == {"old.pth"}

    def test_errors_of_the_block_are_its_own(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError), atomic_output(tmp_path / "new.pth"):
            (tmp_path / "missing").read_bytes()


class TestRefusing:
    def test_existing_file_is_refused(self, old: Path) -> None:
        with pytest.raises(WriteError, match="already exists") as caught:
            write(old)
        assert caught.value.hint is not None
        assert "--force" in caught.value.hint
        assert old.read_bytes() == OLD

    def test_input_is_refused_even_with_force(self, old: Path, tmp_path: Path) -> None:
        symbolic, hard = tmp_path / "symbolic", tmp_path / "hard"
        symbolic.symlink_to(old)
        hard.hardlink_to(old)
        with FileSource.open(old) as file:
            for path in (old, symbolic, hard):
                with pytest.raises(WriteError, match="the output is the input"):
                    write(path, force=True, inputs=[file])
        assert old.read_bytes() == OLD
        assert symbolic.is_symlink()

    def test_file_that_appears_meanwhile_is_not_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "new.pth"
        with pytest.raises(WriteError, match="another program created it meanwhile"):
            write_while_another_appears(path)
        assert path.read_bytes() == b"theirs"
        assert names(tmp_path) == {"new.pth"}

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (".", "is a directory"),
            ("new.pth/", "is a directory"),
            ("missing/new.pth", "the directory '.*missing' does not exist"),
            ("old.pth/new.pth", "cannot be written: not a directory"),
            ("null\0byte", "cannot be written"),
            ("n" * 300, "cannot be written: file name too long"),
            ("loop", "cannot be written: too many levels"),
        ],
    )
    def test_impossible_place_is_refused(self, name: str, message: str, old: Path) -> None:
        (old.parent / "loop").symlink_to("loop")
        with pytest.raises(WriteError, match=message):
            write(f"{old.parent}/{name}")  # type: ignore[arg-type]  # Path drops the slash
        assert names(old.parent) == {"old.pth", "loop"}

    def test_socket_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            with pytest.raises(WriteError, match="is not a regular file"):
                write(path, force=True)
        assert stat.S_ISSOCK(path.stat().st_mode)

    @pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
    def test_directory_that_allows_no_files_is_refused(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(WriteError, match="permission denied"):
            write(tmp_path / "new.pth")

    def test_file_that_cannot_be_created_is_reported(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> int:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(os, "open", fail)
        with pytest.raises(WriteError, match="permission denied") as caught:
            write(tmp_path / "new.pth")
        assert caught.value.hint is not None
        assert str(tmp_path) in caught.value.hint


class TestReplacing:
    def test_force_replaces(self, old: Path) -> None:
        write(old, force=True)
        assert old.read_bytes() == NEW
        assert names(old.parent) == {"old.pth"}

    @pytest.mark.parametrize("bits", [0o600, 0o644, 0o755, 0o440])
    def test_replaced_file_keeps_its_mode(self, bits: int, old: Path) -> None:
        old.chmod(bits)
        write(old, force=True)
        assert old.read_bytes() == NEW
        assert mode(old) == bits

    def test_nobody_else_can_read_a_replacement_before_it_has_its_mode(self, old: Path) -> None:
        old.chmod(0o640)
        with atomic_output(old, force=True) as sink:
            sink.write(NEW)
            (temporary,) = names(old.parent) - {"old.pth"}
            assert mode(old.parent / temporary) == 0o600

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
    def test_replaced_file_keeps_its_owner(self, old: Path) -> None:
        os.chown(old, 1234, 2345)
        old.chmod(0o640)
        write(old, force=True)
        assert (old.stat().st_uid, old.stat().st_gid, mode(old)) == (1234, 2345, 0o640)

    def test_owner_and_mode_that_may_not_be_given_are_let_go(
        self, old: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        real = os.fstat
        monkeypatch.setattr(os, "fchown", fail)
        monkeypatch.setattr(os, "fchmod", fail)
        monkeypatch.setattr(
            os, "fstat", lambda fd: os.stat_result((*real(fd)[:4], -5, -5, *real(fd)[6:]))
        )
        write(old, force=True)
        assert old.read_bytes() == NEW
        assert mode(old) == 0o600

    def test_link_stays_and_its_target_is_replaced(self, old: Path, tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to("old.pth")
        with pytest.raises(WriteError, match="already exists"):
            write(link)
        write(link, force=True)
        assert link.is_symlink()
        assert old.read_bytes() == NEW

    def test_link_to_nothing_creates_its_target(self, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        link = tmp_path / "link"
        link.symlink_to("elsewhere/new.pth")
        write(link)
        assert link.is_symlink()
        assert (tmp_path / "elsewhere" / "new.pth").read_bytes() == NEW

    def test_input_is_replaced_in_place_while_it_is_read(self, old: Path) -> None:
        old.write_bytes(NEW)
        with FileSource.open(old) as file:
            with atomic_output(old, replacing=file, inputs=[file]) as sink:
                sink.write(b"header")
                sink.copy(ByteRange(file, 0, file.size))
            assert old.read_bytes() == b"header" + NEW
            assert file.read_at(0, file.size) == NEW

    def test_file_that_is_no_longer_the_input_is_not_replaced(self, old: Path) -> None:
        with FileSource.open(old) as file:
            old.unlink()
            with pytest.raises(WriteError, match="no longer the file that was read"):
                write(old, replacing=file)
            old.write_bytes(b"another")
            with pytest.raises(WriteError, match="no longer the file that was read"):
                write(old, replacing=file)
        assert old.read_bytes() == b"another"

    @pytest.mark.parametrize(
        ("exists", "fsync", "expected"),
        [
            (False, None, []),
            (True, None, ["file", "directory"]),
            (False, True, ["file", "directory"]),
            (True, False, []),
        ],
    )
    def test_replacement_reaches_the_disk_before_it_takes_the_name(
        self,
        exists: bool,
        fsync: bool | None,
        expected: list[str],
        old: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        synced: list[str] = []

        def record(fd: int) -> None:
            directory = stat.S_ISDIR(os.fstat(fd).st_mode)
            synced.append("directory" if directory else "file")
            assert (old.read_bytes() == NEW if old.exists() else False) == directory

        if not exists:
            old.unlink()
        monkeypatch.setattr(os, "fsync", record)
        write(old, force=True, fsync=fsync)
        assert synced == expected


class TestSystemsWithoutHardLinks:
    @pytest.fixture(autouse=True)
    def _no_links(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", fail)

    def test_file_appears(self, tmp_path: Path) -> None:
        write(tmp_path / "new.pth")
        assert (tmp_path / "new.pth").read_bytes() == NEW
        assert names(tmp_path) == {"new.pth"}

    def test_file_that_appears_meanwhile_is_not_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "new.pth"
        with pytest.raises(WriteError, match="not permitted"):
            write_while_another_appears(path)
        assert path.read_bytes() == b"theirs"
        assert names(tmp_path) == {"new.pth"}


def failing(code: int, after: int = 0) -> Callable[..., int]:
    """`os.write` that fails once `after` bytes are written."""
    real, state = os.write, SimpleNamespace(left=after)

    def fake(fd: int, data: memoryview) -> int:
        if state.left <= 0:
            raise OSError(code, os.strerror(code))
        done = real(fd, data[: min(state.left, 1000)])
        state.left -= done
        return done

    return fake


class TestFailing:
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG])
    @pytest.mark.parametrize("after", [0, 50_000])
    def test_failed_write_leaves_nothing(
        self, code: int, after: int, old: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "write", failing(code, after))
        with pytest.raises(WriteError, match=os.strerror(code).lower()) as caught:
            write(old, force=True)
        assert (caught.value.hint is not None) == (code in (errno.ENOSPC, errno.EDQUOT))
        assert old.read_bytes() == OLD
        assert names(old.parent) == {"old.pth"}

    @pytest.mark.parametrize("name", ["fsync", "replace"])
    def test_failed_finish_leaves_nothing(
        self, name: str, old: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, name, fail)
        with pytest.raises(WriteError, match="input/output error"):
            write(old, force=True)
        assert old.read_bytes() == OLD
        assert names(old.parent) == {"old.pth"}

    def test_directory_that_cannot_be_synced_is_no_failure(
        self, old: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = os.fsync

        def fail(fd: int) -> None:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "Invalid argument")
            real(fd)

        monkeypatch.setattr(os, "fsync", fail)
        write(old, force=True)
        assert old.read_bytes() == NEW

    def test_lack_of_space_is_known_before_anything_is_written(self, tmp_path: Path) -> None:
        with (
            pytest.raises(WriteError, match="no space: 1152921504606846976 bytes are needed"),
            atomic_output(tmp_path / "new.pth") as sink,
        ):
            sink.reserve(1 << 60)
        assert names(tmp_path) == set()

    def test_space_that_is_not_known_is_enough(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(_: int) -> None:
            raise OSError(errno.ENOSYS, "Function not implemented")

        with atomic_output(tmp_path / "a") as sink:
            sink.reserve(1)
            monkeypatch.setattr(os, "fstatvfs", fail)
            sink.reserve(1 << 60)
            nothing = SimpleNamespace(f_blocks=0, f_bfree=0, f_frsize=4096)
            monkeypatch.setattr(os, "fstatvfs", lambda _: nothing)
            sink.reserve(1 << 60)


KILLED = """
import sys
from pathlib import Path
from ckpt_surgery.fileio import Bytes
from ckpt_surgery.fileio.atomic import atomic_output
from ckpt_surgery.fileio.zip_write import lay_out
layout = lay_out("r", [(str(i), Bytes(bytes([i]) * 200_000)) for i in range(100)])
print("ready", flush=True)
while True:
    with atomic_output(sys.argv[1], force=True, fsync=False) as sink:
        layout.write(sink)
"""


def test_killed_write_leaves_the_old_file_or_the_whole_new_one(tmp_path: Path) -> None:
    path = tmp_path / "out.pth"
    wholes = set()
    for seed in range(12):
        path.write_bytes(OLD)
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            time.sleep(random.Random(seed).uniform(0, 0.03))
            child.kill()
        data = path.read_bytes()
        wholes.add(len(data))
        if data != OLD:
            with FileSource.open(path) as file:
                whole = [record.read(200_000) for record in read_zip(file).records]
            assert whole == [bytes([i]) * 200_000 for i in range(100)]
    assert len(wholes) <= 2
    assert all(name.startswith(".out.pth.") for name in names(tmp_path) - {"out.pth"})


class TestReplacingWhatWasRead:
    """Two edits at once cannot lose one: the file must still be the one that was read."""

    def test_a_file_that_is_as_it_was_read_is_replaced(self, old: Path) -> None:
        with FileSource.open(old) as file:
            write(old, replacing=file)
        assert old.read_bytes() == NEW

    @pytest.mark.parametrize("link", ["old.pth", "symbolic"])
    @pytest.mark.parametrize("when", ["while it is written", "just before the rename"])
    @pytest.mark.parametrize("how", ["replaced", "written to", "grown", "gone"])
    def test_a_file_that_changed_meanwhile_is_left_alone(
        self, how: str, when: str, link: str, old: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (old.parent / "symbolic").symlink_to("old.pth")

        def change() -> None:
            if how == "replaced":
                (old.parent / "theirs").write_bytes(OLD)
                (old.parent / "theirs").replace(old)
            elif how == "written to":
                old.write_bytes(OLD[::-1])
                os.utime(old, ns=(1, 1))
            elif how == "grown":
                with old.open("ab") as file:
                    file.write(b"more")
            else:
                old.unlink()

        if when == "just before the rename":
            real = os.fsync
            monkeypatch.setattr(os, "fsync", lambda fd: (real(fd), change()))

        def edit(file: FileSource) -> None:
            with atomic_output(old.parent / link, replacing=file) as sink:
                sink.write(NEW)
                if when == "while it is written":
                    change()

        message = r"another program (changed|replaced) it"
        with FileSource.open(old) as file, pytest.raises(CkptError, match=message) as caught:
            edit(file)
        assert "run the command again" in str(caught.value.hint)
        theirs = {"replaced": OLD, "written to": OLD[::-1], "grown": OLD + b"more"}
        assert (old.read_bytes() if old.exists() else None) == theirs.get(how)
        assert names(old.parent) == {"symbolic", *(["old.pth"] if how != "gone" else [])}

    def test_between_the_last_look_and_the_rename_others_wait_outside(
        self, old: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another edit of the file that comes at this very moment is refused."""
        other = FileSource.open(old)
        real = Path.replace
        refused: list[WriteError] = []

        def replace(temporary: Path, target: Path) -> Path:
            if not refused:
                with pytest.raises(WriteError, match="another program holds a lock") as caught:
                    write(old, b"theirs", replacing=other)
                refused.append(caught.value)
            return real(temporary, target)

        monkeypatch.setattr(Path, "replace", replace)
        with FileSource.open(old) as file:
            write(old, replacing=file)
        assert refused
        assert old.read_bytes() == NEW
        with other, pytest.raises(WriteError, match="no longer the file that was read"):
            write(old, b"theirs", replacing=other)
        assert old.read_bytes() == NEW

    def test_a_file_system_without_locks_is_no_obstacle(
        self, old: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", fail)
        with FileSource.open(old) as file:
            write(old, replacing=file)
        assert old.read_bytes() == NEW

    @pytest.mark.parametrize("bits", [0o4755, 0o2750, 0o6711, 0o1644])
    def test_set_user_id_bits_do_not_survive(self, bits: int, old: Path) -> None:
        old.chmod(bits)
        with FileSource.open(old) as file:
            write(old, replacing=file)
        assert mode(old) == bits & 0o777
