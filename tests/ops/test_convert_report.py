"""What `convert` says it carried over is in the file that it wrote."""

from __future__ import annotations

import torch
from safetensors.torch import save_file

import ckpt_surgery as ckpt


def test_metadata_of_safetensors_is_reported_as_dropped(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "m.safetensors", metadata={"license": "MIT"})
    report = ckpt.convert(tmp_path / "m.safetensors", tmp_path / "m.pth")
    assert (report.carried, report.dropped) == ((), ("__metadata__",))
    assert torch.load(tmp_path / "m.pth", weights_only=True).keys() == {"w"}


def test_attributes_of_torchscript_are_reported_as_dropped(tmp_path, shared_dir):
    source = shared_dir / "real" / "silero-vad" / "silero_vad_2023-04.jit"
    report = ckpt.convert(source, tmp_path / "vad.pth")
    assert report.carried == ()
    assert "constants" in report.dropped
    assert [o.path for o in ckpt.read(tmp_path / "vad.pth").others] == []


def test_what_lies_beside_a_pickled_module_is_carried_over(tmp_path):
    torch.save({"epoch": 3, "model": torch.nn.Linear(2, 2)}, tmp_path / "train.pth")
    report = ckpt.convert(tmp_path / "train.pth", tmp_path / "weights.pth")
    assert (report.carried, report.dropped) == (("epoch",), ())
    assert torch.load(tmp_path / "weights.pth", weights_only=True)["epoch"] == 3
