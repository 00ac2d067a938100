"""Plain Python values for objects that are hardly more: numpy scalars, Namespaces, paths.

``torch.load(weights_only=True)`` refuses the classes and takes the values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.pickles import NO_STATE, Dict, Node, Object
from ckpt_surgery.torch_objects.calls import Call
from ckpt_surgery.torch_objects.kinds import type_name
from ckpt_surgery.torch_objects.mappings import mapping_pairs, state_of
from ckpt_surgery.torch_objects.numpy_scalars import SCALARS, numpy_scalar
from ckpt_surgery.torch_objects.storages import text
from ckpt_surgery.torch_objects.trails import trails

_NAMESPACES: Final = frozenset({"argparse.Namespace", "types.SimpleNamespace"})
_PATHS: Final = frozenset(
    f"pathlib{module}.{name}"
    for module in ("", "._local")
    for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
)
_LONGEST_PATH: Final = 1000  # folders


class _NotSimple:
    """The type of `_NOT_SIMPLE`; None is a value."""


_NOT_SIMPLE: Final = _NotSimple()

_Now = Callable[[Node], Node]
"""What takes the place of a node by now."""


def find_simple(checkpoint: Checkpoint) -> Iterator[tuple[str, Node, Node]]:
    """Yield the path of every object that is hardly more than a plain value, itself, that value."""
    replaced = checkpoint.replaced

    def now(node: Node) -> Node:
        return replaced.get(id(node), node)

    for trail, node in trails(checkpoint.root, replaced=replaced):
        if isinstance(node, Object):
            value = _simple(node, now)
            if value is not _NOT_SIMPLE:
                yield trail.path, node, value


def is_simple(node: Object) -> bool:
    """Return whether an object is hardly more than a plain value, which can take its place."""
    return _simple(node) is not _NOT_SIMPLE


def plain_form(node: Object) -> Node:
    """Return the plain value that an object stands for, itself if it is more than that."""
    value = _simple(node)
    return node if value is _NOT_SIMPLE else value


def _simple(node: Object, now: _Now = lambda node: node) -> Node:
    """Return the plain value that an object stands for, `_NOT_SIMPLE` if it is more than that."""
    name = type_name(node)
    try:
        if name in SCALARS:
            value = numpy_scalar(node)
            return _NOT_SIMPLE if value is node else value
        if name in _NAMESPACES:
            return _attributes(node, now)
        if name in _PATHS:
            return _path(node, name)
        if name == "collections.defaultdict":
            return _without_default(node)
    except DamagedFileError:  # nothing that Python wrote so: it stays what it is
        return _NOT_SIMPLE
    return _NOT_SIMPLE


def _attributes(node: Object, now: _Now) -> Node:
    """Return the attributes of a Namespace as a dictionary."""
    if node.items is not None or node.elements is not None:
        return _NOT_SIMPLE
    state = now(state_of(node))
    if state is NO_STATE:
        return Dict()
    pairs = mapping_pairs(state)
    if pairs is None:
        return _NOT_SIMPLE
    return Dict([part for pair in pairs for part in pair])


def _path(node: Object, name: str) -> Node:
    call = Call.plain(node, 0, _LONGEST_PATH)
    parts = [text(part) for part in call.all_settled()]
    if None in parts:
        return _NOT_SIMPLE
    from pathlib import PurePosixPath, PureWindowsPath

    kind = PureWindowsPath if "Windows" in name else PurePosixPath
    return str(kind(*(part or "" for part in parts)))


def _without_default(node: Object) -> Node:
    pairs = mapping_pairs(node)
    if pairs is None or node.state is not NO_STATE:
        return _NOT_SIMPLE
    return Dict([part for pair in pairs for part in pair])
