"""TorchScript with element types that have no storage class in Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch_checks import quiet

from ckpt_surgery import AddPrefix, Output, convert, inspect, rename, strip
from ckpt_surgery import selection as select

TYPES = [
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz, torch.uint16, torch.uint32, torch.uint64,
]  # fmt: skip


class Net(torch.nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        values = torch.arange(8).to(dtype)
        self.register_buffer("w", values)
        self.register_buffer("tied", values)
        self.register_buffer("part", values[2:6].view(2, 2).t())
        self.p = torch.nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.p


@pytest.fixture(params=TYPES, ids=str)
def script(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with quiet():
        torch.jit.save(torch.jit.script(Net(request.param)), tmp_path / "m.ts")
    return tmp_path / "m.ts"


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.contiguous().view(torch.uint8).flatten().tolist()


def test_what_is_written_of_it_is_what_torch_and_safetensors_load(script: Path) -> None:
    with quiet():
        expected = torch.jit.load(script).state_dict()
    folder = script.parent
    convert(script, Output(folder / "m.pth"))
    convert(script, Output(folder / "m.safetensors"))
    rename(script, Output(folder / "x.pth"), [AddPrefix("x")])
    strip(script, Output(folder / "s.pth"), select(name="part"))
    plain = torch.load(folder / "m.pth", weights_only=True)
    assert list(plain) == list(expected)
    assert plain["w"].data_ptr() == plain["tied"].data_ptr()
    renamed = torch.load(folder / "x.pth", weights_only=True)
    stripped = torch.load(folder / "s.pth", weights_only=True)
    assert list(stripped) == [name for name in expected if name != "part"]
    once = load_file(folder / "m.safetensors")  # tied names are written once
    assert set(expected) - set(once) in ({"tied"}, {"w"})
    for name, tensor in expected.items():
        for each in (plain[name], renamed[f"x.{name}"], once.get(name, plain[name])):
            assert (each.dtype, each.shape) == (tensor.dtype, tensor.shape)
            assert bits(each) == bits(tensor)
    shown = inspect(script).state_dicts[0].entries
    assert {str(e.tensor.dtype.name) for e in shown if e.name == "w" and e.tensor} == {
        str(expected["w"].dtype).removeprefix("torch.")
    }


def test_class_of_a_script_is_none_outside_of_scripts(script: Path) -> None:
    """`torch.load` does not know it either."""
    import zipfile

    from ckpt_surgery import DamagedFileError, read

    out = script.with_name("eager.pth")
    with zipfile.ZipFile(script) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            if not name.startswith("m/code/") and "constants" not in name:
                new.writestr(zipfile.ZipInfo(name), old.read(name))
    with pytest.raises(DamagedFileError, match="unknown storage class"):
        read(out)
