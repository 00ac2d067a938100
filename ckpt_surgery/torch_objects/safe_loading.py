"""Whether ``torch.load(weights_only=True)`` takes a file, and what of it has to go if not.

Computed from what was read anyway: the names and the rarer opcodes of the pickle, and its graph
without the tensors, whose form is known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, StateDict, join_path
from ckpt_surgery.errors import DamagedFileError, LimitExceededError
from ckpt_surgery.pickles import NO_STATE, Global, Node, Object
from ckpt_surgery.pickles.weights_only import is_allowed_name, refused_node, refused_opcode
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.entries import Entries
from ckpt_surgery.torch_objects.kinds import printed_key, type_name
from ckpt_surgery.torch_objects.mappings import mapping_pairs
from ckpt_surgery.torch_objects.simple import is_simple
from ckpt_surgery.torch_objects.trails import Trail, trails

_WITHOUT: Final = {
    "torchscript": "it is a TorchScript archive, which is a program",
    "torch-tar": "it is an archive of torch 0.1, which only the unsafe way reads",
}
_PICKLED: Final = frozenset({"torch-zip", "torch-legacy", "torch-module"})
_PLAIN_TENSORS: Final = frozenset(
    {"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"}
)
_LONG4: Final = 0x8B  # the opcode of numbers of more than 255 bytes, a bit of which is the sign
_LONG_BITS: Final = 255 * 8
_LONGEST_NAME: Final = 200  # of a class: each object has its own copy
_MOST_BLAMED: Final = 100_000  # objects that are listed: a few bytes of a pickle make one
_MOST_ENTRIES: Final = 3  # that a hint names one by one
_METADATA: Final = "_metadata"  # of a state dict, which goes where its weights go
_EASY_PATH: Final = r"[\w./@+,:=-]+"  # no sign of a shell, none of a glob
_CONVERT: Final = "ckpt convert"
_WEIGHTS_ALONE: Final = f"{_CONVERT} --state-dict-only"
_TENSORS_ALONE: Final = f"{_CONVERT} --tensors-only"


@dataclass(frozen=True, slots=True)
class SafeLoading:
    """Whether ``torch.load(weights_only=True)`` takes a file.

    If it does not, `entries` are the (path, class) of what is to blame, `reason` says what it is
    in general, and `cure` is the command that writes a file that it takes; None if there is none.
    `are_all` says that no other entries are to blame.
    """

    loads: bool
    entries: tuple[tuple[str, str], ...] = ()
    reason: str | None = None
    cure: str | None = None
    are_all: bool = True

    def to_dict(self) -> dict[str, object]:
        return {
            "loads": self.loads,
            "entries": [{"path": path, "type": kind} for path, kind in self.entries],
            "reason": self.reason,
            "cure": self.cure,
        }


def safe_loading(checkpoint: Checkpoint) -> SafeLoading | None:
    """Say whether torch takes the file of a checkpoint as it was read.

    None for a file without a pickle, and for one that is nested too deeply to be looked through.
    """
    if checkpoint.format in _WITHOUT:
        return SafeLoading(False, (), _WITHOUT[checkpoint.format], _CONVERT)
    if checkpoint.format not in _PICKLED:
        return None
    try:
        blamed = list(islice(_blamed(checkpoint), _MOST_BLAMED + 1))
        are_all = len(blamed) <= _MOST_BLAMED
        found = _everywhere(checkpoint, blamed) if are_all else blamed[:_MOST_BLAMED]
    except (DamagedFileError, LimitExceededError):
        return None
    named = next((n for n in checkpoint.globals if not is_allowed_name(n)), None)
    opcode = refused_opcode(sorted(checkpoint.opcodes))
    if not found and named is None and opcode is None:
        return SafeLoading(True)
    said = opcode if named is None else f"it names '{named[:_LONGEST_NAME]}'"
    reason = found[0].reason if found else said
    entries = tuple(dict.fromkeys((each.path, each.kind) for each in found))
    if not are_all:
        reason = f"{reason}, and more than {_MOST_BLAMED:,} objects are to blame"
    elsewhere = named is not None and not found
    cure = _cure(checkpoint, found, is_known=are_all and not elsewhere)
    return SafeLoading(False, entries, reason, cure, are_all)


@dataclass(frozen=True, slots=True)
class _Blamed:
    """An object that torch does not make, at one of its paths."""

    node: Node
    path: str
    kind: str
    reason: str
    simple: bool = False


def _blamed(checkpoint: Checkpoint) -> Iterator[_Blamed]:
    """Yield the outermost objects that torch does not make, and of what `--plain` takes away all.

    What such an object holds goes with it; what a Namespace holds remains.
    """
    known = {
        id(tensor.node)
        for tensor in checkpoint.all_tensors
        if isinstance(tensor.node, Object)
        and tensor.node.name in _PLAIN_TENSORS
        and tensor.node.state is NO_STATE
        and tensor.node.items is None
        and tensor.node.elements is None
    }
    look_for_parts = _LONG4 in checkpoint.opcodes or not all(
        is_allowed_name(name) for name in checkpoint.globals
    )
    simple: set[Trail] = set()
    whole: set[Trail] = set()
    for trail, node in trails(checkpoint.root, replaced={}, without=known):
        if trail in simple or _is_inside(trail, whole):
            continue
        if isinstance(node, Object):
            reason = _refused(node)
            if reason is not None:
                plain = is_simple(node)
                (simple if plain else whole).add(trail)
                yield _Blamed(node, trail.path, type_name(node), reason, plain)
                continue
        else:
            reason = refused_node(node)
            if reason is not None:
                whole.add(trail)
                yield _Blamed(node, trail.path, type_name(node), reason)
        for name, part, said in _parts(node) if look_for_parts else ():
            path = join_path(trail.path, name) if name else trail.path
            yield _Blamed(part, path, type_name(part), said)


def _everywhere(checkpoint: Checkpoint, found: list[_Blamed]) -> list[_Blamed]:
    """Return what is to blame at every path where it stands: one object may be two entries."""
    blamed = {id(each.node): each for each in found if isinstance(each.node, (Object, Global))}
    known = {each.path for each in found}
    for place in Entries(checkpoint).all() if blamed else ():
        each = blamed.get(id(place.node))
        if each is not None and place.path not in known:
            known.add(place.path)
            found.append(replace(each, path=place.path))
    return found


def _refused(node: Object) -> str | None:
    if isinstance(node.callee, Global) and not is_allowed_name(node.callee.qualified):
        return _named(node.callee)
    return refused_node(node)


def _named(name: Global) -> str:
    return f"it names '{name.qualified[:_LONGEST_NAME]}'"


def _parts(node: Node) -> Iterator[tuple[str, Node, str]]:
    """Yield name, node and reason of what a container holds that is no object, and is refused.

    That are classes and functions, and numbers of more than 255 bytes.
    """
    found: list[tuple[str, Node]] = []
    if isinstance(node, Object) and isinstance(node.args, tuple):
        found += (("", child) for child in node.args)
    if isinstance(node, (list, tuple)):
        found += ((str(index), child) for index, child in enumerate(node))
    else:
        found += ((printed_key(key), child) for key, child in mapping_pairs(node) or ())
    for name, child in found:
        if isinstance(child, Global) and not is_allowed_name(child.qualified):
            yield name, child, _named(child)
        elif isinstance(child, int) and child.bit_length() >= _LONG_BITS:
            yield name, child, f"it has a number of {child.bit_length():,} bits"


def _is_inside(trail: Trail | None, whole: set[Trail]) -> bool:
    while whole and trail is not None:
        if trail in whole:
            return True
        trail = trail.above
    return False


def _cure(checkpoint: Checkpoint, found: list[_Blamed], *, is_known: bool) -> str | None:
    """Return the command that writes a file which torch takes, with as little lost as possible.

    `is_known` says that all that is to blame was found.
    """
    weights = [s for s in checkpoint.state_dicts if s.kind == "model"] or checkpoint.state_dicts
    if not weights or any(each.missing for each in checkpoint.state_dicts):
        return None  # weights that only code unpacks are in no file that ckpt writes
    among = [each for each in found if _is_among(each.path, checkpoint.state_dicts)]
    if checkpoint.unwritable or not is_known:
        return _alone(_TENSORS_ALONE, weights)
    if among:
        weights_at = {each.path for each in checkpoint.state_dicts}
        module = checkpoint.format == "torch-module" and all(p.path in weights_at for p in found)
        return _CONVERT if module else _alone(_TENSORS_ALONE, weights)
    plain = " --plain" if any(each.simple for each in found) else ""
    paths = list(dict.fromkeys(each.path for each in found if not each.simple))
    if not paths:
        return _CONVERT + plain
    entries = Entries(checkpoint)
    tops = list(dict.fromkeys(_droppable(path, entries) for path in paths))
    if len(tops) > _MOST_ENTRIES or None in tops:
        return _alone(_WEIGHTS_ALONE, weights)
    return "ckpt strip" + "".join(f" --entry {path}" for path in tops) + plain


def _is_among(path: str, state_dicts: tuple[StateDict, ...]) -> bool:
    """Return whether what is at `path` is a state dict, around one, or part of one."""
    for each in state_dicts:
        if not path or path == each.path or each.path.startswith(f"{path}/"):
            return True
        inside = path.startswith(f"{each.path}/") if each.path else True
        first = path.removeprefix(f"{each.path}/").partition("/")[0]
        if inside and (first == _METADATA or first in each.names):
            return True
    return False


def _droppable(path: str, entries: Entries) -> str | None:
    """Return the path of the entry that `strip --entry` can take: it, or what holds it."""
    while path:
        if re.fullmatch(_EASY_PATH, path) and not path.startswith("-"):
            place = entries.find([path]).get(path)
            if place is not None and place.holder is not None:
                return path
        path = path.rpartition("/")[0]
    return None


def _alone(command: str, weights: list[StateDict] | tuple[StateDict, ...]) -> str:
    at = weights[0].path
    if len(weights) == 1 or not at:
        return command
    return f"{command} --at {at}" if re.fullmatch(_EASY_PATH, at) else command
