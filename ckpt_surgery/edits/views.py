"""Averages as edits of their model see them: by the model's names, without wrapper and counter.

A rule for names is meant for the model's. An average whose names are wrapped (``module.`` of
torch's ``AveragedModel``) keeps its wrapper, and its counter is no entry of the model. So a plan is
made for views of the state dicts, and its edits are translated to what the file has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ckpt_surgery.checkpoint.description import Checkpoint, StateDict, join_path
from ckpt_surgery.checkpoint.select import choose_state_dicts
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.drop import Drop
from ckpt_surgery.edits.rename import Rename, RenameModule
from ckpt_surgery.names.rewrite import Rewritten
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.averages import (
    dotless_average,
    dotless_names,
    holds_average,
    layout_of,
)


@dataclass(frozen=True, slots=True)
class View:
    """A state dict to plan for. In the file it lies at `path`, and `prefix` is before its names."""

    state_dict: StateDict
    path: str
    prefix: str = ""

    def translated(self, edits: Iterable[Edit]) -> Iterator[Edit]:
        """Yield edits of the view as edits of the state dict in the file."""
        for edit in edits:
            match edit:
                case Drop(name=name):
                    yield Drop(self.path, self.prefix + name)
                case Rename(old=old, new=new):
                    yield Rename(self.path, self.prefix + old, self.prefix + new)
                case RenameModule(old=old, new=moved):
                    module = None if moved is None else self._module(moved)
                    yield RenameModule(self.path, self._module(old), module)
                case _:
                    raise TypeError(edit)

    def put_back(self, state_dict: StateDict, changed: StateDict) -> StateDict:
        """Return the state dict in the file with `changed` in the place of what the view has."""
        if not self.prefix:
            return changed
        names = [entry.name.startswith(self.prefix) for entry in state_dict.entries]
        at = names.index(True) if True in names else len(names)
        rest = [e for e, own in zip(state_dict.entries, names, strict=True) if not own]
        new = [replace(e, name=self.prefix + e.name, key_node=None) for e in changed.entries]
        metadata = state_dict.metadata
        if metadata is not None and changed.metadata is not None:
            root = self._module("")
            kept = {
                module: value
                for module, value in metadata.items()
                if module != root and not module.startswith(self.prefix)
            }
            moved = {self._module(module): value for module, value in changed.metadata.items()}
            metadata = kept | moved
        entries = (*rest[:at], *new, *rest[at:])
        return replace(state_dict, entries=entries, metadata=metadata)

    def _module(self, path: str) -> str:
        return self.prefix + path if path else self.prefix.removesuffix(".")


def views(checkpoint: Checkpoint, at: Sequence[str], *, counted_only: bool = False) -> list[View]:
    """Return the state dicts to edit: all, or those at the paths `at`.

    One that is an average is seen by its model's names if the model is edited as well; with
    `counted_only`, if it also counts its updates, without which a wrapper is one like others.
    Raises `UsageError` if there is none, or none at one of the paths.
    """
    chosen = choose_state_dicts(checkpoint, at)
    wrapped = _wrapped(checkpoint, chosen, counted_only)
    edited = {state_dict.path for state_dict in chosen}
    found: list[View] = []
    for state_dict in chosen:
        wrapper, models = wrapped.get(state_dict.path, ("", set()))
        layout = layout_of(state_dict.names)
        if not models & edited:
            found.append(View(state_dict, state_dict.path))
        elif layout and layout.beside and any(map(_below(layout.beside), state_dict.names)):
            for prefix in (layout.beside, layout.wrapper):
                path = join_path(state_dict.path, prefix.removesuffix("."))
                found.append(view_of(state_dict, path, prefix))
        else:
            found.append(view_of(state_dict, state_dict.path, wrapper))
    return found


def _below(prefix: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(prefix)


def _wrapped(
    checkpoint: Checkpoint, chosen: Sequence[StateDict], counted_only: bool
) -> dict[str, tuple[str, set[str]]]:
    """Return, by the path of each average whose names are wrapped, its wrapper and its models.

    Of a swapped pair it is the weights in training whose names are.
    """
    if not (any(layout_of(s.names) for s in chosen) or _may_be_wrapped(checkpoint, chosen)):
        return {}
    from ckpt_surgery.training.averages import find_averages

    found: dict[str, tuple[str, set[str]]] = {}
    for average in find_averages(checkpoint):
        if average.place != "state dict" or average.model is None or not average.names:
            continue
        wrapped, other, names = average.path, average.model, dict(average.names)
        if average.swapped:
            wrapped, other = other, wrapped
            names = {plain: inner for inner, plain in names.items()}
        wrapper = _wrapper(names)
        if wrapper and (average.counters or not counted_only):
            found.setdefault(wrapped, (wrapper, set()))[1].add(other)
    return found


def _may_be_wrapped(checkpoint: Checkpoint, chosen: Sequence[StateDict]) -> bool:
    """Return whether one of the averages may have other names than any model in the file."""
    first = [s.entries[0].name for s in chosen if s.kind == "ema" and s.entries]
    if not first:
        return False
    models = (each for each in checkpoint.state_dicts if each.kind == "model")
    known = {entry.name for model in models for entry in model.entries}
    return any(name not in known for name in first)


def _wrapper(names: Mapping[str, str]) -> str:
    """Return what stands before each of the model's names in the average's; "" if not one thing."""
    first = next(iter(names))
    prefix = names[first].removesuffix(first)
    return prefix if all(inner == prefix + name for name, inner in names.items()) else ""


def view_of(state_dict: StateDict, path: str, prefix: str) -> View:
    """Return what of a state dict lies below `prefix`, without it; `path` is what to call it."""
    if not prefix:
        return View(state_dict, path)
    entries = tuple(
        replace(entry, name=entry.name.removeprefix(prefix))
        for entry in state_dict.entries
        if entry.name.startswith(prefix)
    )
    root = prefix.removesuffix(".")
    metadata = None
    if state_dict.metadata is not None:
        metadata = {
            module.removeprefix(root).removeprefix("."): value
            for module, value in state_dict.metadata.items()
            if module == root or module.startswith(prefix)
        }
    return View(
        replace(state_dict, path=path, entries=entries, metadata=metadata), state_dict.path, prefix
    )


def with_averages_inside(
    state_dict: StateDict, chosen: frozenset[str], *, keep: bool
) -> frozenset[str]:
    """Return `chosen`, names to be removed, with what that means for averages among the weights.

    What averages a removed entry goes as well; with `keep` (what remains was chosen), what averages
    an entry that remains stays, and so do the counters of an average that is left.
    """
    if not holds_average(state_dict.names):
        return chosen
    from ckpt_surgery.training.averages import averages_inside

    names = set(chosen)
    for average in averages_inside(state_dict):
        for model, averaged in average.names.items():
            if model in chosen:
                names.add(averaged)
            elif keep:
                names.discard(averaged)
        if keep and not names.issuperset(average.names.values()):
            names.difference_update(average.counters)
    return frozenset(names)


def with_dotless_average(
    state_dict: StateDict, rewritten: Rewritten
) -> tuple[Rewritten, list[str]]:
    """Return new names, of which those of an average without dots are made of its model's.

    And a warning, if the average cannot have such names.
    """
    average = dotless_average(state_dict.names)
    if average is None:
        return rewritten, []
    new = dict(zip(state_dict.names, rewritten.names, strict=True))
    count = average.counters[1]
    prefix = new[count].removesuffix(count.removeprefix(average.prefix))
    renamed = average.renamed(new, prefix) if prefix != new[count] else None
    if renamed is None:
        where = join_path(state_dict.path, average.prefix)
        return rewritten, [f"the average below '{where}' cannot follow: its model lies elsewhere"]
    names = tuple(renamed.get(name, new[name]) for name in state_dict.names)
    return replace(rewritten, names=names), []


def with_dotless_beside(
    state_dicts: Sequence[StateDict], rewritten: Sequence[Rewritten]
) -> list[Rewritten]:
    """Return new names, of which those of a state dict that averages another one without dots are
    made of the other's.
    """
    found: list[Rewritten] = []
    for own, plain in zip(state_dicts, rewritten, strict=True):
        changed = plain
        for model, renamed in zip(state_dicts, rewritten, strict=True):
            flat = {} if model.kind != "model" else dotless_names(own.names, model.names)
            if flat:
                new = dict(zip(model.names, renamed.names, strict=True))
                follow = {old: new[name].replace(".", "") for name, old in flat.items()}
                names = tuple(follow.get(name, name) for name in own.names)
                changed = replace(plain, names=names, rules=())
                break
        found.append(changed)
    return found
