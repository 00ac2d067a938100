"""Files of which torch loads something else than is said at first are refused, not shown wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bombs import ODICT, archive, call, mapping, name, number, storage, text, weights, whole
from click.testing import CliRunner
from lies import (
    CALLS,
    CONTENTS,
    FILES,
    KEYS,
    MAPPINGS,
    SHARED,
    ordered,
    read_by_presence,
    shown,
    two,
    with_contents,
)
from torch_checks import quiet

from ckpt_surgery import Output, Replace, convert, inspect, read, rename, selection, strip
from ckpt_surgery.cli.main import cli
from ckpt_surgery.errors import DamagedFileError, LossyEditError

LIES = CALLS | MAPPINGS | SHARED | KEYS | FILES


@pytest.mark.parametrize("name", LIES)
def test_lie_is_refused(name: str, tmp_path: Path) -> None:
    lie = LIES[name]
    path = tmp_path / "lie.pth"
    path.write_bytes(lie.data)
    with pytest.raises(DamagedFileError, match=lie.refusal):
        read(path)
    out = tmp_path / "out.pth"
    done = CliRunner().invoke(cli, ["convert", str(path), "-o", str(out)])
    assert (done.exit_code, out.exists()) == (2, False)


@pytest.mark.parametrize("name", LIES)
def test_torch_loads_the_lie(name: str, tmp_path: Path) -> None:
    """Otherwise it would be no lie, only damage."""
    path = tmp_path / "lie.pth"
    path.write_bytes(LIES[name].data)
    with quiet():
        for weights_only in {LIES[name].weights_only, False}:
            assert torch.load(path, weights_only=weights_only) is not None


@pytest.mark.parametrize("value", [b"\x88", b"\x89", b"\x88" + b"s" + b"X\3\0\0\0neg\x89"])
def test_negation_counts_by_presence_as_in_torch(value: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(read_by_presence(value))
    expected = torch.load(path, weights_only=True)["w"]
    assert expected.tolist() == [-1, -2, -3, -4]
    report = inspect(path, stats=True).to_dict()
    assert report["state_dicts"][0]["tensors"][0]["stats"]["min"] == -4


@pytest.mark.parametrize("name", CALLS)
def test_refusal_names_the_place(name: str, tmp_path: Path) -> None:
    path = tmp_path / "lie.pth"
    path.write_bytes(CALLS[name].data)
    with pytest.raises(DamagedFileError) as caught:
        read(path)
    assert caught.value.entry == "w"


@pytest.mark.parametrize("where", SHARED)
def test_changed_tensor_is_refused_where_it_lies(where: str, tmp_path: Path) -> None:
    path = tmp_path / "lie.pth"
    path.write_bytes(SHARED[where].data)
    with pytest.raises(DamagedFileError) as caught:
        read(path)
    assert (caught.value.entry or "").startswith(("x", "byte "))
    assert torch.load(path, weights_only=False)["m"]["w"][0] == 666  # what is shown otherwise is 1


def test_state_that_only_one_of_torchs_unpicklers_takes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    pair = b"](" + b"(" + text("items") + ODICT + b"te"
    path.write_bytes(two(ordered(("w", shown()), state=pair + b"b")))
    assert not callable(torch.load(path, weights_only=True).items)  # it is hidden
    with pytest.raises(DamagedFileError, match="is no dictionary"):
        read(path)


def test_what_is_given_elements_and_items_stays_closed(tmp_path: Path) -> None:
    """A list, whose elements the items replace: what is left only its class knows."""
    path = tmp_path / "w.pth"
    models = ordered(("w", shown())) + ordered(("b", shown()))
    root = name("builtins", "list") + b")R(" + models + b"e" + number(0)
    path.write_bytes(two(root + ordered(("w", storage("1"))) + b"s"))
    report = inspect(path).to_dict()
    assert report["state_dicts"] == []
    assert report["other"][0]["tensors"] == 2


def test_keys_that_differ_are_no_lie(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    keys = (
        *(number(1), text("1"), b"K\2\x85", b"K\2K\1\x86", call("torch.device", text("cuda"))),
        *(call("torch.device", text("cuda:1")), call("torch.Size", b"](K\3e")),
        *(call("builtins.complex", number(1), number(1)), name("torch", "float16")),
        *(call("_codecs.encode", text("1"), text("latin1")), name("torch", "bfloat16")),
    )
    entries = ((key, ordered(("w", shown()))) for key in keys)
    path.write_bytes(two(mapping(*entries)))
    with read(path) as checkpoint:
        assert len(checkpoint.state_dicts) == len(keys)


@pytest.mark.parametrize("name", CONTENTS)
def test_arguments_of_a_mapping_are_shown_and_edited(name: str, tmp_path: Path) -> None:
    path, out = tmp_path / "w.pth", tmp_path / "out.pth"
    path.write_bytes(with_contents(CONTENTS[name]))
    expected = torch.load(path, weights_only=True)
    assert sorted(expected) == ["hidden", "w"]
    with read(path) as checkpoint:
        assert checkpoint.state_dicts[0].names == list(expected)
    rename(path, out, [Replace("hidden", "shown")])
    found = torch.load(out, weights_only=True)
    assert type(found) is type(expected)
    assert list(found) == ["shown", "w"]
    assert torch.equal(found["shown"], expected["hidden"])
    strip(path, Output(out, force=True), selection(pattern="hidden"))
    assert list(torch.load(out, weights_only=True)) == ["w"]


def test_what_follows_the_end_of_a_pickle_is_told_and_not_lost(tmp_path: Path) -> None:
    path, out = tmp_path / "w.pth", tmp_path / "out.pth"
    path.write_bytes(archive(whole(weights()) + b"cposix\nsystem\n."))
    told = "an edit would lose something: 15 bytes follow the end of its pickle"
    assert inspect(path).to_dict()["warnings"] == [told]
    with pytest.raises(LossyEditError, match="15 bytes follow the end of its pickle"):
        convert(path, out)
    assert not out.exists()


def test_storages_of_what_is_not_understood_are_told(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    unknown = call("mine.make", storage("1"))
    path.write_bytes(archive(whole(weights(("x", unknown))), {"data/1": bytes(16)}))
    told = "1 storages of 16 bytes are in no tensor that is listed"
    assert inspect(path).to_dict()["warnings"] == [told]
