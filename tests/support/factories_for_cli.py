"""Models that the tests of `ckpt match` and `ckpt fit` name on the command line."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn


def net(channels: int = 3, width: int = 8, classes: int = 5) -> nn.Module:
    """A convolution with a batch norm, and a head."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(channels, width, 3),
            bn=nn.BatchNorm2d(width),
            fc=nn.Linear(width, classes),
        )
    )


def deeper(layers: int = 2) -> nn.Module:
    return nn.Sequential(OrderedDict((f"block{i}", net()) for i in range(layers)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(6, 4)
        self.decoder = nn.Linear(4, 6, bias=False)
        self.decoder.weight = self.encoder.weight


def tied() -> nn.Module:
    return Tied()


def typed(number: Any, part: Any, on: Any, word: Any, several: Any, nothing: Any) -> nn.Module:
    """A model whose one weight is as long as the number of arguments of the right type."""
    right = [
        number == -3 and isinstance(number, int),
        part == 0.5,
        on is True,
        word == "relu",
        several == [2, [3.5, "x"], False],
        nothing is None,
    ]
    return nn.Linear(1, sum(right), bias=False)


def raises() -> nn.Module:
    raise ZeroDivisionError("no")


def no_module() -> str:
    return "a text"


def reads_values() -> nn.Module:
    model = nn.Linear(2, 2)
    return nn.Linear(2, int(model.weight.sum().item()) + 1)


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(4))


def talks() -> nn.Module:
    print("building")  # noqa: T201 that it stays off standard output is tested
    return net()


not_callable = torch.nn
