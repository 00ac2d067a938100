"""One table of the layouts of averages: every verb does to each what it does to the model.

Each layout is written by those who keep it where they are installed, and by hand as they write it
where they are not. Of each it is said where the trained weights and the averaged ones lie, under
which prefix, and what else belongs to the average.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from averages_as_written import LitEma, lightning_checkpoint, mmengine_checkpoint, swa_state
from frameworks import framework
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch_checks import assert_same, save

import ckpt_surgery as ckpt

Weights = Mapping[str, torch.Tensor]


def net(seed: int, classes: int = 3) -> nn.Module:
    """A model whose names have a prefix that can be taken off."""
    torch.manual_seed(seed)
    model = nn.Module()
    model.bb = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, classes))
    for buffer in model.buffers():
        buffer.add_(seed + 1)
    return model


TRAINED, AVERAGED = net(0), net(1)
NAMES = list(TRAINED.state_dict())


@dataclass(frozen=True)
class Layout:
    """How an average lies in a file.

    `trained` and `averaged` are paths, with the prefix of their names after ``#``. `own` are paths
    of what belongs to the average and stays as it is; `gone` and `kept` are the keys at the top
    that go with the training state, or stay.
    """

    write: Callable[[], Any]
    trained: str
    averaged: str
    own: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    title: str = ""
    swapped: bool = False
    is_list: bool = False
    lacks_buffers: bool = False
    is_left_by_fit: bool = False


def averaged_model(trained: nn.Module = TRAINED, averaged: nn.Module = AVERAGED) -> Any:
    average = AveragedModel(trained, use_buffers=True)
    average.module.load_state_dict(averaged.state_dict())
    average.n_averaged.add_(7)
    return average.state_dict()


def timm_ema() -> Any:
    average = framework("timm.utils").ModelEmaV3(TRAINED)
    average.module.load_state_dict(AVERAGED.state_dict())
    return average


def timm_saved() -> Any:
    """What timm's CheckpointSaver takes of it."""
    return timm_ema().module.state_dict()


def timm_kept() -> Any:
    return timm_ema().state_dict()


def ema_pytorch(*, online: bool) -> Any:
    average = framework("ema_pytorch").EMA(TRAINED, include_online_model=online)
    average.ema_model.load_state_dict(AVERAGED.state_dict())
    return average.state_dict()


def shadows(kind: str) -> Any:
    if kind == "torch_ema":
        kept = framework("torch_ema").ExponentialMovingAverage(AVERAGED.parameters(), 0.9)
    else:
        kept = framework("diffusers.training_utils").EMAModel(AVERAGED.parameters())
    return kept.state_dict()


def ultralytics(model: nn.Module | None) -> Any:
    """What ultralytics writes while it trains; today's has no model beside the average."""
    return {"epoch": 1, "model": model, "ema": copy.deepcopy(AVERAGED), "updates": 10}


def latent_diffusion() -> Any:
    model = nn.Module()
    model.model = copy.deepcopy(TRAINED)
    model.model_ema = LitEma(AVERAGED)
    return {"state_dict": model.state_dict(), "global_step": 1}


def named() -> Any:
    return {name: p.detach() for name, p in AVERAGED.named_parameters()}


def two(model: str, average: str, make: Callable[[], Any] | None = None) -> Callable[[], Any]:
    def write() -> Any:
        value = (make or AVERAGED.state_dict)()
        above, _, last = average.rpartition("/")
        return {model: TRAINED.state_dict(), **({above: {last: value}} if above else {last: value})}

    return write


def fairseq() -> Any:
    extra = {"epoch": 1, "ema": AVERAGED.state_dict(), "ema_fp32_params": AVERAGED.state_dict()}
    return {"model": TRAINED.state_dict(), "extra_state": extra}


def rt_detr() -> Any:
    """The average of RT-DETR and others, with its settings around it."""
    kept = {"module": AVERAGED.state_dict(), "updates": 5, "decay": 0.9, "warmups": 2}
    return {"model": TRAINED.state_dict(), "ema": kept}


def callbacks() -> Any:
    kept = {"StochasticWeightAveraging": swa_state(AVERAGED.state_dict())}
    return {"epoch": 1, "state_dict": TRAINED.state_dict(), "callbacks": kept}


def wrapped_twice() -> Any:
    """A model in DataParallel, and an AveragedModel of that."""
    both = [nn.DataParallel(each) for each in (TRAINED, AVERAGED)]
    return {"model": both[0].state_dict(), "swa_model": averaged_model(*both)}


LAYOUTS = {
    "AveragedModel": Layout(
        two("model", "swa", averaged_model), "model#", "swa#module.", ("swa/n_averaged",),
        title="torch's AveragedModel",
    ),
    "AveragedModel of DataParallel": Layout(
        wrapped_twice, "model#module.", "swa_model#module.module.", ("swa_model/n_averaged",),
        title="torch's AveragedModel",
    ),
    "timm's saver": Layout(
        two("state_dict", "state_dict_ema", timm_saved),
        "state_dict#", "state_dict_ema#",
    ),
    "timm's ModelEma": Layout(
        two("model", "model_ema", timm_kept), "model#", "model_ema#module.",
    ),
    "BasicSR": Layout(two("params", "params_ema"), "params#", "params_ema#"),
    "fairseq": Layout(two("model", "extra_state/ema"), "model#", "extra_state/ema#"),
    "fairseq in float32": Layout(fairseq, "model#", "extra_state/ema#"),
    "RT-DETR": Layout(
        rt_detr, "model#", "ema/module#", ("ema/updates", "ema/decay", "ema/warmups"),
    ),
    "Lightning's WeightAveraging": Layout(
        lambda: lightning_checkpoint(TRAINED, AVERAGED.state_dict()),
        "current_model_state#", "state_dict#", ("averaging_state/n_averaged",),
        ("averaging_state",), "Lightning's WeightAveraging", swapped=True,
    ),
    "Lightning's SWA": Layout(
        callbacks, "state_dict#", "callbacks/StochasticWeightAveraging/average_model_state#",
        ("callbacks/StochasticWeightAveraging/n_averaged",), ("callbacks",),
        "Lightning's StochasticWeightAveraging", is_left_by_fit=True,
    ),
    "mmengine": Layout(
        lambda: mmengine_checkpoint(TRAINED, copy.deepcopy(AVERAGED.state_dict())),
        "ema_state_dict#module.", "state_dict#", ("ema_state_dict/steps",), ("message_hub",),
        "mmengine", swapped=True,
    ),
    "ema_pytorch": Layout(
        two("model", "ema", lambda: ema_pytorch(online=False)), "model#", "ema#ema_model.",
        ("ema/initted", "ema/step"), title="ema_pytorch",
    ),
    "ema_pytorch with its model": Layout(
        two("model", "ema", lambda: ema_pytorch(online=True)), "model#", "ema#ema_model.",
        ("ema/initted", "ema/step"), title="ema_pytorch",
    ),
    "torch_ema": Layout(
        two("model", "ema", lambda: shadows("torch_ema")), "model#", "ema/shadow_params#",
        ("ema/decay", "ema/num_updates"), title="a list in the order of the parameters",
        is_list=True, lacks_buffers=True, is_left_by_fit=True,
    ),
    "diffusers": Layout(
        two("model", "ema", lambda: shadows("diffusers")), "model#", "ema/shadow_params#",
        ("ema/decay", "ema/optimization_step"), title="a list in the order of the parameters",
        is_list=True, lacks_buffers=True, is_left_by_fit=True,
    ),
    "a list by itself": Layout(
        two("model", "ema_params", lambda: [p.detach() for p in AVERAGED.parameters()]),
        "model#", "ema_params#", title="a list in the order of the parameters",
        is_list=True, lacks_buffers=True, is_left_by_fit=True,
    ),
    "ultralytics until 8.0": Layout(
        lambda: ultralytics(copy.deepcopy(TRAINED)), "model#", "ema#", ("updates",), ("updates",),
    ),
    "parameters by name": Layout(two("model", "ema", named), "model#", "ema#", lacks_buffers=True),
}  # fmt: skip
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))


def at(value: Any, path: str) -> Any:
    for key in path.split("/") if path else ():
        value = value[key]
    return value


def weights(value: Any, place: str, names: list[str]) -> Weights:
    """Return what lies at a place by the model's names, of which a list has none."""
    path, _, prefix = place.partition("#")
    found = at(value, path)
    if isinstance(found, list):
        return dict(zip(names, found, strict=True))
    if isinstance(found, nn.Module):
        found = found.state_dict()
    return {n.removeprefix(prefix): v for n, v in found.items() if n.startswith(prefix)}


def parameters(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(("weight", "bias"))]


@pytest.fixture
def file(layout: Layout, tmp_path: Path) -> Path:
    return save(layout.write(), tmp_path / "in.pt")


def load(folder: Path) -> Any:
    return torch.load(folder / "out.pt", weights_only=False)


def check(layout: Layout, value: Any, new: Callable[[str], str | None]) -> None:
    """Check that both have the names that `new` gives, and the values that they had."""
    moved = {name: after for name in NAMES if (after := new(name)) is not None}
    averaged = parameters(NAMES) if layout.lacks_buffers else NAMES
    for place, model, names in (
        (layout.trained, TRAINED, NAMES),
        (layout.averaged, AVERAGED, averaged),
    ):
        wanted = {moved[n]: model.state_dict()[n] for n in names if n in moved}
        found = weights(value, place, list(wanted))
        assert list(found) == list(wanted), place
        assert all(torch.equal(found[name], wanted[name]) for name in wanted), place
    before = layout.write()
    for path in layout.own:
        assert_same(at(value, path), at(before, path))


@every_layout
def test_inspect_says_what_it_is(layout: Layout, file: Path) -> None:
    averages = ckpt.inspect(file).averages
    average = averages[0]
    assert [a.path for a in averages[1:]] == ["extra_state/ema_fp32_params"][: len(averages) - 1]
    trained, averaged = (p.partition("#")[0] for p in (layout.trained, layout.averaged))
    path = averaged.removesuffix("/shadow_params") if layout.is_list else averaged
    assert (average.path, average.model) == (path, trained)
    assert (average.title, average.swapped) == (layout.title, layout.swapped)
    assert average.follows
    own = {path.rpartition("/")[2] for path in layout.own}
    assert set(average.counters) >= own - {"initted"} or "callbacks" in path
    assert not any("." in name for name in average.counters)


@every_layout
@pytest.mark.parametrize("ema", [False, True], ids=["model", "ema"])
def test_it_goes_or_takes_the_model_s_place(
    ema: bool, layout: Layout, file: Path, tmp_path: Path
) -> None:
    ckpt.strip(file, tmp_path / "out.pt", training_state=True, ema=ema)
    value = load(tmp_path)
    place = layout.averaged if layout.swapped else layout.trained
    wanted = dict((AVERAGED if ema or layout.swapped else TRAINED).state_dict())
    if layout.lacks_buffers:
        kept = TRAINED.state_dict()
        wanted |= {name: kept[name] for name in set(NAMES) - set(parameters(NAMES))}
    found = weights(value, place, NAMES)
    assert list(found) == NAMES
    assert all(torch.equal(found[name], wanted[name]) for name in NAMES)
    left = layout.trained if layout.swapped else layout.averaged
    top = left.partition("#")[0].split("/")[0]
    assert top == "extra_state" or not value.get(top)  # nothing, or a dictionary of nothing
    assert not set(layout.gone) & set(value)
    assert ckpt.inspect(tmp_path / "out.pt").averages == ()


@every_layout
def test_it_follows_a_prefix_that_is_added(layout: Layout, file: Path, tmp_path: Path) -> None:
    prefix = layout.trained.partition("#")[2]
    rule = ckpt.AddPrefix("net") if not prefix or layout.swapped else ckpt.Replace("bb.", "net.bb.")
    ckpt.rename(file, tmp_path / "out.pt", [rule])
    check(layout, load(tmp_path), lambda name: f"net.{name}")


@every_layout
def test_it_follows_a_prefix_that_is_taken_off(layout: Layout, file: Path, tmp_path: Path) -> None:
    prefix = "" if layout.swapped else layout.trained.partition("#")[2]
    rule = ckpt.StripPrefix("bb") if not prefix else ckpt.Replace("bb.", "")
    ckpt.rename(file, tmp_path / "out.pt", [rule])
    check(layout, load(tmp_path), lambda name: name.removeprefix("bb."))


@every_layout
def test_it_loses_what_the_model_loses(layout: Layout, file: Path, tmp_path: Path) -> None:
    prefix = "" if layout.swapped else layout.trained.partition("#")[2]
    ckpt.strip(file, tmp_path / "out.pt", ckpt.selection(prefix=f"{prefix}bb.2"))
    check(layout, load(tmp_path), lambda name: None if name.startswith("bb.2.") else name)


@every_layout
def test_it_is_fitted_or_said_to_stay(layout: Layout, file: Path, tmp_path: Path) -> None:
    goal = net(5, classes=2)
    like = save(goal.state_dict(), tmp_path / "like.pt")
    report = ckpt.fit(file, tmp_path / "out.pt", like=like)
    value = load(tmp_path)
    bare = "module." in layout.trained and not layout.swapped
    places = [layout.trained.partition("#")[0] + "#" if bare else layout.trained]
    said = [text for text in report.warnings if "is carried over as it was" in text]
    if layout.is_left_by_fit:
        assert len(said) == 1
        assert layout.averaged.partition("#")[0].removesuffix("/shadow_params") in said[0]
    else:
        assert said == []
        averaged = layout.averaged
        places.append(averaged.replace("module.module.", "module.") if bare else averaged)
    for place, model in zip(places, (TRAINED, AVERAGED), strict=False):
        found = weights(value, place, NAMES)
        lacks = layout.lacks_buffers and model is AVERAGED
        assert list(found) == (parameters(NAMES) if lacks else NAMES)
        for name, tensor in found.items():
            source = goal if name.startswith("bb.2.") else model
            assert torch.equal(tensor, source.state_dict()[name]), (place, name)
    before = layout.write()
    for path in layout.own:
        assert_same(at(value, path), at(before, path))


def test_an_average_without_its_model_takes_the_empty_place(tmp_path: Path) -> None:
    """Today's ultralytics writes None for the model, and publishes the average, as its own code."""
    file = save(ultralytics(None), tmp_path / "in.pt")
    (average,) = ckpt.inspect(file).averages
    assert (average.path, average.model, average.counters) == ("ema", None, {"updates": 10})
    ckpt.strip(file, tmp_path / "out.pt", training_state=True, ema=True)
    value = load(tmp_path)
    assert list(value) == ["epoch", "model"]
    assert_same(dict(value["model"].state_dict()), dict(AVERAGED.state_dict()))
    report = ckpt.strip(
        file, tmp_path / "cut.pt", ckpt.selection(prefix="bb.2"), training_state=True, ema=True
    )
    assert set(report.removed) == {"model/bb.2.weight", "model/bb.2.bias"}
    kept = ckpt.strip(file, tmp_path / "kept.pt", training_state=True)
    assert "ema" in torch.load(tmp_path / "kept.pt", weights_only=False)
    assert kept.dropped == ()


def test_an_average_of_the_file_itself_is_its_model(tmp_path: Path) -> None:
    """Latent diffusion's lies among the weights, under names without dots."""
    file = save(latent_diffusion(), tmp_path / "in.pt")
    ckpt.strip(file, tmp_path / "out.pt", training_state=True, ema=True)
    value = load(tmp_path)["state_dict"]
    found = {name.removeprefix("model."): tensor for name, tensor in value.items()}
    averaged, trained = AVERAGED.state_dict(), TRAINED.state_dict()
    wanted = {n: (averaged if n in parameters(NAMES) else trained)[n] for n in NAMES}
    assert_same(found, wanted)


def test_what_wrappers_add_comes_off_an_average_that_counts_nothing(tmp_path: Path) -> None:
    """One in DataParallel loads as its model then; an AveragedModel has its own place for names."""
    outer = nn.DataParallel(AVERAGED)
    value = {"model": TRAINED.state_dict(), "ema": outer.state_dict(), "swa": averaged_model()}
    file = save(value, tmp_path / "in.pt")
    ckpt.rename(file, tmp_path / "out.pt", [ckpt.Unwrap()])
    found = load(tmp_path)
    assert list(found["ema"]) == list(found["model"]) == NAMES
    assert list(found["swa"]) == ["n_averaged", *(f"module.{name}" for name in NAMES)]


def test_a_rule_for_a_wrapper_alone_says_how_it_is_meant(tmp_path: Path) -> None:
    value = {"model": TRAINED.state_dict(), "ema": nn.DataParallel(AVERAGED).state_dict()}
    file = save(value, tmp_path / "in.pt")
    with pytest.raises(ckpt.UsageError, match="changes no name") as error:
        ckpt.rename(file, tmp_path / "out.pt", [ckpt.StripPrefix("module")])
    assert error.value.hint == (
        "the average in 'ema' keeps its own 'module.'; --at ema is about the names in it"
    )
    ckpt.rename(file, tmp_path / "out.pt", [ckpt.StripPrefix("module")], at=["ema"])
    assert list(load(tmp_path)["ema"]) == NAMES


def test_other_lists_that_are_called_averages_are_none(tmp_path: Path) -> None:
    """Of losses, say: they neither follow the model nor go with the training state."""
    short = [p.detach() for p in AVERAGED.parameters()][:-1]
    value = {"model": TRAINED.state_dict(), "ema_loss": [torch.ones(()), torch.ones(())],
             "ema": short, "swa": [1, 2]}  # fmt: skip
    file = save(value, tmp_path / "in.pt")
    assert ckpt.inspect(file).averages == ()
    ckpt.strip(file, tmp_path / "out.pt", training_state=True)
    assert list(load(tmp_path)) == list(value)
