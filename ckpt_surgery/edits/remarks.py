"""What to say of edited tensors: which ties, views and attributes they no longer have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ckpt_surgery.checkpoint.description import StateDict, join_path
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.parts import Concat, Split
from ckpt_surgery.edits.share import Copy, Untie
from ckpt_surgery.edits.values import ValueEdit, identity_of


def _broken_ties(state_dict: StateDict, edits: Iterable[Edit]) -> list[str]:
    """Return what to say of names that are tied to an edited one and not edited themselves."""
    changed = {edit.name for edit in edits if isinstance(edit, ValueEdit)}
    if not changed:
        return []
    tied: dict[object, list[str]] = {}
    for name, tensor in state_dict.tensors:
        tied.setdefault(identity_of(tensor), []).append(name)
    return [
        f"'{name}' is no longer tied to '{other}', which stays as it is"
        for names in tied.values()
        if any(each in changed for each in names)
        for other in names
        if other not in changed
        for name in [next(each for each in names if each in changed)]
    ]


def remarks(state_dict: StateDict, edits: Iterable[Edit]) -> list[str]:
    """Return what to say of edited tensors and of those tied to them: what they are no longer."""
    every = list(edits)
    found = [edit for edit in every if isinstance(edit, ValueEdit)]
    alone = [name for edit in every for name in _made_anew(edit)]
    if not found and not alone:
        return []
    from ckpt_surgery.formats.traits import computed_anew, listed, overlapping

    entries = {entry.name: entry for entry in state_dict.entries if entry.tensor is not None}
    names = dict.fromkeys(edit.name for edit in found if edit.name in entries)
    own = dict.fromkeys([*names, *(name for name in alone if name in entries)])
    paths = [(join_path(state_dict.path, name), entries[name]) for name in own]
    views = [name for name in overlapping(state_dict.tensors) if name in names]
    apart = [f"no longer views that share bytes: {listed(views)}"] if views else []
    return [*_broken_ties(state_dict, found), *apart, *computed_anew(paths)]


def _made_anew(edit: Edit) -> Sequence[str]:
    """Return the names that others are made of, or that get bytes of their own."""
    if isinstance(edit, Copy):
        return (edit.old,)
    if isinstance(edit, Concat):
        return edit.names
    return (edit.name,) if isinstance(edit, Split | Untie) else ()
