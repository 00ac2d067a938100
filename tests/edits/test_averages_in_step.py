"""Averages follow what is done to their models, keep their own wrapper, or it is said."""

from __future__ import annotations

import copy
from functools import partial
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
)
from frameworks import framework
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch_checks import assert_same, save

import ckpt_surgery as ckpt
from ckpt_surgery.edits.averages import TakeWeights, UpdateAverage
from ckpt_surgery.edits.plan import Plan
from ckpt_surgery.edits.value_rules import ValueRule
from ckpt_surgery.errors import PlanError, UsageError
from ckpt_surgery.ops.edit import edit


def other() -> nn.Module:
    """The weights of an average: another draw of the same network."""
    return net(1)


def overwriting(path: Path) -> ckpt.Output:
    return ckpt.Output(path, force=True)


def load(path: Path) -> Any:
    return torch.load(path, weights_only=False)


def prefixed(model: nn.Module, prefix: str) -> nn.Module:
    outer = nn.Module()
    outer.add_module(prefix, model)
    return outer


def without_last(model: nn.Module) -> nn.Module:
    return nn.Sequential(*list(model)[:-1])  # type: ignore[call-overload]


def rename(value: Any, folder: Path, *rules: Any, **options: Any) -> Any:
    file = save(value, folder / "in.pt")
    ckpt.rename(file, overwriting(folder / "out.pt"), rules or [ckpt.AddPrefix("bb")], **options)
    return load(folder / "out.pt")


def strip(value: Any, folder: Path, **selected: Any) -> Any:
    file = save(value, folder / "in.pt")
    chosen = ckpt.selection(**(selected or {"prefix": "2"}))
    ckpt.strip(file, overwriting(folder / "out.pt"), chosen)
    return load(folder / "out.pt")


def published(value: Any, folder: Path, *, ema: bool = True) -> Any:
    file = save(value, folder / "in.pt")
    ckpt.strip(file, overwriting(folder / "out.pt"), training_state=True, ema=ema)
    return load(folder / "out.pt")


def test_averaged_model_loads_after_a_renaming(tmp_path: Path) -> None:
    model = net()
    found = rename({"model": model.state_dict(), "ema": averaged_model(model)}, tmp_path)
    outer = prefixed(net(), "bb")
    outer.load_state_dict(found["model"])
    average = AveragedModel(outer)
    average.load_state_dict(found["ema"])
    assert average.n_averaged == 1
    modules = list(average.state_dict()._metadata)
    modules.remove("module")  # the new outermost module, of which the file has no record
    assert list(found["ema"]._metadata) == modules


def test_averaged_model_loads_after_a_removal(tmp_path: Path) -> None:
    model = net()
    found = strip({"model": model.state_dict(), "ema": averaged_model(model)}, tmp_path)
    average = AveragedModel(without_last(net()))
    average.load_state_dict(found["ema"])
    assert list(found["ema"]._metadata) == list(average.state_dict()._metadata)


def test_counters_stay_where_the_rest_is_kept(tmp_path: Path) -> None:
    model = net()
    value = {"model": model.state_dict(), "ema": averaged_model(model)}
    found = strip(value, tmp_path, prefix="0", keep=True)
    assert list(found["ema"]) == ["n_averaged", "module.0.weight", "module.0.bias"]


def test_an_average_that_is_named_alone_is_edited_as_it_is(tmp_path: Path) -> None:
    model = net()
    value = {"model": model.state_dict(), "ema": averaged_model(model)}
    found = rename(value, tmp_path, ckpt.StripPrefix("module"), at=["ema"])
    assert list(found["ema"]) == ["n_averaged", *model.state_dict()]
    alone = rename(averaged_model(model), tmp_path, ckpt.StripPrefix("module"))
    assert list(alone) == ["n_averaged", *model.state_dict()]


def test_mmengine_s_pair_follows_and_stays_swapped(tmp_path: Path) -> None:
    value = mmengine_checkpoint(net(), other().state_dict())
    found = rename(value, tmp_path)
    assert list(found["state_dict"]) == [f"bb.{name}" for name in net().state_dict()]
    assert set(found["ema_state_dict"]) == {
        "steps", *(f"module.bb.{name}" for name in net().state_dict())
    }  # fmt: skip
    assert_same(found["state_dict"]["bb.0.weight"], value["state_dict"]["0.weight"])


def test_mmengine_resumes_what_was_renamed(tmp_path: Path) -> None:
    hooks, models = framework("mmengine.hooks"), framework("mmengine.model")
    model, hook = net(), hooks.EMAHook()
    hook.ema_model = models.ExponentialMovingAverage(copy.deepcopy(model))
    for value in hook.ema_model.module.parameters():
        value.data.add_(1)
    checkpoint = {"meta": {}, "state_dict": model.state_dict()}
    hook.before_save_checkpoint(None, checkpoint)
    trained, averaged = copy.deepcopy(model), copy.deepcopy(hook.ema_model)
    found = rename(checkpoint, tmp_path)
    outer = prefixed(net(), "bb")
    hook.ema_model = models.ExponentialMovingAverage(outer)
    hook.after_load_checkpoint(SimpleNamespace(_resume=True), found)
    outer.load_state_dict(found["state_dict"])
    assert_same(outer.bb.state_dict(), trained.state_dict())  # type: ignore[union-attr]
    assert_same(hook.ema_model.module.bb.state_dict(), averaged.module.state_dict())
    assert hook.ema_model.steps == averaged.steps


def test_lightning_s_pair_follows_and_keeps_its_counter(tmp_path: Path) -> None:
    value = lightning_checkpoint(net(), other().state_dict())
    found = rename(value, tmp_path)
    names = [f"bb.{name}" for name in net().state_dict()]
    assert list(found["state_dict"]) == list(found["current_model_state"]) == names
    assert list(found["averaging_state"]) == ["n_averaged"]
    callback = framework("lightning.pytorch").callbacks.WeightAveraging()
    outer = prefixed(net(), "bb")
    callback._average_model = AveragedModel(outer)
    callback.on_load_checkpoint(None, outer, found)
    assert_same(dict(outer.state_dict()), dict(found["current_model_state"]))
    assert_same(dict(callback._average_model.module.state_dict()), dict(found["state_dict"]))
    assert callback._average_model.n_averaged == 4


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("layout", [mmengine_checkpoint, lightning_checkpoint])
def test_of_a_swapped_pair_the_average_is_published(layout: Any, ema: bool, tmp_path: Path) -> None:
    """What lies in the model's place is what the framework loads; the rest is for resuming."""
    value = layout(net(), other().state_dict())
    file = save(value, tmp_path / "in.pt")
    report = ckpt.strip(file, tmp_path / "out.pt", training_state=True, ema=ema)
    found = load(tmp_path / "out.pt")
    assert set(found) <= {"state_dict", "meta", "epoch"}
    assert_same(dict(found["state_dict"]), dict(other().state_dict()))
    said = [w for w in report.warnings if "are the average" in w]
    assert len(said) == (0 if ema else 1)


def test_a_list_loses_what_its_model_loses(tmp_path: Path) -> None:
    state = shadows(other())
    state["collected_params"] = [p.clone() for p in state["shadow_params"]]
    found = strip({"model": net().state_dict(), "ema": state}, tmp_path)
    left = [p.detach() for p in without_last(other()).parameters()]
    assert_same(found["ema"]["shadow_params"], left)
    assert len(found["ema"]["collected_params"]) == len(left)
    assert found["ema"]["num_updates"] == 2
    kept = framework("torch_ema").ExponentialMovingAverage(without_last(net()).parameters(), 0.9)
    kept.load_state_dict(found["ema"])


def test_a_list_has_no_names_to_follow(tmp_path: Path) -> None:
    value = {"model": net().state_dict(), "ema": shadows(other())}
    found = rename(value, tmp_path)
    assert_same(found["ema"]["shadow_params"], value["ema"]["shadow_params"])


def test_the_tensors_of_a_shorter_list_are_those_that_are_left(tmp_path: Path) -> None:
    file = save({"model": net().state_dict(), "ema": shadows(other())}, tmp_path / "in.pt")
    ckpt.strip(file, tmp_path / "out.pt", ckpt.selection(prefix="2"), compact=True)
    (found,) = [o for o in ckpt.inspect(tmp_path / "out.pt").others if o.path == "ema"]
    assert len(found.tensors) == 4


def test_a_list_of_which_nothing_is_certain_is_said_to_stay(tmp_path: Path) -> None:
    state = shadows(other())
    del state["shadow_params"][2]
    file = save({"model": net().state_dict(), "ema": state}, tmp_path / "in.pt")
    report = ckpt.strip(file, tmp_path / "out.pt", ckpt.selection(prefix="2"))
    assert any("the average in 'ema' stays as it is, out of step" in w for w in report.warnings)
    assert len(load(tmp_path / "out.pt")["ema"]["shadow_params"]) == 5
    with pytest.raises(UsageError, match="of which it is certain which is which"):
        ckpt.strip(file, tmp_path / "no.pt", training_state=True, ema=True)
    ckpt.strip(file, tmp_path / "none.pt", training_state=True)
    assert list(load(tmp_path / "none.pt")) == ["model"]


@pytest.mark.parametrize("ema", [True, False])
def test_a_list_is_published_in_the_order_of_the_parameters(ema: bool, tmp_path: Path) -> None:
    found = published({"model": net().state_dict(), "ema": shadows(other())}, tmp_path, ema=ema)
    assert list(found) == ["model"]
    model = net()
    model.load_state_dict(found["model"])
    source = other() if ema else net()
    assert_same([p.detach() for p in model.parameters()], [p.detach() for p in source.parameters()])


def swa_checkpoint() -> dict[str, Any]:
    callbacks = {"EarlyStopping": {"wait": 1}, "SWA": swa_state(other().state_dict())}
    callbacks = {"callbacks": callbacks, "epoch": 1}
    return {"state_dict": net().state_dict(), **callbacks}


def test_an_average_among_the_callbacks_follows(tmp_path: Path) -> None:
    found = rename(swa_checkpoint(), tmp_path)
    average = found["callbacks"]["SWA"]["average_model_state"]
    outer = prefixed(net(), "bb")
    outer.load_state_dict(average)
    assert list(average._metadata) == list(outer.state_dict()._metadata)[1:]  # but the root
    assert_same(outer.bb.state_dict(), other().state_dict())  # type: ignore[union-attr]
    assert found["callbacks"]["EarlyStopping"] == {"wait": 1}
    found = strip(swa_checkpoint(), tmp_path / "..")
    average = found["callbacks"]["SWA"]["average_model_state"]
    without_last(net()).load_state_dict(average)
    assert list(average._metadata) == list(without_last(net()).state_dict()._metadata)


@pytest.mark.parametrize("ema", [True, False])
def test_an_average_among_the_callbacks_is_published(ema: bool, tmp_path: Path) -> None:
    found = published(swa_checkpoint(), tmp_path, ema=ema)
    assert list(found) == ["state_dict", "epoch"]
    assert_same(dict(found["state_dict"]), dict((other() if ema else net()).state_dict()))


def test_an_average_of_another_model_is_left_alone(tmp_path: Path) -> None:
    value = swa_checkpoint()
    value["callbacks"]["SWA"] = swa_state(nn.Linear(9, 9).state_dict())
    found = rename(value, tmp_path)
    assert list(found["callbacks"]["SWA"]["average_model_state"]) == ["weight", "bias"]


def ldm() -> dict[str, Any]:
    torch.manual_seed(0)
    model = LatentDiffusion()
    for name, value in model.model_ema.named_buffers():
        if name not in {"decay", "num_updates"}:
            value.add_(1)
    return {"state_dict": model.state_dict(), "global_step": 3}


@pytest.mark.parametrize("ema", [True, False])
def test_latent_diffusion_is_published(ema: bool, tmp_path: Path) -> None:
    """The average of `model.`, whose names have lost their dots; what is beside it stays."""
    value = ldm()
    before = {name: tensor.clone() for name, tensor in value["state_dict"].items()}
    found = published(value, tmp_path, ema=ema)["state_dict"]
    assert list(found) == [name for name in before if not name.startswith("model_ema.")]
    assert "model_ema" not in found._metadata
    model = LatentDiffusion()
    parameters = {f"model.{name}" for name, _ in model.model.named_parameters()}
    for name, tensor in found.items():
        assert_same(tensor, before[name] + 1 if ema and name in parameters else before[name])


def test_latent_diffusion_follows_a_removal(tmp_path: Path) -> None:
    found = strip(ldm(), tmp_path, prefix="model.diffusion_model.2")["state_dict"]
    assert "model_ema.diffusion_model2weight" not in found
    assert "model_ema.diffusion_model0weight" in found
    kept = strip(ldm(), tmp_path, prefix="model.diffusion_model.0", keep=True)["state_dict"]
    assert sorted(kept) == [
        "model.diffusion_model.0.bias", "model.diffusion_model.0.weight", "model_ema.decay",
        "model_ema.diffusion_model0bias", "model_ema.diffusion_model0weight",
        "model_ema.num_updates",
    ]  # fmt: skip
    gone = strip(ldm(), tmp_path, prefix="model_ema")["state_dict"]
    assert not any(name.startswith("model_ema") for name in gone)


@pytest.mark.parametrize(
    ("rule", "old", "new"),
    [
        (ckpt.Replace("diffusion_model.0", "diffusion_model.stem"),
         "model_ema.diffusion_model0weight", "model_ema.diffusion_modelstemweight"),
        (ckpt.AddPrefix("net"), "model_ema.diffusion_model0weight",
         "net.model_ema.diffusion_model0weight"),
        (ckpt.StripPrefix("model"), "model_ema.diffusion_model0weight",
         "model_ema.diffusion_model0weight"),
    ],
)  # fmt: skip
def test_names_without_dots_follow(rule: Any, old: str, new: str, tmp_path: Path) -> None:
    value = ldm()
    found = rename(value, tmp_path, rule)["state_dict"]
    assert_same(found[new], value["state_dict"][old])
    # the average can still be taken
    again = published({"state_dict": found}, tmp_path)["state_dict"]
    names = [n for n in found if n.endswith(("0.weight", "stem.weight"))]
    assert_same(again[names[0]], value["state_dict"]["model.diffusion_model.0.weight"] + 1)


def test_names_without_dots_that_cannot_follow_are_said(tmp_path: Path) -> None:
    file = save(ldm(), tmp_path / "in.pt")
    rules = [ckpt.Substitute(r"^model\.diffusion_model\.0\.", "elsewhere."),
             ckpt.Substitute(r"^model_ema\.num_updates", "counter")]  # fmt: skip
    report = ckpt.rename(file, tmp_path / "out.pt", rules)
    assert any("cannot follow: its model lies elsewhere" in w for w in report.warnings)


def test_an_average_of_the_whole_module_follows(tmp_path: Path) -> None:
    model = net()
    model.add_module("model_ema", LitEma(net()))
    found = rename(model.state_dict(), tmp_path, ckpt.Replace("2.", "fc."))
    assert "model_ema.fcweight" in found


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (ckpt.AddPrefix("bb"), lambda: prefixed(net(), "bb")),
        (ckpt.Replace("2.", "fc."), None),
    ],
)
def test_an_average_without_dots_beside_its_model_follows(
    rule: Any, wanted: Any, tmp_path: Path
) -> None:
    value = {"state_dict": net().state_dict(), "model_ema": LitEma(net()).state_dict()}
    report = ckpt.rename(save(value, tmp_path / "i.pt"), tmp_path / "o.pt", [rule])
    assert not report.warnings
    found = load(tmp_path / "o.pt")
    parameters = [n for n in found["state_dict"] if "running" not in n and "batches" not in n]
    names = [name.replace(".", "") for name in parameters]
    assert list(found["model_ema"]) == ["decay", "num_updates", *names]
    assert list(found["model_ema"]._metadata) == [""]
    if wanted is not None:
        LitEma(wanted()).load_state_dict(found["model_ema"])


def test_an_average_without_dots_that_is_named_alone_is_edited_as_it_is(tmp_path: Path) -> None:
    average = LitEma(net()).state_dict()
    value = {"state_dict": net().state_dict(), "model_ema": average}
    found = rename(value, tmp_path, at=["model_ema"])
    assert list(found["model_ema"]) == [f"bb.{name}" for name in average]
    value = {"state_dict": nn.Linear(3, 3).state_dict(), "model_ema": average}  # of another model
    assert "bb.decay" in rename(value, tmp_path)["model_ema"]


@pytest.mark.parametrize("ema", [True, False])
def test_ema_pytorch_alone_is_published(ema: bool, tmp_path: Path) -> None:
    value = ema_pytorch_state(net(), other())
    found = published(value, tmp_path, ema=ema)
    source = other() if ema else net()
    assert list(found) == [f"online_model.{name}" for name in net().state_dict()]
    assert_same(list(found.values()), list(source.state_dict().values()))
    if ema:
        ckpt.rename(tmp_path / "out.pt", tmp_path / "bare.pt", [ckpt.StripPrefix("online_model")])
        net().load_state_dict(load(tmp_path / "bare.pt"))


def test_ema_pytorch_beside_its_model_follows(tmp_path: Path) -> None:
    value = {"model": net().state_dict(), "ema": ema_pytorch_state(net(), other())}
    found = rename(value, tmp_path)
    assert set(found["ema"]) == {
        "initted", "step", *(f"{part}.bb.{name}" for part in ("online_model", "ema_model")
                             for name in net().state_dict()),
    }  # fmt: skip
    ema = framework("ema_pytorch").EMA(prefixed(net(), "bb"))
    ema.load_state_dict(found["ema"])
    found = strip(value, tmp_path)
    ema = framework("ema_pytorch").EMA(without_last(net()))
    ema.load_state_dict(found["ema"])
    found = published(value, tmp_path)
    assert list(found) == ["model"]
    assert_same(dict(found["model"]), dict(other().state_dict()))


def test_ema_pytorch_s_parts_follow_each_other(tmp_path: Path) -> None:
    found = strip(ema_pytorch_state(net(), other()), tmp_path, prefix="online_model.2")
    assert not any(".2." in name for name in found)


def test_what_no_file_has_is_refused(tmp_path: Path) -> None:
    file = save({"model": net().state_dict(), "ema": shadows(other())}, tmp_path / "in.pt")
    with ckpt.read(file) as checkpoint:
        for edit, message in (
            (TakeWeights("model", "other"), "'other' is no average of the weights in 'model'"),
            (UpdateAverage("elsewhere", {}), "'elsewhere', which is not there"),
            (UpdateAverage("ema/x", {}), "'ema/x', which is not there"),
            (UpdateAverage("ema", {"0": "99"}), "'ema/99', which is not there"),
        ):
            with pytest.raises(PlanError, match=message):
                Plan((edit,)).apply(checkpoint)
    assert Plan.from_dict(Plan((UpdateAverage("ema", {"0": "1"}),)).to_dict()).edits == (
        UpdateAverage("ema", {"0": "1"}),
    )


def test_of_an_average_that_stays_behind_edit_fit_and_merge_speak(tmp_path: Path) -> None:
    """A list, or the state of Lightning's callback, follows removals and names alone."""
    model = net()
    swa = {"StochasticWeightAveraging": swa_state(net().state_dict())}
    value = {"state_dict": model.state_dict(), "callbacks": swa}
    file, out = save(value, tmp_path / "in.pt"), tmp_path / "out.pt"
    path = "callbacks/StochasticWeightAveraging/average_model_state"
    said = f"the average in '{path}' is carried over as it was, out of step with its model"
    scaled = edit(file, out, [ValueRule("scale", "0.weight=2")])
    assert said in scaled.warnings
    like = net().state_dict() | {"2.weight": torch.zeros(7, 4), "2.bias": torch.zeros(7)}
    target = save(like, tmp_path / "like.pt")
    assert said in ckpt.fit(file, tmp_path / "fitted.pt", like=target).warnings
    other = save({"state_dict": other_values(model)}, tmp_path / "other.pt")
    assert said in ckpt.merge([file, other], tmp_path / "merged.pt", method="average").warnings
    same = save(dict(model.state_dict()), tmp_path / "same.pt")
    assert said not in ckpt.fit(file, tmp_path / "same_fit.pt", like=same).warnings


def other_values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value + 1 for name, value in model.state_dict().items()}


@pytest.mark.parametrize("layout", [mmengine_checkpoint, lightning_checkpoint])
def test_alone_is_written_what_lies_in_the_model_s_place(layout: Any, tmp_path: Path) -> None:
    """It is what the framework loads, under the model's names; that it is the average is said."""
    file = save(layout(net(), other().state_dict()), tmp_path / "in.pt")
    for name, verb, more in (
        ("1.pt", ckpt.convert, {}),
        ("2.pt", ckpt.strip, {}),
        ("3.pt", partial(ckpt.rename, request=[ckpt.AddPrefix("q")]), {}),
        ("4.pt", ckpt.fit, {"like": save(dict(net().state_dict()), tmp_path / "like.pt")}),
        ("5.pt", ckpt.strip, {"training_state": True, "ema": True}),
    ):
        report = verb(file, tmp_path / name, state_dict_only=True, **more)
        found = {k.removeprefix("q."): v for k, v in load(tmp_path / name).items()}
        assert_same(found, dict(other().state_dict()))
        assert any("are the average" in said for said in report.warnings) is (
            name in "1.pt2.pt3.pt"
        )
    trained = "ema_state_dict" if layout is mmengine_checkpoint else "current_model_state"
    ckpt.convert(file, tmp_path / "6.pt", at=trained, state_dict_only=True)
    assert len(load(tmp_path / "6.pt")) >= len(net().state_dict())
