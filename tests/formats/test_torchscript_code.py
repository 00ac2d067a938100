"""Declarations are read from the form that torch prints, and from no other."""

import io
import zipfile
from enum import Enum
from typing import List, NamedTuple  # noqa: UP035 (torch.jit knows no other)

import pytest
import torch
from torch import nn

from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.formats.torchscript_code import declarations

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

CODE = """\
op_version_set = 1
import __torch__.torch.nn
class Linear(Module):
  __parameters__ = ["weight", "bias", ]
  __buffers__ = ["mean", "optional", ]
  __annotations__ = []
  weight : Tensor
  bias : Optional[Tensor]
  mean : Tensor
  optional : Optional[Tensor]
  __annotations__["0"] = __torch__.torch.nn.Linear
  pair : Tuple[int, Dict[str, List[Tensor]]]
  empty : Tuple[()]
  mine : __torch__.MyTensor
  name : Final[str] = "a # \\"[('"
  sizes : Final[List[int]] = [1, (2, 3)]
  inf : Final[float] = inf
  def forward(self: __torch__.Linear,
    x: Tensor) -> Tensor:
    return x
def helper(x: int) -> int:
  return x
class Pair(NamedTuple):
  x : Tensor # of no module
"""


def test_printed_declarations_are_read() -> None:
    found = declarations(CODE)
    assert list(found) == ["Linear", "Pair"]
    linear = found["Linear"]
    assert linear.is_module
    assert not found["Pair"].is_module
    assert linear.parameters == {"weight", "bias"}
    assert linear.buffers == {"mean"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("class Linear(Module):", "class Linear(Module) :"),
        ("class Linear(Module):", "class  Linear(Module):"),
        ("class Linear(Module):", "class Linear( Module):"),
        ("class Linear(Module):", " class Linear(Module):"),
        ("class Linear(Module):", "class Linear(Module): # note"),
        ("class Pair(NamedTuple):", "class Linear(Module):"),
        ("op_version_set = 1", "op_version_set=1"),
        ("op_version_set = 1", "x = 1"),
        ("op_version_set = 1", "  x = 1"),
        ("import __torch__", "from __torch__ import x\nimport __torch__"),
        ("import __torch__.torch.nn", "import __torch__.torch.nn\n  x = 1"),
        ('"bias", ]', '"bias"]'),
        ('["weight", ', "['weight', "),
        ('["weight", ', '[ "weight", '),
        ('["weight", ', '["weight",\n  '),
        ('["weight", ', '["wei\\x67ht", '),
        ("  __buffers__ = ", "  __parameters__ = "),
        ("  __buffers__ = ", "  __buffers__= "),
        ("  __buffers__ = ", "    __buffers__ = "),
        ("  __buffers__ = ", " __buffers__ = "),
        ("  weight : Tensor", "  weight: Tensor"),
        ("  weight : Tensor", "  weight :  Tensor"),
        ("  weight : Tensor", "  weight : Tensor "),
        ("  weight : Tensor", "  weight : Tensor\r"),
        ("  weight : Tensor", "  weight : torch.Tensor"),
        ("  weight : Tensor", "  weight : LongTensor"),
        ("  weight : Tensor", "  weight : (Tensor)"),
        ("  weight : Tensor", "  weight : Tensor # note"),
        ("  weight : Tensor", "  weight : Ten\\\nsor"),
        ("  weight : Tensor", "  weight : List[Tensor"),
        ("  weight : Tensor", "  weight : Tensor; mean : Tensor"),
        ("  weight : Tensor", "  mean : Tensor"),
        ("  weight : Tensor", "# note\n  weight : Tensor"),
        ("  weight : Tensor", "  # note\n  weight : Tensor"),
        ("Final[float] = inf", "Final[float] = x["),
        ("Final[float] = inf", "Final[float] = (1]"),
        ("Final[float] = inf", "Final[float] = 1)"),
        ("Final[float] = inf", 'Final[str] = """'),
        ("Final[float] = inf", "Final[str] = 'x'"),
        ("Final[float] = inf", "Final[float] = 1 + \\"),
        ("Final[float] = inf", "Final[float = inf"),
        ("    return x\ndef", "    return x\n  more : Tensor\ndef"),
        ("    return x\ndef", "    return (x\n  )\ndef"),
        ("    return x\ndef", "   return x\ndef"),
    ],
)  # fmt: skip
def test_other_forms_are_refused(old: str, new: str) -> None:
    assert old in CODE
    with pytest.raises(DamagedFileError, match=r"line \d+ of the code is not as torch prints it"):
        declarations(CODE.replace(old, new, 1))


class Point(NamedTuple):
    x: torch.Tensor
    n: int


class Color(Enum):
    RED = 1


class Everything(nn.Module):
    """What torch prints in its own way."""

    sizes: torch.jit.Final[List[float]]  # type: ignore[valid-type]  # noqa: UP006
    optional: torch.Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [1.5, float("inf")]
        self.optional = None
        self.names = ["it's", 'a "quote"', "tab\t", "#", "é", "([{"]
        self.pair, self.empty, self.color = (1, "x"), (), Color.RED
        self.register_buffer("mean", torch.zeros(3))
        self.register_parameter("none", None)
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.ReLU()])
        self.cell = nn.LSTM(2, 2)

    def forward(self, x: torch.Tensor, s: str = 'a)#"(') -> Point:
        print("several\nlines # of 'text'", s)  # noqa: T201 (it is not run)
        for layer in self.layers:
            x = layer(x)
        return Point(x, 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.jit.script(Everything()),
        lambda: torch.jit.script(nn.Transformer(8, 2, 1, 1, 8)),
        lambda: torch.jit.trace(nn.Conv2d(1, 2, 3), torch.zeros(1, 1, 5, 5)),
    ],
    ids=["everything", "transformer", "trace"],
)  # fmt: skip
def test_whatever_torch_prints_is_read(make: object) -> None:
    buffer = io.BytesIO()
    torch.jit.save(make(), buffer)  # type: ignore[operator]
    with zipfile.ZipFile(buffer) as archive:
        for name in archive.namelist():
            if name.endswith(".py"):
                assert declarations(archive.read(name).decode()) is not None
