"""A cast rounds as torch does, says what it lost, and keeps what should not be cast."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch_checks import quiet

from ckpt_surgery import Plan, PlanError, UsageError, apply, convert, read
from ckpt_surgery.cli.main import cli
from ckpt_surgery.compute.casts import CastCount
from ckpt_surgery.compute.rounding import converted
from ckpt_surgery.edits.cast import Cast
from ckpt_surgery.edits.cast_plan import CastRule, _norms_of
from ckpt_surgery.writing.output import Output
from ckpt_surgery.writing.write import write

FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


def ckpt(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def cast(state: Any, folder: Path, *options: str) -> tuple[Any, dict[str, Any]]:
    torch.save(state, folder / "in.pth")
    line = ("convert", folder / "in.pth", *options, "-o", folder / "out.pth", "--force", "--json")
    result = ckpt(*line)
    assert result.exit_code == 0, result.stderr
    return torch.load(folder / "out.pth", weights_only=True), json.loads(result.stdout)


# ------------------------------------------------------------------ numbers


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    source=st.sampled_from(FLOATS),
    target=st.sampled_from(FLOATS),
    numbers=st.lists(st.floats(width=32, allow_subnormal=True), max_size=12),
)
def test_a_count_is_what_a_loop_finds(source, target, numbers):
    before = torch.tensor(numbers, dtype=torch.float64).to(getattr(torch, source))
    after, count = converted(before, getattr(torch, target))
    assert after.dtype == getattr(torch, target)
    old, new = before.double(), after.double()
    if source != "float64":  # which torch itself rounds twice
        assert torch.equal(before.float().to(after.dtype).float().isnan(), after.float().isnan())
    infinite = sum(
        a.isfinite().item() and not b.isfinite().item() for a, b in zip(old, new, strict=True)
    )
    zero = sum(a.item() != 0 and b.item() == 0 for a, b in zip(old, new, strict=True))
    errors = [
        abs((b - a) / a).item()
        for a, b in zip(old, new, strict=True)
        if a != 0 and b != 0 and a.isfinite() and b.isfinite()
    ]
    assert (count.infinite, count.zero) == (infinite, zero)
    if source != target:
        assert count.error == pytest.approx(max(errors, default=0), rel=1e-5)


@pytest.mark.parametrize("target", ["float16", "bfloat16", "float64", "float8_e5m2"])
def test_the_result_is_torchs(tmp_path, target):
    torch.manual_seed(0)
    weight = torch.randn(3, 300_000)[:, ::2]
    state, report = cast({"w": weight, "n": torch.tensor(3)}, tmp_path, "--dtype", target)
    wanted = weight.to(getattr(torch, target))
    assert torch.equal(state["w"].view(torch.uint8), wanted.contiguous().view(torch.uint8))
    assert (state["w"].is_contiguous(), state["n"].dtype) == (True, torch.int64)
    (done,) = report["casts"]
    values = wanted.double()
    kept = values != 0
    error = ((values - weight.double()) / weight.double())[kept].abs().max().item()
    assert done["error"] == pytest.approx(error, rel=1e-5)
    assert done["zero"] == int((~kept).sum())


def test_double_is_rounded_once_where_torch_rounds_twice(tmp_path):
    number = 1 + 2**-8 + 2**-30  # above the middle of two bfloat16; float32 puts it on it
    state, _ = cast({"w": torch.tensor([number], dtype=torch.float64)}, tmp_path, "--dtype", "bf16")
    assert state["w"].item() == 1 + 2**-7
    assert torch.tensor([number], dtype=torch.float64).to(torch.bfloat16).item() == 1


def test_complex_numbers_are_cast_part_by_part(tmp_path):
    values = torch.randn(5, 7, dtype=torch.complex128)
    state, report = cast({"w": values, "x": torch.ones(2)}, tmp_path, "--dtype", "complex64")
    assert torch.equal(state["w"], values.to(torch.complex64))
    assert state["x"].dtype == torch.float32
    assert 0 < report["casts"][0]["error"] < 2**-24


@pytest.mark.parametrize(
    ("state", "rule", "wanted"),
    [
        ({"i": torch.tensor([1, 2, 300])}, "i=uint8", None),
        ({"i": torch.tensor([0, 7])}, "i=half", torch.tensor([0, 7], dtype=torch.float16)),
        ({"x": torch.tensor([2.0, 3.0])}, "x=int32", torch.tensor([2, 3], dtype=torch.int32)),
        ({"x": torch.tensor([2.5])}, "x=int32", None),
    ],
)
def test_integers_are_cast_only_by_selection(tmp_path, state, rule, wanted):
    if wanted is not None:
        found, _ = cast(state, tmp_path, "--dtype", rule)
        assert torch.equal(next(iter(found.values())), wanted)
        return
    torch.save(state, tmp_path / "in.pth")
    result = ckpt("convert", tmp_path / "in.pth", "--dtype", rule, "-o", tmp_path / "out.pth")
    assert result.exit_code == 2
    assert "not all numbers fit the element type" in result.stderr
    assert not (tmp_path / "out.pth").exists()


def test_overflow_is_refused_and_counted_with_leave(tmp_path):
    state = {"w": torch.tensor([1e6, 1.0, 1e-9, 0.1])}
    torch.save(state, tmp_path / "in.pth")
    line = ("convert", tmp_path / "in.pth", "--dtype", "fp16", "-o", tmp_path / "out.pth")
    refused = ckpt(*line)
    assert refused.exit_code == 2
    assert "1 becomes infinite" in refused.stderr
    assert not (tmp_path / "out.pth").exists()
    shown = ckpt(*line, "--allow-loss").stdout
    assert "cast float32 -> float16: 1 tensor, 4 elements, largest relative error 0.00024" in shown
    assert "w: of 4 elements 1 becomes infinite, 1 becomes zero" in shown


@pytest.mark.parametrize(
    ("number", "most", "allowed"),
    [(1.001, "0.004", True), (1.003, "0.00001", False), (1e-9, "0.5", False), (1e-9, "1", True)],
)
def test_max_loss_is_a_share_of_each_number(tmp_path, number, most, allowed):
    torch.save({"w": torch.tensor([1.0, number])}, tmp_path / "in.pth")
    line = ("convert", tmp_path / "in.pth", "--dtype", "fp16", "--max-loss", most)
    result = ckpt(*line, "-o", tmp_path / "out.pth")
    assert (result.exit_code == 0) is allowed
    assert (tmp_path / "out.pth").exists() is allowed
    if not allowed:
        assert f"more than {float(most):g}" in result.stderr


def test_max_loss_refuses_infinity_even_with_leave(tmp_path):
    torch.save({"w": torch.tensor([1e9])}, tmp_path / "in.pth")
    line = ("convert", tmp_path / "in.pth", "--dtype", "fp16", "--max-loss", "9", "--allow-loss")
    result = ckpt(*line, "-o", tmp_path / "out.pth")
    assert result.exit_code == 2
    assert "by more than all of it" in result.stderr


# ------------------------------------------------------------------ what is chosen, what is kept


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.PReLU(4))
        self.block = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.input_layernorm = nn.RMSNorm(4)
        self.spatial = nn.LayerNorm([2, 3])
        self.head = nn.Linear(4, 2)


NORMS = {
    *("body.1.weight", "body.1.bias", "body.1.running_mean", "body.1.running_var"),
    *("block.1.weight", "block.1.bias", "input_layernorm.weight"),
    *("spatial.weight", "spatial.bias"),
}


def test_norms_and_statistics_keep_their_type_by_default(tmp_path):
    state = Net().state_dict()
    found, report = cast(state, tmp_path, "--dtype", "bf16")
    kept = {name for name, tensor in found.items() if tensor.dtype == torch.float32}
    assert kept == NORMS
    assert found["body.1.num_batches_tracked"].dtype == torch.int64
    assert {"rule": "keep-norms", "text": "", "matched": len(NORMS)} in report["rules"]
    assert found._metadata == state._metadata
    everything, _ = cast(state, tmp_path, "--dtype", "torch.bfloat16", "--no-keep-norms")
    assert {t.dtype for t in everything.values()} == {torch.bfloat16, torch.int64}


def test_norms_are_widened_and_chosen_ones_are_cast(tmp_path):
    half = {name: tensor.half() for name, tensor in Net().state_dict().items()}
    found, _ = cast(half, tmp_path, "--dtype", "float32")
    assert {t.dtype for t in found.values()} == {torch.float32}
    found, _ = cast(Net().state_dict(), tmp_path, "--dtype", "spatial=half", "--dtype", "bf16")
    assert {found[n].dtype for n in ("spatial.weight", "spatial.bias")} == {torch.float16}
    assert found["head.weight"].dtype == torch.bfloat16


def test_the_last_of_two_selections_holds(tmp_path):
    rules = ("--dtype", "**=half", "--dtype", "head=bf16")
    found, report = cast({"head.w": torch.ones(2, 2), "b": torch.ones(2)}, tmp_path, *rules)
    assert (found["head.w"].dtype, found["b"].dtype) == (torch.bfloat16, torch.float16)
    assert [rule["matched"] for rule in report["rules"]] == [2, 1]


def test_ties_stay_ties_and_a_broken_one_is_said(tmp_path):
    shared = torch.randn(4, 4)
    state = {"embed.weight": shared, "lm_head.weight": shared}
    found, report = cast(state, tmp_path, "--dtype", "bf16")
    assert found["embed.weight"].data_ptr() == found["lm_head.weight"].data_ptr()
    assert report["warnings"] == []
    found, report = cast(state, tmp_path, "--dtype", "embed.weight=bf16")
    assert "'embed.weight' is no longer tied to 'lm_head.weight'" in report["warnings"][0]
    assert torch.equal(found["lm_head.weight"], shared)


def test_parameters_stay_parameters_and_devices_devices(tmp_path):
    state = {"w": nn.Parameter(torch.ones(3)), "f": nn.Parameter(torch.ones(2), False)}
    found, _ = cast(state, tmp_path, "--dtype", "bf16")
    for name, tensor in state.items():
        assert type(found[name]) is nn.Parameter
        assert found[name].requires_grad == tensor.requires_grad


def test_what_lies_beside_the_weights_keeps_its_type(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    found, report = cast(state, tmp_path, "--dtype", "bf16")
    assert found["optimizer"]["state"][0]["exp_avg"].dtype == torch.float32
    assert (found["model"]["weight"].dtype, report["carried"]) == (
        torch.bfloat16,
        ["optimizer", "epoch"],
    )
    alone, _ = cast(state, tmp_path, "--dtype", "bf16", "--state-dict-only")
    assert {tensor.dtype for tensor in alone.values()} == {torch.bfloat16}
    bare, _ = cast(state, tmp_path, "--dtype", "bf16", "--tensors-only")
    assert torch.equal(bare["bias"], model.bias.detach().bfloat16())


@pytest.mark.parametrize("scale", ["w_scale_inv", "w_scale", "scale_w", "scale"])
def test_float8_with_a_scale_is_not_cast_without_it(tmp_path, scale):
    quantised = torch.randn(4, 4).to(torch.float8_e4m3fn)
    state = {"a.w": quantised, f"a.{scale}": torch.ones(1), "b.w": quantised.clone()}
    save_file(state, tmp_path / "in.safetensors")
    line = ("convert", tmp_path / "in.safetensors", "-o", tmp_path / "out.safetensors")
    refused = ckpt(*line, "--dtype", "bf16")
    assert refused.exit_code == 2
    assert f"'a.{scale}'" in refused.stderr
    assert ckpt(*line, "--dtype", "b.w=bf16").exit_code == 0
    found = load_file(tmp_path / "out.safetensors")
    assert torch.equal(found["b.w"], quantised.bfloat16())
    assert found["a.w"].dtype == torch.float8_e4m3fn


# ------------------------------------------------------------------ as an edit, and errors


def test_a_plan_is_read_back_and_does_the_same(tmp_path):
    torch.save({"a": {"w": torch.randn(3)}, "n": 1}, tmp_path / "in.pth")
    plan = Plan((Cast("a", "w", "float16", 0.1),))
    assert Plan.from_dict(plan.to_dict()) == plan
    with read(tmp_path / "in.pth") as checkpoint:
        write(apply(plan, checkpoint), Output(tmp_path / "out.pth"))
    assert torch.load(tmp_path / "out.pth")["a"]["w"].dtype == torch.float16


@pytest.mark.parametrize("dtype", ["float17", "complex64", "float4_e2m1fn_x2"])
def test_what_does_not_convert_is_refused(tmp_path, dtype):
    torch.save({"w": torch.randn(3)}, tmp_path / "in.pth")
    with read(tmp_path / "in.pth") as checkpoint, pytest.raises(PlanError):
        apply(Plan((Cast("", "w", dtype),)), checkpoint)


def test_a_quantised_tensor_is_left_alone_and_refused_if_chosen(tmp_path):
    with quiet():
        quantised = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    torch.save({"q": quantised, "w": torch.ones(2)}, tmp_path / "in.pth")
    assert convert(tmp_path / "in.pth", tmp_path / "out.pth", dtypes=["half"]).casts[0].name == "w"
    with pytest.raises(PlanError, match="'qint8' cannot be cast to 'float16'"):
        convert(tmp_path / "in.pth", tmp_path / "o.pth", dtypes=["q=half"])


@pytest.mark.parametrize("text", ["float17", "w=", "int8", "bool", "float8_e8m0fnu", "w=qint8"])
def test_a_text_that_names_no_type_is_refused(text):
    with pytest.raises(UsageError):
        CastRule(text)


@pytest.mark.parametrize("options", [{"max_loss": 0.1}, {"dtypes": ["half"], "max_loss": -1.0}])
def test_max_loss_needs_a_cast_and_a_share(options, tmp_path):
    torch.save({"w": torch.randn(3)}, tmp_path / "in.pth")
    with pytest.raises(UsageError):
        convert(tmp_path / "in.pth", tmp_path / "out.pth", **options)


def test_a_selection_that_matches_nothing_is_refused(tmp_path):
    torch.save({"head.weight": torch.randn(3)}, tmp_path / "in.pth")
    with pytest.raises(UsageError, match="matches nothing"):
        convert(tmp_path / "in.pth", tmp_path / "out.pth", dtypes=["head.wieght=half"])


def test_norms_are_known_by_form(tmp_path):
    torch.save(Net().state_dict(), tmp_path / "in.pth")
    with read(tmp_path / "in.pth") as checkpoint:
        assert _norms_of(checkpoint.state_dicts[0]) == NORMS


def test_counts_add_up():
    whole = CastCount(zero=1, error=0.1) + CastCount(infinite=2, error=0.3) + CastCount()
    assert whole == CastCount(infinite=2, zero=1, error=0.3)
    assert (whole.loss, CastCount(zero=1).loss, CastCount().loss) == (float("inf"), 1.0, 0.0)
