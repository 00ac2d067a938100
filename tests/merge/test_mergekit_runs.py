"""Whole configurations of mergekit give its own numbers, on models of Llama's kind."""

from __future__ import annotations

import pytest
import torch
import yaml
from frameworks import framework
from safetensors.torch import load_file

from ckpt_surgery.ops.merge import merge_recipe

pytestmark = pytest.mark.filterwarnings("ignore")
transformers = framework("transformers")
run = framework("mergekit.merge")
configurations = framework("mergekit.config")
options = framework("mergekit.options")

LAYERS = 4
A, B, C, BASE = "a", "b", "c", "base"


def weighted(*pairs, **more):
    return [{"model": m, "parameters": {"weight": w, **more}} for m, w in pairs]


def sources(*pairs, **settings):
    return {"sources": [{"model": m, "layer_range": r} for m, r in pairs], **settings}


SLERP = {
    "t": [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
        {"value": 0.5},
    ]
}
RUNS = {
    "linear": {"merge_method": "linear", "models": weighted((A, 1.0), (B, 0.3))},
    "linear, a gradient each": {
        "merge_method": "linear",
        "models": weighted((A, [0.0, 1.0]), (B, [1.0, 0.2, 0.4])),
    },
    "linear, filters": {
        "merge_method": "linear",
        "models": weighted((A, [{"filter": "mlp", "value": [0.1, 0.9]}, {"value": 0.5}]), (B, 0.5)),
    },
    "slerp, whole": {
        "merge_method": "slerp",
        "base_model": A,
        "models": [{"model": A}, {"model": B}],
        "parameters": {"t": 0.4},
    },
    "slerp, gradients in filters": {
        "merge_method": "slerp",
        "base_model": A,
        "slices": [sources((A, [0, 4]), (B, [0, 4]))],
        "parameters": SLERP,
    },
    "slerp, the base second": {
        "merge_method": "slerp",
        "base_model": B,
        "slices": [sources((A, [0, 4]), (B, [0, 4]))],
        "parameters": {"t": [0.0, 1.0]},
    },
    "passthrough, layers twice": {
        "merge_method": "passthrough",
        "slices": [sources((A, [0, 3])), sources((B, [1, 4]))],
    },
    "passthrough of one, scaled": {
        "merge_method": "passthrough",
        "slices": [
            sources((A, [0, 2])),
            {
                "sources": [
                    {
                        "model": A,
                        "layer_range": [1, 3],
                        "parameters": {
                            "scale": [{"filter": "down_proj", "value": 0.0}, {"value": 1.0}]
                        },
                    }
                ]
            },
            sources((A, [2, 4])),
        ],
    },
    "two slices, each merged": {
        "merge_method": "linear",
        "slices": [
            sources((A, [0, 2]), (B, [0, 2]), parameters={"weight": 0.5}),
            sources((B, [2, 4]), (C, [2, 4]), parameters={"weight": [0.1, 0.9]}),
        ],
    },
    "task arithmetic in slices": {
        "merge_method": "task_arithmetic",
        "base_model": BASE,
        "slices": [sources((BASE, [0, 4]), (A, [0, 4]), (B, [0, 4]))],
        "parameters": {"weight": [0.2, 0.8], "lambda": 0.9},
    },
    "ties": {
        "merge_method": "ties",
        "base_model": BASE,
        "models": [
            {"model": A, "parameters": {"weight": 0.5, "density": 0.6}},
            {"model": B, "parameters": {"weight": 0.4, "density": [0.3, 0.9]}},
        ],
        "parameters": {"normalize": True, "int8_mask": False},
    },
    "ties, one density": {
        "merge_method": "ties",
        "base_model": BASE,
        "models": weighted((A, 1.0), (B, 0.5), density=0.5),
    },
    "breadcrumbs": {
        "merge_method": "breadcrumbs",
        "base_model": BASE,
        "models": weighted((A, 1.0), (B, [0.5, 0.1]), density=0.7, gamma=0.05),
    },
    "model stock": {
        "merge_method": "model_stock",
        "base_model": BASE,
        "models": [{"model": A}, {"model": B}, {"model": C}],
    },
    "nuslerp": {"merge_method": "nuslerp", "models": weighted((A, [0.2, 1.0]), (B, 0.5))},
    "nuslerp about a base": {
        "merge_method": "nuslerp",
        "base_model": BASE,
        "models": weighted((A, 1.0), (B, 0.5)),
        "parameters": {"nuslerp_flatten": False},
    },
    "multislerp": {
        "merge_method": "multislerp",
        "models": weighted((A, 1.0), (B, [0.5, 1]), (C, 2.0)),
    },
    "arcee fusion": {"merge_method": "arcee_fusion", "base_model": BASE, "models": [{"model": A}]},
    "ram": {"merge_method": "ram", "base_model": BASE, "models": [{"model": A}, {"model": B}]},
    "karcher": {"merge_method": "karcher", "models": [{"model": A}, {"model": B}, {"model": C}]},
    "sce": {
        "merge_method": "sce",
        "base_model": BASE,
        "models": [{"model": A}, {"model": B}],
        "parameters": {"select_topk": [0.3, 1.0]},
    },
    "another type": {
        "merge_method": "linear",
        "models": weighted((A, [1.0, 0.5]), (B, 0.3)),
        "dtype": "float32",
        "out_dtype": "bfloat16",
    },
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base and three models that were trained from it."""
    folder = tmp_path_factory.mktemp("models")
    config = transformers.LlamaConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder / BASE)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for name in (A, B, C):
        noise = {n: 0.05 * torch.randn_like(v) for n, v in weights.items()}
        model.load_state_dict({n: v + noise[n] for n, v in weights.items()})
        model.save_pretrained(folder / name)
    return folder


def placed(value, folder):
    """Return a configuration with the paths of models in the place of their names."""
    if isinstance(value, list):
        return [placed(each, folder) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: str(folder / each) if key in {"model", "base_model"} else placed(each, folder)
        for key, each in value.items()
    }


@pytest.mark.parametrize("name", RUNS)
def test_a_configuration_gives_mergekits_numbers(name, models, tmp_path):
    config = {"dtype": "float32", **placed(RUNS[name], models)}
    chosen = options.MergeOptions(copy_tokenizer=False, quiet=True)
    parsed = configurations.MergeConfiguration.model_validate(config)
    run.run_merge(parsed, str(tmp_path / "theirs"), options=chosen)
    expected = load_file(tmp_path / "theirs" / "model.safetensors")
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump(config))
    report = merge_recipe(tmp_path / "merge.yaml", tmp_path / "ours.safetensors")
    found = load_file(tmp_path / "ours.safetensors")
    assert found.keys() == expected.keys()
    loose = {"bfloat16": 8e-3}.get(RUNS[name].get("out_dtype"), 2e-5)
    for entry, value in expected.items():
        assert found[entry].dtype == value.dtype
        torch.testing.assert_close(found[entry], value, rtol=loose, atol=loose / 10, msg=entry)
    assert report.exit_code == 0
