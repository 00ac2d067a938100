"""Models of every kind that a user may point ``--model`` at, well-behaved and not."""

from __future__ import annotations

import math
import sys
import urllib.request
from itertools import pairwise
from typing import Any

import torch
from torch import nn

not_callable = 3


class Tied(nn.Module):
    """An encoder and a decoder with one weight."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Embedding(7, width)
        self.decoder = nn.Linear(width, 7, bias=False)
        self.decoder.weight = self.encoder.weight


class SharedParameter(nn.Module):
    """One parameter, registered from the outside in two modules, and one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        weight = nn.Parameter(torch.randn(3, 3))
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.a.weight = weight
        self.b.weight = weight
        self.widths = int(torch.linspace(1, 4, 4)[-1].item())
        self.c = nn.Linear(3, self.widths)
        self.again = self.c


class Drawn(nn.Module):
    """Parameters that are drawn before they are registered, and more than once."""

    def __init__(self, *, classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.token = nn.Parameter(torch.randn(1, 5))
        self.second = nn.Linear(6, 5)
        nn.init.trunc_normal_(self.second.weight, std=0.02)
        self.scale = nn.Parameter(torch.ones(5) * 2)
        self.position = nn.Parameter(torch.randn(5, 6))
        self.register_buffer("steps", torch.arange(5))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.norm = nn.BatchNorm1d(5)
        self.head = nn.Linear(5, classes)


class Derived(nn.Module):
    """One parameter is computed from another."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = nn.Linear(3, 3)
        self.b.weight.data.copy_(self.a.weight.data * 2)
        self.norm = nn.Parameter(self.a.weight.detach().norm().reshape(1))


class RunsItself(nn.Module):
    """Its constructor runs a part of it, as torchvision's SSDlite does to learn a width."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6)).eval()
        self.head = nn.Linear(self.body(torch.ones(1, 3)).shape[1], 2)


class WithExtraState(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)

    def get_extra_state(self) -> Any:
        return {"calls": 1}

    def set_extra_state(self, state: Any) -> None:
        raise AssertionError("a verdict does not call the user's code with junk")


class Awkward(nn.Module):
    """Its own loading code raises."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def _load_from_state_dict(self, *args: Any) -> None:
        raise KeyError("old")


def tied(width: int = 4) -> nn.Module:
    return Tied(width)


def stack(widths: list[int], *, bias: bool = True, name: str = "x") -> nn.Module:
    print("building", name)  # noqa: T201 that it does not reach standard output is tested
    return nn.Sequential(*(nn.Linear(a, b, bias=bias) for a, b in pairwise(widths)))


def raises() -> nn.Module:
    raise ValueError("no such configuration\nand more")


def raises_silently() -> nn.Module:
    raise ValueError


def exits() -> nn.Module:
    raise SystemExit(3)


def out_of_memory() -> nn.Module:
    raise MemoryError


def no_module() -> Any:
    return {"weight": torch.zeros(2)}


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(4), nn.ReLU())


def reads_values() -> nn.Module:
    layer = nn.Linear(2, 2)
    if layer.weight.sum().item() > 0:
        layer.bias = None
    return layer


def state_dict_raises() -> nn.Module:
    class Broken(nn.Linear):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("no state")

    return Broken(2, 2)


class Namespace:
    make = staticmethod(tied)


class Detector(nn.Module):
    """A detector that finds its stride by a forward pass, as YOLO does, and computes with it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, bias=False), nn.BatchNorm2d(4))
        self.stride = torch.tensor([64 / self.stem(torch.zeros(1, 3, 64, 64)).shape[-1]])
        self.strides = [self.stride, (self.stride,)]
        self.head = nn.Linear(2, 2)
        self.head.bias.data[:] = math.log(5 / self.stride[0])
        self.tied = nn.Linear(2, 2)
        self.tied.weight = self.head.weight


def detector() -> nn.Module:
    return Detector()


def moved_detector() -> nn.Module:
    """Both: a forward pass, and a device that is not there; half precision by a tensor."""
    return Detector().to("cuda:1").half().to(torch.empty(0, dtype=torch.float16))


def moved(device: str = "cpu", dtype: str = "float32") -> nn.Module:
    return nn.Linear(2, 2).to(device, getattr(torch, dtype))


def on_a_gpu() -> nn.Module:
    """Methods and arguments that name devices."""
    model = nn.Sequential(nn.Linear(2, 2, device="cuda"), nn.BatchNorm1d(2))
    model.register_buffer("table", torch.zeros(3, device="cuda:0").to("cuda", torch.float64))
    return model.cuda().cpu()


class NeedsValues(nn.Module):
    """Its width is a number that is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(100) + 1)
        self.head = nn.Linear(int(self.scale.sum().item() > 0), 3)


def needs_values() -> nn.Module:
    return NeedsValues()


def wants_the_network(host: str = "example.invalid") -> nn.Module:
    """Fetches weights, as constructors do whose author has them."""
    sys.stderr.write(f"asked for {host}\n")
    urllib.request.urlopen(f"http://{host}/", timeout=0.1).close()
    return nn.Linear(1, 1)
