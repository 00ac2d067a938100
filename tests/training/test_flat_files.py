"""An optimizer that lies among the weights is never left out of step with them silently."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ckpt_surgery as ckpt


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Weights and their optimizer in one dictionary, so that the optimizer is an entry of it."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save(
        {**model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3},
        tmp_path / "flat.pth",
    )
    other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    torch.save(other.state_dict(), tmp_path / "other.pth")
    return tmp_path / "flat.pth"


def strip(flat: Path, out: Path, choice: Any) -> Any:
    return ckpt.strip(flat, out, ckpt.selection(prefix="1"), optimizer=choice)


def rename(flat: Path, out: Path, choice: Any) -> Any:
    return ckpt.rename(flat, out, [ckpt.AddPrefix("m")], optimizer=choice)


def fit(flat: Path, out: Path, choice: Any) -> Any:
    choice = "resize" if choice == "auto" else choice
    return ckpt.fit(flat, out, like=flat.with_name("other.pth"), optimizer=choice)


def merge(flat: Path, out: Path, choice: Any, *, alone: bool = False) -> Any:
    scope = ckpt.MergeScope(optimizer=choice, state_dict_only=alone)
    return ckpt.merge([flat, flat.with_name("other.pth")], out, scope=scope)


VERBS = [strip, rename, fit, merge]
Verb = Callable[[Path, Path, Any], Any]


@pytest.mark.parametrize("verb", VERBS)
def test_it_is_refused(verb: Verb, flat: Path, tmp_path: Path) -> None:
    with pytest.raises(ckpt.PlanError, match="'optimizer' is among the weights") as refused:
        verb(flat, tmp_path / "out.pth", "auto")
    assert "--optimizer drop" in (refused.value.hint or "")
    assert refused.value.path == flat
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_it_is_dropped_on_request_and_said_so(verb: Verb, flat: Path, tmp_path: Path) -> None:
    report = verb(flat, tmp_path / "out.pth", "drop")
    assert report.to_dict()["optimizers"] == [{"path": "optimizer", "action": "dropped"}]
    assert not [key for key in torch.load(tmp_path / "out.pth") if "optimizer" in key]
    if verb is fit:
        assert report.dropped_others == ("optimizer", "epoch")
    else:
        assert "optimizer" in report.removed
        assert not [old for old, _ in report.renamed if old == "optimizer"]


@pytest.mark.parametrize("verb", [strip, merge])
def test_it_is_kept_on_request(verb: Verb, flat: Path, tmp_path: Path) -> None:
    verb(flat, tmp_path / "out.pth", "keep")
    kept, original = torch.load(tmp_path / "out.pth"), torch.load(flat)
    assert kept["optimizer"]["param_groups"] == original["optimizer"]["param_groups"]


def test_a_fit_cannot_keep_what_its_target_does_not_have(flat: Path, tmp_path: Path) -> None:
    with pytest.raises(ckpt.PlanError, match="'optimizer' is among the weights"):
        fit(flat, tmp_path / "out.pth", "keep")


def test_the_state_dict_alone_has_it_among_the_weights_too(flat: Path, tmp_path: Path) -> None:
    with pytest.raises(ckpt.PlanError, match="'optimizer' is among the weights"):
        merge(flat, tmp_path / "out.pth", "auto", alone=True)
    merge(flat, tmp_path / "out.pth", "drop", alone=True)
    assert "optimizer" not in torch.load(tmp_path / "out.pth")


def test_it_can_be_selected_like_any_entry(flat: Path, tmp_path: Path) -> None:
    ckpt.strip(flat, tmp_path / "out.pth", ckpt.selection(prefix=["1", "optimizer"]))
    assert list(torch.load(tmp_path / "out.pth")) == ["0.weight", "0.bias", "epoch"]


def test_weights_that_only_change_their_values_leave_it_in_step(flat: Path, tmp_path: Path) -> None:
    report = ckpt.merge([flat, flat], tmp_path / "out.pth", "average")
    assert report.optimizers == ()
    assert "optimizer" in torch.load(tmp_path / "out.pth")


@pytest.mark.parametrize("method", ["overlay", "fill"])
def test_another_file_s_is_not_taken(method: str, flat: Path, tmp_path: Path) -> None:
    report = ckpt.merge([flat.with_name("other.pth"), flat], tmp_path / "out.pth", method)
    assert "epoch" in torch.load(tmp_path / "out.pth")
    assert "optimizer" not in torch.load(tmp_path / "out.pth")
    assert any("the optimizer 'optimizer' of" in warning for warning in report.warnings)
