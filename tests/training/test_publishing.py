"""What is published is the weights alone, under the name that torch.hub checks."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import ckpt_surgery as ckpt
from ckpt_surgery.writing.output import Output


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A training checkpoint with an average as `AveragedModel` leaves it."""
    model = network()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    for _ in range(3):
        model(torch.randn(8, 4)).sum().backward()
        optimizer.step()
        scheduler.step()
        average.update_parameters(model)
    torch.save(
        {
            "epoch": 3,
            "state_dict": model.state_dict(),
            "ema": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": scheduler.state_dict(),
            "scaler": {
                "scale": 65536.0,
                "growth_factor": 2.0,
                "backoff_factor": 0.5,
                "growth_interval": 2000,
                "_growth_tracker": 3,
            },
        },
        tmp_path / "train.pth",
    )
    return tmp_path / "train.pth"


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def test_published_weights_are_the_model_s(trained: Path, tmp_path: Path) -> None:
    report = ckpt.strip(trained, tmp_path / "out.pth", training_state=True)
    out = load(tmp_path / "out.pth")
    assert list(out) == ["epoch", "state_dict"]
    assert set(report.dropped) == {"ema", "optimizer", "lr_scheduler", "scaler"}
    network().load_state_dict(out["state_dict"])
    before = load(trained)["state_dict"]
    assert all(torch.equal(value, before[name]) for name, value in out["state_dict"].items())
    assert out["state_dict"]._metadata == before._metadata


def test_published_averages_take_the_model_s_place(trained: Path, tmp_path: Path) -> None:
    report = ckpt.strip(trained, tmp_path / "out.pth", training_state=True, ema=True)
    out, before = load(tmp_path / "out.pth"), load(trained)
    assert list(out) == ["epoch", "state_dict"]
    network().load_state_dict(out["state_dict"])
    for name, value in out["state_dict"].items():
        assert torch.equal(value, before["ema"][f"module.{name}"])
    assert report.plan[0] == {"edit": "take-weights", "state_dict": "state_dict", "from": "ema"}
    assert not torch.equal(out["state_dict"]["0.weight"], before["state_dict"]["0.weight"])


def test_an_average_without_buffers_leaves_them_the_model_s(tmp_path: Path) -> None:
    model = network()
    ema = {name: p.detach() + 1 for name, p in model.named_parameters()}
    torch.save({"model": model.state_dict(), "params_ema": ema}, tmp_path / "t.pth")
    ckpt.strip(tmp_path / "t.pth", tmp_path / "out.pth", training_state=True, ema=True)
    out = load(tmp_path / "out.pth")["model"]
    assert list(out) == list(model.state_dict())
    assert torch.equal(out["0.weight"], ema["0.weight"])
    assert torch.equal(out["1.running_var"], model.state_dict()["1.running_var"])


def test_an_average_of_nothing_in_the_file_is_kept(tmp_path: Path) -> None:
    torch.save({"ema": network().state_dict(), "epoch": 1}, tmp_path / "t.pth")
    report = ckpt.strip(tmp_path / "t.pth", tmp_path / "out.pth", training_state=True)
    assert list(load(tmp_path / "out.pth")) == ["ema", "epoch"]
    assert "there is no training state to remove" in report.warnings
    with pytest.raises(ckpt.UsageError, match="no moving average of a model"):
        ckpt.strip(tmp_path / "t.pth", tmp_path / "o.pth", training_state=True, ema=True)


def test_one_of_several_averages_is_not_guessed(tmp_path: Path) -> None:
    state = network().state_dict()
    torch.save({"model": state, "ema": dict(state), "swa": dict(state)}, tmp_path / "t.pth")
    with pytest.raises(ckpt.UsageError, match="several averages: 'ema', 'swa'"):
        ckpt.strip(tmp_path / "t.pth", tmp_path / "o.pth", training_state=True, ema=True)
    report = ckpt.strip(tmp_path / "t.pth", tmp_path / "o.pth", training_state=True)
    assert report.dropped == ("ema", "swa")


def test_a_model_of_another_shape_is_no_average(tmp_path: Path) -> None:
    other = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    torch.save({"model": network().state_dict(), "ema": other.state_dict()}, tmp_path / "t.pth")
    ckpt.strip(tmp_path / "t.pth", tmp_path / "o.pth", training_state=True)
    assert "ema" in load(tmp_path / "o.pth")
    plan = ckpt.Plan.from_dict([{"edit": "take-weights", "state_dict": "model", "from": "ema"}])
    with (
        ckpt.read(tmp_path / "t.pth") as checkpoint,
        pytest.raises(ckpt.PlanError, match="'ema' is no average of the weights in 'model'"),
    ):
        ckpt.apply(plan, checkpoint)


def test_only_an_item_of_a_dictionary_can_go(tmp_path: Path) -> None:
    state = network().state_dict()
    torch.save([{"model": state}, [{k: v + 1 for k, v in state.items()}]], tmp_path / "l.pth")
    plan = ckpt.Plan.from_dict([{"edit": "drop-state-dict", "path": "1/0"}])
    with (
        ckpt.read(tmp_path / "l.pth") as checkpoint,
        pytest.raises(ckpt.LossyEditError, match="only an entry of a dictionary"),
    ):
        ckpt.apply(plan, checkpoint)
    missing = ckpt.Plan.from_dict([{"edit": "drop-state-dict", "path": "nowhere"}])
    with (
        ckpt.read(tmp_path / "l.pth") as checkpoint,
        pytest.raises(ckpt.PlanError, match="which is not there"),
    ):
        ckpt.apply(missing, checkpoint)


def test_the_name_has_the_hash_that_torch_hub_checks(trained: Path, tmp_path: Path) -> None:
    target = Output(tmp_path / "net.pth", hash_name=True)
    report = ckpt.strip(trained, target, training_state=True)
    assert report.output is not None
    written = Path(report.output)
    assert written.name.startswith("net-")
    assert not (tmp_path / "net.pth").exists()
    loaded = torch.hub.load_state_dict_from_url(
        written.as_uri(), model_dir=str(tmp_path / "hub"), check_hash=True, progress=False
    )
    network().load_state_dict(loaded["state_dict"])
    assert ckpt.strip(trained, target, training_state=True).output == report.output
    dry = ckpt.strip(
        trained, Output(tmp_path / "net.pth", hash_name=True, dry_run=True), training_state=True
    )
    assert dry.output is None


def test_the_weights_alone_load_as_torch_hub_gives_them(trained: Path, tmp_path: Path) -> None:
    target = Output(tmp_path / "net.pth", hash_name=True)
    report = ckpt.convert(trained, target, state_dict_only=True, at="state_dict")
    assert report.output is not None
    loaded = torch.hub.load_state_dict_from_url(
        Path(report.output).as_uri(),
        model_dir=str(tmp_path / "hub"),
        check_hash=True,
        progress=False,
    )
    network().load_state_dict(loaded)


def hash_named(source: Path, output: Path) -> str:
    report = ckpt.convert(source, Output(output, hash_name=True))
    return str(report.output)


def test_the_same_weights_get_the_same_name_whatever_the_input_was_called(tmp_path: Path) -> None:
    """It is that of what torch writes into a stream, and does not leak the input's name."""
    weights = network().state_dict()
    stream = io.BytesIO()
    torch.save(weights, stream)
    expected = hashlib.sha256(stream.getvalue()).hexdigest()[:8]
    for name in ("secret-project.pth", "b.pt"):
        torch.save(weights, tmp_path / name)
        torch.save(weights, tmp_path / f"old-{name}", _use_new_zipfile_serialization=False)
        for each in (name, f"old-{name}"):
            (tmp_path / each).with_suffix("").mkdir()
            written = hash_named(tmp_path / each, (tmp_path / each).with_suffix("") / "n.pth")
            assert Path(written).name == f"n-{expected}.pth"
            assert Path(written).read_bytes() == stream.getvalue()


def test_a_hash_that_the_name_has_is_renewed(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3), "v": torch.ones(2)}, tmp_path / "a.pth")
    first = Path(hash_named(tmp_path / "a.pth", tmp_path / "net-0123abcd.pth"))
    torch.hub.load_state_dict_from_url(
        first.as_uri(), model_dir=str(tmp_path / "hub"), check_hash=True, progress=False
    )
    cut = ckpt.strip(first, Output(first, hash_name=True), ckpt.selection(keys=["w"]))
    second = Path(str(cut.output))
    assert first.exists()
    assert second != first
    assert [len(each.name) for each in (first, second)] == [len("net-01234567.pth")] * 2
    with pytest.raises(ckpt.WriteError, match="the output is the input"):
        ckpt.convert(second, Output(second, hash_name=True))  # nothing changes, nor does the name


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (Output(stream=1, hash_name=True), "needs a name"),
        (Output("net-1.0.pth", hash_name=True), "would take a part of 'net-1.0.pth'"),
    ],
)
def test_names_that_cannot_carry_a_hash_are_refused(
    output: Output, message: str, trained: Path
) -> None:
    with pytest.raises(ckpt.UsageError, match=message):
        ckpt.strip(trained, output, training_state=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ema": True}, "'ema' says what"),
        ({"training_state": True, "optimizer": "keep"}, "contradict each other"),
    ],
)
def test_options_that_contradict_each_other(
    options: dict[str, Any], message: str, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(ckpt.UsageError, match=message):
        ckpt.strip(trained, tmp_path / "o.pth", ckpt.selection(prefix="0"), **options)


def test_inspect_explains_the_training_state(trained: Path) -> None:
    report = ckpt.inspect(trained)
    assert report.averaged == {"ema": 3}
    document = report.to_dict()
    assert document["state_dicts"][1]["n_averaged"] == 3
    training = {o["path"]: o["training"] for o in document["other"] if "training" in o}
    (optimizer,) = training["optimizer"]["optimizers"]
    assert (optimizer["layout"], optimizer["certainty"]) == ("SGD", "order")
    assert optimizer["state_dicts"] == ["state_dict"]
    assert [p["name"] for p in optimizer["parameters"]] == [
        name for name, _ in network().named_parameters()
    ]
    assert optimizer["parameters"][0]["nbytes"] == 4 * 5 * 4
    assert optimizer["groups"][0]["options"]["momentum"] == 0.9
    (scheduler,) = training["lr_scheduler"]["schedulers"]
    assert scheduler["last_epoch"] == 3
    assert scheduler["last_lr"] == pytest.approx([0.0001])
    assert training["scaler"]["scaler"] == {"scale": 65536, "growth_tracker": 3}


@pytest.mark.parametrize("ema", [False, True])
def test_the_state_dict_alone_is_what_load_state_dict_takes(
    trained: Path, tmp_path: Path, ema: bool
) -> None:
    whole = torch.load(trained, weights_only=False)
    report = ckpt.strip(
        trained, tmp_path / "out.pth", training_state=True, ema=ema, state_dict_only=True
    )
    found = torch.load(tmp_path / "out.pth", weights_only=True)
    assert network().load_state_dict(found, strict=True)
    expected = ckpt.strip(trained, tmp_path / "nested.pth", training_state=True, ema=ema)
    nested = torch.load(tmp_path / "nested.pth", weights_only=False)["state_dict"]
    assert list(found) == list(nested)
    assert all(torch.equal(found[name], nested[name]) for name in found)
    assert report.carried == ()
    assert set(report.dropped) == set(expected.dropped) | set(expected.carried)
    assert set(whole) <= {*report.dropped, "state_dict"}


def test_which_of_several_models_is_left_is_said(tmp_path: Path) -> None:
    first, second = network().state_dict(), network().state_dict()
    torch.save({"generator": first, "discriminator": second}, tmp_path / "in.pth")
    request = ckpt.StripRequest(ckpt.selection(prefix="0"), state_dict_only=True)
    with pytest.raises(ckpt.UsageError, match="2 state dicts") as caught:
        ckpt.strip(tmp_path / "in.pth", tmp_path / "out.pth", request)
    assert caught.value.hint == "choose one, for example with --at generator"
    assert not (tmp_path / "out.pth").exists()
    ckpt.strip(tmp_path / "in.pth", tmp_path / "out.pth", replace(request, at=["discriminator"]))
    found = load(tmp_path / "out.pth")
    assert set(found) == {name for name in second if not name.startswith("0.")}
    assert all(torch.equal(found[name], second[name]) for name in found)


def test_of_a_model_and_its_average_the_model_is_left(trained: Path, tmp_path: Path) -> None:
    whole = torch.load(trained, weights_only=False)
    chosen = ckpt.selection(prefix="0")
    report = ckpt.strip(trained, tmp_path / "out.pth", chosen, state_dict_only=True)
    found, model = load(tmp_path / "out.pth"), whole["state_dict"]
    assert set(found) == {name for name in model if not name.startswith("0.")}
    assert all(torch.equal(found[name], model[name]) for name in found)
    assert set(report.dropped) == set(whole) - {"state_dict"}


def test_an_optimizer_that_cannot_go_alone_goes_with_all_that_lies_beside(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    inner = [optimizer.state_dict(), 3]
    torch.save({"state_dict": model.state_dict(), "training": inner}, tmp_path / "in.pth")
    report = ckpt.strip(
        tmp_path / "in.pth", tmp_path / "out.pth", ckpt.selection(prefix="2"), state_dict_only=True
    )
    found = load(tmp_path / "out.pth")
    assert set(model.state_dict()) - set(found) == {"2.weight", "2.bias"}
    assert found._metadata == {k: v for k, v in model.state_dict()._metadata.items() if k != "2"}
    assert report.dropped == ("training",)
    assert not report.warnings


@pytest.mark.parametrize("rules", [{}, {"prefix": "2"}])
def test_training_state_goes_from_among_the_weights_too(
    tmp_path: Path, rules: dict[str, Any]
) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    flat = {**model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    torch.save(flat, tmp_path / "in.pth")
    report = ckpt.strip(
        tmp_path / "in.pth",
        tmp_path / "out.pth",
        ckpt.selection(**rules) if rules else None,
        training_state=True,
    )
    gone = {"optimizer"} | {name for name in flat if rules and name.startswith("2.")}
    assert list(load(tmp_path / "out.pth")) == [name for name in flat if name not in gone]
    assert set(report.removed) == gone
    assert not report.warnings


def test_a_rule_and_training_state_may_mean_the_same_entry(tmp_path: Path) -> None:
    model = network()
    state = torch.optim.SGD(model.parameters(), lr=0.1).state_dict()
    torch.save({**model.state_dict(), "optimizer": state}, tmp_path / "in.pth")
    report = ckpt.strip(
        tmp_path / "in.pth",
        tmp_path / "out.pth",
        ckpt.selection(pattern="^optimizer$"),
        training_state=True,
    )
    assert report.removed == ("optimizer",)
    assert network().load_state_dict(load(tmp_path / "out.pth"), strict=True)
