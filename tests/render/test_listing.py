"""Entries as rows: their places, their order, folded and summed."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_surgery.checkpoint.description import Entry, StateDict, Storage, Tensor
from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.fileio import Bytes
from ckpt_surgery.names.fold import _ranges
from ckpt_surgery.ops.inspect import _places
from ckpt_surgery.render.listing import fold, in_sequence, tree
from ckpt_surgery.reports.inspection import InspectReport, Place, Totals

FLOAT = BY_NAME["float32"]


def entry(name, shape=(2,), role="unknown", storage=None):
    numel = 1
    for size in shape:
        numel *= size
    storage = storage or Storage("0", FLOAT, "cpu", Bytes(bytes(4 * numel)))
    return Entry(name, Tensor(shape, FLOAT, (1,) * len(shape), storage=storage), role)


def state_dict(*entries, path=""):
    return StateDict(path, "model", tuple(entries))


def report(*state_dicts):
    return InspectReport("f", "torch-zip", 0, state_dicts, (), Totals(0, 0, 0, 0, 0))


names = st.lists(
    st.lists(st.sampled_from(["a", "b", "0", "1", "7", "10"]), min_size=1, max_size=4).map(
        ".".join
    ),
    unique=True,
    max_size=20,
)


def test_place_counts_parameters_without_buffers_and_ties_once():
    shared = Storage("1", FLOAT, "cpu", Bytes(bytes(8)))
    entries = (
        entry("a.weight", storage=shared),
        entry("a.running_mean", role="buffer"),
        Entry("a._extra_state", None),
        entry("b.weight", storage=shared),
        entry("c.weight"),
    )
    assert _places([state_dict(*entries, path="ema")]) == {
        "ema/a.weight": Place(0, 0),
        "ema/a.running_mean": Place(1, None),
        "ema/a._extra_state": Place(2, None),
        "ema/b.weight": Place(3, 0),
        "ema/c.weight": Place(4, 1),
    }


def test_empty_tensors_are_not_tied():
    shared = Storage("1", FLOAT, "cpu", Bytes(b""))
    entries = (entry("a", (0,), storage=shared), entry("b", (0,), storage=shared))
    assert _places([state_dict(*entries)])["b"] == Place(1, 1)


def test_sequence_by_size_is_stable_and_entries_without_tensor_come_last():
    entries = (Entry("x", None), entry("b", (1,)), entry("c", (5,)), entry("a", (1,)))
    sorted_names = [
        e.name for e in in_sequence(report(state_dict(*entries)), "size").state_dicts[0].entries
    ]
    assert sorted_names == ["c", "b", "a", "x"]


@given(names)
def test_sequence_by_file_changes_nothing(keys):
    original = report(state_dict(*map(entry, keys)))
    assert in_sequence(original, "file") is original


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([3], "3"), ([0, 1, 2], "0..2"), ([7, 0, 1, 5], "0..1,5,7")],
)
def test_ranges_are_brief(numbers, text):
    assert _ranges(numbers) == text


def unfold(name: str) -> set[str]:
    match = re.search(r"\{([\d.,]+)\}", name)
    if match is None:
        return {name}
    found = set()
    for run in match[1].split(","):
        low, _, high = run.partition("..")
        for number in range(int(low), int(high or low) + 1):
            found |= unfold(name[: match.start()] + str(number) + name[match.end() :])
    return found


@given(names)
def test_folded_rows_say_every_name_once(keys):
    rows = fold([entry(key) for key in keys])
    said = [name for row in rows for name in unfold(row.name)]
    assert sorted(said) == sorted(keys)
    assert sorted(e.name for row in rows for e in row.entries) == sorted(keys)


def test_fold_joins_only_what_is_alike():
    rows = fold(
        [
            *(entry(f"layers.{i}.mlp.{j}.weight") for i in range(3) for j in (0, 2)),
            entry("layers.3.mlp.0.weight", (9,)),
            entry("layers.x.weight"),
            entry("layers.00.weight"),
            Entry("layers.1._extra_state", None),
            Entry("layers.2._extra_state", None),
        ]
    )
    assert {row.name: len(row.entries) for row in rows} == {
        "layers.{0..2}.mlp.{0,2}.weight": 6,
        "layers.3.mlp.0.weight": 1,
        "layers.x.weight": 1,
        "layers.00.weight": 1,
        "layers.{1..2}._extra_state": 2,
    }


def test_fold_keeps_numbers_written_differently_apart():
    assert len(fold([entry("a.0"), entry("a.00")])) == 2


@given(names)
def test_tree_sums_agree_at_every_level(keys):
    root = tree(state_dict(*map(entry, keys)))
    assert (root.tensors, root.parameters, root.nbytes) == (len(keys), 2 * len(keys), 8 * len(keys))
    waiting = [root]
    while waiting:
        node = waiting.pop()
        children = list((node.children or {}).values())
        assert sum(child.tensors for child in children) <= node.tensors
        waiting += children


def test_tree_counts_no_buffer_as_parameter():
    root = tree(state_dict(entry("a.w"), entry("a.mean", role="buffer"), Entry("a.x", None)))
    assert (root.tensors, root.parameters, root.nbytes) == (2, 2, 16)


def test_tree_depth_cuts_below():
    root = tree(state_dict(entry("a.b.c"), entry("a.b.d")), depth=1)
    assert list(root.children) == ["a"]
    assert root.children["a"].children is None
    assert root.children["a"].tensors == 2


def test_absurd_names_do_not_hang_or_overflow():
    absurd = [entry("a." * 100_000 + str(i)) for i in range(3)]
    assert len(fold(absurd)) == 3
    node, depth = tree(state_dict(*absurd)), 0
    while node.children:
        node, depth = next(iter(node.children.values())), depth + 1
    assert depth <= 64
