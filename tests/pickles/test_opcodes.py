"""The table of opcodes is that of `pickletools`."""

from __future__ import annotations

import pickle
import pickletools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.pickles import TruncatedPickleError
from ckpt_surgery.pickles.opcodes import NAMES, opcodes

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=20,
)


def test_every_opcode_has_its_name() -> None:
    assert {ord(each.code): each.name for each in pickletools.opcodes} == NAMES


@given(VALUES, st.integers(0, 5))
def test_opcodes_are_found_one_after_another(value: object, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    expected = [ord(each[0].code) for each in pickletools.genops(data)]
    assert list(opcodes(data)) == expected
    assert list(opcodes(b"??" + data, 2)) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n.", b"ios\nsystem\n.", b"(S'a'\n.", b"I1\n.", b"\x8c\x01a.",
        b"\x8a\x01\x05.", b"\x8b\x01\0\0\0\x05.", b"\x95\0\0\0\0\0\0\0\0N.", b"\x82\x01.",
        b"T\x01\0\0\0a.", b"\x8d\x01\0\0\0\0\0\0\0a.", b"P0\n.",
    ],
)  # fmt: skip
def test_every_layout_of_arguments(data: bytes) -> None:
    assert list(opcodes(data)) == [ord(each[0].code) for each in pickletools.genops(data)]


@pytest.mark.parametrize("data", [b"", b"N", b"cos\nsystem", b"cos", b"X\xff\0\0\0a.", b"I1"])
def test_without_stop_it_is_truncated(data: bytes) -> None:
    with pytest.raises(TruncatedPickleError):
        list(opcodes(data))


def test_what_is_no_opcode_is_refused() -> None:
    with pytest.raises(DamagedFileError, match="0xff is no opcode") as caught:
        list(opcodes(b"N\xff."))
    assert caught.value.entry == "byte 1"
