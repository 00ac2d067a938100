"""Checkpoints of Lightning's Trainer with its three kinds of averages come through and resume."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import are_equal, ckpt
from frameworks import framework
from torch import nn

DATA = torch.utils.data.TensorDataset(
    torch.rand(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
)
KINDS = ["WeightAveraging", "EMAWeightAveraging", "StochasticWeightAveraging"]


def make(classes: int = 3, *, prefix: str = "model") -> Any:
    lightning = framework("lightning.pytorch")

    class Net(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, classes: int, prefix: str) -> None:
            super().__init__()
            self.save_hyperparameters()
            layers = [nn.Linear(4, 4), nn.BatchNorm1d(4)]
            head = [nn.Linear(4, classes)] if classes else []
            setattr(self, prefix, nn.Sequential(*layers, *head))

        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            found = getattr(self, prefix)(batch[0])
            return nn.functional.cross_entropy(found, batch[1])

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    torch.manual_seed(0)
    return Net(classes, prefix)


def train(folder: Path, kind: str, net: Any, epochs: int, resume: Path | None = None) -> Any:
    lightning = framework("lightning.pytorch")
    choices = {"swa_lrs": 0.01, "swa_epoch_start": 1} if kind.startswith("Stoch") else {}
    average = getattr(lightning.callbacks, kind)(**choices)
    saving = lightning.callbacks.ModelCheckpoint(
        dirpath=str(folder), filename=kind + "-{epoch}", save_top_k=-1, every_n_epochs=1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=str(folder), callbacks=[average, saving],
        )  # fmt: skip
        batches = torch.utils.data.DataLoader(DATA, batch_size=4)
        trainer.fit(net, batches, ckpt_path=resume, weights_only=False)
    return average


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lightning")
    for kind in KINDS:
        train(folder, kind, make(), 4)
    return folder


def saved(folder: Path, kind: str) -> Path:
    """What was saved after the third epoch of four; Lightning's SWA began with the second."""
    return folder / f"{kind}-epoch=2.ckpt"


def resumed(file: Path, kind: str, folder: Path, **network: Any) -> dict[str, torch.Tensor]:
    """Weights and average after the fourth epoch, and what Lightning then saves."""
    net = make(**network)
    folder.mkdir()
    average = train(folder, kind, net, 4, file)
    state = {f"model.{name}": value for name, value in net.state_dict().items()}
    inside = average._average_model.state_dict()
    state |= {f"average.{name}": value for name, value in inside.items()}
    last = torch.load(folder / f"{kind}-epoch=3.ckpt", weights_only=False)
    for number, held in last["optimizer_states"][0]["state"].items():
        state |= {f"{number}.{name}": value for name, value in held.items()}
    return state


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_undone_or_beside_the_model_resumes_bit_for_bit(kind, folder, tmp_path):
    file, there, back = saved(folder, kind), tmp_path / "there.ckpt", tmp_path / "back.ckpt"
    ckpt("rename", file, "--add-prefix", "net", "--wrap", "run", "-o", there)
    ckpt("strip", there, "--unwrap", "-o", back)
    ckpt("rename", back, "--strip-prefix", "net", "-i")
    ckpt("strip", back, "--entry", "hyper_parameters/**", "-i")
    wanted = resumed(file, kind, tmp_path / "a")
    assert are_equal(resumed(back, kind, tmp_path / "b"), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_whose_parts_are_called_otherwise_resumes_bit_for_bit(kind, folder, tmp_path):
    """The names of weights, average and all that goes with them follow."""
    file, out = saved(folder, kind), tmp_path / "out.ckpt"
    ckpt("rename", file, "--replace", "model.", "encoder.", "-o", out)
    found = resumed(out, kind, tmp_path / "a", prefix="encoder")
    wanted = resumed(file, kind, tmp_path / "b")
    renamed = {n.replace("model.", "*").replace("encoder.", "*"): v for n, v in found.items()}
    assert are_equal(renamed, {n.replace("model.", "*"): v for n, v in wanted.items()})


@pytest.mark.parametrize("kind", KINDS)
def test_without_training_state_it_is_what_lightning_loads(kind, folder, tmp_path):
    file, out = saved(folder, kind), tmp_path / "out.ckpt"
    ckpt("strip", file, "--training-state", "--ema", "-o", out)
    net = type(make()).load_from_checkpoint(out, weights_only=True)
    whole = torch.load(file, weights_only=False)
    swa = whole["callbacks"].get(kind, {}).get("average_model_state")
    wanted = {n.removeprefix("module."): v for n, v in swa.items()} if swa else whole["state_dict"]
    assert are_equal(dict(net.state_dict()), dict(wanted))


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_or_fitted_checkpoint_resumes_with_the_moments_of_what_stays(kind, folder, tmp_path):
    file, cut, wide = saved(folder, kind), tmp_path / "cut.ckpt", tmp_path / "wide.ckpt"
    ckpt("strip", file, "--prefix", "model.2", "-o", cut)
    torch.save(make(classes=7).state_dict(), tmp_path / "like.pth")
    said = ckpt("fit", file, "--like", tmp_path / "like.pth", "-o", wide)
    if kind == "StochasticWeightAveraging":
        behind = "callbacks/StochasticWeightAveraging/average_model_state"
        assert f"the average in '{behind}' is carried over as it was, out of step" in said
        ckpt("strip", wide, "--entry", behind.rpartition("/")[0], "-i")
    old = torch.load(file, weights_only=False)["optimizer_states"][0]["state"]
    for out in (cut, wide):
        new = torch.load(out, weights_only=False)["optimizer_states"][0]["state"]
        assert list(new) == list(old)[:-2]
        assert all(are_equal(held, old[number]) for number, held in new.items())
    assert resumed(cut, kind, tmp_path / "a", classes=0)
    assert resumed(wide, kind, tmp_path / "b", classes=7)["model.model.2.weight"].shape == (7, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_fitted_to_the_names_of_the_network_resumes_bit_for_bit(kind, folder, tmp_path):
    file, there, back = saved(folder, kind), tmp_path / "there.ckpt", tmp_path / "back.ckpt"
    torch.save(make().state_dict(), tmp_path / "like.pth")
    ckpt("rename", file, "--add-prefix", "net", "-o", there)
    ckpt("fit", there, "--like", tmp_path / "like.pth", "-o", back)
    wanted = resumed(file, kind, tmp_path / "a")
    assert are_equal(resumed(back, kind, tmp_path / "b"), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_step_of_what_stays_is_that_of_the_whole_file(kind, folder, tmp_path):
    """Without the head, and with another one, under the same gradients."""
    file, cut, wide = saved(folder, kind), tmp_path / "cut.ckpt", tmp_path / "wide.ckpt"
    torch.save(make(classes=7).state_dict(), tmp_path / "like.pth")
    ckpt("strip", file, "--prefix", "model.2", "-o", cut)
    ckpt("fit", file, "--like", tmp_path / "like.pth", "-o", wide)
    nets = []
    for each, classes in ((file, 3), (cut, 0), (wide, 7)):
        whole, net = torch.load(each, weights_only=False), make(classes)
        net.load_state_dict(whole.get("current_model_state", whole["state_dict"]))
        ((optimizer,), _) = net.configure_optimizers()
        optimizer.load_state_dict(whole["optimizer_states"][0])
        for name, parameter in net.named_parameters():
            parameter.grad = parameter.detach() * (len(name) % 5 - 2.5) + 0.01
        optimizer.step()
        nets.append({n: v for n, v in net.state_dict().items() if not n.startswith("model.2.")})
    assert are_equal(nets[0], nets[1])
    assert are_equal(nets[0], nets[2])
