"""Laws of cutting storages down to what tensors use."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_checks import assert_torch_reads, bits, load, plain_tensors, save

from ckpt_surgery import Output, inspect, read, selection, strip
from ckpt_surgery.checkpoint.compact import compact, find_pieces, unused_nbytes
from ckpt_surgery.checkpoint.coverage import used_nbytes
from ckpt_surgery.checkpoint.description import Checkpoint, Entry, StateDict, Storage, Tensor
from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.fileio import ByteRange, Bytes, FileSource

DTYPES = (torch.uint8, torch.bfloat16, torch.float32, torch.float64, torch.complex128)


@st.composite
def views(draw: st.DrawFn) -> list[tuple[int, tuple[int, ...], tuple[int, ...], int]]:
    """Views (storage, shape, stride, offset) of two storages of forty elements."""
    found = []
    for _ in range(draw(st.integers(1, 5))):
        dimensions = draw(st.integers(0, 3))
        shape = tuple(draw(st.integers(0 if d == 0 else 1, 4)) for d in range(dimensions))
        stride = tuple(draw(st.integers(0, 5)) for _ in range(dimensions))
        extent = 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        offset = draw(st.integers(0, max(40 - extent, 0)))
        if offset + extent <= 40:
            found.append((draw(st.integers(0, 1)), shape, stride, offset))
    return found


def addresses(tensor: torch.Tensor) -> set[tuple[int, int]]:
    """Where the elements of `tensor` lie: storage and byte."""
    places = torch.zeros(tensor.shape, dtype=torch.int64) + tensor.storage_offset()
    for dimension, (n, step) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        steps = torch.arange(n) * step
        places += steps.reshape([-1 if d == dimension else 1 for d in range(tensor.dim())])
    key = tensor.untyped_storage()._cdata
    return {(key, int(place)) for place in places.flatten()}


def unused(tensors: list[torch.Tensor]) -> int:
    """Bytes of the storages of `tensors` that no element of one lies in, as torch has them."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    used = set().union(*map(addresses, tensors))
    return sum(storages.values()) - len(used) * tensors[0].itemsize


def compacted(value: Any, path: Path, **choices: Any) -> Path:
    out = path.with_name("compact.pth")
    strip(save(value, path), Output(out, force=True), compact=True, **choices)
    return out


def place(tensor: torch.Tensor) -> Any:
    """What ties have in common: where their elements lie, and in which steps."""
    steps = [(n, step) for n, step in zip(tensor.shape, tensor.stride(), strict=True) if n != 1]
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, steps


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(views(), st.sampled_from(DTYPES))
def test_compaction_changes_nothing_that_can_be_seen(
    tmp_path: Path, made: list[Any], dtype: torch.dtype
) -> None:
    storages = [torch.arange(40).add(100 * i).to(dtype) for i in range(2)]
    before = [storages[i].as_strided(*rest) for i, *rest in made]
    value = {f"w{index}": tensor for index, tensor in enumerate(before)}
    if not value:
        return
    out = compacted(value, tmp_path / "w.pth")
    after = list(load(out).values())

    for old, new in zip(before, after, strict=True):
        assert new.shape == old.shape
        assert bits(new) == bits(old)
    for (a, b), (c, d) in zip(combinations(before, 2), combinations(after, 2), strict=True):
        assert bool(addresses(a) & addresses(b)) == bool(addresses(c) & addresses(d))
        if not (a.stride() == c.stride() and b.stride() == d.stride()):
            continue  # gathered: overlaps only with those like itself
        assert len(addresses(a) & addresses(b)) == len(addresses(c) & addresses(d))

    sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in before}
    kept = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in after}
    assert sum(kept.values()) <= sum(sizes.values())
    for file, views_of_it in ((tmp_path / "w.pth", before), (out, after)):
        assert inspect(file).totals.unused_nbytes == unused(views_of_it)

    again = tmp_path / "again" / "compact.pth"
    again.parent.mkdir(exist_ok=True)
    strip(out, Output(again, force=True), compact=True)
    assert again.read_bytes() == out.read_bytes()


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(views(), st.sampled_from(DTYPES))
def test_broken_views_share_nothing_but_what_ties_do(
    tmp_path: Path, made: list[Any], dtype: torch.dtype
) -> None:
    storages = [torch.arange(40).add(100 * i).to(dtype) for i in range(2)]
    before = [storages[i].as_strided(*rest) for i, *rest in made]
    value = {f"w{index}": tensor for index, tensor in enumerate([*before, *before[:1]])}
    if not value:
        return
    before = list(value.values())
    path = tmp_path / "w.pth"
    save({name: tensor.view_as(tensor) for name, tensor in value.items()}, path)
    out = tmp_path / "compact.pth"
    report = strip(path, Output(out, force=True), compact=True, break_views=True)
    after = list(load(out).values())

    for old, new in zip(before, after, strict=True):
        assert bits(new) == bits(old)
    for (a, b), (c, d) in zip(combinations(before, 2), combinations(after, 2), strict=True):
        tied = bool(a.numel()) and place(a) == place(b)
        assert tied == (c.untyped_storage()._cdata == d.untyped_storage()._cdata) or not a.numel()
        assert not tied or place(c) == place(d)

    (edit,) = report.plan
    distinct = {str(place(t)): t for t in before if t.numel()}.values()
    apart = sum(len(addresses(t)) for t in distinct)
    together = len(set().union(*map(addresses, before)))
    assert edit["unused_nbytes"] == unused(before)
    assert edit.get("copied_nbytes", 0) == (apart - together) * dtype.itemsize
    assert edit.get("kept_nbytes", 0) == unused(after) == inspect(out).totals.unused_nbytes


def storage_nbytes(path: Path) -> list[int]:
    return [t.untyped_storage().nbytes() for t in plain_tensors(load(path))]


VIEWED = torch.arange(1000.0)
CASES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "a slice": ({"a": VIEWED[10:20]}, [40]),
    "whole": ({"a": VIEWED}, [4000]),
    "a tie": ({"a": VIEWED[10:20], "b": VIEWED[10:20]}, [40, 40]),
    "an overlap": ({"a": VIEWED[10:20], "b": VIEWED[15:30]}, [80, 80]),
    "neighbours": ({"a": VIEWED[10:20], "b": VIEWED[20:30]}, [40, 40]),
    "transposed": ({"a": VIEWED[:12].reshape(3, 4).t()}, [48]),
    "a column": ({"a": VIEWED.reshape(10, 100)[:, 3]}, [40]),
    "the same column twice": ({"a": VIEWED[::7], "b": VIEWED[::7]}, [572, 572]),
    "two columns": ({"a": VIEWED[0:20:2], "b": VIEWED[1:20:2]}, [80, 80]),
    "expanded": ({"a": VIEWED[5:6].expand(3, 4)}, [4]),
    "expanded with gaps": ({"a": VIEWED[5::9][:4].expand(3, 4)}, [16]),
    "empty": ({"a": VIEWED[5:5], "b": VIEWED[7:7]}, [0, 0]),
    "empty beside full": ({"a": VIEWED[5:5], "b": VIEWED[7:9]}, [0, 8]),
    "a scalar": ({"a": VIEWED[7]}, [4]),
}


@pytest.mark.parametrize("name", CASES)
def test_storages_are_cut_to_what_is_used(name: str, tmp_path: Path) -> None:
    value, sizes = CASES[name]
    out = compacted(value, tmp_path / "w.pth")
    assert storage_nbytes(out) == sizes
    found = load(out)
    assert {key: t.tolist() for key, t in found.items()} == {
        k: t.tolist() for k, t in value.items()
    }
    assert_torch_reads(out, found)


BROKEN: dict[str, tuple[dict[str, Any], list[int]]] = {
    "an overlap": ({"a": VIEWED[10:20], "b": VIEWED[15:30]}, [40, 60]),
    "a tie": ({"a": VIEWED[10:20], "b": VIEWED[10:20]}, [40, 40]),
    "two shapes of the whole": ({"a": VIEWED, "b": VIEWED.reshape(10, 100)}, [4000, 4000]),
    "a part of the whole": ({"a": VIEWED, "b": VIEWED[:7]}, [4000, 28]),
    "a row and its transpose": (
        {"a": VIEWED[:6].view(2, 3), "b": VIEWED[:6].view(2, 3).t()},
        [24, 24],
    ),
    "steps": ({"a": VIEWED[:100:4], "b": VIEWED[:100:6]}, [100, 68]),
    "interleaved": ({"a": VIEWED[0:20:2], "b": VIEWED[1:20:2]}, [40, 40]),
    "repeated": ({"a": VIEWED[3:4].expand(8), "b": VIEWED[:9]}, [4, 36]),
    "nothing": ({"a": VIEWED[5:5], "b": VIEWED[5:5], "c": VIEWED[4:6]}, [0, 0, 8]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_views_have_the_bytes_of_their_elements(name: str, tmp_path: Path) -> None:
    value, sizes = BROKEN[name]
    out = compacted(value, tmp_path / "w.pth", break_views=True)
    found = load(out)
    assert storage_nbytes(out) == sizes
    assert all(torch.equal(found[key], tensor) for key, tensor in value.items())
    kept = {t.untyped_storage()._cdata for t in found.values() if t.numel()}
    assert len(kept) == (1 if name == "a tie" else sum(t.numel() > 0 for t in value.values()))


def test_broken_views_are_named_those_of_an_optimizer_counted(tmp_path: Path) -> None:
    base = torch.arange(100.0)
    value = {
        "model": {f"w{i}": base[i : i + 10] for i in range(7)} | {"v": torch.ones(2)},
        "optimizer": {"state": {0: {"m": base[5:15]}}, "param_groups": []},
    }
    path = save(value, tmp_path / "w.pth")
    report = strip(path, tmp_path / "o.pth", compact=True, break_views=True)
    (warning,) = report.warnings
    assert warning == (
        "views that overlapped have bytes of their own: 'model/w0', 'model/w1', 'model/w2', "
        "'model/w3', 'model/w4', 2 more, 1 beside the weights"
    )
    found = load(tmp_path / "o.pth")
    found["model"]["w0"][5] = -1
    assert found["model"]["w1"][4] == found["optimizer"]["state"][0]["m"][0] == 5
    report = strip(tmp_path / "o.pth", tmp_path / "p.pth", compact=True, break_views=True)
    assert report.warnings == ("no views overlap: there are none to be broken",)


def test_numbers_are_those_after_the_edits_before(tmp_path: Path) -> None:
    """What goes uses nothing any longer, also if all beside the weights goes last."""
    base = torch.arange(100.0)
    value = {"model": {"w": base[:10], "v": torch.ones(2)}, "average": [base[5:]]}
    path = save(value, tmp_path / "w.pth")
    report = strip(path, tmp_path / "o.pth", compact=True, state_dict_only=True)
    assert report.plan[-1] == {"edit": "compact", "unused_nbytes": 360}
    assert storage_nbytes(tmp_path / "o.pth") == [40, 8]


def test_views_with_steps_are_counted_exactly_whatever_they_do() -> None:
    storage = Storage("0", BY_NAME["uint8"], "cpu", Bytes(bytes(400)))
    for views_of_it in (
        [((9, 9), (5, 7), 3)],  # overlaps itself
        [((9, 9), (5, 7), 3), ((20,), (13,), 0), ((4, 3), (20, 1), 7)],
        [((50,), (6,), 0), ((50,), (4,), 2), ((2, 9), (0, 1), 300)],
        [((10, 3), (30, 1), 0), ((10, 5), (30, 1), 2)],
    ):
        base = torch.zeros(400)
        for shape, stride, offset in views_of_it:
            base.as_strided(shape, stride, offset).fill_(1)
        found = used_nbytes(strided(storage, *each) for each in views_of_it)
        assert found == int(base.sum())


def test_gaps_count_as_used_where_counting_would_take_too_long() -> None:
    storage = Storage("0", BY_NAME["uint8"], "cpu", Bytes(b""))
    huge = [strided(storage, (1 << 20,), (step,)) for step in (4093, 4095)]
    assert used_nbytes(huge) == ((1 << 20) - 1) * 4095 + 1
    assert used_nbytes(huge[:1]) == 1 << 20  # needs no counting


def test_views_of_computed_bytes_are_broken_too() -> None:
    storage = Storage("0", BY_NAME["uint8"], "cpu", Bytes(bytes(range(100))))
    checkpoint = described(strided(storage, (4,), (1,), 2), strided(storage, (3,), (2,), 4))
    first, second = (e.tensor for e in compact(checkpoint, break_views=True).state_dicts[0].entries)
    assert content(first) == bytes([2, 3, 4, 5])
    assert content(second) == bytes([4, 5, 6, 7, 8])


def test_tensors_that_nothing_rebuilds_are_told_apart(source: FileSource) -> None:
    """Two new ones of one storage were taken for one, and one got the bytes of the other."""
    storage = Storage("0", BY_NAME["uint8"], "cpu", ByteRange(source, 0, 100))
    new = (replace(strided(storage, (2,), (1,), at), node=None) for at in (5, 50))
    after = compact(described(*new))
    assert [content(e.tensor) for e in after.state_dicts[0].entries] == [bytes([5, 6]), b"23"]
    assert after.moved == {}


def test_tied_views_stay_one_storage(tmp_path: Path) -> None:
    base = torch.arange(100.0)
    value = {"a": base[10:20], "b": base[15:30], "c": base[10:20], "d": base[50:60]}
    found = load(compacted(value, tmp_path / "w.pth"))
    found["a"][5] = -1
    assert found["b"][0] == found["c"][5] == -1
    assert found["d"].untyped_storage()._cdata != found["a"].untyped_storage()._cdata


def test_tensors_of_all_places_are_seen(tmp_path: Path) -> None:
    """A storage shared by weights and an optimizer stays shared, and shrinks for both."""
    base = torch.arange(100.0)
    value = {
        "model": {"w": base[:10], "v": torch.ones(2)},
        "optimizer": {"state": {0: {"m": base[5:15]}}, "param_groups": []},
    }
    found = load(compacted(value, tmp_path / "w.pth"))
    momentum = found["optimizer"]["state"][0]["m"]
    assert momentum.tolist() == base[5:15].tolist()
    assert momentum.untyped_storage()._cdata == found["model"]["w"].untyped_storage()._cdata
    assert momentum.untyped_storage().nbytes() == 60


def test_what_is_removed_is_not_kept_for_its_views(tmp_path: Path) -> None:
    base = torch.arange(100.0)
    path = save({"all": base, "w": base[:10], "v": torch.ones(2)}, tmp_path / "w.pth")
    report = strip(path, tmp_path / "o.pth", selection(keys=["all"]), compact=True)
    assert storage_nbytes(tmp_path / "o.pth") == [40, 8]
    assert report.plan[-1]["edit"] == "compact"


def test_tensor_shared_with_what_is_removed_is_still_compacted(tmp_path: Path) -> None:
    base = torch.arange(100.0)
    shared = base[5:15]
    value = {
        "model": {"w": base[:10], "v": torch.ones(2)},
        "optimizer": {"state": {0: {"m": shared}}, "param_groups": []},
        "first": [torch.ones(1)],
        "kept": [[shared]],
    }
    out = tmp_path / "out.pth"
    strip(save(value, tmp_path / "w.pth"), out, training_state=True, compact=True)
    found = load(out)
    kept = found["kept"][0][0]
    assert kept.tolist() == shared.tolist()
    assert kept.untyped_storage().nbytes() == 60
    assert kept.untyped_storage()._cdata == found["model"]["w"].untyped_storage()._cdata


def test_parts_of_sparse_tensors_are_compacted(tmp_path: Path) -> None:
    indices = torch.arange(100).reshape(1, 100)[:, :2]
    sparse = torch.sparse_coo_tensor(
        indices, torch.arange(100.0)[:2], (200,), check_invariants=True
    )
    sparse = sparse._coalesced_(True)
    out = compacted({"a": sparse, "b": torch.ones(1), "c": torch.ones(1)}, tmp_path / "w.pth")
    found = load(out)["a"]
    assert torch.equal(found.to_dense(), sparse.to_dense())
    assert found._values().untyped_storage().nbytes() == 8
    assert found._indices().untyped_storage().nbytes() == 16


# --- descriptions made by hand


def described(*tensors: Tensor) -> Checkpoint:
    entries = tuple(Entry(f"w{i}", tensor, node=tensor.node) for i, tensor in enumerate(tensors))
    return Checkpoint("x", None, None, (StateDict("", "model", entries),))  # type: ignore[arg-type]


def strided(
    storage: Storage,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    offset: int = 0,
    dtype: str = "",
) -> Tensor:
    kind = BY_NAME[dtype] if dtype else storage.dtype
    return Tensor(shape, kind, stride, offset, storage, node=object())


@pytest.fixture
def source(tmp_path: Path) -> FileSource:
    (tmp_path / "bytes").write_bytes(bytes(range(200)))
    return FileSource.open(tmp_path / "bytes")


def content(tensor: Tensor | None) -> bytes:
    assert tensor is not None
    assert tensor.storage is not None
    return b"".join(bytes(chunk) for chunk in tensor.storage.data.chunks())


def test_packed_elements_are_cut_at_whole_bytes(source: FileSource) -> None:
    storage = Storage("0", BY_NAME["quint4x2"], "cpu", ByteRange(source, 0, 100))
    odd = compact(described(strided(storage, (6,), (1,), 5))).state_dicts[0].entries[0].tensor
    assert odd is not None
    assert content(odd) == bytes([2, 3, 4, 5])  # elements 5 to 10 lie in the bytes 2 to 5
    assert odd.offset == 1
    even = compact(described(strided(storage, (6,), (1,), 4))).state_dicts[0].entries[0].tensor
    assert even is not None
    assert (content(even), even.offset) == (bytes([2, 3, 4]), 0)


def test_cut_of_two_types_starts_at_a_whole_element_of_both(source: FileSource) -> None:
    storage = Storage("0", BY_NAME["uint8"], "cpu", ByteRange(source, 0, 100), untyped=True)
    narrow = strided(storage, (4,), (1,), 10, "float8_e5m2")
    wide = strided(storage, (2,), (1,), 3, "uint32")
    first, second = (e.tensor for e in compact(described(narrow, wide)).state_dicts[0].entries)
    assert first is not None
    assert second is not None
    assert first.storage is second.storage
    assert content(first) == bytes(range(8, 20))
    assert (first.offset, second.offset) == (2, 1)


def test_storage_that_lies_in_memory_is_left_alone() -> None:
    storage = Storage("0", BY_NAME["float32"], "cpu", Bytes(bytes(100)))
    checkpoint = described(strided(storage, (2,), (1,)), strided(storage, (2,), (3,), 10))
    assert compact(checkpoint) == checkpoint
    assert compact(checkpoint).moved == {}
    assert unused_nbytes(checkpoint) == 100 - 8 - 8


def test_tensor_without_node_or_storage_is_left_alone(source: FileSource) -> None:
    meta = Tensor((3,), BY_NAME["float32"], (1,), device="meta")
    entries = (Entry("meta", meta), Entry("extra", None, node="text"))
    state_dict = StateDict("", "model", entries)
    checkpoint = Checkpoint("x", source, None, (state_dict,))
    assert compact(checkpoint).state_dicts == (state_dict,)
    assert unused_nbytes(checkpoint) == 0


def test_pieces_come_in_the_order_of_the_tensors(source: FileSource) -> None:
    late = Storage("late", BY_NAME["uint8"], "cpu", ByteRange(source, 0, 50))
    early = Storage("early", BY_NAME["uint8"], "cpu", ByteRange(source, 50, 50))
    tensors = [strided(early, (2,), (1,), 9), strided(late, (2,), (1,)), strided(early, (3,), (1,))]
    pieces = find_pieces(tensors)
    assert [(p.storage.key, p.start, p.end) for p in pieces] == [
        ("early", 0, 3),
        ("early", 9, 11),
        ("late", 0, 2),
    ]


def test_compact_leaves_the_description_that_it_was_given(tmp_path: Path) -> None:
    with read(save({"a": torch.ones(100)[:3]}, tmp_path / "w.pth")) as checkpoint:
        (tensor,) = checkpoint.all_tensors
        after = compact(checkpoint)
        assert tensor.storage is not None
        assert tensor.storage.nbytes == 400
        assert next(after.all_tensors).storage.nbytes == 12
        assert after.root is checkpoint.root


def test_views_of_two_types_in_the_same_place_are_not_the_same_elements(tmp_path: Path) -> None:
    """Cutting the storage to the elements of the narrower one lost half of the wider."""
    narrow = torch.arange(64, dtype=torch.int32).to(torch.uint16)
    views = {"a": narrow[0:8:2], "b": narrow.view(torch.uint32)[0:8:2]}
    path, out = save(views, tmp_path / "a.pth"), tmp_path / "b.pth"
    strip(path, Output(out), compact=True)
    loaded = load(out)
    assert all(torch.equal(loaded[name], view) for name, view in views.items())
