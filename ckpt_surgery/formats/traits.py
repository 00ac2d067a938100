"""What a file has beside the numbers of its tensors, and not every format has a place for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal

from ckpt_surgery.checkpoint.compact import find_pieces
from ckpt_surgery.checkpoint.description import Checkpoint, Entry, Tensor, join_path
from ckpt_surgery.formats.base import Loss
from ckpt_surgery.formats.provenance import RECORD as PROVENANCE
from ckpt_surgery.pickles import Dict, Global, Object
from ckpt_surgery.torch_objects.mappings import mapping_pairs
from ckpt_surgery.torch_objects.math_bits import FROM_TYPE

Trait = Literal["overlaps", "strides", "parameters", "attributes", "devices", "records"]

_MOST_NAMED: Final = 4
_PLAIN: Final = frozenset({"torch.Tensor", "torch.nn.parameter.Parameter"})
# What torch writes into every archive; anything else was put there by somebody.
OWN_RECORDS: Final = frozenset(
    {"data.pkl", ".format_version", ".storage_alignment", "byteorder", "version"}
    | {".data/serialization_id"}
)


def lost_traits(checkpoint: Checkpoint, why: str, traits: Sequence[Trait]) -> Iterator[Loss]:
    """Yield what of `traits` there is, a remark for each, since `why`; none of them is refused."""
    for trait in traits:
        for what in _FOUND[trait](checkpoint):
            yield Loss("", "file", what, why, refused=False)


def listed(names: Iterable[str]) -> str:
    """Return the first of some names, and how many more there are."""
    found = list(names)
    more = len(found) - _MOST_NAMED
    shown = ", ".join(f"'{name}'" for name in found[:_MOST_NAMED])
    return shown + (f" and {more} more" if more > 0 else "")


def _overlaps(checkpoint: Checkpoint) -> Iterator[str]:
    names = overlapping(checkpoint.tensors)
    if names:
        yield f"the overlap of {listed(names)}"


def overlapping(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Return the names of tensors that share bytes without being tied."""
    named = list(tensors)
    found: set[object] = set()
    for piece in find_pieces(tensor for _, tensor in named):
        views = {tensor.identity for tensor in piece.tensors if tensor.numel}
        found |= views if len(views) > 1 else set()
    return [name for name, t in named if t.storage is not None and t.identity in found]


def _strides(checkpoint: Checkpoint) -> Iterator[str]:
    names = [name for name, tensor in checkpoint.tensors if _is_strided(tensor)]
    if names:
        yield f"the order of elements in memory (strides) of {listed(names)}"


def _has_steps(entry: Entry) -> bool:
    return entry.tensor is not None and _is_strided(entry.tensor)


def _is_strided(tensor: Tensor) -> bool:
    return tensor.storage is not None and tensor.numel > 0 and not tensor.is_contiguous


def _parameters(checkpoint: Checkpoint) -> Iterator[str]:
    names = [n for n, t in checkpoint.tensors if t.is_parameter or t.requires_grad]
    if names:
        yield f"what says of {listed(names)}: a parameter, or requires_grad"


def _attributes(checkpoint: Checkpoint) -> Iterator[str]:
    names = [
        join_path(s.path, entry.name)
        for s in checkpoint.state_dicts
        for entry in s.entries
        if _has_attributes(entry)
    ]
    if names:
        yield f"the class or the attributes of {listed(names)}"


def _has_attributes(entry: Entry) -> bool:
    """Return whether a tensor is of a class of its own, or has attributes that somebody set.

    A parameter's are in the call that wraps the tensor, which is the node of the entry.
    """
    node = entry.node if entry.tensor is not None else None
    if not isinstance(node, Object) or not isinstance(node.args, tuple):
        return False
    if node.name.endswith("_rebuild_parameter_with_state"):
        return True
    if node.name not in FROM_TYPE or len(node.args) != 4:
        return False
    _, kind, _, state = node.args
    plain = isinstance(kind, Global) and kind.qualified in _PLAIN
    return not plain or not isinstance(state, Dict) or bool(mapping_pairs(state))


def computed_anew(
    entries: Iterable[tuple[str, Entry]], after: Mapping[str, Entry] | None = None
) -> Iterator[str]:
    """Yield what to say of tensors that are computed: what the new ones do not have.

    These are `after` by their names, or plain ones that are laid out row by row.
    """
    found = list(entries)
    new = after or {}
    strided = [n for n, e in found if _has_steps(e) and not (n in new and _has_steps(new[n]))]
    if strided:
        yield f"computed, and laid out row by row, without the strides before: {listed(strided)}"
    noted = [
        n for n, e in found if _has_attributes(e) and not (n in new and _has_attributes(new[n]))
    ]
    if noted:
        yield f"computed, and without the class or the attributes before: {listed(noted)}"


def _devices(checkpoint: Checkpoint) -> Iterator[str]:
    said = checkpoint.devices
    found = {t.device for each in checkpoint.all_tensors for t in each.strided_parts()}
    places = sorted({said.get(device, device) for device in found} - {"cpu"})
    if places:
        yield f"the device that tensors were saved on ({', '.join(places)})"


def _records(checkpoint: Checkpoint) -> Iterator[str]:
    """Say what an archive holds that torch did not put there."""
    from ckpt_surgery.formats.torch_zip_container import Container

    container = checkpoint.container
    if not isinstance(container, Container):
        return
    found = [name for name, _ in (*container.before, *container.after)]
    foreign = [name for name in found if name not in OWN_RECORDS and name != PROVENANCE]
    if foreign:
        yield f"what else is in the archive ({listed(foreign)})"
    if PROVENANCE in found:
        yield "how it came about (the record of its provenance)"


_FOUND: Final[dict[Trait, Callable[[Checkpoint], Iterator[str]]]] = {
    "overlaps": _overlaps,
    "strides": _strides,
    "parameters": _parameters,
    "attributes": _attributes,
    "devices": _devices,
    "records": _records,
}
