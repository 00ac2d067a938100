"""Where a file keeps how it came about: a record of an archive, a text of safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ckpt_surgery.checkpoint.description import Checkpoint

RECORD: Final = "extra/ckpt_provenance.json"
"""The record in an archive of torch, below its root. torch reads such records only if asked to."""
KEY: Final = "ckpt_provenance"
"""The key in the metadata of safetensors."""

_LARGEST: Final = 64 << 20  # bytes


def steps_of(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Return what a file says was done to make it, in order; nothing that is not of that form."""
    text = checkpoint.provenance or _kept(checkpoint)
    if not text:
        return []
    import json

    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    if not isinstance(found, list):
        return []
    return [step for step in found if isinstance(step, dict) and isinstance(_command(step), str)]


def _command(step: Mapping[str, Any]) -> Any:
    return step.get("command")


def _kept(checkpoint: Checkpoint) -> str:
    from ckpt_surgery.formats.torch_zip_container import Container

    if isinstance(checkpoint.container, Container):
        record = checkpoint.container.find(RECORD)
        if record is None or record.nbytes > _LARGEST:
            return ""
        return b"".join(map(bytes, record.chunks())).decode("utf-8", "replace")
    texts = (o.value for o in checkpoint.others if o.node is None and isinstance(o.value, Mapping))
    return next((str(each[KEY]) for each in texts if KEY in each), "")
