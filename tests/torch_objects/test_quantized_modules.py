"""A pickled quantized module is never written without its weights, unless that is asked for."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch_checks import save

import ckpt_surgery as ckpt
from ckpt_surgery.errors import LossyEditError, PlanError, UsageError
from ckpt_surgery.matching.target_source import TargetRequest
from ckpt_surgery.ops.hash import digest, model_digests
from ckpt_surgery.recipes.expect import Expect
from ckpt_surgery.recipes.work import Work


def quantized() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)


@pytest.mark.parametrize("only", [None, "state_dict_only", "tensors_only"])
@pytest.mark.parametrize("wrap", [True, False])
def test_it_is_refused_by_name(wrap: bool, only: str | None, tmp_path: Path) -> None:
    """An empty state dict was written, and the exit code was 0."""
    value = {"model": quantized(), "epoch": 3} if wrap else quantized()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = save(value, tmp_path / "q.pt")
    out = tmp_path / "out.pt"
    with pytest.raises(
        LossyEditError, match="what only the code of modules unpacks or adds would be lost: "
    ) as told:
        ckpt.convert(file, out, **({only: True} if only else {}))
    name = "'model/0'" if wrap and not only else "'0'"
    assert name in str(told.value)
    assert not out.exists()
    report = ckpt.convert(file, ckpt.Output(out, allow_loss=True), **({only: True} if only else {}))
    said = "what only the code of modules unpacks or adds is left out: "
    assert any(w.startswith(said) and name in w for w in report.warnings)


def test_what_is_not_read_is_not_said_to_be_equal(tmp_path: Path) -> None:
    """Two models had one digest, and no difference: that of no entry at all."""
    models = tmp_path / "a.pt", tmp_path / "b.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for file in models:
            save(quantized(), file)
    plain = save(quantized()[1].state_dict(), tmp_path / "plain.pt")
    a, b = models
    for call in (
        lambda: ckpt.diff(a, b),
        lambda: ckpt.diff(plain, b),
        lambda: ckpt.match(a, like=plain),
        lambda: ckpt.match(plain, like=b),
        lambda: ckpt.fit(plain, tmp_path / "fitted.pt", like=b),
    ):
        with pytest.raises(UsageError, match=r"unpacks or adds .*: '0', '0._packed_params'"):
            call()
    hashed = digest([a])
    assert not hashed.models
    assert "has no digest: '0'" in hashed.failures[0].message
    with ckpt.read(a) as checkpoint:
        assert model_digests(checkpoint) == []
        with pytest.raises(PlanError, match="cannot be compared: '0'"):
            Expect(matches=TargetRequest(like=plain)).plan(checkpoint, Work())


@pytest.mark.filterwarnings("ignore")
def test_a_graph_in_a_module_is_not_left_out_silently(tmp_path: Path) -> None:
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2)))
    file, out = save(nn.Sequential(graph, nn.Linear(2, 1)), tmp_path / "m.pt"), tmp_path / "out.pt"
    with pytest.raises(LossyEditError, match="would be lost: '0'"):
        ckpt.convert(file, out)
    ckpt.convert(file, ckpt.Output(out, allow_loss=True))
    assert list(torch.load(out)) == ["1.weight", "1.bias"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.GRUCell, nn.Embedding])
def test_a_module_that_has_no_entry_left_is_kept_whole_or_refused(
    kind: type[nn.Module], tmp_path: Path
) -> None:
    model: nn.Module = nn.Sequential(kind(4, 4))
    if kind is nn.Embedding:
        model.qconfig = torch.ao.quantization.float_qparams_weight_only_qconfig  # type: ignore[assignment]
        model = torch.ao.quantization.convert(torch.ao.quantization.prepare(model))
    else:
        model = torch.ao.quantization.quantize_dynamic(model, {kind}, dtype=torch.qint8)
    alone, beside = save(model, tmp_path / "m.pt"), tmp_path / "beside.pt"
    with pytest.raises(LossyEditError, match="would be lost"):
        ckpt.convert(alone, tmp_path / "out.pt")
    save({"model": model, "other": nn.Linear(2, 2).state_dict()}, beside)
    ckpt.convert(beside, tmp_path / "out.pt")
    kept = torch.load(tmp_path / "out.pt", weights_only=False)["model"]
    assert sorted(kept.state_dict()) == sorted(model.state_dict())


def test_other_modules_are_written(tmp_path: Path) -> None:
    file = save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "m.pt")
    ckpt.convert(file, tmp_path / "out.pt")
    assert list(torch.load(tmp_path / "out.pt")) == ["0.weight", "0.bias"]
