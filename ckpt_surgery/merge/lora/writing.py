"""Write a new adapter: PEFT's directory, or one file of another naming."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.errors import UsageError
from ckpt_surgery.fileio import Bytes, Source
from ckpt_surgery.fileio.sink import Sink
from ckpt_surgery.formats.base import FileLayout, Layout
from ckpt_surgery.formats.safetensors import Safetensors
from ckpt_surgery.merge.lora.config import CONFIG_NAME
from ckpt_surgery.writing.directory import write_directory
from ckpt_surgery.writing.output import Output
from ckpt_surgery.writing.write import write

_WEIGHTS = "adapter_model.safetensors"


def require_adapter_output(output: Output, *, directory: bool) -> None:
    """Raise `UsageError` unless the output is of the kind that such an adapter is."""
    output.check()
    if output.stream is not None or output.in_place:
        raise UsageError(
            "an adapter goes into a new directory" if directory else "an adapter is a new file",
            hint="give -o DIRECTORY" if directory else "give -o FILE.safetensors",
        )
    suffix = "" if output.path is None else Path(output.path).suffix
    if directory and suffix in {".safetensors", ".bin", ".pt", ".pth"}:
        raise UsageError(
            f"'{output.path}' is called like a file, and PEFT's adapters are directories",
            hint="give -o DIRECTORY",
        )


def write_adapter(checkpoint: Checkpoint, config: Mapping[str, Any] | None, output: Output) -> int:
    """Write an adapter, with its `config` if it is PEFT's, and return the number of its bytes."""
    if config is None:
        chosen = output if output.format or output.path else replace(output, format="safetensors")
        return write(checkpoint, chosen).nbytes
    files = Safetensors().lay_out(checkpoint, output.options).files
    data = Bytes(json.dumps(dict(config), indent=2).encode() + b"\n")
    layout = Layout(
        (
            replace(files[0], name=_WEIGHTS),
            FileLayout(CONFIG_NAME, data.nbytes, [data], _copier(data)),
        )
    )
    sources: Sequence[Source] = checkpoint.sources
    output.refuse_inputs(sources)
    if not output.dry_run:
        bar = output.progress
        with nullcontext(None) if bar is None else bar(layout.nbytes) as progress:
            write_directory(layout, checkpoint.file, output, sources, progress)
    return layout.nbytes


def _copier(data: Bytes) -> Callable[[Sink], None]:
    return lambda sink: sink.copy(data)
