"""Rows of embeddings follow the tokens of the tokenizers beside models."""

from __future__ import annotations

import json

import pytest
import torch

from ckpt_surgery.checkpoint.description import Tensor
from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.errors import CkptError, PlanError
from ckpt_surgery.merge.rows import Rows, gathered
from ckpt_surgery.ops.merge import merge_recipe
from ckpt_surgery.writing.output import Output

pytest.importorskip("yaml")


def carried_out(config, tmp_path):
    """Merge as a configuration says (JSON is YAML); what torch loads of the result."""
    (tmp_path / "merge.yaml").write_text(json.dumps(config))
    merge_recipe(tmp_path / "merge.yaml", Output(tmp_path / "out.pth", force=True))
    return torch.load(tmp_path / "out.pth")


def with_tokenizers(tmp_path, *vocabularies):
    """Write a model for each vocabulary, and a configuration that speaks of tokenizers."""
    models = []
    for number, vocabulary in enumerate(vocabularies):
        folder = tmp_path / f"m{number}"
        folder.mkdir(exist_ok=True)
        torch.save({"embed.weight": torch.ones(3, 2) * number}, folder / "model.pth")
        if vocabulary is not None:
            (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
        models.append({"model": str(folder), "parameters": {"weight": 1.0}})
    return {"merge_method": "linear", "models": models, "tokenizer_source": "union"}


def bpe(*tokens):
    added = [{"id": len(tokens), "content": "<s>"}]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return {"model": {"type": "BPE", "vocab": vocabulary}, "added_tokens": added}


def test_embeddings_are_merged_where_vocabularies_are_the_same(tmp_path):
    pairs = {"model": {"vocab": [["a", -1.0], ["b", -2.0], ["<s>", 0]]}}
    config = with_tokenizers(tmp_path, bpe("a", "b"), pairs)
    found = carried_out(config, tmp_path)
    assert found["embed.weight"].tolist() == [[0.5, 0.5]] * 3
    report = merge_recipe(tmp_path / "merge.yaml", Output(tmp_path / "out.pth", dry_run=True))
    assert any("have one vocabulary" in text for text in report.warnings)
    config = with_tokenizers(tmp_path, bpe("a", "b"), bpe("a", "b"), None)
    carried_out(config, tmp_path)
    report = merge_recipe(tmp_path / "merge.yaml", Output(tmp_path / "out.pth", dry_run=True))
    assert any("it is not known which tokens" in text for text in report.warnings)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"model": {}}, "has no vocabulary"),
        ({"model": {"vocab": {"a": "0"}}}, "the token 'a' has the number '0'"),
        ({"model": {"vocab": ["a"]}}, "the token None has the number 0"),
        ({"model": {"vocab": {}}, "added_tokens": {"a": 1}}, "has no list of added tokens"),
        ({"model": {"vocab": {}}, "added_tokens": [{"id": 1}]}, "the token None has"),
    ],
)
def test_what_is_no_vocabulary_is_refused(other, words, tmp_path):
    config = with_tokenizers(tmp_path, bpe("a", "b"), other)
    with pytest.raises(CkptError, match=words):
        carried_out(config, tmp_path)
    assert not (tmp_path / "out.pth").exists()


def apart(tmp_path, *vocabularies, **more):
    """Write models whose rows are numbered, and a configuration with a tokenizer of both."""
    config = {**with_tokenizers(tmp_path, *vocabularies), **more}
    for number in range(len(vocabularies)):
        rows = torch.arange(3.0)[:, None] + 10 * number
        torch.save({"embed.weight": rows, "x": torch.ones(2)}, tmp_path / f"m{number}/model.pth")
    return config


def test_rows_follow_their_tokens(tmp_path):
    """<s> is row 2 of both; b is row 1 and 0, a only the first's, c only the second's."""
    config = apart(tmp_path, bpe("a", "b"), bpe("b", "c"))
    (tmp_path / "out").mkdir()
    (tmp_path / "merge.yaml").write_text(json.dumps(config))
    report = merge_recipe(tmp_path / "merge.yaml", tmp_path / "out" / "made.pth")
    found = torch.load(tmp_path / "out" / "made.pth")
    assert found["embed.weight"].flatten().tolist() == [0.0, (1 + 10) / 2, (2 + 12) / 2, 11.0]
    assert any("'vocab_size' has to be 4" in text for text in report.warnings)
    made = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert made["model"] == bpe("a", "b")["model"]
    assert [(each["id"], each["content"]) for each in made["added_tokens"]] == [
        (2, "<s>"),
        (3, "c"),
    ]


def test_a_tokenizer_is_written_where_none_else_lies(tmp_path):
    config = apart(tmp_path, bpe("a", "b"), bpe("b", "c"))
    (tmp_path / "merge.yaml").write_text(json.dumps(config))
    beside = tmp_path / "m0" / "out.pth"
    for output in (Output(beside), Output(beside, force=True)):  # it was read: never replaced
        with pytest.raises(CkptError, match="has another tokenizer"):
            merge_recipe(tmp_path / "merge.yaml", output)
    place = tmp_path / "tokenizer.json"
    place.write_text("{}")
    with pytest.raises(CkptError, match="has another tokenizer"):
        merge_recipe(tmp_path / "merge.yaml", tmp_path / "out.pth")
    merge_recipe(tmp_path / "merge.yaml", Output(tmp_path / "out.pth", dry_run=True, force=True))
    assert place.read_text() == "{}"
    merge_recipe(tmp_path / "merge.yaml", Output(tmp_path / "out.pth", force=True))
    assert "added_tokens" in json.loads(place.read_text())
    with (tmp_path / "stream.pth").open("wb") as stream:
        target = Output(stream=stream.fileno())
        report = merge_recipe(tmp_path / "merge.yaml", target)
    assert any("the tokenizer is not written" in text for text in report.warnings)


def test_older_files_of_a_tokenizer_are_read_and_written(tmp_path):
    config = apart(tmp_path, None, bpe("b", "c"), tokenizer_source="union")
    old = tmp_path / "m0"
    (old / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    (old / "added_tokens.json").write_text(json.dumps({"<s>": 2}))
    (old / "merges.txt").write_text("#")
    found = carried_out(config, tmp_path)
    assert found["embed.weight"].flatten().tolist() == [0.0, (1 + 10) / 2, (2 + 12) / 2, 11.0]
    assert json.loads((tmp_path / "added_tokens.json").read_text()) == {"<s>": 2, "c": 3}
    assert (tmp_path / "merges.txt").read_text() == "#"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"tokenizer": {"source": "union"}}, "contradict each other"),
        ({"tokenizer_source": None, "tokenizer": {"tokens": {"a": {}}}}, "'tokens' of 'tokenizer'"),
        (
            {"tokenizer_source": None, "tokenizer": {"pad_to_multiple_of": 8}},
            "'pad_to_multiple_of' of 'tokenizer'",
        ),
    ],
)
def test_what_is_not_known_of_tokenizers_is_refused(more, words, tmp_path):
    config = apart(tmp_path, bpe("a", "b"), bpe("b", "c"), **more)
    with pytest.raises(CkptError, match=words):
        carried_out(config, tmp_path)


def test_numbers_of_tokens_have_no_gaps(tmp_path):
    config = apart(tmp_path, bpe("a", "b"), {"model": {"vocab": {"a": 0, "b": 2}}})
    with pytest.raises(CkptError, match="have gaps"):
        carried_out({**config, "tokenizer_source": str(tmp_path / "m1")}, tmp_path)
    assert carried_out({**config, "tokenizer_source": "base"}, tmp_path)["x"].tolist() == [1, 1]


@pytest.mark.parametrize("gradient", [False, True])
def test_rows_of_nothing_that_is_known_are_not_mixed(gradient, tmp_path):
    config = apart(tmp_path, bpe("a", "b"), bpe("b", "c"))
    for number in range(2):
        names = ("x.0.w", "x.1.w", "table")
        torch.save({name: torch.ones(3, 1) for name in names}, tmp_path / f"m{number}/model.pth")
    if gradient:
        config["models"][0]["parameters"]["weight"] = [0.0, 1.0]
    with pytest.raises(CkptError, match="no entry is called like an embedding"):
        carried_out(config, tmp_path)


def test_rows_of_other_widths_are_refused(tmp_path):
    config = apart(tmp_path, bpe("a", "b"), bpe("b", "c"))
    torch.save({"embed.weight": torch.ones(3, 2), "x": torch.ones(2)}, tmp_path / "m1/model.pth")
    with pytest.raises(CkptError, match="shape"):
        carried_out(config, tmp_path)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (Rows(2, (5,), (0,)), "there is no input 5"),
        (Rows(2, (0,), (2,)), "there are no rows 2 to 4"),
        (Rows(2, (0,), (-1,)), "there are no rows -1 to 1"),
    ],
)
def test_rows_of_a_plan_are_checked(rows, words):
    tensor = Tensor((3, 2), BY_NAME["float32"], (2, 1))
    with pytest.raises(PlanError, match=words):
        gathered(tensor, [tensor], tensor, [rows])
    with pytest.raises(PlanError, match="do not fit"):
        gathered(
            tensor, [tensor], Tensor((3, 4), BY_NAME["float32"], (4, 1)), [Rows(1, (0,), (0,))]
        )
