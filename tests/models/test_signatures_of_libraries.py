"""Models of timm and transformers are recognised, of whatever size; and the script's rules hold."""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ckpt_surgery.models.building import build_target
from ckpt_surgery.models.signature_table import Head, OpenRow, load_table
from ckpt_surgery.models.signature_table import _decode_table as decode_table
from ckpt_surgery.models.signatures import Recognition, recognise
from ckpt_surgery.models.torchvision_import import import_torchvision

import_torchvision()
timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

_SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_signatures.py"
TIMM = (
    *("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "convnext_atto"),
    *("efficientnet_lite0", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050", "regnetx_002"),
    *("resnet26d", "mixer_s32_224", "poolformer_s12", "levit_128s", "edgenext_xx_small"),
)
TINY = {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 90,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}  # fmt: skip
TRANSFORMERS = {
    "BertForSequenceClassification": TINY,
    "RobertaForMaskedLM": TINY,
    "LlamaForCausalLM": TINY,
    "Qwen2ForCausalLM": TINY,
    "GPT2LMHeadModel": {"n_layer": 3, "n_embd": 32, "n_head": 4, "vocab_size": 90},
    "T5ForConditionalGeneration": {"d_model": 32, "d_ff": 48, "num_layers": 3, "vocab_size": 90},
    "ViTForImageClassification": TINY,
    "DistilBertForQuestionAnswering": {"dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4},
    "BartForConditionalGeneration": {"d_model": 32, "encoder_layers": 3, "vocab_size": 90},
    "CLIPModel": {},
    "Wav2Vec2ForCTC": {"num_hidden_layers": 3},
    "WhisperForConditionalGeneration": {"encoder_layers": 3, "decoder_layers": 3},
    "GPTNeoXForCausalLM": {**TINY, "num_hidden_layers": 5},
}


def recognised(tensors: Any) -> Recognition:
    found = recognise(tensors)
    assert found is not None
    return found


@pytest.mark.parametrize("name", TIMM)
def test_a_model_of_timm_is_recognised(name: str) -> None:
    target = build_target(f"timm:{name}", {"num_classes": 7})
    found = recognised((f"module.{spec.name}", spec.shape) for spec in target.tensors)
    assert f"timm:{name}" in (found.name, *found.also)
    assert found.is_exact
    assert (found.classes, found.prefix) == (7, "module.")


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_model_of_transformers_is_recognised_whatever_its_size(name: str) -> None:
    model_class = getattr(transformers, name)
    with torch.device("meta"):
        model = model_class(model_class.config_class(**TRANSFORMERS[name]))
    tensors = [(key, tuple(value.shape)) for key, value in model.state_dict().items()]
    found = recognised(tensors)
    assert f"transformers:{name}" in (found.name, *found.also), found
    assert found.is_exact
    tied = {*getattr(model, "all_tied_weights_keys", {})}
    saved = recognised((key, shape) for key, shape in tensors if key not in tied)
    assert f"transformers:{name}" in (saved.name, *saved.also)


def test_the_committed_table_holds_what_is_installed() -> None:
    names = {name for group in load_table().names for name in group}
    assert len({name for name in names if name.startswith("timm:")}) > 1000
    assert len({name for name in names if name.startswith("transformers:")}) > 800


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(_SCRIPT))


def test_the_script_makes_what_is_in_the_committed_table(
    script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From models that are built to the file; what was kept of a run is not built again."""
    few = {
        "torchvision": ("torchvision:resnet18", "torchvision:raft_small"),
        "timm": ("timm:resnet18", "timm:vit_tiny_patch16_224"),
        "transformers": ("bert/BertModel", "gpt2/GPT2LMHeadModel"),
    }
    main = script["main"]
    for library, names in few.items():
        models = [each for each in script[library]() if each.name in names]
        assert len(models) == len(names)
        monkeypatch.setitem(main.__globals__, library, lambda models=models: iter(models))
    monkeypatch.setattr(sys, "argv", ["x", "-o", str(tmp_path / "x.bin"), "--keep", str(tmp_path)])
    main()
    written = (tmp_path / "x.bin").read_bytes()
    made, whole = decode_table(written), load_table()
    assert [names[0] for names in made.names] == [
        *("timm:vit_tiny_patch16_224", "torchvision:raft_small", "torchvision:resnet18"),
        *("transformers:BertModel", "transformers:GPT2LMHeadModel"),
    ]
    places = {name: place for place, names in enumerate(whole.names) for name in names}
    for number, names in enumerate(made.names):
        known = whole.signature(places[names[0]])
        assert set(names) <= {known.name, *known.also}
        assert replace(made.signature(number), name=known.name, also=known.also) == known
    kept = [(tmp_path / f"{library}.jsonl").read_text() for library in few]
    main()
    assert (tmp_path / "x.bin").read_bytes() == written
    assert [(tmp_path / f"{library}.jsonl").read_text() for library in few] == kept


def test_heads_are_what_follows_the_number_of_classes(script: dict[str, Any]) -> None:
    shapes = [["a.weight", [4, 4]], ["bn.num_batches_tracked", []], ["fc.weight", [1000, 4]]]
    few = [["a.weight", [4, 4]], ["fc.weight", [11, 4]]]
    known = script["with_heads"]({"name": "timm:x", "shapes": shapes, "few": few})
    assert known.tensors == (("a.weight", (4, 4)),)
    assert (known.heads, known.classes) == ((Head("fc.weight", 1, 0, (4,)),), 1000)
    shapes[2] = ["fc.weight", [21841, 4]]
    assert script["with_heads"]({"name": "timm:x", "shapes": shapes, "few": few}).classes == 21841
    assert script["with_heads"]({"name": "timm:x", "shapes": shapes}).heads == ()


def test_rows_are_open_and_tied_ones_may_lack(script: dict[str, Any]) -> None:
    shapes = [["l.0.w", [4, 4]], ["l.1.w", [4, 4]], ["head.w", [4, 4]]]
    rows = script["open_rows"]({"shapes": shapes, "ties": [["l.0.w", "head.w"]]})
    assert rows == (OpenRow("head.w", 2, is_optional=True), OpenRow("l.#.w", 2))


def test_equal_architectures_become_one_under_the_plainest_name(script: dict[str, Any]) -> None:
    row = OpenRow("w", 2)
    known = script["Known"]
    merged = script["merge_equal"](
        [known("b:long", rows=(row,)), known("b:x", rows=(row,)), known("b:x", rows=(row,))], len
    )
    assert [(each.name, each.also) for each in merged] == [("b:x", ("b:long",))]
