"""Errors about requests: fields in the library, options on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ckpt_surgery as ckpt
from ckpt_surgery.cli.main import COMMANDS, cli
from ckpt_surgery.errors import UsageError

CASES: dict[str, tuple[list[str], str]] = {
    "weights": (["merge", "a.pth", "a.pth", "--weight", "1"], "'--weight' has no meaning"),
    "integers": (["merge", "a.pth", "a.pth", "--int", "max"], "'--int' has no meaning"),
    "threads": (["merge", "a.pth", "a.pth", "-m", "average", "--threads", "0"], "'--threads 0'"),
    "compact": (["merge", "a.pth", "a.pth", "-m", "average", "--compact"], "'--compact' has no"),
    "at": (["strip", "a.pth", "--prefix", "a", "--at", "x"], "'--at x': no state dict there"),
    "ema": (["strip", "a.pth", "--ema"], "'--ema' says what '--training-state' leaves"),
    "break_views": (["strip", "a.pth", "--break-views"], "'--break-views' says how '--compact'"),
    "like": (
        ["match", "a.pth", "--like", "a.pth", "--set", "a.b=1"],
        "'--model-arg', '--set' and '--build' are about a model, and '--like' names a file",
    ),
    "grid": (["fit", "a.pth", "--like", "a.pth", "--grid", "4x6"], "'--grid 4x6' says what"),
    "files": (["hash", "a.pth", "--files", "--per-tensor"], "'--files' goes with neither '--at'"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_command_line_names_its_options(
    case: str, invoke: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(2)}, "a.pth")
    line, message = CASES[case]
    output = [] if line[0] in {"match", "hash"} else ["-o", "out.pth"]
    result = invoke(*line, *output)
    assert result.exit_code == 2
    assert message in result.stderr


def test_the_library_names_fields() -> None:
    for make, fields in (
        (lambda: ckpt.MergeRequest("fill", weights=[1.0]), ("weights",)),
        (lambda: ckpt.MergeRequest("average", same_shape=True), ("same_shape",)),
        (lambda: ckpt.MergeRequest(threads=0, method="average"), ("threads",)),
        (lambda: ckpt.FitRequest(like="a.pth", optimizer="x"), ("optimizer",)),
        (lambda: ckpt.FitRequest(like="a.pth", model="a:b"), ("model", "like")),
        (ckpt.MatchRequest, ("model", "like")),
    ):
        with pytest.raises(UsageError) as caught:
            make()
        assert caught.value.fields == fields
        assert "--" not in caught.value.message


def test_a_request_is_whole() -> None:
    request = ckpt.MergeRequest("average")
    with pytest.raises(TypeError, match="the request says it all"):
        ckpt.merge(["a.pth", "b.pth"], "out.pth", request, seed=3)
    with pytest.raises(TypeError, match="the request says it all"):
        ckpt.fit("a.pth", "out.pth", ckpt.FitRequest(like="b.pth"), seed=3)
    with pytest.raises(TypeError, match="the request says it all"):
        ckpt.match("a.pth", ckpt.MatchRequest(like="b.pth"), at=["x"])


def test_every_field_of_an_error_has_an_option() -> None:
    """What `fields` names is a field of a request, which some command has an option for."""
    import click

    from ckpt_surgery.cli.fields import _PARAMETERS

    context = click.Context(cli)
    names = {
        name
        for command in COMMANDS
        if (found := cli.get_command(context, command)) is not None
        for option in found.params
        for name in (option.name, *(o.removeprefix("--").replace("-", "_") for o in option.opts))
    }
    assert set(_PARAMETERS.values()) <= names


def test_an_option_that_a_command_lacks_is_advised_of_another(
    invoke: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"a": torch.zeros(2)}, "epoch": 1}, "a.pth")
    for line, way in (
        (["set", "a.pth", "epoch=2"], "'ckpt convert --state-dict-only' writes"),
        (["convert", "a.pth"], "hint: --state-dict-only writes"),
    ):
        result = invoke(*line, "-o", "out.safetensors")
        assert (result.exit_code, way in result.stderr) == (2, True), result.stderr
