"""Streams of gzip, bzip2, xz and zstd as a format: what is read is what they hold."""

from __future__ import annotations

from dataclasses import replace

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.fileio import Source
from ckpt_surgery.formats.base import Format
from ckpt_surgery.formats.recognise import find_format
from ckpt_surgery.formats.streams import decompressed, is_compressed, notes_on
from ckpt_surgery.pickles import Limits


class Compressed(Format):
    """A stream that holds a checkpoint of any other format, which is read in its place."""

    name = "compressed"
    title = "a compressed stream"
    written_as = "torch-zip"

    def sniff(self, source: Source) -> bool:
        """Say whether it begins as a stream of gzip, bzip2, xz or zstd."""
        return is_compressed(source)

    def read(self, source: Source, limits: Limits) -> Checkpoint:
        """Describe the checkpoint in the stream, decompressed to an anonymous temporary file.

        Raises `DamagedFileError` if the stream is, `LimitExceededError` if it becomes far more
        than it is, and what reading its content raises.
        """
        inner = decompressed(source)
        try:
            checkpoint = find_format(inner).read(inner, limits)
        except BaseException:
            inner.close()
            raise
        notes = (*notes_on(source), *checkpoint.notes)
        source.close()
        return replace(checkpoint, notes=notes)
