"""Directories that hold one checkpoint, as Hugging Face's libraries write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.errors import ReadError
from ckpt_surgery.fileio import Source
from ckpt_surgery.fileio.directory import DirectorySource
from ckpt_surgery.formats.base import Format
from ckpt_surgery.formats.sharded import SafetensorsIndex, TorchIndex, read_sharded
from ckpt_surgery.formats.sharded_index import INDEX_SUFFIX
from ckpt_surgery.formats.strict_json import load_object
from ckpt_surgery.pickles import Limits

_WEIGHTS: Final = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
# What transformers, peft and diffusers look for in this order; other files may lie beside it.
_FIRST: Final = (
    *("model.safetensors", "pytorch_model.bin"),
    *("adapter_model.safetensors", "adapter_model.bin"),
    *("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
)
_CONFIG: Final = "config.json"
_MAX_CONFIG_BYTES: Final = 1 << 20
_MOST_NAMED: Final = 5


class ModelDirectory(Format):
    """A directory with one sharded checkpoint, or with one file of weights."""

    name = "model-directory"
    title = "a directory of a checkpoint"
    written_as = "safetensors"
    of_directories = True

    def sniff(self, source: Source) -> bool:
        """Say whether an index or a file of weights lies directly in it."""
        return isinstance(source, DirectorySource) and any(
            name.endswith((INDEX_SUFFIX, *_WEIGHTS)) for name in _top_level(source)
        )

    def is_one(self, source: Source) -> bool:
        """Say whether it is clear which checkpoint in it is meant."""
        try:
            return isinstance(source, DirectorySource) and bool(_chosen(source))
        except ReadError:
            return False

    def read(self, source: Source, limits: Limits) -> Checkpoint:
        """Describe the checkpoint in it, with the architecture that ``config.json`` names.

        Raises `ReadError` if there are several, and what reading it raises.
        """
        from ckpt_surgery.formats.recognise import find_format

        if not isinstance(source, DirectorySource):
            raise ReadError("is no directory", path=source.name)
        file = source.member(_chosen(source))
        if file.name.endswith(INDEX_SUFFIX):
            safetensors = SafetensorsIndex().sniff(file)
            kind = SafetensorsIndex.name if safetensors else TorchIndex.name
            checkpoint = read_sharded(file, source, limits, kind)
        else:
            checkpoint = find_format(file).read(file, limits)
        architecture, notes = _architecture(source)
        return replace(checkpoint, architecture=architecture, notes=(*checkpoint.notes, *notes))


def index_in(source: DirectorySource) -> Source | None:
    """Return the index of the sharded checkpoint in a directory, None without one.

    Raises `ReadError` if it is not clear which is meant.
    """
    chosen = _chosen(source)
    return source.member(chosen) if chosen.endswith(INDEX_SUFFIX) else None


def _top_level(source: DirectorySource) -> list[str]:
    return [name for name in source.names if "/" not in name]


def _chosen(source: DirectorySource) -> str:
    """Return the index, else the file of weights that the libraries would load."""
    names = _top_level(source)
    indices = [name for name in names if name.endswith(INDEX_SUFFIX)]
    weights = [name for name in names if name.endswith(_WEIGHTS)]
    for found in (
        [name + INDEX_SUFFIX for name in _FIRST if name + INDEX_SUFFIX in indices][:1],
        [name for name in _FIRST if name in weights][:1],
        indices,
        weights,
    ):
        if len(found) == 1:
            return found[0]
        if found:
            raise _several(source, found)
    raise ReadError("no checkpoint is in it", path=source.name)


def _several(source: DirectorySource, names: Sequence[str]) -> ReadError:
    shown = ", ".join(f"'{name}'" for name in names[:_MOST_NAMED])
    more = len(names) - _MOST_NAMED
    return ReadError(
        f"{len(names)} checkpoints are in it: {shown}" + (f" and {more} more" if more > 0 else ""),
        path=source.name,
        hint="name one of the files",
    )


def _architecture(source: DirectorySource) -> tuple[str, list[str]]:
    """Return the class that ``config.json`` names (or nothing), and why it was not read."""
    if _CONFIG not in source.names:
        return "", []
    file = source.member(_CONFIG)
    if file.size > _MAX_CONFIG_BYTES:
        return "", [f"{_CONFIG} is not read: it has {file.size:,} bytes"]
    try:
        config = load_object(file.read_at(0, file.size), path=file.name, what=_CONFIG)
    except ReadError as error:
        return "", [f"{_CONFIG} is not read: {error.message}"]
    named = config.get("architectures") or config.get("_class_name") or config.get("model_type")
    classes = named if isinstance(named, list) else [named]
    return ", ".join(each for each in classes if isinstance(each, str)), []
