"""What stores names of weights and does not follow them is said to stay."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from averages_as_written import net, swa_state
from torch import nn
from torch_checks import save

import ckpt_surgery as ckpt
from ckpt_surgery.edits.names_elsewhere import names_left_behind
from ckpt_surgery.edits.value_rules import ValueRule
from ckpt_surgery.ops.edit import edit


def deepspeed(model: nn.Module) -> dict[str, Any]:
    """A file of DeepSpeed's for one model; names stand beside it twice."""
    return {
        "module": model.state_dict(),
        "param_shapes": [OrderedDict((n, p.shape) for n, p in model.named_parameters())],
        "buffer_names": [name for name, _ in model.named_buffers()],
        "frozen_param_shapes": None,
        "shared_params": {},
        "hyper_parameters": {"lr": 0.1, "weight": "x", "layers": ["0", "1"]},
    }


def said(report: Any) -> list[str]:
    return [text.split("'")[1] for text in report.warnings if "still names" in text]


def test_a_removal_says_which_entries_name_what_is_gone(tmp_path: Path) -> None:
    file = save(deepspeed(net()), tmp_path / "in.pt")
    report = ckpt.strip(file, tmp_path / "a.pt", ckpt.selection(prefix="2"))
    (told,) = report.warnings
    assert told.startswith("'param_shapes' is carried over as it was, and still names '2.bias' and")
    assert said(ckpt.strip(file, tmp_path / "b.pt", ckpt.selection(name="1.running_var"))) == [
        "buffer_names"
    ]
    found = torch.load(tmp_path / "a.pt", weights_only=False)
    assert list(found["param_shapes"][0]) == [name for name, _ in net().named_parameters()]


def test_so_do_a_renaming_and_a_fit(tmp_path: Path) -> None:
    file = save(deepspeed(net()), tmp_path / "in.pt")
    report = ckpt.rename(file, tmp_path / "a.pt", [ckpt.AddPrefix("bb")])
    assert said(report) == ["param_shapes", "buffer_names"]
    swapped = [ckpt.Substitute(r"^0\.", "x."), ckpt.Substitute(r"^1\.", "0."),
               ckpt.Substitute(r"^x\.", "1.")]  # fmt: skip
    only_moved = ckpt.rename(file, tmp_path / "b.pt", swapped)
    assert said(only_moved) == ["buffer_names"]
    like = save(nn.Sequential(*list(net())[:2]).state_dict(), tmp_path / "like.pt")  # type: ignore[call-overload]
    assert said(ckpt.fit(file, tmp_path / "c.pt", like=like)) == ["param_shapes"]
    alone = ckpt.fit(file, tmp_path / "d.pt", like=like, state_dict_only=True)
    assert said(alone) == []


def test_what_is_left_out_or_follows_is_no_matter(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    value = deepspeed(model) | {
        "optimizer": optimizer.state_dict(),
        "callbacks": {"SWA": swa_state(net(1).state_dict())},
    }
    file = save(value, tmp_path / "in.pt")
    request = ckpt.StripRequest(
        ckpt.selection(prefix="2"), entries=["param_shapes", "buffer_names"]
    )
    assert said(ckpt.strip(file, tmp_path / "a.pt", request)) == []
    report = ckpt.rename(file, tmp_path / "b.pt", [ckpt.AddPrefix("bb")])
    assert said(report) == ["param_shapes", "buffer_names"]


def test_a_name_without_a_dot_counts_where_names_are_listed(tmp_path: Path) -> None:
    value = {"module": nn.Linear(2, 2).state_dict(), "keys": ["weight"], "param_names": ["weight"]}
    with ckpt.read(save(value, tmp_path / "in.pt")) as checkpoint:
        found = list(names_left_behind(checkpoint, {"weight"}))
        assert [text.split("'")[1] for text in found] == ["param_names"]
        assert list(names_left_behind(checkpoint, set())) == []


@pytest.mark.parametrize("form", ["flattened", "listed"])
def test_an_optimizer_of_another_form_is_said_to_stay_whatever_its_name(
    form: str, tmp_path: Path
) -> None:
    """Torch's flattened form, and fastai's list: known by what they are."""
    model = net()
    named = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    states: Any = {f"state.{name}.exp_avg": value for name, value in named.items()}
    if form == "listed":
        states = {"state": [{"grad_avg": v} for v in named.values()], "hypers": [{"lr": 0.1}]}
    file = save({"model": model.state_dict(), "resume": states}, tmp_path / "in.pt")
    like = save(nn.Sequential(*list(net())[:2]).state_dict(), tmp_path / "like.pt")  # type: ignore[call-overload]
    for report in (
        ckpt.strip(file, tmp_path / "a.pt", ckpt.selection(prefix="2")),
        ckpt.rename(file, tmp_path / "b.pt", [ckpt.AddPrefix("bb")]),
        ckpt.fit(file, tmp_path / "c.pt", like=like),
    ):
        (told,) = [text for text in report.warnings if "'resume'" in text]
        assert "has a layout that ckpt does not know; it is carried over untouched" in told
    ckpt.strip(file, tmp_path / "none.pt", training_state=True)
    assert list(torch.load(tmp_path / "none.pt")) == ["model"]


def test_a_file_of_optimizers_alone_is_not_emptied(tmp_path: Path) -> None:
    state = torch.optim.Adam(net().parameters()).state_dict()
    file = save({"actor": state, "critic": state}, tmp_path / "in.pt")
    with pytest.raises(ckpt.UsageError, match="the whole file is training state"):
        ckpt.strip(file, tmp_path / "out.pt", training_state=True)
    assert not (tmp_path / "out.pt").exists()


def test_edits_of_values_and_merges_say_it_too(tmp_path: Path) -> None:
    file = save(deepspeed(net()), tmp_path / "in.pt")
    split = [ValueRule("split", "0.weight=0.a,0.b")]
    assert said(edit(file, tmp_path / "a.pt", split)) == ["param_shapes"]
    other = save(nn.Sequential(*list(net(1))[:2]).state_dict(), tmp_path / "b.pt")  # type: ignore[call-overload]
    request = ckpt.MergeRequest("average", keys="intersection")
    assert said(ckpt.merge([file, other], tmp_path / "m.pt", request)) == ["param_shapes"]
