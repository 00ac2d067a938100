"""Whether `weights_only=True` loads a pickle: torch itself is the judge."""

from __future__ import annotations

import argparse
import pickle
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_kinds
from archives import read_records
from torch._weights_only_unpickler import _get_allowed_globals
from torch_checks import quiet, save

from ckpt_surgery.pickles import parse
from ckpt_surgery.pickles.weights_only import is_allowed, refusal


def ours(data: bytes) -> str | None:
    parsed = parse(data)
    return refusal(data, parsed.root, parsed.globals)


def torchs(path: Path) -> bool:
    try:
        with quiet():
            torch.load(path, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError):
        return False
    return True


def test_every_name_that_torch_allows_is_allowed() -> None:
    # what tests register for themselves is of their own modules
    theirs = {name for name in _get_allowed_globals() if name.startswith(("torch", "_", "b", "c"))}
    assert {name for name in theirs if not is_allowed(name)} == set()
    assert not is_allowed("os.system")
    assert not is_allowed("torch.load")


class Plain:
    pass


VALUES: dict[str, Any] = {
    # torch allows jagged ones only where `torch.nested` was imported, as in this process
    **{name: kind.make for name, kind in torch_kinds.TENSORS.items() if name != "jagged"},
    "dicts": lambda: {"a": [1, 2.5, None, True], "b": OrderedDict(c=(1, (2, (3,), ())))},
    "counter": lambda: Counter(a=3),
    "set": lambda: {1, 2},
    "empty set": set,
    "frozenset": lambda: frozenset({1}),
    "defaultdict": lambda: defaultdict(list, a=[1]),
    "complex": lambda: 1 + 2j,
    "large number": lambda: 2**40,
    "huge number": lambda: 2**3000,
    "bytes": lambda: b"abc",
    "bytearray": lambda: bytearray(b"abc"),
    "size": lambda: torch.Size([1, 2]),
    "device": lambda: torch.device("cuda", 1),
    "dtype": lambda: torch.bfloat16,
    "namespace": lambda: argparse.Namespace(lr=1),
    "object": Plain,
    "module": lambda: torch.nn.Linear(1, 1),
    "class": lambda: OrderedDict,
    "function": lambda: print,
    "optimizer": lambda: torch.optim.Adam([torch.nn.Parameter(torch.ones(2))]).state_dict(),
}


def _with_attributes() -> OrderedDict[str, int]:
    made = OrderedDict(a=1)
    made._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    return made


VALUES["attributes"] = _with_attributes


@pytest.mark.parametrize("name", VALUES)
def test_the_verdict_is_torchs(name: str, tmp_path: Path) -> None:
    with quiet():
        path = save({"value": VALUES[name]()}, tmp_path / "w.pth")
    data = dict(read_records(path))["data.pkl"]
    reason = ours(data)
    assert (reason is None) is torchs(path), reason


@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_other_protocols(protocol: int, tmp_path: Path) -> None:
    with quiet():
        torch.save({"a": torch.ones(2)}, tmp_path / "w.pth", pickle_protocol=protocol)
    data = dict(read_records(tmp_path / "w.pth"))["data.pkl"]
    assert (ours(data) is None) is torchs(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"cos\nsystem\n.", "names 'os.system'"),
        (b"\x82\x01.", "opcode EXT1"),
        (b"ctorch\nSize\n)R)R.", "calls something that it has made itself"),
        (b"ctorch\nSize\n)Rq\0(K\x01e.", "appends to a 'torch.Size'"),
        (b"ctorch\nSize\n)RX\x01\0\0\0aK\x01s.", "sets items of a 'torch.Size'"),
        (b"ctorch._utils\n_rebuild_tensor\n)R}b.", "gives a state to what"),
        (b"X\x06\0\0\0moduleK\x01\x86Q.", "no storage"),
        (b"K\x05Q.", "no storage"),
    ],
)
def test_reasons(data: bytes, reason: str) -> None:
    assert reason in str(ours(data))


def test_storages_are_the_only_persistent_ids() -> None:
    assert ours(b"X\x07\0\0\0storage\x85Q.") is None
    assert ours(b"U\x07storage\x85Q.") is None
