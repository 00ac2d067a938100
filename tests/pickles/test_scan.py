"""Pickles gone through without carrying them out: where opcodes end, and what a graph will take."""

from __future__ import annotations

import pickle
import pickletools
import random
import struct

import pytest
import torch

from ckpt_surgery.errors import CkptError, DamagedFileError, LimitExceededError
from ckpt_surgery.pickles import Limits, parse
from ckpt_surgery.pickles.scan import (
    _COSTS,
    _HEAVY,
    _HEAVY_COST,
    _LIGHT_COST,
    _cost,
    _next,
    require_memory,
    require_whole_frames,
)

VALUES = [
    {"a": [1, 2.5, None, True, (1, 2), 2**70, -1], "b" * 300: b"x" * 300, "c": {1, 2}},
    [frozenset({1}), bytearray(b"abc"), complex(1, 2), torch.Size([2, 3]), 10**700, "é" * 70_000],
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", VALUES)
def test_opcodes_end_where_pickletools_says(value: object, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    starts = [at for _, _, at in pickletools.genops(data) if at is not None]
    at = 0
    for expected in [*starts[1:], len(data)]:
        at = _next(data, at)
        assert at == expected
    assert _cost(data, 0)[1] == len(data)
    require_whole_frames(data, 0, len(data))


def test_every_opcode_is_known() -> None:
    """An argument of four bytes, so that a text would be one of 0 bytes."""
    for opcode in pickletools.opcodes:
        code = opcode.code.encode("latin-1") + b"\0\0\0\0\0\0\0\0\n\n\n"
        width = 0 if opcode.arg is None else opcode.arg.n
        counted = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4}
        counted |= {pickletools.TAKEN_FROM_ARGUMENT4U: 4, pickletools.TAKEN_FROM_ARGUMENT8U: 8}
        width = counted.get(width, width)
        if width == pickletools.UP_TO_NEWLINE:
            width = 10 if opcode.arg is pickletools.stringnl_noescape_pair else 9
        assert _next(code, 0) == 1 + width, opcode.name


def frame(content: bytes, length: int | None = None) -> bytes:
    return b"\x95" + struct.pack("<Q", len(content) if length is None else length) + content


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (frame(b"K\1K\2\x86", 3) + b".", "an opcode reaches beyond its frame"),
        (frame(b"cmath\nsq") + b"rt\n.", "an opcode reaches beyond its frame"),
        (frame(b"X\3\0\0\0a") + b"bc.", "an opcode reaches beyond its frame"),
        (frame(b"N" + frame(b"K\1\x86", 3), 30) + b".", "a frame begins inside another"),
        (frame(b"N.", 3) + b"x", "a frame reaches beyond the end of the pickle"),
    ],
)
def test_frame_that_ends_inside_an_opcode_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(DamagedFileError, match=message):
        parse(b"\x80\x04" + data + bytes(40))


def test_frames_may_be_several_and_end_with_the_pickle() -> None:
    data = b"\x80\x04" + frame(b"K\1") + b"K\2" + frame(b"\x86.")
    assert parse(data + b"more").root == (1, 2)
    assert parse(b"xx" + data, start=2).root == (1, 2)


@pytest.mark.parametrize("opcode", [b"\x8f", b"}", b"]", b"(\x91", b"(l", b"(d", b"c\n\n", b"Nr"])
def test_graph_that_takes_more_than_its_length_explains_is_refused(opcode: bytes) -> None:
    limits = Limits(memory=1 << 20)
    more = bytes(4) if opcode == b"Nr" else b""
    few, many = (b"(" + (opcode + more) * n + b"t." for n in (500, 20_000))
    parse(few, limits=limits)
    with pytest.raises(LimitExceededError, match="bytes of memory, more than 1048576"):
        parse(many, limits=Limits(memory=1 << 20, memory_share=1))
    with pytest.raises(LimitExceededError):
        parse(b"xx" + many[:-1], start=2, limits=Limits(memory=1 << 20, memory_share=1))


def test_memory_may_grow_with_the_pickle() -> None:
    data = b"(" + b"X\x10\0\0\0" + b"x" * 16 + b"K\1" * 100_000 + b"t."
    require_memory(data, 0, Limits(memory=1000, memory_share=8))
    with pytest.raises(LimitExceededError):
        require_memory(data, 0, Limits(memory=1000, memory_share=1))


def test_quick_estimate_is_never_below_the_cost() -> None:
    rng = random.Random(0)
    codes = [bytes([code]) for codes in _COSTS for code in codes]
    for _ in range(300):
        data = b""
        for code in rng.choices(codes, k=40):
            argument = b"\n\n" if code in b"FILPSVgpci" else bytes(8)
            data += b"h\0)" + code + argument[: _next(code + argument, 0) - 1]
        heavy = len(data) - len(data.translate(None, _HEAVY))
        assert len(data) * _LIGHT_COST + heavy * _HEAVY_COST >= _cost(data, 0)[0], data


def test_cut_anywhere_it_is_truncated_or_refused() -> None:
    data = pickle.dumps(VALUES[0], 4)
    for end in range(len(data)):
        assert _cost(data[:end], 0)[1] == end
        with pytest.raises(CkptError):
            parse(data[:end])
