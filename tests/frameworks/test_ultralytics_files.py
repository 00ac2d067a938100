"""Training files of ultralytics, as its own trainer writes them, stay what it loads and resumes."""

from __future__ import annotations

import copy
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import are_equal, ckpt
from frameworks import framework

NETWORK = """nc: {classes}
scales:
  n: [0.33, 0.0625, 1024]
backbone:
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, Conv, [128, 3, 2]]
  - [-1, 1, C2f, [128, True]]
  - [-1, 1, Conv, [256, 3, 2]]
head:
  - [[2, 3], 1, Detect, [nc]]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with last.pt after the first of three epochs, and the files that it was made of."""
    folder = tmp_path_factory.mktemp("yolo")
    patch = pytest.MonkeyPatch()
    patch.setenv("YOLO_CONFIG_DIR", str(folder))
    patch.setenv("YOLO_OFFLINE", "true")
    patch.setenv("YOLO_AUTOINSTALL", "false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        framework("ultralytics")
        cv2, numpy = framework("cv2"), framework("numpy")
        random = numpy.random.default_rng(0)
        for name in ("images", "labels"):
            (folder / name).mkdir()
        for i in range(4):
            image = random.integers(0, 255, (32, 32, 3), dtype=numpy.uint8)
            cv2.imwrite(str(folder / "images" / f"{i}.png"), image)
            (folder / "labels" / f"{i}.txt").write_text(f"{i % 2} 0.5 0.5 0.4 0.4\n")
        (folder / "data.yaml").write_text(
            f"path: {folder}\ntrain: images\nval: images\nnames: [a, b]\n"
        )
        (folder / "yolov8n.yaml").write_text(NETWORK.format(classes=2))
        trained = trainer(folder, folder / "yolov8n.yaml")
        trained.add_callback("on_model_save", lambda t: keep(t, folder / "last.pt"))
        trained.train()
    yield folder
    patch.undo()


def keep(trained: Any, path: Path) -> None:
    if trained.epoch == 0:
        shutil.copy(trained.last, path)


def trainer(folder: Path, model: Path, **more: Any) -> Any:
    from ultralytics.models.yolo.detect import DetectionTrainer

    choices = {
        "data": folder / "data.yaml", "imgsz": 32, "epochs": 3, "batch": 2, "workers": 0,
        "device": "cpu", "plots": False, "project": folder / "runs", "name": "x", "exist_ok": True,
        "optimizer": "AdamW", "val": False, "amp": False, "pretrained": False, "verbose": False,
    }  # fmt: skip
    given = {k: str(v) if isinstance(v, Path) else v for k, v in (choices | more).items()}
    return DetectionTrainer(overrides={"model": str(model), **given})


def resumed(folder: Path, file: Path) -> dict[str, torch.Tensor]:
    """Weights, average and optimizer's moments of the last epoch, resumed from `file`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained = trainer(folder, file, resume=str(file))
        found: list[dict[str, torch.Tensor]] = []
        trained.add_callback("on_model_save", lambda t: found.append(state_of(t)))
        trained.train()
    assert len(found) == 2  # of three epochs
    return found[-1]


def state_of(trained: Any) -> dict[str, torch.Tensor]:
    state = {f"model.{k}": v.clone() for k, v in trained.model.state_dict().items()}
    state |= {f"ema.{k}": v.clone() for k, v in trained.ema.ema.state_dict().items()}
    moments = trained.optimizer.state_dict()["state"]
    return state | {
        f"{i}.{name}": value.clone() for i, held in moments.items() for name, value in held.items()
    }


def weights(file: Path) -> dict[str, torch.Tensor]:
    """What the framework itself loads of a file."""
    from ultralytics import YOLO

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state: dict[str, torch.Tensor] = YOLO(str(file)).model.state_dict()
    return state


@pytest.fixture(scope="module")
def stripped(folder: Path) -> dict[str, torch.Tensor]:
    """What the framework loads of the file that its own ``strip_optimizer`` makes."""
    from ultralytics.utils.torch_utils import strip_optimizer

    strip_optimizer(str(folder / "last.pt"), str(folder / "theirs.pt"))
    return weights(folder / "theirs.pt")


@pytest.mark.parametrize("ema", [(), ("--ema",)])
def test_without_training_state_it_loads_as_what_strip_optimizer_leaves(ema, folder, stripped):
    out = folder / f"ours{len(ema)}.pt"
    said = ckpt("strip", folder / "last.pt", "--training-state", *ema, "-o", out)
    assert "converted" not in said
    assert "classes outside torch" not in said
    assert are_equal(weights(out), stripped)
    left = torch.load(out, weights_only=False)
    assert not {"optimizer", "scaler"} & left.keys()
    assert ({"ema", "updates"} <= left.keys()) is not bool(ema)
    assert type(left["model" if ema else "ema"]).__name__ == "DetectionModel"
    assert out.stat().st_size < 1.05 * (folder / "theirs.pt").stat().st_size


@pytest.mark.parametrize("container", [True, False])
def test_of_two_modules_the_average_takes_the_other_s_place_whole(container, folder, stripped):
    """As ultralytics and YOLOv5 saved until 2024, when both were in the file."""
    both = torch.load(folder / "last.pt", weights_only=False)
    both["model"] = copy.deepcopy(both["ema"])
    for parameter in both["model"].parameters():
        parameter.data.add_(1)
    file, out = folder / "both.pt", folder / "published.pt"
    torch.save(both, file, _use_new_zipfile_serialization=container)
    ckpt("strip", file, "--training-state", "--ema", "-o", out, "--force")
    assert are_equal(weights(out), stripped)
    assert "ema" not in torch.load(out, weights_only=False)
    ckpt("strip", file, "--training-state", "-o", out, "--force")
    assert are_equal(weights(out), both["model"].float().state_dict())


def test_what_is_done_beside_the_module_and_undone_resumes_bit_for_bit(folder):
    last, out = folder / "last.pt", folder / "out.pt"
    wrapped = folder / "wrapped.pt"
    ckpt("rename", last, "--wrap", "run", "-o", wrapped)
    ckpt("strip", wrapped, "--unwrap", "-o", out)
    assert out.read_bytes() == last.read_bytes()
    ckpt("strip", last, "--entry", "git", "--entry", "docs", "-o", out, "--force")
    ckpt("set", out, "date=never", "-i")
    assert "git" not in torch.load(out, weights_only=False)
    assert are_equal(resumed(folder, out), resumed(folder, last))


def test_what_changes_the_module_is_said_and_is_not_done_in_its_place(folder):
    last, out = folder / "last.pt", folder / "changed.pt"
    said = ckpt("strip", last, "--prefix", "model.4", "-o", out)
    assert "converted: torch-module -> torch-zip" in said
    before = last.read_bytes()
    refused = ckpt("strip", last, "--prefix", "model.4", "-i", exit_code=2)
    assert "without a pickled module" in refused
    assert last.read_bytes() == before
    assert all(isinstance(v, torch.Tensor) for v in torch.load(out)["ema"].values())


def test_names_there_and_back_give_the_module_s_state_dict(folder):
    last, there, back = folder / "last.pt", folder / "there.pt", folder / "back.pt"
    ckpt("rename", last, "--add-prefix", "net", "-o", there)
    ckpt("rename", there, "--strip-prefix", "net", "-o", back)
    module = torch.load(last, weights_only=False)["ema"]
    assert are_equal(torch.load(back)["ema"], module.state_dict())


def test_a_network_for_other_classes_loads_what_was_fitted_and_its_optimizer(folder):
    import yaml
    from ultralytics.engine.trainer import BaseTrainer
    from ultralytics.nn.tasks import DetectionModel

    classes = yaml.safe_load(NETWORK.format(classes=3)) | {"scale": "n"}
    other = DetectionModel(classes, verbose=False)
    torch.save(other.state_dict(), folder / "three.pth")
    last, out = folder / "last.pt", folder / "fitted.pt"
    said = ckpt("fit", last, "--like", folder / "three.pth", "-o", out)
    assert "converted: torch-module -> torch-zip" in said
    assert "4 parameters reset" in said
    old, new = torch.load(last, weights_only=False), torch.load(out)
    other.load_state_dict(new["ema"])
    moments: list[dict[str, torch.Tensor]] = []
    for file, net in ((old, old["ema"].float()), (new, other)):
        net.requires_grad_(requires_grad=True)
        optimizer = BaseTrainer.build_optimizer(None, net, name="AdamW")
        optimizer.load_state_dict(file["optimizer"])
        own = {name: optimizer.state[p] for name, p in net.named_parameters()}
        moments.append({name: held["exp_avg"] for name, held in own.items() if held})
    reset = {f"model.4.cv3.{i}.2.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    assert moments[0].keys() - moments[1].keys() == reset
    assert all(torch.equal(value, moments[0][name]) for name, value in moments[1].items())
