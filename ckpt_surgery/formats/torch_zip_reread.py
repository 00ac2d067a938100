"""What reading an archive gives after names in it were changed, without writing it."""

from __future__ import annotations

from dataclasses import replace

from ckpt_surgery.checkpoint.description import Checkpoint, StateDict
from ckpt_surgery.fileio import Bytes, ByteSource
from ckpt_surgery.formats.torch_zip_container import PICKLE, SERIALIZATION_ID, Container
from ckpt_surgery.torch_objects.find import assemble
from ckpt_surgery.torch_objects.rebuild import is_module_state, lower_state_dict

_OPEN = frozenset({PICKLE, SERIALIZATION_ID})
"""Records that a change of names changes."""


def reread(checkpoint: Checkpoint) -> Checkpoint | None:
    """Return what is read after the archive of one bare state dict is written with new names.

    All storages stay where they are, so that the only records which change are the pickle, whose
    graph is known, and the id that follows from it. None for every other checkpoint.
    """
    container = checkpoint.container
    if not isinstance(container, Container) or not _only_names_change(checkpoint, container):
        return None
    (state_dict,) = checkpoint.state_dicts
    found = assemble(
        lower_state_dict(state_dict),
        sources=checkpoint.sources,
        format=checkpoint.format,
        container=_with_open_records(container),
        opcodes=checkpoint.opcodes,
    )
    return replace(found, architecture=checkpoint.architecture)


def _only_names_change(checkpoint: Checkpoint, container: Container) -> bool:
    if (
        len(checkpoint.state_dicts) != 1
        or checkpoint.state_dicts[0].node is not checkpoint.root
        or is_module_state(checkpoint.state_dicts[0])
        or any(
            (
                checkpoint.others,
                checkpoint.dropped,
                checkpoint.moved,
                checkpoint.replaced,
                checkpoint.devices,
                checkpoint.provenance,
                checkpoint.unwritable,
                container.idle,
            )
        )
    ):
        return False
    return _storages(checkpoint.state_dicts[0]) == [*container.storages]


def _storages(state_dict: StateDict) -> list[object]:
    """Return the storages in the order in which a pickle visits them; None for what has none."""
    return [*dict.fromkeys(e.tensor and e.node and e.tensor.storage for e in state_dict.entries)]


def _with_open_records(container: Container) -> Container:
    def opened(records: tuple[tuple[str, ByteSource], ...]) -> tuple[tuple[str, ByteSource], ...]:
        return tuple((name, Bytes(b"") if name in _OPEN else data) for name, data in records)

    return replace(
        container,
        before=opened(container.before),
        after=opened(container.after),
        original=opened(container.original),
    )
