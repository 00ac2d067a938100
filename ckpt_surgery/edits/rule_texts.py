"""What the texts of rules mean: selections, what a pattern captures, names made of that."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from ckpt_surgery.names import Rule, RuleKind

_KINDS: Final[dict[str, RuleKind]] = {
    "pattern": "pattern", "prefix": "prefix", "glob": "glob", "name": "name",
}  # fmt: skip

_GLOB_SIGNS: Final = re.compile(r"[*?\[]")


def selection_rule(text: str, names: Sequence[str]) -> Rule:
    """Return the rule that a selection in a text means.

    ``glob:``, ``pattern:``, ``prefix:`` and ``name:`` say it; otherwise it is a glob if it has
    its signs, a name if there is one, else a prefix.
    """
    kind, colon, rest = text.partition(":")
    if colon and kind in _KINDS:
        return Rule(_KINDS[kind], rest)
    if _GLOB_SIGNS.search(text):
        return Rule("glob", text)
    return Rule("name" if text in names else "prefix", text)


def captured(text: str, names: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the names that a glob or ``pattern:RE`` matches, with what its stars or groups took."""
    if text.startswith("pattern:"):
        try:
            regex = re.compile(text.removeprefix("pattern:"))
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from error
    else:
        glob = re.escape(text.removeprefix("glob:").removeprefix("name:"))
        parts = re.sub(r"\\\*\\\*|\\\*", lambda m: "(.*)" if len(m[0]) > 2 else "([^.]*)", glob)
        regex = re.compile(parts)
    for name in names:
        if match := regex.fullmatch(name):
            yield name, match.groups()


def target_name(name: str, text: str, groups: tuple[str, ...]) -> str:
    r"""Return the name that a result gets.

    Stars and ``\1`` stand for what was captured; a text without takes the place of as many
    segments at the end of `name` as it has itself, but after ``name:`` that of the whole.
    """
    if text in {"", "name:"}:
        raise ValueError("a name is empty")
    if text.startswith("name:"):
        return text.removeprefix("name:")
    if "*" in text or re.search(r"\\\d", text):
        waiting = iter(groups)
        filled = re.sub(r"\*\*?", lambda _: next(waiting, ""), text)
        return re.sub(r"\\(\d)", lambda m: ("", *groups)[int(m[1])], filled)
    segments = name.split(".")
    kept = segments[: max(len(segments) - len(text.split(".")), 0)]
    return ".".join([*kept, text])
