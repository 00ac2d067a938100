"""Moving averages as those who keep them write them, found and paired with their models."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from averages_as_written import (
    LatentDiffusion,
    LitEma,
    averaged_model,
    ema_pytorch_state,
    lightning_checkpoint,
    mmengine_checkpoint,
    net,
    shadows,
    swa_state,
    wrapped,
)
from frameworks import framework
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch_checks import save

import ckpt_surgery
from ckpt_surgery.errors import LimitExceededError
from ckpt_surgery.torch_objects.averages import dotless_average, layout_of
from ckpt_surgery.training.averages import Average, find_averages


def found(value: Any, folder: Path) -> list[Average]:
    with ckpt_surgery.read(save(value, folder / "t.pt")) as checkpoint:
        return find_averages(checkpoint)


def the(value: Any, folder: Path) -> Average:
    (average,) = found(value, folder)
    return average


def kinds(value: Any, folder: Path) -> dict[str, str]:
    report = ckpt_surgery.inspect(save(value, folder / "t.pt"))
    return {state_dict.path: state_dict.kind for state_dict in report.state_dicts}


def test_averaged_model_of_torch(tmp_path: Path) -> None:
    model = net()
    average = the({"model": model.state_dict(), "ema": averaged_model(model)}, tmp_path)
    assert (average.title, average.wrapper) == ("torch's AveragedModel", "module.")
    assert (average.path, average.model, average.counters) == ("ema", "model", ("n_averaged",))
    assert average.names == {name: f"module.{name}" for name in model.state_dict()}


def test_an_average_without_its_model_is_none_of_another(tmp_path: Path) -> None:
    value = {"model": nn.Linear(2, 2).state_dict(), "ema": averaged_model(net())}
    average = the(value, tmp_path)
    assert (average.model, dict(average.names)) == (None, {})
    assert average.reason == "no model in the file has its names and shapes"
    (alone,) = ckpt_surgery.inspect(save(averaged_model(net()), tmp_path / "a.pt")).averages
    assert (alone.path, alone.model, alone.counters) == ("", None, {"n_averaged": 1})


def check_mmengine(value: dict[str, Any], model: nn.Module, folder: Path) -> None:
    assert kinds(value, folder) == {"state_dict": "ema", "ema_state_dict": "model"}
    average = the(value, folder)
    assert average.swapped
    assert (average.path, average.model) == ("state_dict", "ema_state_dict")
    assert average.counters == ("steps",)
    assert average.names == {f"module.{name}": name for name in model.state_dict()}


def test_mmengine_swaps_on_saving(tmp_path: Path) -> None:
    value = mmengine_checkpoint(net(), net().state_dict())
    check_mmengine(value, net(), tmp_path)
    (facts,) = ckpt_surgery.inspect(tmp_path / "t.pt").averages
    assert facts.to_dict() == {
        "layout": "mmengine", "path": "state_dict", "place": "state dict",
        "model": "ema_state_dict", "wrapper": "", "swapped": True, "counters": {"steps": 5},
        "follows": True, "reason": "",
    }  # fmt: skip


def test_mmengine_itself_writes_what_the_table_says(tmp_path: Path) -> None:
    hooks, models = framework("mmengine.hooks"), framework("mmengine.model")
    model, hook = net(), hooks.EMAHook()
    hook.src_model = model
    hook.ema_model = models.ExponentialMovingAverage(copy.deepcopy(model))
    for value in hook.ema_model.module.state_dict().values():
        value.add_(1)
    checkpoint = {"meta": {}, "state_dict": model.state_dict()}
    hook.before_save_checkpoint(None, checkpoint)
    check_mmengine(checkpoint, model, tmp_path)
    assert torch.equal(checkpoint["state_dict"]["0.bias"], model[0].bias + 1)


def test_what_is_loaded_as_the_model_is_what_lies_in_its_place(tmp_path: Path) -> None:
    value = mmengine_checkpoint(net(), net().state_dict())
    file = save(value, tmp_path / "t.pt")
    plain = save(net().state_dict(), tmp_path / "plain.pt")
    assert ckpt_surgery.match(plain, like=file).exit_code == 0
    plan = ckpt_surgery.freeze_plan(file, ckpt_surgery.FreezeRecipe()).plan
    assert plan.parameters[0].name == "0.weight"


def test_an_average_called_as_mmengine_calls_it_is_not_swapped(tmp_path: Path) -> None:
    value = {"state_dict": net().state_dict(), "ema_state_dict": net().state_dict()}
    assert kinds(value, tmp_path) == {"state_dict": "model", "ema_state_dict": "ema"}
    assert not the(value, tmp_path).swapped


def check_lightning(value: dict[str, Any], model: nn.Module, folder: Path) -> None:
    assert kinds(value, folder) == {"state_dict": "ema", "current_model_state": "model"}
    average = the(value, folder)
    assert average.swapped
    assert (average.path, average.model) == ("state_dict", "current_model_state")
    assert average.beside == ("averaging_state",)
    assert average.names == {name: name for name in model.state_dict()}


def test_lightning_swaps_on_saving(tmp_path: Path) -> None:
    check_lightning(lightning_checkpoint(net(), net().state_dict()), net(), tmp_path)
    (facts,) = ckpt_surgery.inspect(tmp_path / "t.pt").averages
    assert facts.counters == {"n_averaged": 4}


@pytest.mark.parametrize("kind", ["WeightAveraging", "EMAWeightAveraging"])
def test_lightning_itself_writes_what_the_table_says(kind: str, tmp_path: Path) -> None:
    lightning = framework("lightning.pytorch")
    model = net()
    callback = getattr(lightning.callbacks, kind)()
    callback._average_model = AveragedModel(model)
    checkpoint = {"state_dict": model.state_dict()}
    callback.on_save_checkpoint(None, None, checkpoint)
    check_lightning(checkpoint, model, tmp_path)


def test_lightning_keeps_swa_among_the_callbacks(tmp_path: Path) -> None:
    model = net()
    callbacks = {
        "EarlyStopping": {"wait": 1},
        "StochasticWeightAveraging": swa_state(net().state_dict()),
    }
    value: dict[str, Any] = {"state_dict": model.state_dict(), "callbacks": callbacks}
    average = the(value, tmp_path)
    assert average.place == "entry"
    assert average.path == "callbacks/StochasticWeightAveraging/average_model_state"
    assert average.names == {name: name for name in model.state_dict()}
    value["callbacks"]["StochasticWeightAveraging"] = swa_state(nn.Linear(9, 9).state_dict())
    assert (the(value, tmp_path).model, the(value, tmp_path).names) == (None, {})
    value["callbacks"]["StochasticWeightAveraging"] = swa_state(None)
    assert found(value, tmp_path) == []


def test_lightning_itself_keeps_swa_so(tmp_path: Path) -> None:
    lightning = framework("lightning.pytorch")
    model = net()
    callback = lightning.callbacks.StochasticWeightAveraging(0.1)
    callback._average_model = copy.deepcopy(model)
    value = {"state_dict": model.state_dict(), "callbacks": {"SWA": callback.state_dict()}}
    assert the(value, tmp_path).path == "callbacks/SWA/average_model_state"


def check_list(state: dict[str, Any], model: nn.Module, folder: Path) -> Average:
    average = the({"model": model.state_dict(), "ema": state}, folder)
    assert (average.place, average.path, average.model) == ("list", "ema", "model")
    names = [name for name, _ in model.named_parameters()]
    assert average.names == {name: str(i) for i, name in enumerate(names)}
    return average


def test_a_list_is_in_the_order_of_the_parameters(tmp_path: Path) -> None:
    average = check_list(shadows(net()), net(), tmp_path)
    assert average.counters == ("decay", "num_updates", "collected_params")
    (facts,) = ckpt_surgery.inspect(tmp_path / "t.pt").averages
    assert facts.counters == {"decay": 0.9, "num_updates": 2}


def test_torch_ema_itself_keeps_a_list(tmp_path: Path) -> None:
    model = net()
    kept = framework("torch_ema").ExponentialMovingAverage(model.parameters(), 0.9)
    check_list(kept.state_dict(), model, tmp_path)


def test_diffusers_itself_keeps_a_list(tmp_path: Path) -> None:
    model = net()
    kept = framework("diffusers.training_utils").EMAModel(model.parameters())
    check_list(kept.state_dict(), model, tmp_path)


def test_a_list_of_other_shapes_follows_no_model(tmp_path: Path) -> None:
    state = shadows(net())
    del state["shadow_params"][2]  # batch norm's weight, whose bias has the same shape
    average = the({"model": net().state_dict(), "ema": state}, tmp_path)
    assert (average.model, dict(average.names)) == ("model", {})
    assert average.reason
    assert found({"model": net().state_dict(), "ema": {"shadow_params": [1]}}, tmp_path) == []
    alone = the({"ema": shadows(net())}, tmp_path)
    assert (alone.model, alone.reason) == (None, "")


def test_ema_pytorch_keeps_both_in_one_state_dict(tmp_path: Path) -> None:
    average = the(ema_pytorch_state(net()), tmp_path)
    assert (average.place, average.path, average.model) == ("inside", "", "")
    assert average.names == {f"online_model.{n}": f"ema_model.{n}" for n in net().state_dict()}
    assert average.counters == ("initted", "step")
    assert kinds(ema_pytorch_state(net()), tmp_path) == {"": "model"}


@pytest.mark.parametrize("online", [True, False])
def test_ema_pytorch_beside_its_model(online: bool, tmp_path: Path) -> None:
    model = net()
    value = {"model": model.state_dict(), "ema": ema_pytorch_state(model, online=online)}
    average = the(value, tmp_path)
    assert (average.place, average.path, average.model) == ("state dict", "ema", "model")
    assert average.names == {name: f"ema_model.{name}" for name in model.state_dict()}


@pytest.mark.parametrize("online", [True, False])
def test_ema_pytorch_itself_writes_what_the_table_says(online: bool, tmp_path: Path) -> None:
    model = net()
    state = framework("ema_pytorch").EMA(model, include_online_model=online).state_dict()
    assert layout_of(list(state)).title == "ema_pytorch"  # type: ignore[union-attr]
    if online:
        assert the(state, tmp_path).names == {
            f"online_model.{name}": f"ema_model.{name}" for name in model.state_dict()
        }


def test_latent_diffusion_keeps_names_without_dots(tmp_path: Path) -> None:
    model = LatentDiffusion()
    value = {"state_dict": model.state_dict(), "global_step": 3}
    average = the(value, tmp_path)
    assert (average.place, average.path, average.model) == ("inside", "state_dict", "state_dict")
    assert average.counters == ("model_ema.decay", "model_ema.num_updates")
    assert average.names == {
        f"model.{name}": "model_ema." + name.replace(".", "")
        for name, _ in model.model.named_parameters()
    }
    (facts,) = ckpt_surgery.inspect(tmp_path / "t.pt").averages
    assert facts.counters == {"model_ema.decay": pytest.approx(0.9999), "model_ema.num_updates": 7}


def test_an_average_of_the_whole_module_has_its_names_without_dots() -> None:
    model = net()
    model.add_module("model_ema", LitEma(net()))
    average = dotless_average(list(model.state_dict()))
    assert average is not None
    assert average.model == ""
    assert average.names["0.weight"] == "model_ema.0weight"
    assert average.average_name("0.new.weight") == "model_ema.0newweight"


def test_names_without_dots_that_are_no_average() -> None:
    counters = ["model_ema.decay", "model_ema.num_updates"]
    assert dotless_average(["model.a", "b"]) is None
    assert dotless_average([*counters, "model.a.b"]) is None
    assert dotless_average([*counters, "model.a.b", "model_ema.ab", "model_ema.c"]) is None
    # one name for two entries
    assert dotless_average([*counters, "model.a.bc", "model.ab.c", "model_ema.abc"]) is None
    inner = dotless_average(["x.model.a.b", "x.model_ema.ab", "x.model_ema.num_updates"])
    assert inner is not None
    assert inner.average_name("y.c") is None


LAYOUTS_WITHOUT_WRAPPER = [
    ("state_dict", "state_dict_ema"),  # timm
    ("params", "params_ema"),  # BasicSR
    ("model", "extra_state/ema"),  # fairseq
    ("state_dict", "model_ema"),
]


@pytest.mark.parametrize(("model", "average"), LAYOUTS_WITHOUT_WRAPPER)
def test_averages_under_the_model_s_own_names(model: str, average: str, tmp_path: Path) -> None:
    value: dict[str, Any] = {model: net().state_dict()}
    where = value
    *above, last = average.split("/")
    for key in above:
        where = where.setdefault(key, {})
    where[last] = wrapped("module.", net())
    got = the(value, tmp_path)
    assert (got.model, got.path, got.wrapper, got.counters) == (model, average, "", ())
    assert got.names == {name: f"module.{name}" for name in net().state_dict()}


def test_timm_itself_writes_what_the_table_says(tmp_path: Path) -> None:
    model = net()
    average = framework("timm.utils").ModelEmaV3(model)
    value = {"state_dict": model.state_dict(), "state_dict_ema": average.module.state_dict()}
    assert the(value, tmp_path).names == {name: name for name in model.state_dict()}


def test_ultralytics_counts_beside_the_average(tmp_path: Path) -> None:
    value = {"epoch": 3, "model": net().half(), "ema": net().half(), "updates": 10}
    average = the(value, tmp_path)
    assert (average.path, average.model, average.beside) == ("ema", "model", ("updates",))
    (facts,) = ckpt_surgery.inspect(tmp_path / "t.pt").averages
    assert facts.counters == {"updates": 10}


def test_averages_of_other_shapes_are_of_nothing(tmp_path: Path) -> None:
    other = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).state_dict()
    short = {k: v for k, v in net().state_dict().items() if k != "0.weight"}
    more = {**net().state_dict(), "x": torch.ones(1)}
    for average in (other, short, more):
        value = {"model": net().state_dict(), "ema": average}
        assert the(value, tmp_path).model is None


def test_an_average_may_lack_buffers(tmp_path: Path) -> None:
    parameters = {name: p.detach() for name, p in net().named_parameters()}
    average = the({"model": net().state_dict(), "ema": parameters}, tmp_path)
    assert list(average.names) == list(parameters)


def test_work_on_averages_is_bounded(tmp_path: Path) -> None:
    one = {"w": torch.ones(1)}
    many = {f"m{i}": dict(one) for i in range(65)} | {f"ema{i}_ema": dict(one) for i in range(65)}
    with pytest.raises(LimitExceededError, match="65 moving averages for 65 models"):
        found(many, tmp_path)
    report = ckpt_surgery.inspect(tmp_path / "t.pt")
    assert report.averages == ()
    assert "moving averages" in report.notes[-1]
    lists = {f"l{i}": shadows(nn.Linear(1, 1)) for i in range(65)}
    with pytest.raises(LimitExceededError, match="too many moving averages"):
        found({"model": nn.Linear(1, 1).state_dict(), **lists}, tmp_path)


def test_what_only_counts_is_no_state_dict(tmp_path: Path) -> None:
    value = {"model": net().state_dict(), "counts": {"n_averaged": torch.tensor(1)}}
    assert kinds(value, tmp_path) == {"model": "model"}


LIGHTNING_LINE = (
    "state_dict holds the average, current_model_state the weights in training "
    "(Lightning's WeightAveraging), n_averaged 4"
)


def test_averages_are_shown(tmp_path: Path) -> None:
    from ckpt_surgery.render.training import average_line

    facts = SimpleNamespace(
        path="", model=None, place="state dict", title="", swapped=False, counters={"initted": True}
    )
    assert average_line(facts) == "(top level) is an average"  # type: ignore[arg-type]
    for value, line in (
        ({"model": net().state_dict(), "ema": averaged_model(net())},
         "ema averages model (torch's AveragedModel), n_averaged 1"),
        (ema_pytorch_state(net()), "(top level) also holds an average (ema_pytorch), step 3"),
        (lightning_checkpoint(net(), net().state_dict()),
         LIGHTNING_LINE),
    ):  # fmt: skip
        (shown,) = ckpt_surgery.inspect(save(value, tmp_path / "t.pt")).averages
        assert average_line(shown) == line
