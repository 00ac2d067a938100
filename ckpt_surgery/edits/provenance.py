"""How a checkpoint came about, kept in its file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.fileio import ByteRange, Source
from ckpt_surgery.formats.provenance import steps_of
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class SetProvenance(Edit):
    """Keep `text`, a JSON list of what was done to the checkpoint, in the file that is written."""

    kind: ClassVar[str] = "set-provenance"
    text: str

    def apply(self, checkpoint: Checkpoint, inputs: Inputs) -> Checkpoint:  # noqa: ARG002
        """Return the checkpoint with the text, in the place of what it had."""
        return replace(checkpoint, provenance=self.text)


def provenance(
    checkpoint: Checkpoint, command: str, edits: Sequence[Edit], sources: Iterable[Source] = ()
) -> SetProvenance:
    """Return the edit that adds a command to what the file says was done before.

    The files that it took from, `sources` beside the checkpoint's own, are read for their digests.
    """
    from ckpt_surgery.startup.version import __version__

    # a directory has no bytes but those of its files, which are sources themselves
    own = dict.fromkeys(each for each in [*checkpoint.sources, *sources] if each.size)
    step = {
        "version": __version__,
        "command": command,
        "inputs": [{"file": each.name, "sha256": _digest(each)} for each in own],
        "plan": [edit.to_dict() for edit in edits],
    }
    return SetProvenance(json.dumps([*steps_of(checkpoint), step], separators=(",", ":")))


def _digest(source: Source) -> str:
    from ckpt_surgery.fileio.digest_sink import DigestSink

    sink = DigestSink()
    sink.copy(ByteRange(source, 0, source.size))
    return sink.hexdigest()
