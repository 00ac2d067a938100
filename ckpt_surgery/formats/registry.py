"""The formats by their names, each imported when it is used; other packages may add some.

A package adds a format with an entry point of the group `ckpt_surgery.formats`, whose name is the
format's and whose value is ``module:Class``. Installed packages are looked through only for a name
that is not in the table and for a file that nothing in it recognises, since that takes time.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from itertools import chain
from typing import Final

from ckpt_surgery.errors import CkptError, UsageError
from ckpt_surgery.fileio import Source
from ckpt_surgery.formats.base import Format

GROUP: Final = "ckpt_surgery.formats"

# In the order in which a file is offered to them: the cheapest and the most frequent first.
FORMATS: Final[dict[str, str]] = {
    "torch-zip": "ckpt_surgery.formats.torch_zip:TorchZip",
    "torchscript": "ckpt_surgery.formats.torchscript:TorchScript",
    "torch-legacy": "ckpt_surgery.formats.torch_legacy:TorchLegacy",
    "torch-tar": "ckpt_surgery.formats.torch_tar:TorchTar",
    "safetensors": "ckpt_surgery.formats.safetensors:Safetensors",
    "safetensors-index": "ckpt_surgery.formats.sharded:SafetensorsIndex",
    "torch-index": "ckpt_surgery.formats.sharded:TorchIndex",
    "dcp": "ckpt_surgery.formats.dcp:Dcp",
    "dcp-safetensors": "ckpt_surgery.formats.dcp_safetensors:DcpSafetensors",
    "model-directory": "ckpt_surgery.formats.model_directory:ModelDirectory",
    "compressed": "ckpt_surgery.formats.compressed:Compressed",
    "torch-export": "ckpt_surgery.formats.torch_export:TorchExport",
    "npz": "ckpt_surgery.formats.numpy_files:Npz",
    "npy": "ckpt_surgery.formats.numpy_files:Npy",
    "pickle": "ckpt_surgery.formats.plain_pickle:PlainPickle",
    "torch-module": "ckpt_surgery.formats.torch_module:TorchModule",
}

_WRITABLE: Final = (
    "torch-zip",
    "torch-legacy",
    "safetensors",
    "safetensors-index",
    "torch-index",
    "dcp",
)
"""Those of the table that can be written, for who lists them without importing any."""

DEFAULT: Final = "torch-zip"
"""The format of what has none of its own, and of names without a suffix that says otherwise."""

# Suffixes of files of other programs: a checkpoint of ours under such a name would mislead them.
_OF_OTHERS: Final = frozenset(
    {
        ".json", ".safetensors", ".gguf", ".ggml", ".onnx", ".h5", ".hdf5", ".keras", ".npy",
        ".npz", ".msgpack", ".tflite", ".pb", ".pt2", ".distcp", ".index", ".mar",
    }
)  # fmt: skip

_loaded: dict[str, Format] = {}


def get(name: str) -> Format:
    """Return the format called `name`. Raises `UsageError` if there is none."""
    if name not in _loaded:
        where = FORMATS.get(name) or _added().get(name)
        if where is None:
            raise UsageError(
                f"there is no format '{name}'", hint=f"there are: {', '.join(writable())}"
            )
        _loaded[name] = _load(name, where)
    return _loaded[name]


def _built_in() -> Iterator[Format]:
    """Yield the formats of the table in the order in which a file is offered to them."""
    yield from map(get, FORMATS)


def _of_packages() -> Iterator[Format]:
    """Yield the formats that installed packages add."""
    yield from (get(name) for name in _added() if name not in FORMATS)


def names() -> list[str]:
    """Return the names of all formats, those of other packages included."""
    return [*FORMATS, *(name for name in _added() if name not in FORMATS)]


def recognised(source: Source, *, is_directory: bool = False) -> Format | None:
    """Return the first format that recognises `source`; None if none does."""
    for candidate in chain(_built_in(), _of_packages()):
        if candidate.of_directories == is_directory and candidate.sniff(source):
            return candidate
    return None


def writable() -> list[str]:
    """Return the names of the formats that can be written, those of other packages included."""
    return [*_WRITABLE, *(each.name for each in _of_packages() if each.is_writable)]


def of_suffix(suffix: str) -> Format | None:
    """Return the writable format that files with `suffix` (lower case, with its dot) are of.

    None if nobody claims it. Raises `UsageError` if such files are other programs'.
    """
    if not suffix:
        return None
    for each in chain(_built_in(), _of_packages()):
        if suffix in each.suffixes and each.is_writable:
            return each
    if suffix in _OF_OTHERS:
        raise UsageError(
            f"'{suffix}' files cannot be written",
            hint=f"call the output .pth, or give --format {DEFAULT} to use this name anyway",
        )
    return None


def _added() -> dict[str, str]:
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group=GROUP)}


def _load(name: str, where: str) -> Format:
    module, _, attribute = where.partition(":")
    try:
        found = getattr(import_module(module), attribute)()
    except (ImportError, AttributeError) as error:
        raise CkptError(
            f"the format '{name}' cannot be used: {error}", hint=f"it is to be in '{where}'"
        ) from error
    if not isinstance(found, Format):
        raise CkptError(f"'{where}' is no format", hint="a format is a class derived from Format")
    return found
