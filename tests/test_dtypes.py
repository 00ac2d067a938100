"""The table of element types says what torch and safetensors say."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from torch_checks import quiet

from ckpt_surgery.dtypes import BY_NAME, BY_SAFETENSORS, BY_STORAGE_CLASS, UNTYPED, DType

# int1 … uint7 are element types without elements: torch cannot make a storage of them.
TABLE = [dtype for name, dtype in BY_NAME.items() if dtype.name == name and dtype.in_torch]


def torchs(dtype: DType) -> torch.dtype:
    found = getattr(torch, dtype.name)
    assert isinstance(found, torch.dtype)
    return found


@pytest.mark.parametrize("dtype", TABLE, ids=lambda dtype: dtype.name)
def test_type_is_torchs(dtype: DType) -> None:
    found = torchs(dtype)
    assert str(found) == f"torch.{dtype.name}"
    assert found.itemsize == dtype.itemsize
    assert found.is_floating_point == (dtype.kind == "float")
    assert found.is_complex == (dtype.kind == "complex")


@pytest.mark.parametrize("dtype", TABLE, ids=lambda dtype: dtype.name)
def test_storage_class_is_the_one_that_torch_pickles(dtype: DType) -> None:
    """`torch.storage._dtype_to_storage_type_map`; without one torch pickles an untyped storage."""
    found = torch.storage._dtype_to_storage_type_map().get(torchs(dtype))
    assert dtype.storage_class == found
    if found is not None:
        with quiet():
            assert getattr(torch, found).dtype == torchs(dtype)


def test_every_type_of_torch_is_in_the_table() -> None:
    names = {
        str(v).removeprefix("torch.") for v in vars(torch).values() if isinstance(v, torch.dtype)
    }
    assert names == {dtype.name for dtype in TABLE}


def test_second_names_are_torchs() -> None:
    for name, dtype in BY_NAME.items():
        if not dtype.in_torch:
            continue
        assert getattr(torch, name) == torchs(dtype)


def test_safetensors_codes_are_those_of_the_package() -> None:
    theirs = {code: str(found)[6:] for code, found in safetensors.torch._TYPES.items()}
    ours = {code: dtype.name for code, dtype in BY_SAFETENSORS.items()}
    assert {code: ours[code] for code in theirs} == theirs


def test_tables_are_views_of_one() -> None:
    assert set(BY_STORAGE_CLASS.values()) == {d for d in TABLE if d.storage_class}
    assert {d for d in BY_SAFETENSORS.values() if d.in_torch} == {d for d in TABLE if d.safetensors}
    assert UNTYPED.itemsize == 1


@pytest.mark.parametrize(
    ("name", "numel", "nbytes"),
    [
        ("float32", 3, 12), ("bool", 3, 3), ("complex128", 2, 32), ("float64", 0, 0),
        ("quint4x2", 0, 0), ("quint4x2", 1, 1), ("quint4x2", 4, 2), ("quint4x2", 5, 3),
        ("quint2x4", 5, 2), ("quint2x4", 8, 2),
    ],
)  # fmt: skip
def test_bytes_are_rounded_up_for_packed_types(name: str, numel: int, nbytes: int) -> None:
    assert BY_NAME[name].nbytes(numel) == nbytes
