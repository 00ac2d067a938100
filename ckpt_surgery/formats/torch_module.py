"""Pickled modules, of which the state dict is read.

They lie in any container of torch.save, whose reader finds them while it goes through the pickle:
nothing has to be recognised here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckpt_surgery.formats.base import Format

if TYPE_CHECKING:
    from ckpt_surgery.checkpoint.description import Checkpoint
    from ckpt_surgery.fileio import Source
    from ckpt_surgery.pickles import Limits


class TorchModule(Format):
    """What the readers of torch's containers call a file with a pickled module in it."""

    name = "torch-module"
    title = "a pickled module"
    written_as = "torch-zip"
    keeps_checksums = True

    def sniff(self, source: Source) -> bool:
        """Say no: the container's format recognises the file."""
        del source
        return False

    def read(self, source: Source, limits: Limits) -> Checkpoint:
        """Describe the file as its container's format does."""
        from ckpt_surgery.formats.recognise import find_format

        return find_format(source).read(source, limits)
