"""No output is an input, whatever either is called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckpt_surgery.errors import WriteError
from ckpt_surgery.fileio import FileSource
from ckpt_surgery.fileio.distinct import INPUT, OUTPUT, Role, require_distinct


@pytest.fixture
def there(tmp_path: Path) -> Path:
    path = tmp_path / "in.pth"
    path.write_bytes(b"weights")
    (tmp_path / "symbolic").symlink_to("in.pth")
    (tmp_path / "twice").symlink_to("symbolic")
    (tmp_path / "hard").hardlink_to(path)
    (tmp_path / "folder").symlink_to(".")
    return path


NAMES = ["in.pth", "symbolic", "twice", "hard", "folder/in.pth", "folder/hard"]


@pytest.mark.parametrize("output", NAMES)
@pytest.mark.parametrize("read", NAMES)
def test_a_link_hides_no_input(output: str, read: str, there: Path) -> None:
    with pytest.raises(WriteError, match="the output is the input") as caught:
        require_distinct([Role(OUTPUT, there.parent / output)], [Role(INPUT, there.parent / read)])
    assert str(caught.value).startswith(f"'{there.parent / output}'")
    assert "--in-place" in str(caught.value.hint)


@pytest.mark.parametrize("name", NAMES)
def test_an_open_file_and_a_descriptor_are_known_too(name: str, there: Path) -> None:
    with FileSource.open(there) as file:
        for place in (file, file.fileno()):
            with pytest.raises(WriteError, match="'--record' is the input"):
                require_distinct([Role("'--record'", there.parent / name)], [Role(INPUT, place)])
            with pytest.raises(WriteError, match="standard output is the input"):
                require_distinct([Role("standard output", file.fileno())], [Role(INPUT, place)])


def test_two_outputs_are_two_files_also_before_there_is_any(there: Path) -> None:
    one, other = there.parent / "new.pth", there.parent / "folder" / "new.pth"
    with pytest.raises(WriteError, match="'--record' is the output") as caught:
        require_distinct([Role(OUTPUT, one), Role("'--record'", other)], [])
    assert "name another file" in str(caught.value.hint)


def test_other_files_and_two_inputs_that_are_one_are_fine(there: Path) -> None:
    inputs = [Role(INPUT, there), Role("the file of '--like'", there)]
    require_distinct([Role(OUTPUT, there.with_name("new.pth"))], inputs)


def test_what_is_no_regular_file_may_be_both() -> None:
    null = Role(OUTPUT, os.devnull)
    require_distinct([null, Role("'--record'", os.devnull)], [null])


@pytest.mark.parametrize("place", [-1, "null\0byte", "loop"])
def test_what_cannot_be_looked_at_is_left_to_whoever_opens_it(
    place: str | int, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(there.parent)
    Path("loop").symlink_to("loop")
    require_distinct([Role(OUTPUT, place)], [Role(INPUT, place), Role(INPUT, "gone")])


@pytest.mark.parametrize("output", [".", "folder", "folder/..", "deep/.."])
def test_a_directory_that_an_input_lies_in_is_not_replaced(output: str, there: Path) -> None:
    (there.parent / "deep" / "er").mkdir(parents=True)
    inside = there.parent / "deep" / "er" / "in.pth"
    inside.write_bytes(b"weights")
    with FileSource.open(inside) as file:
        for place in (there.parent / "folder" / "deep" / "er" / "in.pth", file):
            with pytest.raises(WriteError, match="is a directory, and the input lies in it"):
                require_distinct([Role(OUTPUT, there.parent / output)], [Role(INPUT, place)])


def test_a_directory_is_a_file_like_others(there: Path) -> None:
    with pytest.raises(WriteError, match="the output is the input"):
        require_distinct([Role(OUTPUT, there.parent)], [Role(INPUT, there.parent / "folder")])
    new = there.parent / "new"
    new.mkdir()
    require_distinct([Role(OUTPUT, new)], [Role(INPUT, there)])
