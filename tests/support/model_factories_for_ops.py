"""Models that the tests of `match` and `fit` point at."""

from __future__ import annotations

import torch
from torch import nn

from ckpt_surgery.models.torchvision_import import import_torchvision


class SpatialPyramidAlexNet(nn.Module):
    """AlexNet with pooling at four levels: 50 cells a channel, and a head of 20 classes."""

    def __init__(self) -> None:
        super().__init__()
        base = import_torchvision().models.alexnet()
        self.features, self.classifier = base.features, base.classifier
        with torch.device("meta"):
            self.classifier[1] = nn.Linear(256 * 50, 4096)
        self.classifier[1].to_empty(device="cpu")
        nn.init.constant_(self.classifier[1].weight, 0.5)
        nn.init.zeros_(self.classifier[1].bias)
        self.classifier[6] = nn.Linear(4096, 20)


class WithDeconvolution(nn.Module):
    """ResNet-50 whose head is called otherwise, with a transposed convolution before it."""

    def __init__(self) -> None:
        super().__init__()
        for name, child in import_torchvision().models.resnet50().named_children():
            if name != "fc":
                self.add_module(name, child)
        self.deconv = nn.ConvTranspose2d(2048, 32, 3)
        self.fclass = nn.Linear(32, 9)


def raises() -> nn.Module:
    raise ZeroDivisionError("no")


def no_module() -> str:
    return "a text"


class _Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, device="meta"))
        self.sum = float(self.weight.sum().item())


def not_on_meta() -> nn.Module:
    return _Reads()


class _LanguageModel(nn.Module):
    def __init__(self, tie: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        if tie:
            self.head.weight = self.embed.weight


def language_model(tie: bool = True) -> nn.Module:
    return _LanguageModel(tie)
