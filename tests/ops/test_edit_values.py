"""What `ckpt edit` does to tensors, with real modules and torch as the oracle."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch_checks import assert_same, quiet

from ckpt_surgery import Plan, PlanError, apply, read
from ckpt_surgery.cli.main import cli
from ckpt_surgery.edits.parts import Concat, Split
from ckpt_surgery.edits.rearrange import Pad, Permute, Slice, Transpose
from ckpt_surgery.writing.output import Output
from ckpt_surgery.writing.write import write


def ckpt(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def edited(state: Any, folder: Path, *rules: str) -> Any:
    torch.save(state, folder / "in.pth")
    result = ckpt("edit", folder / "in.pth", *rules, "-o", folder / "out.pth", "--force")
    assert result.exit_code == 0, result.stderr
    return torch.load(folder / "out.pth", weights_only=True)


# ------------------------------------------------------------------ jobs that people ask about


def test_conv1d_of_gpt2_becomes_a_linear_layer(tmp_path):
    weight, bias, inputs = torch.randn(6, 9), torch.randn(9), torch.randn(2, 6)
    linear = nn.Linear(6, 9)
    state = edited({"weight": weight, "bias": bias}, tmp_path, "--transpose", "weight")
    assert state["weight"].is_contiguous()
    linear.load_state_dict(state)
    torch.testing.assert_close(linear(inputs), inputs @ weight + bias)


def test_attention_is_split_and_joined(tmp_path):
    attention = nn.MultiheadAttention(8, 2)
    state = edited(
        {f"blocks.{i}.attn.{n}": p for i in range(2) for n, p in attention.state_dict().items()},
        tmp_path,
        *(
            "--split",
            "blocks.*.attn.in_proj_weight=blocks.*.attn.q.weight,blocks.*.attn.k.weight,blocks.*.attn.v.weight",
        ),
        *(
            "--split",
            "blocks.*.attn.in_proj_bias=blocks.*.attn.q.bias,blocks.*.attn.k.bias,blocks.*.attn.v.bias",
        ),
    )
    x = torch.randn(3, 8)
    q = nn.functional.linear(x, state["blocks.1.attn.q.weight"], state["blocks.1.attn.q.bias"])
    whole = nn.functional.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    assert torch.equal(q, whole[:, :8])
    back = edited(
        state,
        tmp_path,
        *("--concat", "blocks.*.attn.{q,k,v}.weight=blocks.*.attn.in_proj_weight"),
        *("--concat", "blocks.*.attn.{q,k,v}.bias=blocks.*.attn.in_proj_bias"),
    )
    assert torch.equal(back["blocks.0.attn.in_proj_weight"], attention.in_proj_weight)
    assert set(back) == {f"blocks.{i}.attn.{n}" for i in range(2) for n in attention.state_dict()}


def test_heads_are_interleaved_as_in_gpt_neox(tmp_path):
    heads, size = 3, 4
    qkv = torch.randn(heads * 3 * size, 5)
    wanted = qkv.view(heads, 3, size, 5)
    state = edited({"qkv": qkv}, tmp_path, "--split", "qkv=q,k,v:heads=3")
    for number, name in enumerate("qkv"):
        assert torch.equal(state[name], wanted[:, number].reshape(-1, 5))
    assert torch.equal(edited(state, tmp_path, "--concat", "{q,k,v}=qkv:heads=3")["qkv"], qkv)


def test_grouped_query_attention_splits_by_sizes(tmp_path):
    qkv = torch.randn(4, 8)
    state = edited({"a.qkv": qkv}, tmp_path, "--split", "a.qkv=q,k,v:dim=1:sizes=4,2,2")
    assert [list(state[f"a.{name}"].shape) for name in "qkv"] == [[4, 4], [4, 2], [4, 2]]


def test_bgr_becomes_rgb(tmp_path):
    conv, image = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8)
    other = copy.deepcopy(conv)
    other.load_state_dict(edited(conv.state_dict(), tmp_path, "--take", "weight=1:2,1,0"))
    torch.testing.assert_close(other(image.flip(1)), conv(image))


def test_kernels_are_permuted_as_for_spconv(tmp_path):
    weight = torch.randn(3, 3, 3, 4, 5)
    state = edited({"conv.weight": weight}, tmp_path, "--permute", "conv.weight=4,0,1,2,3")
    assert torch.equal(state["conv.weight"], weight.permute(4, 0, 1, 2, 3))


def test_kernels_are_inflated(tmp_path):
    flat, deep = nn.Conv2d(3, 4, 3), nn.Conv3d(3, 4, 3)
    rules = ("--unsqueeze", "weight=2", "--repeat", "weight=2:3:mean")
    deep.load_state_dict(edited(flat.state_dict(), tmp_path, *rules))
    image = torch.randn(1, 3, 6, 6)
    film = image.unsqueeze(2).expand(-1, -1, 3, -1, -1)
    torch.testing.assert_close(deep(film)[:, :, 0], flat(image), atol=1e-5, rtol=1e-5)


def test_head_is_copied_for_an_untied_model(tmp_path):
    state = edited(
        {"embed.weight": torch.randn(5, 3)}, tmp_path, "--copy", "embed.weight=lm_head.weight"
    )
    assert list(state) == ["embed.weight", "lm_head.weight"]
    assert torch.equal(state["embed.weight"], state["lm_head.weight"])
    assert state["embed.weight"].data_ptr() != state["lm_head.weight"].data_ptr()


def test_layers_are_dropped_and_the_rest_renumbered(tmp_path):
    layers = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(2, 2) for _ in range(12))})
    torch.save(layers.state_dict(), tmp_path / "in.pth")
    for line in (
        ("strip", tmp_path / "in.pth", "--pattern", r"^layers\.(1|4)\.", "-o", tmp_path / "s.pth"),
        ("edit", tmp_path / "s.pth", "--renumber", "layers.*", "-o", tmp_path / "r.pth"),
    ):
        assert ckpt(*line).exit_code == 0
    state = torch.load(tmp_path / "r.pth", weights_only=True)
    left = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(2, 2) for _ in range(10))})
    left.load_state_dict(state)
    assert torch.equal(left["layers"][9].weight, layers["layers"][11].weight)
    assert set(state._metadata) == set(left.state_dict()._metadata)


# ------------------------------------------------------------------------------ every rule


W = torch.arange(24, dtype=torch.float32).view(2, 3, 4)
RULES = [
    (["--transpose", "w=0,2"], W.transpose(0, 2)),
    (["--transpose", "w=-1,-2"], W.transpose(-1, -2)),
    (["--permute", "w=2,0,1"], W.permute(2, 0, 1)),
    (["--reshape", "w=6,-1"], W.reshape(6, 4)),
    (["--reshape", "w=2x12"], W.reshape(2, 12)),
    (["--unsqueeze", "w=-1"], W.unsqueeze(-1)),
    (["--unsqueeze", "w=0", "--squeeze", "w=0"], W),
    (["--flip", "w=2"], W.flip(2)),
    (["--take", "w=-1:3,0,0"], W[..., [3, 0, 0]]),
    (["--slice", "w=1:1:"], W[:, 1:]),
    (["--slice", "w=2::-1"], W[..., :-1]),
    (["--pad", "w=1:5"], nn.functional.pad(W, (0, 0, 0, 2))),
    (["--pad", "w=-1:5:0.5"], nn.functional.pad(W, (0, 1), value=0.5)),
    (["--repeat", "w=0:3"], torch.cat([W] * 3)),
    (["--repeat", "w=0:3:mean"], torch.cat([W] * 3) / 3),
    (["--scale", "w=0.1"], (W.double() * 0.1).float()),
    (["--add", "w=0.1"], (W.double() + 0.1).float()),
    (["--fill", "w=zeros"], torch.zeros_like(W)),
    (["--fill", "w=ones"], torch.ones_like(W)),
    (["--fill", "w=constant:2.5"], torch.full_like(W, 2.5)),
    (["--untie", "w"], W),
    (["--clone", "w"], W),
    (["--copy", "w=x"], W),
]


@pytest.mark.parametrize(
    ("rules", "wanted"), RULES, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
@pytest.mark.parametrize("form", ["plain", "view", "bfloat16"])
def test_rule_is_what_torch_does(rules, wanted, form, tmp_path):
    w, wanted = (W.bfloat16(), wanted) if form == "bfloat16" else (W, wanted)
    if form == "view":
        w = torch.cat([torch.ones(1, 2, 3, 4), W[None]]).transpose(1, 3)[1].transpose(0, 2)
    found = edited({"w": w, "other": torch.ones(2)}, tmp_path, *rules)["w"]
    assert found.dtype == w.dtype
    if form == "bfloat16":
        torch.testing.assert_close(found.float(), wanted, rtol=2**-8, atol=0)
    else:
        assert torch.equal(found, wanted)


def test_normal_numbers_are_drawn_from_the_seed(tmp_path):
    first = edited({"w": W}, tmp_path, "--fill", "w=normal:0.02", "--seed", "3")["w"]
    again = edited({"w": W}, tmp_path, "--fill", "w=normal:0.02", "--seed", "3")["w"]
    other = edited({"w": W}, tmp_path, "--fill", "w=normal:0.02")["w"]
    own = edited({"w": W}, tmp_path, "--fill", "w=normal:0.02:3", "--seed", "9")["w"]
    assert torch.equal(own, first)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0.005 < first.std() < 0.05


def test_tie_makes_one_tensor_of_two(tmp_path):
    state = edited({"a": W, "b": W + 1, "c": W}, tmp_path, "--tie", "b=a", "--tie", "new=a")
    assert list(state) == ["a", "b", "c", "new"]
    assert state["b"].data_ptr() == state["a"].data_ptr() == state["new"].data_ptr()


def test_ties_stay_where_all_names_are_edited(tmp_path):
    w = torch.randn(2, 3)
    state = edited({"a": w, "b": w}, tmp_path, "--transpose", "glob:*")
    assert torch.equal(state["a"], w.t())
    assert state["a"].data_ptr() == state["b"].data_ptr()


def test_broken_tie_is_said(tmp_path):
    w = torch.randn(2, 3)
    torch.save({"a": w, "b": w}, tmp_path / "in.pth")
    result = ckpt("edit", tmp_path / "in.pth", "--transpose", "a", "-o", tmp_path / "out.pth")
    assert "warning: 'a' is no longer tied to 'b'" in result.stdout
    state = torch.load(tmp_path / "out.pth", weights_only=True)
    assert torch.equal(state["b"], w)


def test_selections_speak_one_language(tmp_path):
    state = {f"l.{i}.w": torch.randn(2, 3) for i in range(3)} | {"m.w": torch.randn(2, 3)}
    for selection, count in (
        ("l", 3), ("l.*.w", 3), ("**", 4), (r"pattern:l\.[01]", 2), ("prefix:l.1", 1),
        ("name:m.w", 1), ("m.w", 1),
    ):  # fmt: skip
        found = edited(state, tmp_path, "--transpose", selection)
        assert sum(tensor.shape == (3, 2) for tensor in found.values()) == count


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([], "no rule says what to edit"),
        (["--transpose", "none"], "'--transpose none' matches nothing"),
        (["--transpose", "ww"], "did you mean 'w'?"),
        (["--transpose", "w=0"], "two axes are exchanged"),
        (["--transpose", "w=0,9"], "(w): there is no dimension 9 in [2, 3, 4]"),
        (["--permute", "w=0,1"], "is no order of the axes"),
        (["--permute", "w"], "there is no '='"),
        (["--permute", "w=a"], "hint: --permute SELECTION=4,0,1,2,3"),
        (["--reshape", "w=5,-1"], "has 24 elements"),
        (["--reshape", "w=-1,-1"], "at most one -1"),
        (["--squeeze", "w=0"], "is not of size 1"),
        (["--take", "w=1:7"], "there is no index 7"),
        (["--slice", "w=0:2:"], "nothing of dimension 0"),
        (["--pad", "w=1:2"], "is larger than 2"),
        (["--repeat", "w=0:0"], "cannot be repeated 0 times"),
        (["--repeat", "w=0:2:max"], "'max' is no way to repeat"),
        (["--fill", "w=noise"], "'noise' is no way to fill"),
        (["--split", "w=a,b,c"], "2 rows do not split into"),
        (["--split", "w=a,b:sizes=1,2"], "2 rows do not split into [1, 2]"),
        (["--split", "w=a,b:sizes=2"], "1 sizes for 2 parts"),
        (["--split", "w=a,b:heads=2"], "no multiples of 2 heads"),
        (["--split", "w=a,a"], "2 entries the name 'a'"),
        (["--split", "w"], "there is no '='"),
        (["--split", "w=a,"], "a name is empty"),
        (["--concat", "w,none=x"], "there is only 'w'"),
        (["--concat", "w,v=x"], "cannot be joined in dimension 0"),
        (["--concat", "w,i=x"], "tensors of float32, int64 cannot be joined"),
        (["--concat", "w"], "there is no '='"),
        (["--copy", "w"], "there is no '='"),
        (["--copy", "w=v"], "2 entries the name 'v'"),
        (["--cast", "w=float17"], "there is no element type 'float17'"),
        (["--cast", "w"], "there is no '='"),
        (["--cast", "w=complex64"], "cannot be cast to 'complex64'"),
        (["--cast", "f8=half"], "only with 'f8_scale' beside them"),
        (["--layers", "l=0-2"], "(l.2): there is no such layer\nhint: the last one is 'l.1'"),
        (["--layers", "l=1-0"], "is no range"),
        (["--layers", "l=a"], "hint: --layers 'model.layers=0-11"),
        (["--layers", "m=0"], "matches nothing"),
        (["--tie", "w=v"], "cannot be tied to"),
        (["--tie", "w=w"], "tied to itself"),
        (["--tie", "w"], "there is no '='"),
        (["--renumber", "w.*.x"], "the star comes last"),
        (["--split", "pattern:(=a,b"], "no regular expression"),
        (["--transpose", "q"], "cannot be changed by its elements"),
    ],
)  # fmt: skip
def test_rule_that_does_not_fit_is_refused(rules, said, tmp_path):
    state = {
        "w": W, "v": torch.ones(2, 2, 4), "i": W.long(), "l.0.w": W, "l.1.w": W,
        "f8": torch.ones(2).to(torch.float8_e4m3fn), "f8_scale": torch.ones(1),
    }  # fmt: skip
    with quiet():
        state["q"] = torch.sparse_coo_tensor([[0], [1]], [1.0], (2, 2))
    torch.save(state, tmp_path / "in.pth")
    result = ckpt("edit", tmp_path / "in.pth", *rules, "-o", tmp_path / "out.pth")
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "out.pth").exists()


# ---------------------------------------------------------------------------- optimizers


def trained(optimizer: str, model: nn.Module) -> torch.optim.Optimizer:
    kinds = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, lr=0.1),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    }
    made = kinds[optimizer](model.parameters())
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        made.step()
    return made


MOVES = [
    (["--transpose", "a"], lambda t: t.t()),
    (["--permute", "a=1,0"], lambda t: t.permute(1, 0)),
    (["--flip", "a=0", "--slice", "a=1:1:3"], lambda t: t.flip(0)[:, 1:3]),
    (["--pad", "a=0:6"], lambda t: nn.functional.pad(t, (0, 0, 0, 2))),
    (["--reshape", "a=2,2,4"], lambda t: t.reshape(2, 2, 4)),
]


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize(
    ("rules", "move"), MOVES, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_next_step_is_that_of_the_model_edited_in_torch(kind, rules, move, tmp_path):
    torch.manual_seed(0)
    model = nn.ParameterDict({"a": torch.randn(4, 4), "b": torch.randn(3)})
    optimizer = trained(kind, model)
    before = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}
    found = edited(before, tmp_path, *rules)
    gradients = {"a": torch.randn(4, 4), "b": torch.randn(3)}

    def step(weights: Any, states: Any) -> dict[str, torch.Tensor]:
        own = nn.ParameterDict({n: torch.zeros_like(t) for n, t in weights.items()})
        own.load_state_dict(weights)
        again = trained(kind, own)
        own.load_state_dict(weights)
        again.load_state_dict(states)
        for name, parameter in own.items():
            parameter.grad = move(gradients[name]).contiguous() if name == "a" else gradients[name]
        again.step()
        return {name: parameter.detach() for name, parameter in own.items()}

    wanted_state = copy.deepcopy(before)
    wanted_state["model"]["a"] = move(before["model"]["a"]).contiguous()
    for name, value in before["optimizer"]["state"][0].items():
        if isinstance(value, torch.Tensor) and value.dim():
            wanted_state["optimizer"]["state"][0][name] = move(value).contiguous()
    assert_same(
        step(found["model"], found["optimizer"]),
        step(wanted_state["model"], wanted_state["optimizer"]),
    )


@pytest.mark.parametrize("rules", [["--scale", "a=2"], ["--repeat", "a=0:2"], ["--fill", "a=ones"]])
def test_numbers_that_change_need_a_word_about_the_optimizer(rules, tmp_path):
    model = nn.ParameterDict({"a": torch.randn(4, 4), "b": torch.randn(3)})
    optimizer = trained("adam", model)
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "in.pth"
    )
    line = ["edit", tmp_path / "in.pth", *rules, "-o", tmp_path / "out.pth", "--force"]
    refused = ckpt(*line)
    assert refused.exit_code == 2
    assert "--optimizer reset" in refused.stderr
    assert ckpt(*line, "--optimizer", "reset").exit_code == 0
    state = torch.load(tmp_path / "out.pth", weights_only=True)
    groups = state["optimizer"]["param_groups"]
    assert len(groups[0]["params"]) == len(state["model"])
    kept = [state["optimizer"]["state"][key] for key in state["optimizer"]["state"]]
    assert [each["exp_avg"].shape for each in kept] == [(3,)]
    assert ckpt(*line, "--optimizer", "drop").exit_code == 0
    assert "optimizer" not in torch.load(tmp_path / "out.pth", weights_only=True)
    assert ckpt(*line, "--optimizer", "keep").exit_code == 0


# ------------------------------------------------------------------------------------ laws


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, list[Any]]:
    shape = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    tensor = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)
    dims = tuple(draw(st.permutations(range(len(shape)))))
    back = tuple(dims.index(i) for i in range(len(shape)))
    dim = draw(st.integers(0, len(shape) - 1))
    more = shape[dim] + draw(st.integers(0, 3))
    heads = draw(st.sampled_from([None, 1]))
    return tensor, draw(
        st.sampled_from(
            [
                [Transpose("", "w", (0, 1)), Transpose("", "w", (0, 1))],
                [Permute("", "w", dims), Permute("", "w", back)],
                [Pad("", "w", dim, more), Slice("", "w", dim, 0, shape[dim])],
                [
                    Split("", "w", tuple(map(str, range(shape[dim]))), dim, heads=heads),
                    Concat("", tuple(map(str, range(shape[dim]))), "w", dim, heads),
                ],
            ]
        )
    )


@settings(deadline=None, max_examples=60)
@given(cases())
def test_edit_and_its_inverse_are_the_identity(tmp_path_factory, case):
    tensor, edits = case
    folder = tmp_path_factory.mktemp("law")
    torch.save({"w": tensor}, folder / "in.pth")
    with read(folder / "in.pth") as checkpoint:
        replayed = Plan.from_dict(Plan(tuple(edits)).to_dict())
        assert replayed.edits == tuple(edits)
        write(apply(replayed, checkpoint), Output(folder / "out.pth"))
    assert torch.equal(torch.load(folder / "out.pth", weights_only=True)["w"], tensor)


def test_edit_of_what_is_no_tensor_is_refused(tmp_path):
    torch.save({"w": W, "v": W, "n": 3}, tmp_path / "in.pth")
    with read(tmp_path / "in.pth") as checkpoint, pytest.raises(PlanError, match="no tensor"):
        apply(Plan((Transpose("", "n"),)), checkpoint)
