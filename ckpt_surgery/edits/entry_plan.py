"""Planning what becomes of the entries beside the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ckpt_surgery.checkpoint.description import Checkpoint, join_path
from ckpt_surgery.checkpoint.select import RuleCount
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.drop import DropOther
from ckpt_surgery.edits.entries import RenameEntry, Unwrap, the_one_entry
from ckpt_surgery.edits.plan import Plan, Planned
from ckpt_surgery.errors import UsageError
from ckpt_surgery.names import near
from ckpt_surgery.names.entries import EntryRule, Reached
from ckpt_surgery.torch_objects.entries import Entries, Place


def plan_entry_drops(
    checkpoint: Checkpoint,
    rules: Sequence[EntryRule],
    *,
    keep: bool = False,
    allow_unmatched: bool = False,
) -> tuple[list[Edit], tuple[RuleCount, ...]]:
    """Remove the entries that any rule matches; with `keep` all others, but for state dicts.

    Raises `UsageError` for a rule that matches nothing, or if no weights would remain.
    """
    if not rules:
        return [], ()
    matched = [_matches(checkpoint, rule) for rule in rules]
    for rule, places in zip(rules, matched, strict=True):
        if not places and not allow_unmatched:
            raise _unmatched(checkpoint, rule)
    counts = tuple(RuleCount(r, len(m)) for r, m in zip(rules, matched, strict=True))
    chosen = {place.identity: place for places in matched for place in places}
    places = list(_others_than(checkpoint, chosen) if keep else _outermost(chosen))
    paths = dict.fromkeys(place.path for place in places)
    _require_weights(checkpoint, places)
    return [DropOther(path) for path in paths], counts


def split_by_depth(checkpoint: Checkpoint, drops: Sequence[Edit]) -> tuple[list[Edit], list[Edit]]:
    """Return the drops of whole entries, and those of parts of entries.

    An optimizer is brought in step between them: it goes whole before, and is whole until then.
    """
    listed = {other.path for other in checkpoint.others}

    def is_part(drop: Edit) -> bool:
        path = drop.path if isinstance(drop, DropOther) else ""
        ends = (end for end, sign in enumerate(path) if sign == "/")
        return path not in listed and any(path[:end] in listed for end in ends)

    return [d for d in drops if not is_part(d)], [d for d in drops if is_part(d)]


def plan_entry_renames(checkpoint: Checkpoint, renames: Sequence[tuple[str, str]]) -> list[Edit]:
    """Give entries other keys, one after the other.

    Raises `UsageError` for a path that is not there, or a new key that is none.
    """
    edits: list[Edit] = []
    for old, new in renames:
        if not old or not new or "/" in new:
            raise UsageError(
                f"'--entry {old}={new}' names no key",
                hint="write PATH=KEY, such as state_dict=model; what it lies in stays",
            )
        now = Plan(tuple(edits)).apply(checkpoint)
        if old not in Entries(now).find({old}):
            raise _unmatched(now, EntryRule(old))
        edits.append(RenameEntry(old, new))
    return edits


def unwrapping(checkpoint: Checkpoint, planned: Planned) -> list[Edit]:
    """Take off the dictionary around everything that a plan leaves, which must have one entry."""
    return [Unwrap(the_one_entry(planned.plan.apply(checkpoint)).path)]


def _matches(checkpoint: Checkpoint, rule: EntryRule) -> list[Place]:
    """Return what a rule matches, but for weights; what lies below that is not looked at."""
    weights = {name for name, _ in checkpoint.tensors}
    return [place for place in _reached(checkpoint, rule) if place.path not in weights]


def _reached(checkpoint: Checkpoint, rule: EntryRule) -> list[Place]:
    entries = Entries(checkpoint)
    listed = [other.path for other in checkpoint.others] + [s.path for s in checkpoint.state_dicts]
    if not rule.is_glob or rule.text in listed:
        return list(entries.find({rule.text}).values())
    found: list[Place] = []
    seen: set[tuple[int, Reached]] = set()
    waiting: list[tuple[Iterator[Place], Reached]] = [(entries.top(), rule.start)]
    while waiting:
        places, reached = waiting.pop()
        for place in places:
            now = rule.step(reached, place.name)
            if rule.matches(now):
                found.append(place)
            elif now and (id(place.node), now) not in seen:
                seen.add((id(place.node), now))
                waiting.append((entries.below(place), now))
    return found


def _outermost(chosen: dict[tuple[int, int, str], Place]) -> Iterator[Place]:
    """Yield what is chosen, without what lies below something chosen."""
    for place in chosen.values():
        above = place.above
        while above is not None and above.identity not in chosen:
            above = above.above
        if above is None:
            yield place


def _others_than(
    checkpoint: Checkpoint, chosen: dict[tuple[int, int, str], Place]
) -> Iterator[Place]:
    """Yield all entries but those chosen, what leads to them, and state dicts."""
    leading = set()
    for place in chosen.values():
        above = place.above
        while above is not None and above.identity not in leading:
            leading.add(above.identity)
            above = above.above
    listed = {other.path for other in checkpoint.others}
    entries = Entries(checkpoint)
    waiting = [(entries.top(), False)]
    seen: set[int] = set()
    while waiting:
        places, is_inside = waiting.pop()
        for place in places:
            if place.identity in chosen or place.is_weights:
                continue
            is_beside = is_inside or place.path in listed
            if is_beside and place.identity not in leading:
                if place.holder is not None:
                    yield place
            elif id(place.node) not in seen:
                seen.add(id(place.node))
                waiting.append((entries.below(place), is_beside))


def _unmatched(checkpoint: Checkpoint, rule: EntryRule) -> UsageError:
    entries = Entries(checkpoint)
    known = [place.path for top in entries.top() for place in (top, *entries.below(top))]
    meant = ", ".join(f"'{path}'" for path in near(rule.text, known))
    own = {name: name for s in checkpoint.state_dicts for name in s.names}
    own |= {join_path(s.path, name): name for s in checkpoint.state_dicts for name in s.names}
    if rule.text in own:
        hint = f"it is a name among the weights: --name {own[rule.text]}"
    else:
        hint = f"near it: {meant}" if meant else "'ckpt inspect' lists the entries"
    return UsageError(f"'{rule.option}' matches nothing", path=checkpoint.file.name, hint=hint)


def _require_weights(checkpoint: Checkpoint, places: Sequence[Place]) -> None:
    gone = {place.path for place in places}

    def goes(path: str) -> bool:
        return path in gone or any(path.startswith(f"{each}/") for each in gone)

    if checkpoint.state_dicts and all(goes(s.path) for s in checkpoint.state_dicts):
        raise UsageError(
            "every state dict would be removed",
            path=checkpoint.file.name,
            hint="'--entry' is for what lies beside the weights",
        )
