"""Training files of mmengine's Runner, with and without EMAHook, come through and resume there."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import are_equal, ckpt
from frameworks import framework
from torch import nn

pytestmark = [
    pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE"),
    # two runners of one second have one name
    pytest.mark.filterwarnings("ignore:.*instance named of:UserWarning"),
]
ITEMS = [(torch.rand(4, generator=torch.Generator().manual_seed(i)), i % 3) for i in range(8)]


def make(classes: int = 3, *, head: bool = True) -> Any:
    base = framework("mmengine.model").BaseModel

    class Net(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
            if head:
                self.head = nn.Linear(4, classes)

        def forward(self, inputs: Any, labels: Any, mode: str = "tensor") -> Any:
            found = self.backbone(inputs)
            found = self.head(found) if head else found
            return {"loss": nn.functional.cross_entropy(found, labels % found.shape[1])}

    torch.manual_seed(0)
    return Net()


def runner(folder: Path, net: Any, epochs: int, **more: Any) -> Any:
    return framework("mmengine.runner").Runner(
        net,
        str(folder),
        train_dataloader={
            "batch_size": 4, "dataset": ITEMS, "collate_fn": {"type": "default_collate"},
            "sampler": {"type": "DefaultSampler", "shuffle": False},
        },
        train_cfg={"by_epoch": True, "max_epochs": epochs},
        optim_wrapper={"type": "OptimWrapper", "optimizer": {"type": "AdamW", "lr": 0.01}},
        param_scheduler={"type": "MultiStepLR", "milestones": [1]},
        custom_hooks=[{"type": "EMAHook", "momentum": 0.1}],
        default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 1}},
        experiment_name=folder.name + str(len(list(folder.parent.iterdir()))),
        log_level=logging.CRITICAL,
        randomness={"seed": 0},
        **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mmengine") / "run"
    folder.mkdir()
    runner(folder, make(), 2).train()
    return folder / "epoch_2.pth"


@pytest.fixture(autouse=True)
def _as_mmengine_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let its own classes be unpickled, as whoever resumes with a torch since 2.6 must."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")


def resumed(file: Path, folder: Path, net: Any = None) -> dict[str, torch.Tensor]:
    """Weights in training, average and learning rate after the third epoch."""
    folder.mkdir(exist_ok=True)
    trained = runner(folder, net or make(), 3, load_from=str(file), resume=True)
    trained.train()
    assert trained.epoch == 3
    average = next(hook for hook in trained.hooks if type(hook).__name__ == "EMAHook").ema_model
    state = {f"model.{name}": value for name, value in trained.model.state_dict().items()}
    state |= {f"ema.{name}": value for name, value in average.state_dict().items()}
    lr = trained.optim_wrapper.param_groups[0]["lr"]
    return state | {"lr": torch.tensor(lr)}


def test_what_is_undone_or_beside_the_model_resumes_bit_for_bit(file, tmp_path):
    there, back = tmp_path / "there.pth", tmp_path / "back.pth"
    ckpt("rename", file, "--add-prefix", "net", "--wrap", "run", "-o", there)
    ckpt("strip", there, "--unwrap", "-o", back)
    ckpt("rename", back, "--strip-prefix", "net", "-i")
    ckpt("strip", back, "--entry", "meta/experiment_name", "-i")
    assert are_equal(resumed(back, tmp_path / "a"), resumed(file, tmp_path / "b"))


@pytest.mark.parametrize("ema", [(), ("--ema",)])
def test_without_training_state_it_is_the_average_that_mmengine_loads(ema, file, tmp_path):
    """And it says so where it was not asked for: mmengine keeps it in the model's place."""
    checkpoint = framework("mmengine.runner.checkpoint")
    out = tmp_path / "out.pth"
    said = ckpt("strip", file, "--training-state", *ema, "-o", out)
    assert ("those in training, 'ema_state_dict', go" in said) is not bool(ema)
    loaded, wanted = make(), make()
    checkpoint.load_checkpoint(loaded, str(out), map_location="cpu", strict=True)
    checkpoint.load_checkpoint(wanted, str(file), map_location="cpu", strict=True)
    assert are_equal(dict(loaded.state_dict()), dict(wanted.state_dict()))
    assert set(torch.load(out, weights_only=False)) == {"meta", "state_dict"}


def test_without_its_head_it_resumes_where_the_network_has_none(file, tmp_path):
    """Weights, average and moments of the rest are those that the whole file resumes with."""
    out = tmp_path / "out.pth"
    ckpt("strip", file, "--prefix", "head", "-o", out)
    ckpt("strip", file, "--keep", "--prefix", "backbone", "-o", tmp_path / "kept.pth")
    assert (tmp_path / "kept.pth").read_bytes() == out.read_bytes()
    assert len(resumed(out, tmp_path / "a", make(head=False))) > 10
    old, new = (torch.load(each, weights_only=False)["optimizer"]["state"] for each in (file, out))
    assert len(old) - len(new) == 2
    for number, held in new.items():
        assert are_equal(held, old[number])


def test_other_classes_resume_with_what_stays(file, tmp_path):
    other, out = make(classes=7), tmp_path / "out.pth"
    torch.save(other.state_dict(), tmp_path / "like.pth")
    ckpt("fit", file, "--like", tmp_path / "like.pth", "--at", "state_dict", "--at",
         "ema_state_dict", "-o", out)  # fmt: skip
    found = resumed(out, tmp_path / "a", make(classes=7))
    assert found["model.head.weight"].shape == found["ema.module.head.weight"].shape == (7, 4)


def test_what_was_fitted_to_the_names_of_the_network_resumes_bit_for_bit(file, tmp_path):
    there, back = tmp_path / "there.pth", tmp_path / "back.pth"
    torch.save(make().state_dict(), tmp_path / "like.pth")
    ckpt("rename", file, "--add-prefix", "net", "-o", there)
    ckpt("fit", there, "--like", tmp_path / "like.pth", "-o", back)
    assert are_equal(resumed(back, tmp_path / "a"), resumed(file, tmp_path / "b"))


@pytest.mark.parametrize("classes", [None, 7])
def test_the_next_step_of_what_stays_is_that_of_the_whole_file(classes, file, tmp_path):
    """Without the head, and with another one, under the same gradients."""
    out, nets = tmp_path / "out.pth", []
    other = make(head=False) if classes is None else make(classes)
    torch.save(other.state_dict(), tmp_path / "like.pth")
    if classes is None:
        ckpt("strip", file, "--prefix", "head", "-o", out)
    else:
        ckpt("fit", file, "--like", tmp_path / "like.pth", "-o", out)
    for each, net in ((file, make()), (out, other)):
        saved = torch.load(each, weights_only=False)
        swapped = saved.get("ema_state_dict")  # mmengine keeps the weights in training there
        own = {n.removeprefix("module."): v for n, v in swapped.items() if n != "steps"}
        net.load_state_dict(own)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        optimizer.load_state_dict(saved["optimizer"])
        for name, parameter in net.named_parameters():
            parameter.grad = parameter.detach() * (len(name) % 5 - 2.5) + 0.01
        optimizer.step()
        nets.append({n: v for n, v in net.state_dict().items() if not n.startswith("head.")})
    assert are_equal(*nets)
