"""Objects that are hardly more than a plain value, with numpy and Python as the oracles."""

from __future__ import annotations

import argparse
import collections
import math
import pathlib
import pickle
import types

import numpy as np
import pytest

from ckpt_surgery.pickles import Dict, Object, parse
from ckpt_surgery.torch_objects.simple import _NOT_SIMPLE, _simple

NUMBERS = [
    *(kind(value) for kind in (np.int8, np.int16, np.int32, np.int64) for value in (-100, 0, 7)),
    *(kind(200) for kind in (np.uint8, np.uint16, np.uint32, np.uint64)),
    *(kind(x) for kind in (np.float16, np.float32, np.float64) for x in (0.1, -0.0, 1e4)),
    np.float64("nan"), np.float32("inf"), np.float64(5e-324),
    np.uint64(2**64 - 1), np.int64(-(2**63)), np.bool_(True), np.bool_(False),
    np.dtype(">f8").type(0.5),
]  # fmt: skip


def plain(value, protocol=2):
    root = parse(pickle.dumps(value, protocol)).root
    assert isinstance(root, Object)
    return _simple(root)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("number", NUMBERS, ids=repr)
def test_a_number_of_numpy_is_the_number_that_item_gives(number, protocol):
    found = plain(number, protocol)
    assert type(found) is type(number.item())
    same = found == number.item() or (math.isnan(found) and math.isnan(number))
    assert same
    assert math.copysign(1, found) == math.copysign(1, number.item())


def test_bytes_of_a_big_endian_number_are_read_as_that():
    number = np.frombuffer(np.array([0.25], ">f4").tobytes(), ">f4")[0]
    found = parse(pickle.dumps(np.array(number, ">f4")[()], 2)).root
    assert _simple(found) == 0.25


@pytest.mark.parametrize("value", ["", "text", "añ\U0001f600"])
def test_a_text_of_numpy_is_that_text(value):
    assert plain(np.str_(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        pathlib.PurePosixPath("/data/imagenet"),
        pathlib.PurePosixPath("runs"),
        pathlib.PurePosixPath("/"),
        pathlib.PureWindowsPath("C:\\runs\\1"),
        pathlib.PurePosixPath(),
    ],
)
def test_a_path_is_its_text(value):
    assert plain(value) == str(value)


@pytest.mark.parametrize("kind", [argparse.Namespace, types.SimpleNamespace])
@pytest.mark.parametrize("values", [{}, {"lr": 0.1, "names": ["a"]}])
def test_a_namespace_is_the_dictionary_of_its_attributes(kind, values):
    found = plain(kind(**values))
    assert isinstance(found, Dict)
    assert [key for key, _ in found.pairs()] == list(values)


def test_a_dictionary_loses_its_default_and_nothing_else():
    found = plain(collections.defaultdict(list, {"a": [1], 2: None}))
    assert isinstance(found, Dict)
    assert list(found.pairs()) == [("a", [1]), (2, None)]


class Mine:
    """A class that is more than its attributes."""


@pytest.mark.parametrize(
    "value",
    [
        Mine(), np.longdouble(1), np.complex64(1j), np.datetime64(0, "s"), np.bytes_(b"x"),
        np.array([1.0]), np.dtype("f8"), collections.OrderedDict(a=1), {1, 2},
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_more_stays_what_it_is(value):
    assert plain(value) is _NOT_SIMPLE


_DTYPE = "(S'f8'\nI00\nI01\nt"
_STATE = "(I3\nS'<'\nNNNI-1\nI-1\nI0\nt"


def _scalar(dtype_args=_DTYPE, state=_STATE, data="S'12345678'\n"):
    head = "cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n"
    return f"{head}{dtype_args}R{state}b{data}tR.".encode()


@pytest.mark.parametrize(
    "data",
    [
        _scalar(data="S'short'\n"),
        _scalar(data="I1\n"),
        _scalar(dtype_args="(S'f9'\nt"),
        _scalar(dtype_args="(t"),
        _scalar(dtype_args="(I1\nt"),
        _scalar(dtype_args="(S'fx'\nt"),
        _scalar(state="N"),
        _scalar(state="(t"),
        b"cnumpy.core.multiarray\nscalar\n(tR.",
        b"cnumpy.core.multiarray\nscalar\n(I1\nI2\ntR.",
        b"cnumpy.core.multiarray\nscalar\n(I1\nI2\ntR}b.",
        b"cargparse\nNamespace\n(tR(I1\ntb.",
        b"cargparse\nNamespace\n(tR(lb.",
        b"cpathlib\nPosixPath\n(I1\ntR.",
        b"cpathlib\nPosixPath\nNR.",
        b"ccollections\ndefaultdict\n(NtR}S'x'\nI1\nsb.",
    ],
)
def test_what_python_never_wrote_so_is_left_alone(data):
    root = parse(data).root
    assert _simple(root) is _NOT_SIMPLE
