"""Planning new names for the entries of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ckpt_surgery.checkpoint.description import Checkpoint, StateDict, join_path
from ckpt_surgery.checkpoint.select import RuleCount
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.plan import Plan, Planned
from ckpt_surgery.edits.rename import Rename, RenameModule
from ckpt_surgery.edits.views import views, with_dotless_average, with_dotless_beside
from ckpt_surgery.errors import NameCollisionError, UsageError
from ckpt_surgery.names.metadata import rewrite_metadata
from ckpt_surgery.names.rewrite import (
    RewriteRule,
    Rewritten,
    Unwrap,
    find_collisions,
    require_changes,
    rewrite,
)


def plan_rename(
    checkpoint: Checkpoint, rules: Sequence[RewriteRule], *, at: Sequence[str] = ()
) -> Planned:
    """Rewrite the names of the state dicts, and their ``_metadata`` with them.

    Raises `UsageError` for a rule that changes nothing or makes an empty name, and
    `NameCollisionError` if two entries would get one name.
    """
    if not rules:
        raise UsageError(
            "no rule says what to rename",
            hint="give --strip-prefix, --add-prefix, --replace, --sub, --map or --unwrap",
        )
    seen = views(checkpoint, at, counted_only=any(isinstance(rule, Unwrap) for rule in rules))
    plain = [rewrite(view.state_dict.names, rules) for view in seen]
    try:
        require_changes(rules, plain)
    except UsageError as error:
        kept = next((view for view in seen if view.prefix), None)
        if kept is not None:
            error.hint = (
                f"the average in '{kept.path}' keeps its own '{kept.prefix}'; "
                f"--at {kept.path} is about the names in it"
            )
        raise
    rewritten: list[Rewritten] = []
    warnings: list[str] = []
    for view, each in zip(seen, plain, strict=True):
        followed, left = with_dotless_average(view.state_dict, each)
        rewritten.append(followed)
        warnings += left
    rewritten = with_dotless_beside([view.state_dict for view in seen], rewritten)
    edits: list[Edit] = []
    modules: list[Edit] = []
    must_change = not all(isinstance(rule, Unwrap) for rule in rules)
    for view, each in zip(seen, rewritten, strict=True):
        state_dict = view.state_dict
        _require_good_names(state_dict, each)
        warnings += _with_a_gap(state_dict, each)
        edits += view.translated(_renames(state_dict, each))
        modules += view.translated(_modules(state_dict, each))
        if must_change and list(each.names) == state_dict.names and state_dict.entries:
            warnings.append(
                f"no name in '{state_dict.path}' changes, so it is out of step with the others"
            )
    counts = tuple(
        RuleCount(rule, sum(each.changed[index] for each in rewritten))
        for index, rule in enumerate(rules)
    )
    return Planned(Plan((*edits, *modules)), counts, tuple(warnings))


def _require_good_names(state_dict: StateDict, rewritten: Rewritten) -> None:
    for old, new in zip(state_dict.names, rewritten.names, strict=True):
        if not new:
            raise UsageError(f"'{old}' would get an empty name", entry=state_dict.path or None)
    collisions = find_collisions(state_dict.names, rewritten.names)
    if collisions:
        new, olds = collisions[0]
        more = f" (and {len(collisions) - 1} more such names)" if len(collisions) > 1 else ""
        first, second = olds[:2]
        raise NameCollisionError(
            f"'{first}' and '{second}' would both be called '{new}'{more}",
            entry=state_dict.path or None,
            hint="nothing was written; make the rules tell them apart",
        )


def _with_a_gap(state_dict: StateDict, rewritten: Rewritten) -> list[str]:
    """Return what to say of new names with an empty segment, which no module can have."""
    pairs = zip(state_dict.names, rewritten.names, strict=True)
    found = [new for old, new in pairs if "" in new.split(".") and "" not in old.split(".")]
    if not found:
        return []
    from ckpt_surgery.formats.traits import listed

    names = listed([join_path(state_dict.path, name) for name in found])
    return [f"names with an empty segment, which no module has: {names}"]


def _renames(state_dict: StateDict, rewritten: Rewritten) -> Iterator[Rename]:
    pairs = zip(state_dict.names, rewritten.names, strict=True)
    return (Rename(state_dict.path, old, new) for old, new in pairs if old != new)


def _modules(state_dict: StateDict, rewritten: Rewritten) -> Iterator[RenameModule]:
    """Yield an edit for each record in ``_metadata`` whose module is called otherwise or gone."""
    modules = list(state_dict.metadata or ())
    moved = rewrite_metadata(modules, state_dict.names, rewritten.names, rewritten.rules)
    return (
        RenameModule(state_dict.path, module, moved.get(module))
        for module in modules
        if moved.get(module) != module
    )
