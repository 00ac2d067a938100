"""Every error is in the tree, says what and where, and is one class of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_surgery import errors
from ckpt_surgery.errors import CkptError, about_file

CLASSES = [
    found
    for found in vars(errors).values()
    if isinstance(found, type) and issubclass(found, Exception)
]


def tree(cls: type[Exception], depth: int = 0) -> list[tuple[int, str]]:
    below = sorted((c for c in cls.__subclasses__() if c in CLASSES), key=CLASSES.index)
    return [(depth, cls.__name__), *(line for child in below for line in tree(child, depth + 1))]


def test_docstring_draws_the_tree() -> None:
    assert errors.__doc__ is not None
    drawn = []
    for line in errors.__doc__.splitlines():
        name = line.lstrip("│├└─ ").split(" ")[0]
        if name.endswith("Error"):
            drawn.append((len(line[: line.index(name)]) // 4, name))
    assert drawn == tree(CkptError)
    assert {name for _, name in drawn} == {found.__name__ for found in CLASSES}


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_is_ours_and_documented(cls: type[Exception]) -> None:
    assert issubclass(cls, CkptError)
    assert cls.__doc__


@pytest.mark.parametrize(
    ("path", "entry", "text"),
    [
        (None, None, "is wrong"),
        ("w.pth", None, "'w.pth': is wrong"),
        (None, "storage 3", "(storage 3): is wrong"),
        ("w.pth", "storage 3", "'w.pth' (storage 3): is wrong"),
    ],
)
def test_error_says_where(path: str | None, entry: str | None, text: str) -> None:
    error = CkptError("is wrong", path=path, entry=entry, hint="do it again")
    assert str(error) == text
    assert error.message == "is wrong"
    assert error.hint == "do it again"
    assert error.path == (None if path is None else Path(path))


def test_file_is_called_what_it_was_called() -> None:
    error = CkptError("is wrong", path="./runs//w.pth")
    assert (error.file, error.path) == ("./runs//w.pth", Path("runs/w.pth"))
    assert str(error) == "'./runs//w.pth': is wrong"


def test_file_can_be_named_later() -> None:
    error = CkptError("is wrong", entry="version")
    error.name_file("w.pth")
    assert error.path == Path("w.pth")
    assert str(error) == "'w.pth' (version): is wrong"


def test_file_is_named_unless_the_error_names_one() -> None:
    with pytest.raises(CkptError, match=r"^'a\.pth': x$"), about_file("a.pth"):
        raise CkptError("x")
    with pytest.raises(CkptError, match=r"^'b\.pth': x$"), about_file("a.pth"):
        raise CkptError("x", path="b.pth")
    with pytest.raises(KeyError, match="x"), about_file("a.pth"):
        raise KeyError("x")
