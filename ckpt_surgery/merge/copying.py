"""Merges that compute nothing: whose entry stands under each name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, StateDict, Tensor, join_path
from ckpt_surgery.checkpoint.select import RuleCount, select
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.inline_optimizer import is_optimizer
from ckpt_surgery.edits.take import Take, TakeModule
from ckpt_surgery.errors import LossyEditError, UsageError
from ckpt_surgery.merge.files import MergeFile, partner
from ckpt_surgery.names import Selection


@dataclass(slots=True)
class Taking:
    """What is taken of which file, and what the report says about it.

    `by_file` counts entries by the place of their file among the others.
    """

    takes: list[Take] = field(default_factory=list)
    modules: list[TakeModule] = field(default_factory=list)
    taken: list[tuple[str, str]] = field(default_factory=list)
    rules: tuple[RuleCount, ...] = ()
    by_file: Counter[int] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All edits: of entries, then of ``_metadata``."""
        return (*self.takes, *self.modules)


def plan_structure(
    state_dicts: Sequence[StateDict],
    others: Sequence[MergeFile],
    *,
    fill: bool,
    selection: Selection,
    only_existing: bool,
    same_shape: bool,
) -> Taking:
    """Return what the base's `state_dicts` take from `others`, of which
    later ones win, unless `fill`.

    `selection` narrows the names that are taken, `only_existing` to those that the base has,
    `same_shape` to tensors of the shape that the base's has.

    Raises `UsageError` if a rule matches nothing or nothing would be taken, and `LossyEditError`
    for a file of another byte order.
    """
    result = Taking()
    allowed = _allowed(state_dicts, others, selection, result)
    for state_dict in state_dicts:
        chosen: dict[str, tuple[int, Entry]] = {}
        own = {entry.name: entry for entry in state_dict.entries}
        for place, file in enumerate(others):
            source = partner(state_dict, file)
            takes = allowed[id(source)] if selection.rules else None
            for entry in source.entries:
                if takes is not None and entry.name not in takes:
                    continue
                if is_optimizer(entry):
                    result.warnings.append(
                        f"the optimizer '{entry.name}' of '{file.label}' is not taken"
                    )
                    continue
                if only_existing and entry.name not in own:
                    continue
                if same_shape and entry.name in own and not _same_shape(own[entry.name], entry):
                    continue
                if fill and (entry.name in own or entry.name in chosen):
                    continue
                chosen[entry.name] = (place, entry)
        add_takes(result, state_dict, others, chosen)
        _warn_of_shapes(result, state_dict, own, chosen)
    if not result.taken and not fill:
        raise UsageError(
            "there is nothing to take: no name of the other files "
            + _condition(selection, only_existing=only_existing, same_shape=same_shape),
            hint="'ckpt inspect --keys' lists the names; --strip-prefix and --add-prefix change "
            "those of a file",
        )
    for place, file in enumerate(others):
        if not result.by_file[place]:
            result.warnings.append(f"nothing is taken from '{file.label}'")
    return result


def _condition(selection: Selection, *, only_existing: bool, same_shape: bool) -> str:
    wanted = ["is selected"] if selection.rules else []
    wanted += ["is the base's too"] if only_existing else []
    wanted += ["has the base's shape"] if same_shape else []
    return " and ".join(wanted) or "stands for an entry"


def _allowed(
    state_dicts: Sequence[StateDict],
    others: Sequence[MergeFile],
    selection: Selection,
    result: Taking,
) -> Mapping[int, Collection[str]]:
    if not selection.rules:
        return {}
    sources = {id(p): p for s in state_dicts for file in others for p in [partner(s, file)]}
    chosen, result.rules = select(list(sources.values()), selection)
    return {place: each.chosen for place, each in zip(sources, chosen, strict=True)}


def _same_shape(own: Entry, entry: Entry) -> bool:
    if own.tensor is None or entry.tensor is None:
        return own.tensor is entry.tensor
    return own.tensor.shape == entry.tensor.shape


def _warn_of_shapes(
    result: Taking,
    state_dict: StateDict,
    own: Mapping[str, Entry],
    chosen: Mapping[str, tuple[int, Entry]],
) -> None:
    changed = [n for n, (_, entry) in chosen.items() if n in own and not _same_shape(own[n], entry)]
    if changed:
        name = join_path(state_dict.path, changed[0])
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        result.warnings.append(
            f"'{name}'{more} changes its shape; --same-shape leaves such entries as they are"
        )


def add_takes(
    result: Taking,
    state_dict: StateDict,
    others: Sequence[MergeFile],
    chosen: Mapping[str, tuple[int, Entry]],
) -> None:
    """Take the `chosen` entries (by name: the file's place and the entry) into `state_dict`.

    Raises `LossyEditError` if a file stores numbers in another byte order than the base.
    """
    own = _big_endian(entry.tensor for entry in state_dict.entries)
    sources = {place: partner(state_dict, others[place]) for place, _ in chosen.values()}
    for name, (place, entry) in chosen.items():
        file, source = others[place], sources[place]
        theirs = _big_endian([entry.tensor])
        if None not in {own, theirs} and own != theirs:
            raise LossyEditError(
                "its numbers have another byte order than the base's", path=file.label
            )
        old = file.old_name(source.path, name)
        result.takes.append(Take(state_dict.path, name, file.label, source.path, old))
        result.taken.append((join_path(state_dict.path, name), file.label))
        result.by_file[place] += 1
    if state_dict.metadata is not None:
        result.modules += _modules(state_dict, others, sources, chosen)


def _modules(
    state_dict: StateDict,
    others: Sequence[MergeFile],
    sources: Mapping[int, StateDict],
    chosen: Mapping[str, tuple[int, Entry]],
) -> Iterator[TakeModule]:
    """Yield the records of ``_metadata`` that come along: of modules whose own entries were taken.

    A module that the base does not have comes along with whatever is below it.
    """
    direct: dict[str, int] = {}
    around: dict[str, int] = {}
    for name, (place, _) in chosen.items():
        path = name
        while True:
            path = path.rpartition(".")[0]
            around.setdefault(path, place)
            if not path:
                break
        direct[name.rpartition(".")[0]] = place
    known = state_dict.metadata or {}
    for place, source in sources.items():
        for module in source.metadata or ():
            new = module not in known and around.get(module) == place
            if direct.get(module) == place if module in direct else new:
                file = others[place]
                old = file.old_module(source.path, module)
                yield TakeModule(state_dict.path, module, file.label, source.path, old)


def _big_endian(tensors: Iterator[Tensor | None] | Sequence[Tensor | None]) -> bool | None:
    """Return whether the tensors' numbers are stored in that order; None if they do not tell."""
    for tensor in tensors:
        if tensor is not None and tensor.storage is not None and tensor.dtype.itemsize > 1:
            return tensor.storage.big_endian
    return None


def broken_ties(before: Checkpoint, after: Checkpoint) -> list[str]:
    """Return what to say about tensors that shared their elements before and do no longer.

    Tied ones were the same elements in the same shape; others were views of each other.
    """
    now = dict(after.tensors)
    groups: dict[object, list[tuple[str, Tensor]]] = {}
    for name, tensor in before.tensors:
        if tensor.storage is not None and tensor.numel and name in now:
            groups.setdefault(tensor.identity, []).append((name, tensor))
    warnings = [
        f"'{tied[0][0]}' and '{other}' were tied and are no longer"
        for tied in groups.values()
        for other, _ in tied[1:]
        if now[other].identity != now[tied[0][0]].identity
    ]
    storages: dict[int, list[tuple[str, Tensor]]] = {}
    for tied in groups.values():
        storages.setdefault(id(tied[0][1].storage), []).append(tied[0])
    views: dict[str, list[str]] = {}
    for placed in storages.values():
        for whole, view in _views(placed):
            if now[whole].storage is not now[view].storage:
                views.setdefault(whole, []).append(view)
    warnings += (
        f"no longer views of elements of '{whole}': " + ", ".join(names)
        for whole, names in views.items()
    )
    return warnings


def _views(placed: Sequence[tuple[str, Tensor]]) -> Iterator[tuple[str, str]]:
    """Yield names of contiguous tensors of a storage, and of those that
    lie in them, wholly or partly.

    Each is named once, with the one that reaches furthest of those that begin before it.
    """
    ordered = sorted(placed, key=lambda item: (item[1].offset, -item[1].extent))
    whole, end = None, 0
    for name, tensor in ordered:
        if whole is not None and tensor.offset < end:
            yield whole, name
        if tensor.is_contiguous and tensor.offset + tensor.extent > end:
            whole, end = name, tensor.offset + tensor.extent
