"""What is known of formats as such: which can be written back, and what an archive keeps."""

from __future__ import annotations

from dataclasses import replace

from ckpt_surgery.checkpoint.description import Checkpoint

OUTPUT_FORMAT = "torch-zip"


# Formats whose state dict is computed from something else, which an edit could not put back.
READ_ONLY = {
    "torch-module": "a pickled module",
    "torchscript": "a TorchScript archive",
    "safetensors": "a safetensors file",
}


_WITHOUT_OTHERS = frozenset({"torchscript", "safetensors"})


FOREIGN_SUFFIXES = frozenset({".safetensors", ".json"})


def as_archive(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` as what `write` makes of it, from whatever format it was read.

    A pickled module is then its state dict. Of TorchScript and safetensors only the state dict
    is left: what lies beside it has no place in a pickle.
    """
    others = () if checkpoint.format in _WITHOUT_OTHERS else checkpoint.others
    return replace(checkpoint, format=OUTPUT_FORMAT, others=others)


def conversion(checkpoint: Checkpoint) -> list[dict[str, str]]:
    """The change of format that writing a checkpoint brings about, as an edit of a plan."""
    if checkpoint.format == OUTPUT_FORMAT:
        return []
    return [{"edit": "convert", "from": checkpoint.format, "to": OUTPUT_FORMAT}]
