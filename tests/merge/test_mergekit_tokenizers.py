"""Rows of embeddings follow the tokens of tokenizers, to mergekit's own numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from frameworks import framework
from safetensors.torch import load_file

from ckpt_surgery.cli.main import cli
from ckpt_surgery.ops.merge import merge_recipe

pytestmark = pytest.mark.filterwarnings("ignore")
transformers = framework("transformers")
run = framework("mergekit.merge")
configurations = framework("mergekit.config")
options = framework("mergekit.options")
tokenizers = framework("tokenizers")

TOKENS = {
    "base": ["<unk>", "a", "b", "c", "d"],
    "one": ["<unk>", "c", "a", "x", "b", "y"],
    "two": ["<unk>", "d", "x", "z", "c"],
}
ADDED = {"base": ["<s>"], "one": ["<s>", "<one>"], "two": []}
PADDED = {"base": 0, "one": 2, "two": 1}


def save_tokenizer(folder, name):
    vocabulary = {token: row for row, token in enumerate(TOKENS[name])}
    model = tokenizers.models.WordLevel(vocabulary, unk_token="<unk>")  # noqa: S106
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(ADDED[name])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")  # noqa: S106
    fast.save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three models whose tokenizers know other tokens, in other places."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(TOKENS):
        torch.manual_seed(seed)
        config = transformers.LlamaConfig(
            vocab_size=len(TOKENS[name]) + len(ADDED[name]) + PADDED[name],
            hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
        )  # fmt: skip
        transformers.LlamaForCausalLM(config).save_pretrained(folder / name)
        save_tokenizer(folder / name, name)
    return folder


def weighted(*pairs, **more):
    return [{"model": m, "parameters": {"weight": w, **more}} for m, w in pairs]


TWO = weighted(("one", 0.7), ("two", 0.6))
LINEAR = {"merge_method": "linear", "models": [*TWO, *weighted(("base", 0.2))]}
ABOUT = {"base_model": "base", "models": TWO}
BOTH = [{"model": "one", "layer_range": [0, 2]}, {"model": "base", "layer_range": [0, 2]}]
RUNS = {
    "linear, union": {**LINEAR, "tokenizer_source": "union"},
    "linear, union of a base": {**LINEAR, "base_model": "base", "tokenizer_source": "union"},
    "linear, base": {**LINEAR, "base_model": "base", "tokenizer_source": "base"},
    "linear, a model": {**LINEAR, "tokenizer_source": "two"},
    "linear, in a table": {**LINEAR, "tokenizer": {"source": "union"}},
    "ties, union": {"merge_method": "ties", **ABOUT, "tokenizer_source": "union",
                    "parameters": {"density": 0.5}},
    "task arithmetic, a model": {"merge_method": "task_arithmetic", **ABOUT,
                                 "tokenizer_source": "one"},
    "slerp, gradients": {
        "merge_method": "slerp", "base_model": "base", "slices": [{"sources": BOTH}],
        "parameters": {"t": [0.2, 0.8]}, "tokenizer_source": "union",
    },
    "passthrough": {"merge_method": "passthrough", "slices": [{"sources": BOTH[:1]}],
                    "tokenizer_source": "base", "base_model": "one"},
}  # fmt: skip


def placed(value, folder):
    """Return a configuration with the paths of models in the place of their names."""
    if isinstance(value, list):
        return [placed(each, folder) for each in value]
    if isinstance(value, dict):
        return {key: placed(each, folder) for key, each in value.items()}
    return str(folder / value) if value in TOKENS and isinstance(value, str) else value


def in_tokens(file, folder):
    """Return the tensors, those of rows as a row for each token of the tokenizer there."""
    rows = transformers.AutoTokenizer.from_pretrained(folder).get_vocab()
    tensors = load_file(file)
    assert sorted(rows.values()) == list(range(len(tensors["lm_head.weight"])))
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        held = tensors.pop(name)
        tensors |= {f"{name} {token}": held[row] for token, row in rows.items()}
    return tensors


@pytest.mark.parametrize("name", RUNS)
def test_rows_follow_their_tokens_to_mergekits_numbers(name, models, tmp_path):
    config = {"dtype": "float32", **placed(RUNS[name], models)}
    parsed = configurations.MergeConfiguration.model_validate(config)
    run.run_merge(parsed, str(tmp_path / "theirs"), options=options.MergeOptions(quiet=True))
    expected = in_tokens(tmp_path / "theirs" / "model.safetensors", tmp_path / "theirs")
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "ours").mkdir()
    made = tmp_path / "ours" / "model.safetensors"
    report = merge_recipe(tmp_path / "merge.yaml", made)
    assert any("goes beside the output: 'tokenizer.json'" in text for text in report.warnings)
    found = in_tokens(made, tmp_path / "ours")
    assert found.keys() == expected.keys()
    for entry, value in expected.items():
        torch.testing.assert_close(found[entry], value, rtol=2e-5, atol=2e-6, msg=entry)


def test_a_report_of_rows_is_done_again(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"dtype": "float32", **placed(RUNS["ties, union"], models)}
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "new").mkdir()
    made = "new/m.safetensors"
    for line in (
        f"merge --recipe merge.yaml -o {made} --record r.json -q",
        "apply r.json -o again.safetensors -q",
    ):
        result = CliRunner().invoke(cli, line.split())
        assert result.exit_code == 0, result.output
    assert Path("again.safetensors").read_bytes() == Path(made).read_bytes()
