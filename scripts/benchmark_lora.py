"""What the benchmark of adapters needs PEFT for: a base with an adapter, and folding it there.

python scripts/benchmark_lora.py make GIGABYTES FOLDER
python scripts/benchmark_lora.py fold FOLDER OUTPUT
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from pathlib import Path

import torch

from ckpt_surgery.models.torchvision_import import import_torchvision

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.simplefilter("ignore")
import_torchvision()  # also one whose operators were built for another torch

import peft  # noqa: E402
import transformers  # noqa: E402

LAYERS = 16
VOCABULARY = 8000


def make(gigabytes: float, folder: Path) -> None:
    """Write a model of Llama's kind in bfloat16, and an adapter of all its linear layers."""
    # of each layer 4 matrices of the width, and 3 of three times as much
    width = math.isqrt(int(gigabytes * 1e9) // (2 * 13 * LAYERS)) // 64 * 64
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=LAYERS,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
    )
    torch.set_default_dtype(torch.bfloat16)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder / "base")
    choices = peft.LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False)
    peft.get_peft_model(model, choices).save_pretrained(folder / "adapter")


def fold(folder: Path, output: Path) -> None:
    """Load both, merge and save: what PEFT's documentation says."""
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype="auto")
    tuned = peft.PeftModel.from_pretrained(base, folder / "adapter")
    tuned.merge_and_unload().save_pretrained(output)


if __name__ == "__main__":
    what, first, second = sys.argv[1:]
    if what == "make":
        make(float(first), Path(second))
    else:
        fold(Path(first), Path(second))
