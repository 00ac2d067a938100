"""A network says the same before and after its weights are fitted to another layout of it."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ckpt_surgery.models.torchvision_import import import_torchvision

WIDTH = 8
WRITTEN = ("o.pth", "by-recipe.pth", "by-report.pth", "by-proposal.pth", "r.toml", "r.json",
           "proposed.toml")  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return tmp_path


@pytest.fixture
def run(place, invoke):
    """Run `ckpt`; a refusal writes nothing."""

    def call(*args, code=0):
        before = sorted(place.iterdir())
        result = invoke(*args)
        assert result.exit_code == code, result.output
        if code:
            assert sorted(place.iterdir()) == before
        return result

    return call


@pytest.fixture
def fitted(run):
    """Fit one network's weights to another's, by the command, its recipe and its report."""

    def fit(old, new, *args):
        for name in WRITTEN:
            Path(name).unlink(missing_ok=True)
        torch.save(old.state_dict(), "old.pth")
        torch.save(new.state_dict(), "new.pth")
        line = ("fit", "old.pth", "--like", "new.pth", "--initial", "none")
        run(*line, *args, "--adapt", "layout", "-o", "o.pth", "--emit-recipe", "r.toml",
            "--record", "r.json", "-q")  # fmt: skip
        run("apply", "r.toml", "-o", "by-recipe.pth", "-q")
        run("apply", "r.json", "-o", "by-report.pth", "-q")
        assert read("by-recipe.pth") == read("o.pth") == read("by-report.pth")
        run(*line[:4], *args, "--dry-run", "--emit-recipe", "proposed.toml", "-q")
        run("apply", "proposed.toml", "-o", "by-proposal.pth", "-q")
        assert read("by-proposal.pth") == read("o.pth")
        new.load_state_dict(torch.load("o.pth"), strict=True)
        return new

    return fit


def read(name):
    return Path(name).read_bytes()


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


class Attention(nn.Module):
    """What ``nn.MultiheadAttention`` computes, with q, k and v in layers of their own."""

    def __init__(self, heads=2):
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH))
        self.heads = heads

    def forward(self, x):
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        made = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out_proj(made.transpose(1, 2).flatten(2))


def fused():
    attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True).eval()
    nn.init.normal_(attention.in_proj_bias)
    return attention


def test_in_proj_is_split_and_joined(fitted):
    x, one = torch.randn(2, 3, WIDTH), fused()
    three = fitted(one, Attention())
    close(three(x), one(x, x, x)[0])
    again = fused()
    close(fitted(three, again)(x, x, x)[0], one(x, x, x)[0])
    assert torch.equal(again.in_proj_weight, one.in_proj_weight)


def net(*layers):
    return nn.Sequential(OrderedDict(layers)).eval()


@pytest.mark.parametrize("back", [False, True])
def test_convolutions_are_linear_layers(fitted, back):
    """1×1 and 7×7, as in VGG's classifier."""
    kernels = net(("a", nn.Conv2d(3, 4, 1)), ("b", nn.Conv2d(4, 5, 7)), ("c", nn.Conv2d(5, 6, 1)))
    linear = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(4 * 49, 5), "c": nn.Linear(5, 6)})
    x = torch.randn(2, 3, 7, 7)

    def plain():
        y = linear["a"](x.movedim(1, -1)).movedim(-1, 1)
        return linear["c"](linear["b"](y.flatten(1)))

    fitted(*((linear, kernels) if back else (kernels, linear)))
    close(plain(), kernels(x).flatten(1))


def conv1d_as_linear(model, conv1d):
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, conv1d):
                setattr(module, name, nn.Linear(*child.weight.shape))
    return model


@pytest.fixture
def frameworks():
    import_torchvision()
    timm = pytest.importorskip("timm")
    return timm, pytest.importorskip("transformers")


def test_gpt2_goes_into_linear_layers_and_back(fitted, frameworks):
    _, transformers = frameworks
    from transformers.pytorch_utils import Conv1D

    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=20, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    old = transformers.GPT2Model(config).eval()
    linear = conv1d_as_linear(transformers.GPT2Model(config).eval(), Conv1D)
    x = torch.arange(8)[None]
    close(fitted(old, linear)(x).last_hidden_state, old(x).last_hidden_state)
    text = read("r.toml").decode()
    assert '"h.*.attn.c_proj.weight"' in text  # square, but by its name


def test_a_vit_of_timm_goes_into_that_of_transformers(fitted, frameworks, place):
    timm, transformers = frameworks
    old = timm.models.vision_transformer.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=0
    ).eval()
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        image_size=8, patch_size=4, layer_norm_eps=1e-6,
    )  # fmt: skip
    new = transformers.ViTModel(config, add_pooling_layer=False).eval()
    names = {
        "pos_embed": "embeddings.position_embeddings", "cls_token": "embeddings.cls_token",
        "patch_embed.proj": "embeddings.patch_embeddings.projection", "blocks": "layers",
        "attn.qkv": "attention.qkv", "attn.proj": "attention.o_proj", "norm1": "layernorm_before",
        "norm2": "layernorm_after", "norm": "layernorm",
    }  # fmt: skip
    if "layers.0.attention.q_proj.weight" not in new.state_dict():
        pytest.skip("another version of transformers calls them otherwise")
    lines = []
    for old_name in old.state_dict():
        new_name = f".{old_name}."
        for text, by in names.items():
            new_name = new_name.replace(f".{text}.", f".{by}.")
        lines.append(f'"{old_name}" = "{new_name[1:-1]}"')
    (place / "map.toml").write_text("\n".join(lines))
    x = torch.randn(2, 3, 8, 8)
    fitted(old, new, "--map", "map.toml")
    close(new(x).last_hidden_state, old.forward_features(x))


def test_moments_follow(run):
    """After one step on, the optimizer of the split layers has what that of the fused one had."""
    one = fused()
    optimizer = torch.optim.AdamW(one.parameters())
    x = torch.randn(2, 3, WIDTH)
    one(x, x, x)[0].square().mean().backward()
    optimizer.step()
    torch.save({"model": one.state_dict(), "optimizer": optimizer.state_dict()}, "old.pth")
    three = Attention()
    torch.save({"model": three.state_dict()}, "new.pth")
    run("fit", "old.pth", "--like", "new.pth", "--adapt", "layout", "-o", "o.pth")
    found = torch.load("o.pth")
    three.load_state_dict(found["model"])
    after = torch.optim.AdamW(three.parameters())
    after.load_state_dict(found["optimizer"])
    moments = optimizer.state[one.in_proj_weight]["exp_avg"].chunk(3)
    names = (three.q_proj, three.k_proj, three.v_proj)
    for layer, moment in zip(names, moments, strict=True):
        assert torch.equal(after.state[layer.weight]["exp_avg"], moment)


def test_safetensors_are_fitted_too(run):
    safetensors = pytest.importorskip("safetensors.torch")
    one = fused()
    safetensors.save_file(one.state_dict(), "old.safetensors")
    torch.save(Attention().state_dict(), "new.pth")
    line = ("fit", "old.safetensors", "--like", "new.pth", "--adapt", "layout")
    run(*line, "-o", "o.safetensors", "--emit-recipe", "r.toml")
    run("apply", "r.toml", "-o", "again.safetensors")
    assert read("o.safetensors") == read("again.safetensors")
    run(*line, "-o", "o.pth", "--emit-recipe", "p.toml")
    run("apply", "p.toml", "-o", "again.pth")
    assert read("o.pth") == read("again.pth")
    found = safetensors.load_file("o.safetensors")
    assert torch.equal(torch.cat([found[f"{n}_proj.weight"] for n in "qkv"]), one.in_proj_weight)


@pytest.fixture
def square(place):
    """A block whose square layer may be transposed; torch's own names for what it is."""
    old, new = (
        nn.ModuleDict({"fc": nn.Linear(4, 16, bias=False), "out": nn.Linear(4, 4, bias=False)})
        for _ in range(2)
    )
    state = {"fc.weight": old["fc"].weight.T.contiguous(), "out.weight": old["out"].weight}
    torch.save(state, "old.pth")
    torch.save(new.state_dict(), "new.pth")
    return SimpleNamespace(state=state, line=("fit", "old.pth", "--like", "new.pth"))


def test_a_square_that_nothing_settles_is_asked_about(run, square):
    adapted = (*square.line, "--adapt", "layout")
    refused = run(*adapted, "-o", "o.pth", code=2)
    assert "the layout of 'out.weight' is ambiguous: it is square" in refused.output
    assert "--layout 'out.weight=transposed' or --layout 'out.weight=as-is'" in refused.output
    run(*adapted, "--layout", "out.*=transposed", "-o", "turned.pth", "--emit-recipe", "t.toml")
    assert torch.equal(torch.load("turned.pth")["out.weight"], square.state["out.weight"].T)
    run(*adapted, "--layout", "out.weight=as-is", "-o", "same.pth", "--emit-recipe", "s.toml")
    assert torch.equal(torch.load("same.pth")["out.weight"], square.state["out.weight"])
    for recipe, output in (("t.toml", "turned.pth"), ("s.toml", "same.pth")):
        run("apply", recipe, "-o", "again.pth", "--force")
        assert read("again.pth") == read(output)
    # unasked, nothing of it is done
    shown = run(*square.line, "-o", "o.pth", "--emit-recipe", "r.toml").output
    assert "ambiguous, so that --layout NAME=HOW has to say it:" in shown
    assert "--layout 'out.weight=HOW' says it: transposed or as-is" in read("r.toml").decode()
    assert torch.equal(torch.load("o.pth")["out.weight"], square.state["out.weight"])


def test_what_was_answered_is_reported_as_it_was_done(run, place):
    torch.save({"attn.c_attn.weight": torch.randn(2, 6)}, "old.pth")
    torch.save({f"attn.{part}.weight": torch.zeros(2, 2) for part in "qkv"}, "new.pth")
    line = ("fit", "old.pth", "--like", "new.pth", "--adapt", "layout", "-o", "o.pth")
    for answer, how in (("as-is", "split"), ("transposed", "transpose and split")):
        said = run(*line, "--layout", f"**={answer}", "--dry-run").output
        assert f"q.weight, k.weight, v.weight of (2, 2) by {how}\n" in said
        report = json.loads(run(*line, "--layout", f"**={answer}", "--dry-run", "--json").output)
        assert [each["how"] for each in report["layouts"]] == [how]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--layout", "out.weight=as-is"), "none is permitted"),
        (("--adapt", "layout", "--layout", "out.weight"), "says no layout"),
        (("--adapt", "layout", "--layout", "out.weight=heads:0"), "says no layout"),
        (("--adapt", "layout", "--layout", "nose=as-is"), "is about no tensor"),
        (("--adapt", "layout", "--layout", "out.weight=heads:2"), "it is neither split nor joined"),
        (("--adapt", "layouts"), "did you mean"),
    ],
)
def test_answers_that_cannot_be_are_refused(run, square, args, message):
    assert message in run(*square.line, *args, "-o", "o.pth", code=2).output


def test_what_is_turned_may_be_kept_and_then_begins_anew(run, square):
    args = ("--layout", "fc.weight=as-is", "--layout", "out.weight=as-is", "--json")
    document = json.loads(run(*square.line, "--adapt", "layout", *args, "-o", "o.pth").stdout)
    assert document["initial"] == ["fc.weight"]
    assert [each["applied"] for each in document["layouts"]] == [False, False]


def test_a_way_that_the_shapes_do_not_leave_is_refused(run, place):
    torch.save({"qkv.weight": torch.randn(8, 4)}, "old.pth")
    torch.save({"q.weight": torch.randn(4, 4), "k.weight": torch.randn(2, 4),
                "v.weight": torch.randn(2, 4)}, "new.pth")  # fmt: skip
    line = ("fit", "old.pth", "--like", "new.pth", "--adapt", "layout", "-o", "o.pth")
    refused = run(*line, "--layout", "qkv.weight=transposed", code=2)
    assert "its shapes leave only 'as-is'" in refused.output
    run(*line)
    assert [tuple(v.shape) for v in torch.load("o.pth").values()] == [(4, 4), (2, 4), (2, 4)]


def test_heads_are_told(run, place):
    whole = torch.randn(12, 4)
    torch.save({"query_key_value.weight": whole}, "old.pth")
    torch.save({f"{n}.weight": torch.randn(4, 4) for n in "qkv"}, "new.pth")
    line = ("fit", "old.pth", "--like", "new.pth", "--adapt", "layout")
    assert "heads:N" in run(*line, "-o", "o.pth", code=2).output
    refused = run(*line, "--layout", "**=heads:3", "-o", "o.pth", code=2).output
    assert "'old.pth' (query_key_value.weight): [4, 4, 4] are no multiples of 3 heads" in refused
    run(*line, "--layout", "query_key_value.*=heads:2", "-o", "o.pth")
    by_head = whole.unflatten(0, (2, 3, 2))
    for place_, name in enumerate("qkv"):
        assert torch.equal(torch.load("o.pth")[f"{name}.weight"], by_head[:, place_].flatten(0, 1))


def test_match_counts_what_would_match(run, square):
    result = run("match", *square.line[1:], code=1)
    assert "would match after 'ckpt fit --adapt layout': 1 more key" in result.stdout
    assert "fc.weight: (4, 16) -> (16, 4) by transpose" in result.stdout
    document = json.loads(run("match", *square.line[1:], "--json", code=1).stdout)
    assert document["would_match_after"] == [["fc.weight", "transpose"]]
    assert document["ambiguous_layouts"] == [["out.weight", "transpose"]]


def test_no_layout_is_an_error_where_it_is_asked_for(run, place):
    torch.save({"a": torch.ones(2)}, "old.pth")
    line = ("fit", "old.pth", "--like", "old.pth", "--adapt", "layout", "-o", "o.pth")
    assert "'--adapt layout' applies to nothing" in run(*line, code=2).output


def test_an_average_goes_with_its_model_or_has_to_be_told_apart(run, place):
    states = {name: fused().state_dict() for name in ("state_dict", "state_dict_ema")}
    torch.save(states, "old.pth")
    torch.save(Attention().state_dict(), "new.pth")
    line = ("fit", "old.pth", "--like", "new.pth", "--adapt", "layout")
    run(*line, "-o", "o.pth", "--emit-recipe", "r.toml")
    for path, state in states.items():
        made = torch.load("o.pth")[path]
        parts = torch.cat([made[f"{n}_proj.weight"] for n in "qkv"])
        assert torch.equal(parts, state["in_proj_weight"])
    states["state_dict_ema"] = Attention().state_dict()
    torch.save(states, "old.pth")
    run(*line, "-o", "two.pth")  # the rules match nothing in the other
    other = {f"{n}.weight": torch.randn(WIDTH, WIDTH) for n in "qkv"}
    other |= {"out_proj.weight": torch.randn(WIDTH, WIDTH)}
    torch.save(states | {"state_dict_ema": fused().state_dict() | {"x.weight": torch.ones(2, 3)}},
               "old.pth")  # fmt: skip
    torch.save(Attention().state_dict() | {"x.weight": torch.ones(3, 2)}, "new.pth")
    assert "--at chooses one" in run(*line, "-o", "no.pth", code=2).output
    said = run(*line[:4], "--dry-run", "--emit-recipe", "no.toml", code=2)
    assert "one recipe cannot say it" in said.output
    run(*line, "--at", "state_dict", "-o", "at.pth", "--emit-recipe", "at.toml")
    run("apply", "at.toml", "-o", "at2.pth")
    assert read("at.pth") == read("at2.pth")


def test_an_average_behind_a_wrapper_follows(run, place):
    one = fused()
    average = torch.optim.swa_utils.AveragedModel(one)
    torch.save({"model": one.state_dict(), "ema": average.state_dict()}, "old.pth")
    torch.save(Attention().state_dict(), "new.pth")
    run("fit", "old.pth", "--like", "new.pth", "--adapt", "layout", "-o", "o.pth",
        "--emit-recipe", "r.toml")  # fmt: skip
    run("apply", "r.toml", "-o", "again.pth")
    assert read("o.pth") == read("again.pth")
    found = torch.optim.swa_utils.AveragedModel(Attention())
    found.load_state_dict(torch.load("o.pth")["ema"])
    assert torch.equal(found.module.q_proj.weight, one.in_proj_weight[:WIDTH])


def test_a_recipe_has_a_name_and_is_no_input(run, square, invoke):
    for args, message in (
        (("--emit-recipe", "-"), "names no file"),
        (("--emit-recipe", "old.pth"), "old.pth"),
        (("--emit-recipe", "new.pth"), "new.pth"),
        (("--emit-recipe", "o.pth"), "o.pth"),
    ):
        assert message in run(*square.line, *args, "-o", "o.pth", code=2).output
    line = ("fit", "-", *square.line[2:], "--emit-recipe", "r.toml", "-o", "o.pth")
    assert "standard input has no name" in invoke(*line, stdin=read("old.pth")).output


def test_a_recipe_holds_the_rest_of_the_line(run, square, place):
    run(*square.line, "--adapt", "layout", "--layout", "out.weight=as-is", "--dtype", "float16",
        "--seed", "3", "--state-dict-only", "--provenance", "--metadata", "a=b",
        "--format", "safetensors",
        "--emit-recipe", "r.toml", "-o", "o.safetensors")  # fmt: skip
    text = read("r.toml").decode()
    assert 'fit = { like = "new.pth", dtype = "float16", seed = 3, state-dict-only = true }' in text
    assert 'format = "safetensors"' in text
    assert "provenance = true" in text
    assert 'metadata = { a = "b" }' in text


def test_a_step_of_a_recipe_takes_layouts(run, square, place):
    step = 'fit = { like = "new.pth", adapt = "layout", layout = "out.weight=transposed" }'
    (place / "r.toml").write_text(f'[inputs]\na = "old.pth"\n[[steps]]\n{step}\n')
    run("apply", "r.toml", "-o", "o.pth")
    run(*square.line, "--adapt", "layout", "--layout", "out.weight=transposed", "-o", "p.pth")
    assert read("o.pth") == read("p.pth")


def test_a_map_that_names_neither_is_refused(run, place):
    torch.save({"qkv.weight": torch.randn(6, 2)}, "old.pth")
    torch.save({f"attn.{n}.weight": torch.randn(2, 2) for n in "qkv"}, "new.pth")
    (place / "m.toml").write_text('"qkv.weight" = "nose.weight"\n')
    line = ("fit", "old.pth", "--like", "new.pth", "--map", "m.toml", "-o", "o.pth")
    assert "'nose.weight', which the target does not have" in run(*line, code=2).output
    (place / "m.toml").write_text('"qkv.weight" = "attn.qkv.weight"\n')
    run(*line, "--adapt", "layout")
    assert torch.load("o.pth").keys() == torch.load("new.pth").keys()


def test_help_shows_both(invoke):
    shown = invoke("fit", "--help").output
    assert "--layout NAME=HOW" in shown
    assert "--emit-recipe RECIPE" in shown
