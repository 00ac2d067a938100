"""Adapters in every naming, folded into weights: by hand in torch, to one rounding."""

from __future__ import annotations

import json
import re

import pytest
import torch
from click.testing import CliRunner
from frameworks import framework
from safetensors.torch import load_file, save_file

from ckpt_surgery.cli.main import cli
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.plan import Plan
from ckpt_surgery.errors import CkptError, NonFiniteError, PlanError, UsageError
from ckpt_surgery.formats import read
from ckpt_surgery.merge.lora.diffusion_names import original_name
from ckpt_surgery.merge.request import MergeRequest
from ckpt_surgery.merge.scope import MergeScope
from ckpt_surgery.names import Rule, Selection
from ckpt_surgery.ops.merge import merge
from ckpt_surgery.writing.output import Output
from ckpt_surgery.writing.write import write


def base_weights(dtype=torch.float32):
    torch.manual_seed(0)
    return {
        "down.0.attn.to_q.weight": torch.randn(6, 4).to(dtype),
        "down.0.attn.to_q.bias": torch.randn(6).to(dtype),
        "down.0.attn.to_out.0.weight": torch.randn(6, 6).to(dtype),
        "down.0.conv.weight": torch.randn(5, 4, 3, 3).to(dtype),
        "norm.weight": torch.randn(4).to(dtype),
        "steps": torch.tensor(3),
    }


def factors(rows, columns, rank=2):
    return torch.randn(rows, rank) * 0.3, torch.randn(rank, columns) * 0.3


def folded(tmp_path, base, adapter, request="lora", metadata=None, name="out.safetensors"):
    save_file(base, tmp_path / "base.safetensors")
    save_file(adapter, tmp_path / "adapter.safetensors", metadata)
    files = [tmp_path / "base.safetensors", tmp_path / "adapter.safetensors"]
    report = merge(files, Output(tmp_path / name, force=True), request)
    return load_file(tmp_path / name), report


def is_rounded(found, exact):
    expected = exact.to(found.dtype)
    assert torch.equal(found, expected)


NAMINGS = {
    "kohya": (
        "lora_unet_down_0_attn_to_q.lora_down.weight",
        "lora_unet_down_0_attn_to_q.lora_up.weight",
        "lora_unet_down_0_attn_to_q.alpha",
    ),
    "diffusers": (
        "unet.down.0.attn.to_q.lora.down.weight",
        "unet.down.0.attn.to_q.lora.up.weight",
        "unet.down.0.attn.to_q.alpha",
    ),
    "processors": (
        "unet.down.0.attn.processor.to_q_lora.down.weight",
        "unet.down.0.attn.processor.to_q_lora.up.weight",
        None,
    ),
    "peft's in diffusers": (
        "unet.down.0.attn.to_q.lora_A.weight",
        "unet.down.0.attn.to_q.lora_B.weight",
        None,
    ),
    "dots": (
        "down.0.attn.to_q.lora_A.default.weight",
        "down.0.attn.to_q.lora_B.default.weight",
        "down.0.attn.to_q.alpha",
    ),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_finds_its_weight(naming, tmp_path):
    base = base_weights()
    up, down = factors(6, 4)
    names = NAMINGS[naming]
    adapter = {names[0]: down, names[1]: up}
    if names[2]:
        adapter[names[2]] = torch.tensor(1.0)
    found, report = folded(tmp_path, base, adapter)
    scale = 0.5 if names[2] else 1.0
    weight = "down.0.attn.to_q.weight"
    is_rounded(found[weight], base[weight].double() + scale * (up.double() @ down.double()))
    assert all(torch.equal(found[n], base[n]) for n in base if n != weight)
    assert report.merged == (weight,)
    assert any("no alpha" in text for text in report.warnings) == (names[2] is None)


def test_the_output_projection_of_processors_is_a_list(tmp_path):
    base = base_weights()
    up, down = factors(6, 6)
    start = "unet.down.0.attn.processor.to_out_lora"
    found, report = folded(tmp_path, base, {f"{start}.down.weight": down, f"{start}.up.weight": up})
    assert report.merged == ("down.0.attn.to_out.0.weight",)
    exact = base[report.merged[0]].double() + up.double() @ down.double()
    is_rounded(found[report.merged[0]], exact)


def test_kernels_tucker_cores_and_whole_differences(tmp_path):
    base = base_weights()
    up, down = torch.randn(5, 2, 1, 1) * 0.2, torch.randn(2, 4, 1, 1) * 0.2
    mid, whole = torch.randn(2, 2, 3, 3), torch.randn(6) * 0.1
    start = "lora_unet_down_0_conv"
    adapter = {
        f"{start}.lora_up.weight": up,
        f"{start}.lora_down.weight": down,
        f"{start}.lora_mid.weight": mid,
        f"{start}.alpha": torch.tensor(2.0),
        "lora_unet_down_0_attn_to_q.diff_b": whole,
        "lora_unet_norm.diff": torch.ones(4),
    }
    found, _ = folded(tmp_path, base, adapter)
    # the three convolutions after each other, of a unit in each place
    units = torch.eye(4 * 9, dtype=torch.float64).view(36, 4, 3, 3)
    kernel = torch.nn.functional.conv2d(units, down.double())
    kernel = torch.nn.functional.conv2d(kernel, mid.double())
    kernel = torch.nn.functional.conv2d(kernel, up.double()).view(36, 5).T.reshape(5, 4, 3, 3)
    torch.testing.assert_close(
        found["down.0.conv.weight"].double(), base["down.0.conv.weight"].double() + kernel
    )
    is_rounded(found["down.0.attn.to_q.bias"], base["down.0.attn.to_q.bias"].double() + whole)
    is_rounded(found["norm.weight"], base["norm.weight"].double() + 1)


@pytest.mark.parametrize("by_input", [False, True])
def test_a_weight_decomposed_by_lycoris(by_input, tmp_path):
    base, name = base_weights(), "down.0.attn.to_out.0.weight"
    up, down = factors(6, 6)
    magnitudes = torch.rand(6) + 0.5
    shape = (1, 6) if by_input else (6, 1)
    start = "lora_unet_down_0_attn_to_out_0"
    adapter = {
        f"{start}.lora_up.weight": up,
        f"{start}.lora_down.weight": down,
        f"{start}.alpha": torch.tensor(2.0),
        f"{start}.dora_scale": magnitudes.view(shape),
    }
    found, _ = folded(tmp_path, base, adapter)
    total = base[name].double() + up.double() @ down.double()
    norms = total.norm(dim=0 if by_input else 1).view(shape)
    torch.testing.assert_close(found[name].double(), total * magnitudes.view(shape) / norms)


def test_names_in_the_original_code_of_stable_diffusion(tmp_path):
    place = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"
    text = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    base = {place: torch.randn(4, 4), text: torch.randn(4, 4)}
    adapter = {}
    for start in (
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
    ):
        up, down = factors(4, 4)
        adapter |= {f"{start}.lora_up.weight": up, f"{start}.lora_down.weight": down}
    _, report = folded(tmp_path, base, adapter)
    assert set(report.merged) == {place, text}


def test_the_names_of_the_unet_are_those_that_diffusers_converts():
    files = framework("diffusers.loaders.single_file_utils")
    diffusers = framework("diffusers")
    with torch.device("meta"):
        model = diffusers.UNet2DConditionModel(
            block_out_channels=(8, 8, 8, 8),
            cross_attention_dim=8,
            attention_head_dim=4,
            norm_num_groups=8,
        )
    numbered = {}
    for number, name in enumerate(model.state_dict()):
        module, _, end = name.rpartition(".")
        found = original_name(module.replace(".", "_"))
        assert found is not None, name
        dotted = re.sub(r"_(\d+)", r".\1", found) if found.startswith("out") else found
        for pattern, new in (
            (r"^(input_blocks|output_blocks)[_.](\d+)[_.](\d+)[_.]?", r"\1.\2.\3."),
            (r"^middle_block_(\d)_", r"middle_block.\1."),
            (r"(in_layers|emb_layers|out_layers|time_embed)[_.](\d)$", r"\1.\2"),
        ):
            dotted = re.sub(pattern, new, dotted)
        if ".attentions." in name and ".transformer_blocks." in name:
            dotted = dotted[: dotted.index("transformer_blocks")]
            dotted += module[module.index("transformer_blocks") :]
        dotted = dotted.removesuffix(".")
        numbered[f"model.diffusion_model.{dotted}.{end}"] = torch.tensor(number)
    converted = files.convert_ldm_unet_checkpoint(numbered, {"layers_per_block": 2})
    names = list(model.state_dict())
    assert {name: int(value) for name, value in converted.items()} == {
        name: names.index(name) for name in names
    }


def peft_directory(folder, weights, **config):
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


def q_adapter():
    up, down = factors(6, 4)
    start = "base_model.model.down.0.attn.to_q"
    return {f"{start}.lora_A.weight": down, f"{start}.lora_B.weight": up}


def test_training_state_ties_and_averages_of_a_pth(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    torch.save(saved, tmp_path / "base.pth")
    up, down = factors(6, 4)
    names = ("base_model.model.0.lora_A.weight", "base_model.model.0.lora_B.weight")
    adapter = peft_directory(tmp_path / "a", dict(zip(names, (down, up), strict=True)))
    merge([tmp_path / "base.pth", adapter], tmp_path / "out.pth", "lora")
    found = torch.load(tmp_path / "out.pth", weights_only=True)
    exact = saved["model"]["0.weight"].double() + 2 * (up.double() @ down.double())
    is_rounded(found["model"]["0.weight"], exact)
    assert found["epoch"] == 3
    assert found["model"]._metadata == saved["model"]._metadata
    optimizer.load_state_dict(found["optimizer"])


def test_a_tie_stays_where_it_is_folded_once_for_all(tmp_path):
    shared = torch.randn(6, 4)
    torch.save({"a.weight": shared, "b.weight": shared}, tmp_path / "base.pth")
    up, down = factors(6, 4)
    adapter = {"a.lora_A.weight": down, "a.lora_B.weight": up}
    save_file(adapter, tmp_path / "one.safetensors")
    report = merge(
        [tmp_path / "base.pth", tmp_path / "one.safetensors"], tmp_path / "out.pth", "lora"
    )
    found = torch.load(tmp_path / "out.pth")
    assert torch.equal(found["b.weight"], shared)
    assert not torch.equal(found["a.weight"], shared)
    assert any("were tied and are no longer" in text for text in report.warnings)


def test_a_report_is_carried_out_again_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file(base_weights(torch.bfloat16), "base.safetensors")
    peft_directory(tmp_path / "adapter", q_adapter())
    report = merge(["base.safetensors", "adapter"], "out.safetensors", "lora")
    plan = Plan.from_dict(json.loads(json.dumps(report.to_dict()))["plan"])
    with read("base.safetensors") as base, Inputs(read=read) as inputs:
        again = plan.apply(base, inputs)
        write(again, Output("again.safetensors"), inputs=inputs.sources)
    files = [(tmp_path / name).read_bytes() for name in ("out.safetensors", "again.safetensors")]
    assert files[0] == files[1]


def test_scales_multiply_and_selections_narrow(tmp_path):
    base = base_weights()
    up, down = factors(6, 4)
    adapter = {
        "down.0.attn.to_q.lora_A.weight": down,
        "down.0.attn.to_q.lora_B.weight": up,
        "down.0.attn.to_out.0.lora_A.weight": torch.randn(2, 6),
        "down.0.attn.to_out.0.lora_B.weight": torch.randn(6, 2),
    }
    rules = Selection([Rule("glob", "**.to_q.*")])
    request = MergeRequest("lora", scales=[-0.5], scope=MergeScope(selection=rules))
    found, report = folded(tmp_path, base, adapter, request)
    name = "down.0.attn.to_q.weight"
    is_rounded(found[name], base[name].double() - 0.5 * (up.double() @ down.double()))
    assert report.merged == (name,)
    assert report.copied == (("down.0.attn.to_out.0.weight", "not selected"),)


def test_what_is_left_after_rounding_is_counted(tmp_path):
    base = base_weights(torch.bfloat16)
    up, down = torch.full((6, 1), 1e-3), torch.ones(1, 4)
    adapter = {"down.0.attn.to_q.lora_A.weight": down, "down.0.attn.to_q.lora_B.weight": up}
    found, report = folded(tmp_path, base, adapter, MergeRequest("lora", check_rounding=True))
    name = "down.0.attn.to_q.weight"
    (rounding,) = report.rounding
    moved = found[name].double() - base[name].double()
    assert rounding.name == name
    assert rounding.changed == 24
    assert rounding.lost == int((moved == 0).sum()) > 0
    exact = 1e-3 * torch.ones(6, 4, dtype=torch.float64)
    assert rounding.error == pytest.approx(float((moved - exact).norm() / exact.norm()), rel=1e-5)
    assert report.to_dict()["rounding"][0]["lost"] == rounding.lost


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ({"nose.lora_A.weight": (2, 4), "nose.lora_B.weight": (6, 2)}, "applies to nothing"),
        ({"down.0.attn.to_q.lora_A.weight": (2, 4)}, "no other factor"),
        (
            {
                "down.0.attn.to_q.lora_A.weight": (2, 5),
                "down.0.attn.to_q.lora_B.weight": (6, 2),
            },
            r"'down.0.attn.to_q.lora_A.weight' of \[2, 5\] does not fit",
        ),
        (
            {
                "down.0.attn.to_q.lora_A.weight": (3, 4),
                "down.0.attn.to_q.lora_B.weight": (6, 2),
            },
            "does not fit",
        ),
        (
            {
                "down.0.attn.to_q.lora_A.weight": (2, 4),
                "down.0.attn.to_q.lora_B.weight": (7, 2),
            },
            r"'down.0.attn.to_q.lora_B.weight' of \[7, 2\] does not fit",
        ),
        ({"down.0.attn.to_q.hada_w1_a": (6, 2)}, "LoHa"),
        ({"norm.weight": (4,)}, "no adapter"),
        (
            {"norm.lora_A.x.weight": (2, 4), "norm.lora_B.y.weight": (4, 2)},
            "several adapters: 'x', 'y'",
        ),
        ({"norm.alpha": ()}, "nothing to scale"),
        ({"norm.lora_A.weight": (0, 4), "norm.lora_B.weight": (4, 0)}, "has no rank"),
        (
            {"norm.lora_A.weight": (1, 1), "norm.lora_B.weight": (4, 1), "norm.alpha": (2,)},
            "is no number",
        ),
        ({"steps.diff": ()}, "applies to nothing"),
        ({"norm.diff": (4,), "norm.diff_b": (4,)}, "applies to nothing"),
        ({"norm.diff": (4,), "norm.bias": (4,)}, "applies to nothing"),
        ({"norm.diff": (4,), "norm.weight": (5,)}, "does not fit 'norm.weight'"),
        ({"norm.diff": (4,), "norm.dora_scale": (4,)}, "has no factors"),
        (
            {
                "norm.lora_A.weight": (1, 1),
                "norm.lora_B.weight": (4, 1),
                "norm.dora_scale": (3, 1),
            },
            "does not fit",
        ),
        (
            {
                "down.0.conv.lora_up.weight": (5, 2, 1, 1),
                "down.0.conv.lora_down.weight": (2, 4, 1, 1),
                "down.0.conv.lora_mid.weight": (2, 1, 3, 3),
            },
            "lora_mid.weight' of .* does not fit",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(adapter, words, tmp_path):
    weights = {name: torch.ones(shape) for name, shape in adapter.items()}
    with pytest.raises(CkptError, match=words):
        folded(tmp_path, base_weights(), weights)
    assert not (tmp_path / "out.safetensors").exists()


def test_entries_that_apply_to_nothing_can_be_left_out(tmp_path):
    adapter = {"down.0.attn.to_q.lora_A.weight": torch.ones(1, 4)}
    adapter |= {"down.0.attn.to_q.lora_B.weight": torch.ones(6, 1)}
    adapter |= {"nose.lora_A.weight": torch.ones(1, 4), "nose.lora_B.weight": torch.ones(6, 1)}
    request = MergeRequest("lora", keys="intersection")
    _, report = folded(tmp_path, base_weights(), adapter, request)
    assert [name for name, _ in report.skipped] == ["nose.lora_A.weight"]
    del adapter["down.0.attn.to_q.lora_A.weight"], adapter["down.0.attn.to_q.lora_B.weight"]
    with pytest.raises(UsageError, match="nothing of the adapters is folded"):
        folded(tmp_path, base_weights(), adapter, request)


@pytest.mark.parametrize("prefix", ["module.", "a.b."])
def test_a_prefix_that_all_names_lack_or_have_is_found(prefix, tmp_path):
    base = {f"{prefix}{name}": value for name, value in base_weights().items()}
    adapter = peft_directory(tmp_path / "adapter", q_adapter())
    save_file(base, tmp_path / "base.safetensors")
    report = merge([tmp_path / "base.safetensors", adapter], tmp_path / "one.safetensors", "lora")
    assert report.merged == (f"{prefix}down.0.attn.to_q.weight",)
    assert any(text.startswith(f"put '{prefix}' before") for text in report.warnings)
    base = {name.removeprefix("down."): value for name, value in base_weights().items()}
    save_file(base, tmp_path / "base.safetensors")
    report = merge([tmp_path / "base.safetensors", adapter], tmp_path / "two.safetensors", "lora")
    assert report.merged == ("0.attn.to_q.weight",)
    assert any(text.startswith("took 'down.' off") for text in report.warnings)


def test_a_peft_file_without_its_configuration_says_no_scale(tmp_path):
    with pytest.raises(UsageError, match=r"no adapter_config\.json"):
        folded(tmp_path, base_weights(), q_adapter())


def test_diffusers_keeps_scales_in_the_metadata(tmp_path):
    base = base_weights()
    up, down = factors(6, 4)
    adapter = {
        "unet.down.0.attn.to_q.lora_A.weight": down,
        "unet.down.0.attn.to_q.lora_B.weight": up,
    }
    said = {"unet.r": 2, "unet.lora_alpha": 6, "unet.peft_type": "LORA"}
    found, _ = folded(tmp_path, base, adapter, metadata={"lora_adapter_metadata": json.dumps(said)})
    name = "down.0.attn.to_q.weight"
    is_rounded(found[name], base[name].double() + 3 * (up.double() @ down.double()))


@pytest.mark.parametrize("which", ["base", "adapter", "sum"])
def test_what_is_not_finite_is_refused(which, tmp_path):
    base = {"a.weight": torch.ones(3, 3)}
    adapter = {"a.lora_A.weight": torch.ones(1, 3), "a.lora_B.weight": torch.ones(3, 1)}
    if which == "base":
        base["a.weight"][1, 2] = float("nan")
    elif which == "adapter":
        adapter["a.lora_B.weight"][0] = float("inf")
    else:
        adapter |= {"a.dora_scale": torch.ones(3, 1)}
        base["a.weight"] -= 2
        adapter["a.lora_B.weight"][:] = 1
    with pytest.raises(NonFiniteError, match="NaN"):
        folded(tmp_path, base, adapter)
    assert not (tmp_path / "out.safetensors").exists()
    request = MergeRequest("lora", allow_nonfinite=True)
    found, _ = folded(tmp_path, base, adapter, request)
    assert not found["a.weight"].isfinite().all()


def test_quantised_weights_are_refused(tmp_path):
    base = {"a.weight": torch.ones(4, 4).to(torch.float8_e4m3fn)}
    adapter = {"a.lora_A.weight": torch.ones(1, 4), "a.lora_B.weight": torch.ones(4, 1)}
    with pytest.raises(PlanError, match="quantised"):
        folded(tmp_path, base, adapter)
    with pytest.raises(PlanError, match="nothing can be added"):
        folded(tmp_path, {"a.weight": torch.ones(4, 4, dtype=torch.int8)}, adapter)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"weights": [1.0]}, "'weights' has no meaning"),
        ({"dtype": "float16"}, "'dtype' has no meaning"),
        ({"keys": "union"}, "'keys' has no meaning"),
        ({"only_existing": True}, "'only_existing' has no meaning"),
        ({"scales": [1.0, 2.0]}, "2 scales for 1 adapters"),
    ],
)
def test_choices_without_meaning_are_refused(choices, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        folded(tmp_path, base_weights(), q_adapter(), MergeRequest("lora", **choices))
    with pytest.raises(UsageError, match="'scales' has no meaning"):
        MergeRequest("average", scales=[1.0])


def test_large_weights_are_made_in_rows(tmp_path):
    base = {"a.weight": torch.randn(3000, 700), "b.weight": torch.randn(2, 300000)}
    adapter = {}
    for name, weight in (("a", base["a.weight"]), ("b", base["b.weight"])):
        up, down = factors(*weight.shape, rank=1)
        adapter |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    found, _ = folded(tmp_path, base, adapter)
    for name in "ab":
        up, down = (adapter[f"{name}.lora_{x}.weight"].double() for x in "BA")
        is_rounded(found[f"{name}.weight"], base[f"{name}.weight"].double() + up @ down)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"rank_pattern": {"(": 2}}, "has no pattern in"),
        ({"alpha_pattern": [1]}, "'alpha_pattern' is no table"),
        ({"r": 2.5}, "'r' is 2.5, which is no number"),
        ({"r": True}, "'r' is True, which is no number"),
        ({"arrow_config": {"top_k": 2}}, "a router of adapters cannot be folded"),
        ({"trainable_token_indices": [1]}, "rows of embeddings"),
    ],
)
def test_configurations_that_say_what_cannot_be_are_refused(said, words, tmp_path):
    save_file(base_weights(), tmp_path / "base.safetensors")
    adapter = peft_directory(tmp_path / "adapter", q_adapter(), **said)
    with pytest.raises(CkptError, match=re.escape(words)):
        merge([tmp_path / "base.safetensors", adapter], tmp_path / "o.safetensors", "lora")


def test_a_configuration_without_alpha_has_pefts(tmp_path):
    base = base_weights()
    save_file(base, tmp_path / "base.safetensors")
    weights = q_adapter()
    adapter = peft_directory(tmp_path / "adapter", weights)
    file = adapter / "adapter_config.json"
    said = {key: value for key, value in json.loads(file.read_text()).items() if "alpha" not in key}
    file.write_text(json.dumps(said))
    merge([tmp_path / "base.safetensors", adapter], tmp_path / "o.safetensors", "lora")
    start, name = "base_model.model.down.0.attn.to_q", "down.0.attn.to_q.weight"
    up, down = (weights[f"{start}.lora_{x}.weight"].double() for x in "BA")
    found = load_file(tmp_path / "o.safetensors")
    is_rounded(found[name], base[name].double() + 4 * (up @ down))


def test_a_whole_weight_goes_where_the_prefix_leads(tmp_path):
    weights = {**q_adapter(), "base_model.model.norm.weight": torch.full((4,), 7.0)}
    base = {f"m.{name}": value for name, value in base_weights().items()}
    save_file(base, tmp_path / "base.safetensors")
    adapter = peft_directory(tmp_path / "adapter", weights)
    merge([tmp_path / "base.safetensors", adapter], tmp_path / "o.safetensors", "lora")
    assert load_file(tmp_path / "o.safetensors")["m.norm.weight"].tolist() == [7.0] * 4
    rules = Selection([Rule("prefix", "m.down")])
    request = MergeRequest("lora", scope=MergeScope(selection=rules))
    report = merge([tmp_path / "base.safetensors", adapter], tmp_path / "p.safetensors", request)
    assert report.copied == (("m.norm.weight", "not selected"),)
    assert torch.equal(
        load_file(tmp_path / "p.safetensors")["m.norm.weight"], base["m.norm.weight"]
    )


def test_names_that_underscores_make_alike_are_refused(tmp_path):
    base = {"a.b_c.weight": torch.ones(2, 2), "a_b.c.weight": torch.ones(2, 2)}
    adapter = {"lora_unet_a_b_c.lora_down.weight": torch.ones(1, 2)}
    adapter |= {"lora_unet_a_b_c.lora_up.weight": torch.ones(2, 1)}
    with pytest.raises(UsageError, match=r"'a_b_c' may be 'a\.b_c' and 'a_b\.c'"):
        folded(tmp_path, base, adapter)


def test_an_adapter_is_one_state_dict(tmp_path):
    save_file(base_weights(), tmp_path / "base.safetensors")
    torch.save({"a": q_adapter(), "b": q_adapter()}, tmp_path / "two.pth")
    files = [tmp_path / "base.safetensors", tmp_path / "two.pth"]
    with pytest.raises(UsageError, match="there are 2 state dicts in it"):
        merge(files, tmp_path / "o.safetensors", "lora")


def test_a_step_of_a_recipe_folds_an_adapter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file(base_weights(), "base.safetensors")
    peft_directory(tmp_path / "adapter", q_adapter())
    recipe = """
    [inputs]
    base = "base.safetensors"
    extra = "adapter/adapter_model.safetensors"
    [[steps]]
    merge = { with = "extra", method = "lora", scale = "0.5" }
    [[outputs]]
    file = "out.safetensors"
    """
    (tmp_path / "recipe.toml").write_text(recipe)
    result = CliRunner().invoke(cli, ["apply", "recipe.toml"])
    assert result.exit_code == 0, result.output
    merge(["base.safetensors", "adapter"], "again.safetensors", "lora", scales=[0.5])
    files = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("out", "again")]
    assert files[0] == files[1]
