"""Write a ResNet-34 checkpoint, or load one into a ResNet-34 and say what was missing."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from ckpt_surgery.models.torchvision_import import import_torchvision


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--pretrained", action="store_true", help="the published weights")
    parser.add_argument("--check", action="store_true", help="load FILE with strict=False")
    options = parser.parse_args()
    models = import_torchvision().models
    torch.manual_seed(0)
    if options.check:
        model = models.resnet34()
        state_dict = torch.load(options.file, weights_only=True)
        print(model.load_state_dict(state_dict, strict=False))
        return 0
    try:
        model = models.resnet34(weights="IMAGENET1K_V1" if options.pretrained else None)
    except OSError as error:
        print(f"the published weights cannot be fetched: {error}", file=sys.stderr)
        return 2
    torch.save(model.state_dict(), options.file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
