"""Names from a file are no formulas in a spreadsheet, and no control characters in a plan."""

from __future__ import annotations

import csv
import io
import tomllib
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch_checks import save

from ckpt_surgery import inspect
from ckpt_surgery.cli.main import cli
from ckpt_surgery.render.plain import write_csv

FORMULAS = ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", "＝1", '=HYPERLINK("x")']  # noqa: RUF001


@pytest.mark.parametrize("formula", FORMULAS)
def test_formula_is_a_text(formula: str, tmp_path: Path) -> None:
    path = save({formula: {formula: torch.ones(1), "w": torch.ones(1)}}, tmp_path / "w.pth")
    stream = io.StringIO()
    write_csv(inspect(path), stream)
    first, second = list(csv.DictReader(io.StringIO(stream.getvalue())))
    assert first["name"] == first["state_dict"] == f"'{formula}"
    assert second["name"] == "w"


def test_numbers_below_zero_stay_numbers(tmp_path: Path) -> None:
    stream = io.StringIO()
    write_csv(inspect(save({"w": -torch.ones(2)}, tmp_path / "w.pth"), stats=True), stream)
    (row,) = list(csv.DictReader(io.StringIO(stream.getvalue())))
    assert float(row["min"]) == -1


def test_plan_in_toml_holds_no_control_characters(tmp_path: Path) -> None:
    name = "\x9b31mred\u202e.\x7fweight"
    path = save({name: torch.ones(2, 2), "fc.weight": torch.ones(2)}, tmp_path / "w.pth")
    line = ["freeze-plan", str(path), "--freeze", "fc", "--emit", "toml"]
    done = CliRunner().invoke(cli, line)
    assert done.exit_code == 0, done.output
    assert all(c.isprintable() or c == "\n" for c in done.stdout)
    plan = tomllib.loads(done.stdout)
    assert name in {parameter["name"] for parameter in plan["parameters"]}
