"""Maps of names, old = new: what ``--emit-map`` writes (``rules.parse_name_map`` reads it)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

from ckpt_surgery.errors import UsageError
from ckpt_surgery.matching.correspondence import Correspondence
from ckpt_surgery.names.literals import json_string, toml_string
from ckpt_surgery.names.suggest import near_hint

_MapFormat = Literal["toml", "json"]


def _format_map(renames: Mapping[str, str], form: _MapFormat = "toml", *, comment: str = "") -> str:
    """`renames` as a file that `parse_name_map` reads back; `comment` leads it, in TOML only.

    Raises UsageError for a name that is no valid Unicode (it holds half of a surrogate pair).
    """
    for name in (*renames, *renames.values()):
        if not _is_text(name):
            raise UsageError(f"the name {name!a} is no valid Unicode, so no map can hold it")
    if form == "json":
        pairs = (f" {json_string(old)}: {json_string(new)}" for old, new in renames.items())
        return "{\n" + ",\n".join(pairs) + "\n}\n" if renames else "{}\n"
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    lines += [f"{toml_string(old)} = {toml_string(new)}" for old, new in renames.items()]
    return "".join(f"{line}\n" for line in lines)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_map(renames: Mapping[str, str], source: Iterable[str], target: Iterable[str]) -> None:
    """Raise UsageError if an old name is not in the checkpoint or a new one not in the target."""
    have, want = set(source), set(target)
    for old, new in renames.items():
        if old not in have:
            raise UsageError(
                f"the map renames '{old}', which the checkpoint does not have",
                hint=near_hint(old, have),
            )
        if new not in want:
            raise UsageError(
                f"the map renames '{old}' to '{new}', which the target does not have",
                hint=near_hint(new, want),
            )


def format_proposal(correspondence: Correspondence, form: _MapFormat = "toml") -> str:
    """Return the map of a correspondence, for review; in TOML with how its names were found."""
    ways = Counter(pair.how for pair in correspondence.pairs)
    lines = ["old = new", *(f"found by {how}: {count}" for how, count in ways.items())]
    lines += [f"not used: {name}" for name in correspondence.unmatched_source]
    lines += [f"not found: {name}" for name in correspondence.unmatched_target]
    comment = "\n".join(json.dumps(line, ensure_ascii=True)[1:-1] for line in lines)
    return _format_map(correspondence.renames, form, comment=comment)
