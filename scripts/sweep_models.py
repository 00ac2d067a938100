"""Match and fit every architecture of torchvision, and let torch itself check the results.

    python scripts/sweep_models.py [PART OF A NAME ...]

For each: `match` of a checkpoint of random numbers says that all keys match; for a classification
model `fit` to 10 classes loads strictly, and every copied tensor equals its source bit for bit.
Needs up to 3 GB of memory and 6 GB in the temporary folder.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch

import ckpt_surgery
from ckpt_surgery.models.building import build_module
from ckpt_surgery.models.specs import ModelSpec
from ckpt_surgery.models.torchvision_import import import_torchvision

_CLASSES = 10


def main() -> None:
    models = import_torchvision().models
    classification = set(models.list_models(module=models))
    names = [
        n for n in models.list_models() if not sys.argv[1:] or any(a in n for a in sys.argv[1:])
    ]
    fitted = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            started = time.monotonic()
            source = Path(folder) / f"{name}.pth"
            _save_random(name, source)
            report = ckpt_surgery.match(source, model=f"torchvision:{name}")
            assert report.exit_code == 0, (name, report.to_dict())
            line = f"{name}: {report.to_dict()['matched']} keys match"
            if name in classification:
                line += _check_fit(name, source, Path(folder) / "fitted.pth")
                fitted += 1
            source.unlink()
            print(f"{line}, {time.monotonic() - started:.1f} s", flush=True)
    print(f"{len(names)} models match their own checkpoints; {fitted} fitted to {_CLASSES} classes")


def _save_random(name: str, path: Path) -> None:
    module = build_module(ModelSpec(f"torchvision:{name}")).to_empty(device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for value in module.state_dict().values():
            value.uniform_(-1, 1) if value.is_floating_point() else value.zero_()
    torch.save(module.state_dict(), path)


def _check_fit(name: str, source: Path, output: Path) -> str:
    arguments = {"num_classes": _CLASSES}
    spec = f"torchvision:{name}"
    report = ckpt_surgery.fit(
        source, ckpt_surgery.Output(output, force=True), model=spec, model_args=arguments
    )
    old = torch.load(source, weights_only=True, mmap=True)
    new = torch.load(output, weights_only=True, mmap=True)
    module = build_module(ModelSpec(spec, arguments))
    assert (
        str(module.load_state_dict(new, strict=True, assign=True))
        == "<All keys matched successfully>"
    )
    found = report.to_dict()
    for key in found["copied"]:
        assert new[key].dtype == old[key].dtype, key
        assert torch.equal(
            new[key].view(-1).view(torch.uint8), old[key].view(-1).view(torch.uint8)
        ), key
    assert not found["adapted"]
    assert len(found["copied"]) + len(found["initial"]) == len(new)
    assert all(new[key].isfinite().all() for key in found["initial"])
    return f"; {len(found['copied'])} copied, {len(found['initial'])} initial"


if __name__ == "__main__":
    main()
