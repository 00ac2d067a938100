"""Tensors that ``load_state_dict`` refuses are no match, and never fitted as copies."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_checks import quiet
from torch_kinds import TENSORS, build

import ckpt_surgery as ckpt

_TYPES = {"quint8": torch.float32, "qint8": torch.float32}


def _model(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Module:
    model = nn.Module()
    model.register_buffer("kind", torch.zeros(shape, dtype=dtype))
    return model


def _torch_loads(path, model) -> bool:
    try:
        with quiet():
            model.load_state_dict(torch.load(path, weights_only=False))
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("converted", [False, True], ids=["own type", "float32"])
@pytest.mark.parametrize("name", [n for n, k in TENSORS.items() if k.layout != "jagged"])
def test_match_says_what_load_state_dict_does(name, converted, tmp_path):
    kind, path, like = TENSORS[name], tmp_path / "kind.pth", tmp_path / "like.pth"
    value = build(kind.make)
    shape = (2,) if kind.layout == "nested" else tuple(value.shape)
    dtype = torch.float32 if converted or value.is_quantized else value.dtype
    with quiet():
        torch.save({"kind": value}, path)
        model = _model(shape, dtype)
        torch.save(model.state_dict(), like)
    found = ckpt.match(path, like=like)
    if kind.layout == "subclass":  # what its class permits cannot be told
        assert found.exit_code == 1
        return
    assert (found.exit_code == 0) == _torch_loads(path, model), found.to_dict()


@pytest.mark.parametrize("name", ["sparse coo", "quantized", "sparse csr"])
def test_a_model_of_the_same_layout_takes_them(name, tmp_path):
    value = build(TENSORS[name].make)
    with quiet():
        torch.save({"kind": value}, tmp_path / "a.pth")
        torch.save({"kind": build(TENSORS[name].make)}, tmp_path / "b.pth")
        assert ckpt.match(tmp_path / "a.pth", like=tmp_path / "b.pth").exit_code == 0
        report = ckpt.fit(tmp_path / "a.pth", tmp_path / "o.pth", like=tmp_path / "b.pth")
    assert report.to_dict()["copied"] == ["kind"]


@pytest.mark.parametrize("name", ["sparse coo", "quantized", "meta", "bits8", "wrapper subclass"])
def test_fit_takes_the_targets_value_and_says_why(name, tmp_path):
    value = build(TENSORS[name].make)
    like = {"kind": torch.full(tuple(value.shape), 7.0), "x": torch.zeros(1)}
    with quiet():
        torch.save({"kind": value, "x": torch.ones(1)}, tmp_path / "a.pth")
    torch.save(like, tmp_path / "like.pth")
    report = ckpt.fit(tmp_path / "a.pth", tmp_path / "o.pth", like=tmp_path / "like.pth")
    (item,) = report.to_dict()["initial_values"]
    assert "which load_state_dict cannot copy" in item["reason"]
    written = torch.load(tmp_path / "o.pth")
    assert torch.equal(written["kind"], like["kind"])
    assert torch.equal(written["x"], torch.ones(1))


def test_a_model_is_asked_as_well(tmp_path):
    torch.save({"weight": torch.eye(4).to_sparse()}, tmp_path / "sparse.pth")
    arguments = {"in_features": 4, "out_features": 4, "bias": False}
    found = ckpt.match(tmp_path / "sparse.pth", model="torch.nn:Linear", model_args=arguments)
    assert found.to_dict()["uncopyable_keys"] == [["weight", "sparse_coo", "strided"]]
    assert 'While copying the parameter named "weight"' in found.matched[0].comparison.wording("L")
    with pytest.raises(ckpt.PlanError, match="1 name agrees, but the checkpoint's is a sparse_coo"):
        ckpt.fit(
            tmp_path / "sparse.pth", tmp_path / "o.pth", model="torch.nn:Linear",
            model_args=arguments,
        )  # fmt: skip
