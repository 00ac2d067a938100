"""Wrappers' segments are taken off, however they are nested, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch_checks import assert_same, load, save

from ckpt_surgery.cli.main import cli
from ckpt_surgery.names.rewrite import Unwrap, rewrite


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)))


def unwrap(names: list[str], *, model: bool = False) -> list[str]:
    return list(rewrite(names, [Unwrap(model)]).names)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["module.a.w", "module.b"], ["a.w", "b"]),
        (["module._orig_mod.module.a", "module._orig_mod.module.b"], ["a", "b"]),
        (["_fsdp_wrapped_module.a._checkpoint_wrapped_module.w"], ["a.w"]),
        (["a._orig_mod.w", "b._forward_module._fpw_module.w"], ["a.w", "b.w"]),
        (["module.a", "head.b"], ["module.a", "head.b"]),  # a module that is called so
        (["a.module.w", "b"], ["a.module.w", "b"]),
        (["module.module.w", "module.b"], ["module.w", "b"]),
        (["n_averaged", "module.a"], ["n_averaged", "a"]),
        (["a", "b.w"], ["a", "b.w"]),
        (["model.a"], ["model.a"]),
    ],
)
def test_wrappers_go_and_nothing_else(before: list[str], after: list[str]) -> None:
    assert unwrap(before) == after
    assert unwrap(after) == unwrap(unwrap(after))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["model.a", "loss.w"], ["a", "loss.w"]),
        (["model._orig_mod.module.a", "loss.module.w"], ["a", "loss.module.w"]),
        (["module.model.module.a.w", "module.b"], ["a.w", "module.b"]),
        (["model.model.a"], ["model.a"]),
        (["module.a"], ["a"]),
        (["a"], ["a"]),
    ],
)
def test_lightnings_model_goes_when_asked(before: list[str], after: list[str]) -> None:
    assert unwrap(before, model=True) == after


def invoke(*words: str) -> Result:
    return CliRunner().invoke(cli, ["rename", *words])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def wrapped(kind: str) -> nn.Module:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    inner = net()
    if kind == "checkpoint":
        inner[1] = checkpoint_wrapper(inner[1])
    made: dict[str, Any] = {
        "plain": lambda: inner,
        "compile": lambda: torch.compile(inner),
        "parallel": lambda: nn.DataParallel(inner),
        "compiled parallel": lambda: torch.compile(nn.DataParallel(inner)),
        "checkpoint": lambda: nn.DataParallel(inner),
    }
    found: nn.Module = made[kind]()
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within torch.compile
@pytest.mark.parametrize(
    "kind", ["plain", "compile", "parallel", "compiled parallel", "checkpoint"]
)
def test_what_torch_wraps_loads_strictly_without(kind: str) -> None:
    model = wrapped(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    state = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
    save(state, Path("in.pth"))
    done = invoke("in.pth", "--unwrap", "-o", "out.pth")
    assert done.exit_code == 0, done.stderr
    found = load(Path("out.pth"))
    net().load_state_dict(found["state_dict"])
    if kind != "checkpoint":  # which says so of the modules, and not of the names in them
        assert found["state_dict"]._metadata["1.0"] == {"version": 2}
    assert_same(dict(found["state_dict"]), dict(net().state_dict()))
    assert invoke("out.pth", "--unwrap", "-o", "again.pth").exit_code == 0
    assert Path("again.pth").read_bytes() == Path("out.pth").read_bytes()


def test_an_average_keeps_its_own_wrapper_and_follows() -> None:
    parallel = nn.DataParallel(net())
    state = {"model": parallel.state_dict(), "ema": AveragedModel(parallel).state_dict()}
    save(state, Path("in.pth"))
    assert invoke("in.pth", "--unwrap", "-o", "out.pth").exit_code == 0
    found = load(Path("out.pth"))
    net().load_state_dict(found["model"])
    AveragedModel(net()).load_state_dict(found["ema"])


def test_it_comes_before_the_rules_and_is_for_all_names() -> None:
    save(nn.DataParallel(net()).state_dict(), Path("in.pth"))
    done = invoke("in.pth", "--add-prefix", "x", "--unwrap", "-o", "out.pth")
    assert done.exit_code == 0
    assert next(iter(load(Path("out.pth")))) == "x.0.weight"
    assert "--unwrap: changed 9 names" in done.stdout
    done = invoke("in.pth", "--unwrap", "--prefix", "module.0", "-o", "no.pth")
    assert (done.exit_code, "'--unwrap' is for all names" in done.stderr) == (2, True)
    save({"_orig_mod.a": torch.ones(1), "a": torch.ones(1)}, Path("two.pth"))
    done = invoke("two.pth", "--unwrap", "-o", "no.pth")
    assert (done.exit_code, "would both be called 'a'" in done.stderr) == (2, True)
    assert not Path("no.pth").exists()
