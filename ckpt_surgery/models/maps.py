"""Maps of names, old = new: what ``--emit-map`` writes and ``--rename-map`` reads."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from ckpt_surgery.errors import NameCollisionError, UsageError
from ckpt_surgery.models.correspondence import Correspondence
from ckpt_surgery.models.specs import near_hint

MapFormat = Literal["toml", "json"]


def parse_map(text: str, *, path: str | None = None) -> dict[str, str]:
    """Old name to new, from JSON (if `text` starts with a brace) or TOML.

    In TOML a name is a quoted key; tables are joined with dots, so ``fc.weight = "head.weight"``
    means what it looks like. Raises UsageError if it is neither, or maps to anything but a
    non-empty name, NameCollisionError if two old names get one new name.
    """
    try:
        document = _parse_json(text) if text.lstrip()[:1] == "{" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the map is not readable: {error}", path=path) from error
    renames = dict(_flatten(document, path))
    owner: dict[str, str] = {}
    for old, new in renames.items():
        if new in owner:
            raise NameCollisionError(
                f"the map gives '{owner[new]}' and '{old}' the same name '{new}'", path=path
            )
        owner[new] = old
    return renames


def _parse_json(text: str) -> dict[str, Any]:
    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"'{next(key for key in keys if keys.count(key) > 1)}' is there twice")
        return result

    document: dict[str, Any] = json.loads(text, object_pairs_hook=without_repeats)
    return document


def _flatten(document: Mapping[str, Any], path: str | None) -> Iterable[tuple[str, str]]:
    pending = list(reversed(list(document.items())))
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending.extend((f"{name}.{key}", inner) for key, inner in reversed(list(value.items())))
        elif isinstance(value, str) and value and name:
            yield name, value
        else:
            raise UsageError(
                f"the map gives '{name}' no name but {value!r}",
                path=path,
                hint='write \'"old.name" = "new.name"\'',
            )


def format_map(renames: Mapping[str, str], form: MapFormat = "toml", *, comment: str = "") -> str:
    """`renames` as a file that `parse_map` reads back; `comment` leads it, in TOML only."""
    if form == "json":
        return json.dumps(dict(renames), indent=1, ensure_ascii=False) + "\n"
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    lines += [f"{_toml_string(old)} = {_toml_string(new)}" for old, new in renames.items()]
    return "".join(f"{line}\n" for line in lines)


def _toml_string(text: str) -> str:
    # JSON's escapes are TOML's too, but TOML wants DEL escaped, and knows no lone surrogates
    quoted = json.dumps(text, ensure_ascii=False)
    return re.sub("[\x7f\ud800-\udfff]", lambda m: f"\\u{ord(m[0]):04x}", quoted)


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


def format_proposal(correspondence: Correspondence, form: MapFormat = "toml") -> str:
    """The map of a correspondence, for review; in TOML with how its names were found."""
    ways: dict[str, int] = {}
    for pair in correspondence.pairs:
        ways[pair.how] = ways.get(pair.how, 0) + 1
    lines = ["old = new", *(f"found by {how}: {count}" for how, count in ways.items())]
    lines += [f"not used: {name}" for name in correspondence.unmatched_source]
    lines += [f"not found: {name}" for name in correspondence.unmatched_target]
    comment = "\n".join(json.dumps(line, ensure_ascii=True)[1:-1] for line in lines)
    return format_map(correspondence.renames, form, comment=comment)
