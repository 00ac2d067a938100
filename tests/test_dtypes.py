"""The table of element types says what torch and safetensors say."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from torch_checks import quiet

from ckpt_surgery.cli.main import cli
from ckpt_surgery.dtypes import (
    BY_NAME,
    BY_SAFETENSORS,
    BY_STORAGE_CLASS,
    NAMES,
    UNTYPED,
    DType,
    named,
)
from ckpt_surgery.recipes.expect import Expect

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


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("fp16", "float16"), ("half", "float16"), ("F16", "float16"), ("torch.half", "float16"),
        ("bf16", "bfloat16"), ("BF16", "bfloat16"), ("float8_e4m3fn", "float8_e4m3fn"),
        ("fp8", "float8_e4m3fn"), ("F8_E5M2", "float8_e5m2"), (" fp32 ", "float32"),
        ("double", "float64"), ("I64", "int64"), ("long", "int64"), ("c64", "complex64"),
    ],
)  # fmt: skip
def test_types_have_the_names_that_people_use(text: str, name: str) -> None:
    found = named(text)
    assert found is not None
    assert found.name == name


def test_every_name_means_a_type_and_codes_of_safetensors_are_names() -> None:
    assert all(named(name) for name in NAMES)
    assert named("float17") is None
    for code, dtype in BY_SAFETENSORS.items():
        found = named(code)
        assert found is None or found is dtype, code


def test_whatever_names_a_type_knows_these_names(tmp_path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pth")
    torch.save({"w": torch.ones(2).half()}, tmp_path / "h.pth")
    (tmp_path / "policy.toml").write_text('[tensors]\ndtypes = ["fp16"]\n')
    like = ["fit", "w.pth", "--like", "w.pth", "--dtype", "fp16", "-o", "fit.pth"]
    merge = ["merge", "w.pth", "w.pth", "--method", "average", "--dtype", "f16", "-o", "merge.pth"]
    done = {}
    for line in (
        ["convert", "w.pth", "--dtype", "torch.half", "-o", "convert.pth"],
        like,
        merge,
        ["verify", "h.pth", "--policy", "policy.toml"],
    ):
        words = [str(tmp_path / w) if "." in w and w[0] != "t" else w for w in line]
        done[line[0]] = CliRunner().invoke(cli, words)
    assert {name: result.exit_code for name, result in done.items()} == dict.fromkeys(done, 0)
    for name in ("convert", "fit", "merge"):
        found = torch.load(tmp_path / f"{name}.pth", weights_only=True)
        assert found["w"].dtype == torch.float16, name
    assert Expect(dtype={"**": "fp16"}).dtype
