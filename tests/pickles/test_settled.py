"""A call is written with what it was given when it was read, or nothing is written."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from bombs import archive, fetch, keep, mapping, name, tensor, text, whole
from click.testing import CliRunner

from ckpt_surgery.cli.main import cli
from ckpt_surgery.errors import LimitExceededError, LossyEditError
from ckpt_surgery.pickles import Limits, parse
from ckpt_surgery.pickles.emit import emit

F = name("m", "f")
LATE = {
    "list": b"](" + F + b"]" + keep(1) + b"\x85R" + fetch(1) + b"K\1a0e.",
    "list in a tuple": b"](" + F + b"]" + keep(1) + b"\x85\x85R" + fetch(1) + b"K\1a0e.",
    "list in a dictionary": b"](" + F + b"}K\0]" + keep(1) + b"s\x85R" + fetch(1) + b"K\1a0e.",
    "dictionary": b"](" + F + b"}" + keep(1) + b"\x85R" + fetch(1) + b"K\1Ns0e.",
    "set": b"](" + F + b"\x8f" + keep(1) + b"\x85R" + fetch(1) + b"(K\1\x900e.",
    "object": b"](" + F + F + b")R" + keep(1) + b"\x85R" + fetch(1) + b"K\1Ns0e.",
    "state of an object": b"](" + F + F + b")R" + keep(1) + b"\x85R" + fetch(1) + b"Nb0e.",
    "callee": b"](" + F + b")R" + keep(1) + b")R" + fetch(1) + b"Nb0e.",
    "state": b"](" + F + b")R]" + keep(1) + b"b" + fetch(1) + b"K\1a0e.",
    "new object": b"](" + F + b"]" + keep(1) + b"\x85\x81" + fetch(1) + b"K\1a0e.",
    # the list holds the call, as picklers write it, but had something else in it before
    "what is being written": b"]" + keep(1) + b"K\1a" + F + fetch(1) + b"\x85R" + b"a.",
    "dictionary that is being written": b"}" + keep(1) + b"K\1Ns" + text("x") + F + fetch(1)
    + b"\x85Rs.",
    # all of it was there when the call was made; it would be empty
    "what was complete": b"]" + keep(1) + b"]" + keep(2) + b"a" + F + fetch(1) + b"\x85R" + keep(3)
    + b"0" + fetch(2) + fetch(3) + b"a0.",
}  # fmt: skip


@pytest.mark.parametrize("case", LATE)
def test_what_is_changed_after_a_call_is_not_written_before_it(case: str) -> None:
    with pytest.raises(LossyEditError, match="given something that is changed after the call"):
        emit(parse(b"\x80\2" + LATE[case]).root)


def test_what_is_changed_before_a_call_is_written() -> None:
    for early in (
        b"](" + F + b"]K\1a\x85Re.",
        b"](]" + keep(1) + b"K\1a" + F + fetch(1) + b"\x85Re.",
        b"](" + F + b"\x8f(K\1\x90\x85Re.",
        b"](" + F + F + b")RK\1NsNb\x85Re.",
    ):
        root = parse(b"\x80\2" + early).root
        assert emit(parse(emit(root)).root) == emit(root)


class Held:
    """Made by a call that is given what holds it."""

    def __init__(self, holder: Any) -> None:
        self.holder = holder

    def __reduce__(self) -> Any:
        return Held, (self.holder,), {"me": self}


@pytest.mark.parametrize("more", [0, 2, 997])
def test_a_container_of_what_it_is_given_to_is_written_as_the_pickler_does(more: int) -> None:
    listed: list[Any] = []
    keyed: dict[Any, Any] = {}
    listed += [*range(more), Held(listed), Held((listed, keyed)), keyed]
    keyed.update({"a": 1, "held": Held(keyed), "deep": Held([keyed, listed])})
    for value in (listed, keyed, [listed, Held(listed)]):
        data = pickle.dumps(value, 2)
        assert emit(parse(data).root) == data


def test_a_list_of_which_a_part_was_written_is_not_given_to_a_call() -> None:
    listed: list[Any] = [None] * 1_000
    listed += [Held(listed), 1]
    with pytest.raises(LossyEditError):
        emit(parse(pickle.dumps(listed, 2)).root)


def test_looking_at_what_is_given_is_bounded() -> None:
    shared = b"](" + b"]" * 50 + b"e" + keep(1)
    data = b"\x80\2](" + shared + (F + fetch(1) + b"\x85R") * 100 + b"e."
    root = parse(data).root
    emit(root)
    with pytest.raises(LimitExceededError, match="nodes to visit"):
        emit(root, limits=Limits(operations=1_000))


def test_no_edit_writes_such_a_file_and_tensors_only_leaves_the_call_out(tmp_path: Path) -> None:
    call = F + b"]" + keep(90) + b"\x85R" + fetch(90) + b"K\1a0"
    path, out = tmp_path / "in.pth", tmp_path / "out.pth"
    path.write_bytes(
        archive(
            whole(mapping((text("model"), mapping((text("w"), tensor()))), (text("note"), call)))
        )
    )
    edit = ["rename", str(path), "--sub", "w", "v", "-o", str(out)]
    done = CliRunner().invoke(cli, edit)
    assert done.exit_code == 2
    assert "'m.f' is given something that is changed after the call" in done.stderr
    assert "ckpt convert --tensors-only" in done.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["in.pth"]
    done = CliRunner().invoke(cli, ["convert", str(path), "--tensors-only", "-o", str(out)])
    assert done.exit_code == 0, done.stderr
