"""Views of storages, as torch 0.3.1 and before wrote them, and every way they can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from legacy_files import FLOATS, Call, legacy, plain, reference, tensor, view_file, write
from torch_oracle import assert_same_tensor, assert_same_tensors, bits, materialise

from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.formats.torch_legacy import _read_legacy


@pytest.mark.parametrize(
    "views",
    [
        [("8", 0, 4)],
        [("8", 1, 2)],
        [("8", 1, 2), ("8", 1, 2)],
        [("8", 0, 2), ("9", 2, 2)],
        [("8", 0, 3), ("9", 1, 3)],
        [("8", 4, 0)],
    ],
)
def test_tensors_of_views_equal_what_torch_loads_and_share(
    tmp_path: Path, views: list[tuple[str, int, int]]
) -> None:
    checkpoint = _read_legacy(write(tmp_path / "a.pt", view_file(*views)))
    assert_same_tensors(checkpoint, torch.load(tmp_path / "a.pt"))
    assert len({id(ours.storage) for _, ours in checkpoint.tensors}) == 1
    assert all(
        ours.storage is not None and ours.storage.key == "7" for _, ours in checkpoint.tensors
    )


def test_a_view_and_its_root_share(tmp_path: Path) -> None:
    items = {
        "root": tensor(reference(), 0, (4,), (1,)),
        "view": tensor(reference(view=("8", 1, 3)), 1, (2,), (1,)),
    }
    checkpoint = _read_legacy(write(tmp_path / "a.pt", legacy(items, ["7"], (4, FLOATS))))
    assert_same_tensors(checkpoint, torch.load(tmp_path / "a.pt"))
    root, view = (ours for _, ours in checkpoint.tensors)
    assert root.storage is view.storage
    assert view.offset == 2


def test_tensors_of_the_first_versions_are_shifted_too(tmp_path: Path) -> None:
    storage = reference(view=("8", 1, 3))
    items = {"w": Call(torch._utils._rebuild_tensor, storage, 1, (2,), (1,))}
    checkpoint = _read_legacy(write(tmp_path / "a.pt", legacy(items, ["7"], (4, FLOATS))))
    assert_same_tensors(checkpoint, torch.load(tmp_path / "a.pt"))


def test_tensors_made_by_their_class_are_shifted_too(tmp_path: Path) -> None:
    class Old:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch.FloatTensor, (), (reference(view=("8", 1, 3)), 1, (2,), (1,))

    checkpoint = _read_legacy(write(tmp_path / "a.pt", legacy({"w": Old()}, ["7"], (4, FLOATS))))
    assert_same_tensors(checkpoint, torch.load(tmp_path / "a.pt", weights_only=False))
    ((_, ours),) = checkpoint.tensors
    assert ours.storage is not None
    assert (ours.storage.key, ours.offset) == ("7", 2)


def test_bare_views_are_the_bytes_that_torch_loads(tmp_path: Path) -> None:
    data = view_file(("8", 0, 1), ("9", 1, 3), ("9", 1, 3), ("10", 0, 4), bare=True)
    checkpoint = _read_legacy(write(tmp_path / "a.pt", data))
    loaded = torch.load(tmp_path / "a.pt")
    assert isinstance(checkpoint.root, list)
    ours = [node.target for node in checkpoint.root]
    assert [target.data.read() for target in ours] == [
        bytes(storage._untyped_storage.tolist()) for storage in loaded
    ]
    assert [target.numel for target in ours] == [1, 3, 3, 4]
    assert ours[1] is ours[2]


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (5, "a view of the storage is malformed"),
        (("8", 1), "a view of the storage is malformed"),
        ((8, 1, 2), "a view of the storage is malformed"),
        (("8", 1.0, 2), "a view of the storage is malformed"),
        (("8", 1, True), "a view of the storage is malformed"),
        (("8", -1, 2), "a view reaches outside the storage"),
        (("8", 1, -1), "a view reaches outside the storage"),
        (("8", 3, 2), "a view reaches outside the storage"),
        (("8", 2**63, 2**63), "a view reaches outside the storage"),
        (("7", 1, 2), "the storage is also a view of one"),
    ],
)
def test_a_wrong_view_is_refused(tmp_path: Path, view: Any, message: str) -> None:
    data = plain(root={"w": tensor(reference(view=view), 0, (1,), (1,))})
    with pytest.raises(DamagedFileError, match=message) as caught:
        _read_legacy(write(tmp_path / "a.pt", data))
    assert caught.value.entry == "storage 7"


@pytest.mark.parametrize("place", [(0, (3,), (1,)), (1, (2,), (1,)), (0, (2,), (2,)), (2, (), ())])
def test_a_tensor_outside_its_view_is_refused(tmp_path: Path, place: tuple[Any, ...]) -> None:
    """Though it is inside the storage that the view is one of."""
    items = {"w": tensor(reference(view=("8", 1, 2)), *place)}
    file = write(tmp_path / "a.pt", legacy(items, ["7"], (4, FLOATS)))
    with pytest.raises(RuntimeError):
        torch.load(tmp_path / "a.pt")
    with pytest.raises(DamagedFileError, match="of a view of 2") as caught:
        _read_legacy(file)
    assert caught.value.entry == "storage 8"


def test_an_empty_view_holds_an_empty_tensor(tmp_path: Path) -> None:
    """torch 0.3 had no scalars: no dimension meant no element."""
    items = {"w": Call(torch._utils._rebuild_tensor, reference(view=("8", 1, 0)), 0, (), ())}
    (ours,) = _read_legacy(write(tmp_path / "a.pt", legacy(items, ["7"], (4, FLOATS)))).all_tensors
    assert ours.shape == (0,)


def test_one_key_for_two_views_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match="references to a view of the storage differ"):
        _read_legacy(write(tmp_path / "a.pt", view_file(("8", 0, 2), ("8", 1, 2))))


@pytest.mark.parametrize("arguments", [(), (0.5, (1,), (1,))])
def test_a_tensor_of_a_view_with_wrong_arguments_is_refused(
    tmp_path: Path, arguments: tuple[Any, ...]
) -> None:
    storage = reference(view=("8", 1, 2))
    items = {"w": Call(torch._utils._rebuild_tensor, storage, *arguments)}
    with pytest.raises(DamagedFileError):
        _read_legacy(write(tmp_path / "a.pt", legacy(items, ["7"], (4, FLOATS))))


def test_a_described_file_can_be_described_again(tmp_path: Path) -> None:
    file = write(tmp_path / "a.pt", view_file(("8", 1, 2)))
    first, second = _read_legacy(file), _read_legacy(file)
    for (name, one), (same_name, other) in zip(first.tensors, second.tensors, strict=True):
        assert (name, one.shape, one.offset) == (same_name, other.shape, other.offset)
        assert_same_tensor(one, materialise(other))
        assert bits(materialise(one)) == FLOATS[4:12]
