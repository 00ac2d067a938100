"""The plan of every report, read back and applied to the same inputs, gives the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ckpt_surgery as ckpt
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.errors import PlanError
from ckpt_surgery.merge.recipe import Override
from ckpt_surgery.reports import Report
from ckpt_surgery.writing.write import write

Run = Callable[[ckpt.Output], Report]


def net(seed: int, *, classes: int = 3, channels: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, classes)
    )


def training(seed: int, **options: Any) -> dict[str, Any]:
    """What a run leaves: a model, its average, an optimizer that knows names, a counter."""
    model = net(seed, **options)
    optimizer = torch.optim.Adam(model.named_parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    average = {name: value * 0.5 for name, value in model.state_dict().items()}
    return {
        "model": model.state_dict(),
        "state_dict_ema": average,
        "optimizer": optimizer.state_dict(),
        "epoch": seed,
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abc"):
        torch.save(training(seed), f"{name}.pth")
        torch.save(net(seed).state_dict(), f"{name}.bare.pth")
    torch.save(training(0), "old.pth", _use_new_zipfile_serialization=False)
    torch.save(net(7, classes=5, channels=4).state_dict(), "like.pth")
    wrapped = {f"module.{name}": value for name, value in net(5).state_dict().items()}
    torch.save({"weights": wrapped}, "wrapped.pth")
    wider = {name: torch.randn(6, *value.shape[1:]) if value.ndim == 2 else value
             for name, value in net(6).state_dict().items()}  # fmt: skip
    torch.save(wider | {"more": torch.arange(3)}, "wider.pth")
    big = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor([1, 5])}
    torch.save(big, "i.pth")
    torch.save({"w": torch.tensor([3.0, 4.0]), "n": torch.tensor([3, 2])}, "j.pth")
    return tmp_path


NO_SCOPE = ckpt.MergeScope()


def merged(files: str, method: str, scope: ckpt.MergeScope = NO_SCOPE, **options: Any) -> Run:
    names = [f"{name}.pth" for name in files.split()]
    return lambda out: ckpt.merge(names, out, method, scope=scope, **options)


LIKE = {"like": "like.pth", "adapt": ["rows", "channels=mean"]}
RUNS: dict[str, Run] = {
    "strip": lambda out: ckpt.strip("a.pth", out, ckpt.selection(prefix="3")),
    "strip of a legacy file": lambda out: ckpt.strip("old.pth", out, ckpt.selection(prefix="3")),
    "publish the average": lambda out: ckpt.strip(
        "a.pth", out, training_state=True, ema=True, compact=True
    ),
    "weights alone": lambda out: ckpt.strip(
        "a.pth", out, ckpt.selection(glob="**.bias"), at=["model"], state_dict_only=True
    ),
    "rename": lambda out: ckpt.rename("a.pth", out, [ckpt.AddPrefix("net")]),
    "exchange of names": lambda out: ckpt.rename(
        "a.pth", out, [ckpt.MapNames({"1.weight": "1.bias", "1.bias": "1.weight"})]
    ),
    "convert": lambda out: ckpt.convert("old.pth", out),
    "overlay": merged("a b", "overlay", ckpt.MergeScope(selection=ckpt.selection(prefix="3"))),
    "overlay, compact": merged("a b", "overlay", ckpt.MergeScope(compact=True)),
    "fill": merged("a.bare wider", "fill"),
    "overlay of a wrapped file": merged(
        "a.bare wrapped", "overlay", ckpt.MergeScope(renames={2: [ckpt.StripPrefix("module")]})
    ),
    "average": merged("a b c", "average"),
    "average of a file and itself": merged("a a", "average"),
    "average of a wrapped file": merged(
        "a.bare wrapped", "average", ckpt.MergeScope(renames={2: [ckpt.StripPrefix("module")]})
    ),
    "average of renamed files": merged(
        "a.bare b.bare",
        "average",
        ckpt.MergeScope(renames={1: [ckpt.AddPrefix("x")], 2: [ckpt.AddPrefix("x")]}),
    ),
    "weights alone, merged": merged(
        "a b", "average", ckpt.MergeScope(at=["model"], state_dict_only=True)
    ),
    "linear": merged(
        "a b", "linear", weights=[0.3, 0.7], dtype="float16",
        overrides=[Override("prefix", "3", {"weight": (1.0, 0.0)})],
    ),
    "slerp": merged("a b", "slerp", parameters={"t": 0.3}),
    "ties": merged("b c", "ties", base="a.pth", parameters={"density": [0.2, 0.9]}),
    "dare": merged("b c", "dare-linear", base="a.pth", seed=7, parameters={"density": 0.5}),
    "integers": merged("i j", "average", integers="mean"),
    "the greatest integers": merged("i j", "average", base="j.pth", integers="max"),
    "overlapping blocks": merged(
        "a.bare wider", "average", keys="intersection", on_shape="overlap"
    ),
    "all names": merged("a.bare wider", "average", keys="union", on_shape="base"),
    "fit to a file": lambda out: ckpt.fit("a.pth", out, **LIKE),
    "fit with fills": lambda out: ckpt.fit(
        "a.bare.pth", out, like="like.pth", fill=["normal", "0=first"], seed=3
    ),
    "fit in half precision": lambda out: ckpt.fit("a.pth", out, **LIKE, dtype="float16"),
    "fit, the optimizer anew": lambda out: ckpt.fit("a.pth", out, **LIKE, optimizer="reset"),
    "fit, no optimizer": lambda out: ckpt.fit("a.pth", out, **LIKE, optimizer="drop"),
    "fit to a model": lambda out: ckpt.fit(
        "a.bare.pth",
        out,
        model="model_factories:stack",
        model_args={"widths": [2, 3], "name": "(2, 3)"},
        settings=["0.out_features=5"],
        renames={"3.bias": "0.bias"},
        adapt=["overlap"],
        seed=5,
    ),
}  # fmt: skip


def replay(report: Report, out: Path) -> None:
    """Apply the plan that the report's JSON holds to the first input, opening the others."""
    document = json.loads(json.dumps(report.to_dict()))
    first = document["inputs"][0]
    first = document.get("base", first)
    plan = ckpt.Plan.from_dict(document["plan"])
    assert plan.to_dict() == document["plan"]
    with ckpt.read(first) as checkpoint, Inputs(read=ckpt.read) as inputs:
        edited = plan.apply(checkpoint, inputs)
        assert edited.format == document["output_format"]
        write(edited, ckpt.Output(out, force=True), inputs=inputs.sources)


@pytest.mark.parametrize("name", RUNS)
def test_a_replay_is_the_run(name: str, folder: Path) -> None:
    first, second = folder / "out.pth", folder / "again" / "out.pth"
    second.parent.mkdir()
    report = RUNS[name](ckpt.Output(first))
    assert report.to_dict()["plan"]
    replay(report, second)
    assert second.read_bytes() == first.read_bytes()
    dry = RUNS[name](ckpt.Output(first, force=True, dry_run=True)).to_dict()
    assert dry["plan"] == report.to_dict()["plan"]


def test_a_plan_says_nothing_of_a_file_that_is_not_given(folder: Path) -> None:
    plan = ckpt.Plan.from_dict(
        merged("a b", "average")(ckpt.Output(dry_run=True)).to_dict()["plan"]
    )
    with ckpt.read("a.pth") as a, ckpt.read("b.pth") as b:
        with pytest.raises(PlanError, match="a file that is not given") as caught:
            ckpt.apply(plan, a)
        assert str(caught.value.path) == "b.pth"
        assert ckpt.apply(plan, a, others=[b]).state_dicts[0].names == a.state_dicts[0].names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "x"}, "'model/x', which is not there"),
        ({"state_dict": "x"}, "'x', which is not there"),
        ({"inputs": [{"file": "b.pth", "entry": "x"}]}, "'model/x', which is not there"),
        ({"inputs": [{"file": "b.pth", "state_dict": "x"}]}, "takes from 'x'"),
        ({"dtype": "float3"}, "no element type 'float3'"),
    ],
)
def test_a_merge_of_what_is_not_there_is_refused(
    change: dict[str, Any], message: str, folder: Path
) -> None:
    edit = {
        "edit": "merge", "state_dict": "model", "name": "3.bias", "method": "average",
        "inputs": [{}, {"file": "b.pth"}],
    }  # fmt: skip
    with ckpt.read("a.pth") as a, ckpt.read("b.pth") as b:
        ckpt.apply(ckpt.Plan.from_dict([edit]), a, others=[b])
        with pytest.raises(PlanError, match=message):
            ckpt.apply(ckpt.Plan.from_dict([edit | change]), a, others=[b])
        with pytest.raises(PlanError, match="twice"):
            ckpt.apply(ckpt.Plan.from_dict([edit, edit]), a, others=[b])


def test_entries_that_are_no_tensors_cannot_be_merged(folder: Path) -> None:
    torch.save({"a": torch.zeros(1), "b": torch.zeros(3).to_sparse(), "c": 3}, "odd.pth")
    for name in "bc":
        edit = {"edit": "merge", "state_dict": "", "name": name, "method": "average"}
        with ckpt.read("odd.pth") as odd:
            for inputs in ([{}, {"entry": "a"}], [{"entry": "a"}, {"entry": "a"}]):
                with pytest.raises(PlanError, match="no strided tensor"):
                    ckpt.apply(ckpt.Plan.from_dict([edit | {"inputs": inputs}]), odd)


OPTIMIZER = {"edit": "update-optimizer", "path": "optimizer"}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "0 groups, the optimizer 1"),
        ([["0.weight"], []], "2 groups"),
        ([[99]], "a parameter 99, which is not there"),
        ([[0, 0]], "a parameter 0, which is not there"),
    ],
)
def test_an_update_that_does_not_fit_the_optimizer_is_refused(
    groups: list[Any], message: str, folder: Path
) -> None:
    with ckpt.read("a.pth") as checkpoint:
        plan = ckpt.Plan.from_dict([OPTIMIZER | {"groups": groups}])
        with pytest.raises(PlanError, match=message):
            ckpt.apply(plan, checkpoint)
        elsewhere = ckpt.Plan.from_dict([{**OPTIMIZER, "path": "epoch", "groups": []}])
        with pytest.raises(PlanError, match="'epoch', which is not there"):
            ckpt.apply(elsewhere, checkpoint)
