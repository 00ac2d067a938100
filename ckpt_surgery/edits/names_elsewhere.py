"""Names of weights that other entries store: DeepSpeed's ``param_shapes`` and ``buffer_names``.

Nothing but an optimizer and an average follows what is done to names. What else keeps them is
carried over as it is, and that is said.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, Other
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.drop import Drop, DropOther
from ckpt_surgery.edits.rename import Rename
from ckpt_surgery.pickles import Dict, Node, Object
from ckpt_surgery.torch_objects.mappings import mapping_pairs
from ckpt_surgery.torch_objects.storages import text
from ckpt_surgery.torch_objects.training_state import TrainingStates, last_part

_MOST_VISITED: Final = 200_000  # parts of all entries together
_LISTS: Final = frozenset(
    {"param_shapes", "frozen_param_shapes", "frozen_param_fragments", "buffer_names"}
    | {"param_names", "shared_params", "param_name_to_shape"}
)
"""Entries that are about names, so that a name without a dot is one, too."""
_FOLLOWING: Final = frozenset({"optimizer", "optimizers"})


def names_that_go(edits: Collection[Edit]) -> set[str]:
    """Return the names that entries have before edits, and no longer after them."""
    renamed = {edit.old for edit in edits if isinstance(edit, Rename)}
    new = {edit.new for edit in edits if isinstance(edit, Rename)}
    return (renamed - new) | {edit.name for edit in edits if isinstance(edit, Drop)}


def names_left_behind_by(before: Checkpoint, after: Checkpoint) -> Iterator[str]:
    """Yield a sentence for each entry of `after` that stores names which its weights have lost."""
    if not before.others:
        return
    now = {state_dict.path: set(state_dict.names) for state_dict in after.state_dicts}
    pairs = ((set(s.names), now[s.path]) for s in before.state_dicts if s.path in now)
    gone = {name for names, left in pairs for name in names - left}
    known = {other.path for other in after.others}
    dropped = [DropOther(other.path) for other in before.others if other.path not in known]
    yield from names_left_behind(before, gone, dropped)


def names_left_behind(
    checkpoint: Checkpoint, gone: Collection[str], edits: Collection[Edit] = ()
) -> Iterator[str]:
    """Yield a sentence for each entry that stores names which the weights no longer have.

    Entries that one of the edits leaves out do not count, nor optimizers and moving averages.
    """
    if not gone:
        return
    from ckpt_surgery.training.averages import find_averages

    dropped = {edit.path for edit in edits if isinstance(edit, DropOther)}
    averages = [average.path for average in find_averages(checkpoint)]
    states = TrainingStates()
    weights = {id(state_dict.node) for state_dict in checkpoint.state_dicts}  # these follow
    left = _MOST_VISITED
    for other in checkpoint.others:
        follows = states.kind(other.path, other.node) in _FOLLOWING
        above = f"{other.path}/"
        if follows or other.path in dropped or any(f"{a}/".startswith(above) for a in averages):
            continue
        stored, left = _texts(other, left, weights)
        about = last_part(other.path) in _LISTS
        found = sorted(name for name in stored & set(gone) if about or "." in name)
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            yield (
                f"'{other.path}' is carried over as it was, and still names '{found[0]}'{more}, "
                "which the weights no longer have"
            )


def _texts(other: Other, left: int, without: Collection[int]) -> tuple[set[str], int]:
    """Return the texts in an entry that may be names, and how many parts may still be visited.

    What is below the nodes of the identities `without` is left out.
    """
    found: set[str] = set()
    seen = set(without)
    waiting: list[Node] = [other.node]
    while waiting and left > 0:
        node = waiting.pop()
        left -= 1
        name = text(node)
        if name is not None:
            found.add(name)
        elif id(node) not in seen and isinstance(node, list | tuple | Dict | Object):
            seen.add(id(node))
            inner = node if isinstance(node, list | tuple) else _flat(node)
            waiting.extend(inner[:left])
    return found, left


def _flat(node: Node) -> list[Node]:
    return [part for pair in mapping_pairs(node) or () for part in pair]
