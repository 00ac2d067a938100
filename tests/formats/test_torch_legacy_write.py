"""What is written for torch before 1.6 is, to the byte, what `torch.save` would write."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from torch import nn
from torch_checks import assert_same

from ckpt_surgery import LossyEditError, convert, read
from ckpt_surgery.cli.main import cli
from ckpt_surgery.writing.output import Output

_TYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex128", "complex64"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)


def ckpt(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def legacy(path: Path) -> Output:
    return Output(path, format="torch-legacy", force=True)


def everything() -> dict[str, Any]:
    weight = torch.arange(24.0).reshape(4, 6)
    state = {f"t.{name}": torch.ones(3).to(getattr(torch, name)) for name in _TYPES}
    state |= {"w": weight, "tied": weight, "row": weight[1], "t": weight.t(), "e": weight[:0]}
    state |= {"scalar": torch.tensor(2.5), "": torch.ones(1), "ü.名": torch.ones(2)}
    state["parameter"] = nn.Parameter(torch.ones(2))
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(3, 2)).sum().backward()
    optimizer.step()
    return {
        "state": state,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1),
        "epoch": 2**40,
    }


def test_a_legacy_file_is_written_again_as_the_same_bytes(tmp_path):
    torch.save(everything(), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    convert(tmp_path / "a.pth", legacy(tmp_path / "b.pth"))
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_an_archive_becomes_a_file_that_torch_loads_the_same(tmp_path):
    saved = everything()
    torch.save(saved, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", legacy(tmp_path / "b.pth"))
    with read(tmp_path / "b.pth") as found:
        assert (found.format, found.notes, found.unwritable) == ("torch-legacy", (), "")
    loaded = torch.load(tmp_path / "b.pth", weights_only=False)
    assert_same(saved, loaded)
    assert loaded["state"]["w"].data_ptr() == loaded["state"]["tied"].data_ptr()
    assert loaded["model"]._metadata == saved["model"]._metadata
    convert(tmp_path / "b.pth", Output(tmp_path / "c.pth"))
    assert_same(saved, torch.load(tmp_path / "c.pth", weights_only=False))


def test_the_option_names_the_format(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pth")
    assert ckpt("convert", tmp_path / "a.pth", "--legacy", "-o", tmp_path / "b.pth").exit_code == 0
    assert (tmp_path / "b.pth").read_bytes()[:4] == b"\x80\x02\x8a\n"
    line = ("convert", tmp_path / "a.pth", "--legacy", "-o", tmp_path / "c.pth")
    refused = ckpt(*line, "--format", "safetensors")
    assert refused.exit_code == 2
    assert "contradict each other" in refused.stderr


def test_other_formats_are_written_as_well(tmp_path):
    save_file({"b": torch.ones(2, 3), "a": torch.zeros(2)}, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", legacy(tmp_path / "b.pth"))
    found = torch.load(tmp_path / "b.pth", weights_only=True)
    assert {name: t.tolist() for name, t in found.items()} == {"b": [[1] * 3] * 2, "a": [0, 0]}


def test_big_endian_numbers_are_turned_round(tmp_path):
    weight = torch.tensor([1.5, -2.0, 3.25])
    swapped = torch.from_numpy(weight.numpy().astype(">f4").view("<f4").copy())
    torch.save({"w": swapped}, tmp_path / "le.pth")
    data = (tmp_path / "le.pth").read_bytes()
    assert data.count(b"little") == 1
    (tmp_path / "be.pth").write_bytes(_with_big_endian(data))
    convert(tmp_path / "be.pth", legacy(tmp_path / "b.pth"))
    assert torch.equal(torch.load(tmp_path / "b.pth", weights_only=True)["w"], weight)


def _with_big_endian(data: bytes) -> bytes:
    """Return the archive with another byte order, written without checksums."""
    import io
    import zipfile

    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, b"big" if name.endswith("/byteorder") else content)
    return out.getvalue()


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "uint16"])
def test_types_that_torch_did_not_have_are_refused(tmp_path, dtype):
    late = torch.ones(2).to(getattr(torch, dtype))
    torch.save({"w": torch.ones(2), "late": late}, tmp_path / "a.pth")
    with pytest.raises(LossyEditError, match="has no such type"):
        convert(tmp_path / "a.pth", legacy(tmp_path / "b.pth"))
    allowed = Output(tmp_path / "b.pth", format="torch-legacy", allow_loss=True)
    assert convert(tmp_path / "a.pth", allowed).removed == ("late",)
    torch.save({"m": {"w": torch.ones(2)}, "late": [late]}, tmp_path / "a.pth")
    with pytest.raises(LossyEditError, match=f"'late' .list with tensors of {dtype}"):
        convert(tmp_path / "a.pth", legacy(tmp_path / "c.pth"))


def test_an_edit_of_a_legacy_file_still_writes_an_archive(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    line = ("rename", tmp_path / "a.pth", "--add-prefix", "m.", "-o", tmp_path / "b.pth")
    assert ckpt(*line).exit_code == 0
    assert (tmp_path / "b.pth").read_bytes()[:2] == b"PK"
