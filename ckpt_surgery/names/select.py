"""Choosing names: what a rule takes, and what several take together."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import field
from typing import Final, Literal

from ckpt_surgery.errors import UsageError
from ckpt_surgery.names.suggest import compile_regex, require_listed, suggestion, with_dot
from ckpt_surgery.startup.lazy_dataclass import dataclass

RuleKind = Literal["pattern", "prefix", "glob", "name", "keys"]

_OPTIONS: Final[dict[RuleKind, str]] = {
    "pattern": "--pattern",
    "prefix": "--prefix",
    "glob": "--glob",
    "name": "--name",
    "keys": "--keys-from",
}


@dataclass(frozen=True, slots=True)
class Rule:
    """One way of choosing names.

    - ``pattern``: a Python regular expression, found anywhere in the name (``re.search``)
    - ``prefix``: whole dotted segments; ``fc`` and ``fc.`` both take ``fc`` and ``fc.weight``
    - ``glob``: the whole name; ``*`` and ``?`` stay within a segment, ``**`` crosses dots
    - ``name``: this very name
    - ``keys``: exactly `names`; `text` says where the list came from

    Raises `UsageError` for an empty text or a regular expression that does not compile.
    """

    kind: RuleKind
    text: str
    names: frozenset[str] = frozenset()
    _test: Callable[[str], object] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.text:
            hint = "'--pattern .' takes every name" if self.kind == "pattern" else None
            raise UsageError(f"'{_OPTIONS[self.kind]}' is empty", hint=hint)
        object.__setattr__(self, "_test", self._make_test())

    def _make_test(self) -> Callable[[str], object]:
        if self.kind == "keys":
            return self.names.__contains__
        if self.kind == "name":
            return self.text.__eq__
        if self.kind == "pattern":
            return compile_regex(self.text, self.option, hint=_glob_hint(self.text)).search
        if self.kind == "glob":
            return compile_regex(_glob_to_regex(self.text), self.option).fullmatch
        prefix = with_dot(self.text, self.option)
        return lambda name: name.startswith(prefix) or name == prefix[:-1]

    def matches(self, name: str) -> bool:
        return bool(self._test(name))

    @property
    def option(self) -> str:
        """The rule as it was asked for: ``--pattern fc``."""
        return f"{_OPTIONS[self.kind]} {self.text}"

    def to_dict(self) -> dict[str, object]:
        found: dict[str, object] = {"kind": self.kind, "text": self.text}
        return found | {"names": sorted(self.names)} if self.kind == "keys" else found


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a selection takes of some names: `chosen`, and how many names each rule matched."""

    chosen: frozenset[str]
    counts: tuple[tuple[Rule, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Selection:
    """Names that any of `rules` matches; with `keep`, all the others.

    No rules choose nothing. Raises `UsageError` for `keep` without a rule, which would choose
    everything.
    """

    rules: tuple[Rule, ...] = ()
    keep: bool = False
    allow_unmatched: bool = False

    def __post_init__(self) -> None:
        if self.keep and not self.rules:
            raise UsageError(
                "'--keep' inverts a selection, and there is none",
                hint="say what to keep with '--pattern', '--prefix', '--glob' or '--keys-from'",
            )

    def choose(self, names: Sequence[str]) -> Chosen:
        matched: set[str] = set()
        counts = []
        for rule in self.rules:
            hits = {name for name in names if rule.matches(name)}
            counts.append((rule, len(hits)))
            matched |= hits
        chosen = set(names) - matched if self.keep else matched
        return Chosen(frozenset(chosen), tuple(counts))

    def require_matches(self, counts: Iterable[tuple[Rule, int]], names: Collection[str]) -> None:
        """Refuse a rule that matched nothing, and a listed key that does not exist.

        `counts` may be summed over several mappings of names, `names` being all of theirs.
        Raises `UsageError` unless `allow_unmatched`.
        """
        if self.allow_unmatched:
            return
        for rule, count in counts:
            if rule.kind == "keys":
                if not rule.names:
                    raise UsageError(f"'{rule.option}' lists no names")
                existing = set(names)
                require_listed(
                    rule.option, [key for key in sorted(rule.names) if key not in existing], names
                )
            elif not count:
                hint = _other_kind_hint(rule, names) or suggestion(rule.text, names)
                raise UsageError(f"'{rule.option}' matches nothing", hint=hint)


_GLOB_SIGNS: Final = re.compile(r"(?<![.\])\\w])\*")
"""A star that repeats nothing, as in ``*.weight``: a glob's, not a regular expression's."""


def _glob_hint(text: str) -> str | None:
    """Return what to say of a text that is no regular expression but looks like a glob."""
    return f"for a glob write --glob '{text}'" if _GLOB_SIGNS.search(text) else None


def _other_kind_hint(rule: Rule, names: Collection[str]) -> str | None:
    """Return the rule of another kind that the text of `rule`, which matches nothing, would be."""
    candidates: list[tuple[RuleKind, str]] = []
    if rule.kind == "glob":
        candidates = [("glob", re.sub(r"\*+", "**", rule.text)), ("pattern", rule.text)]
    elif rule.kind == "pattern":
        candidates = [("glob", rule.text), ("name", rule.text)]
    elif rule.kind in {"prefix", "name"}:
        candidates = [("glob", rule.text)] if "*" in rule.text else [("prefix", rule.text)]
    for kind, text in candidates:
        try:
            other = Rule(kind, text)
        except UsageError:
            continue
        count = sum(map(other.matches, names))
        if count and other != rule:
            crosses = "; '*' stays within a segment, '**' crosses dots" if "**" in text else ""
            found = "1 name" if count == 1 else f"{count:,} names"
            return f"{_OPTIONS[kind]} '{text}' matches {found}{crosses}"
    return None


def selection(
    *,
    pattern: str | Sequence[str] = (),
    prefix: str | Sequence[str] = (),
    glob: str | Sequence[str] = (),
    name: str | Sequence[str] = (),
    keys: Iterable[str] | None = None,
    keep: bool = False,
    allow_unmatched: bool = False,
) -> Selection:
    """Return a `Selection` from the texts of its rules:
    ``selection(pattern="fc", prefix=["layer4"])``.

    `keys` are exact names. Raises `UsageError` as `Rule` and `Selection` do.
    """
    rules: list[Rule] = []
    kinds: tuple[tuple[RuleKind, str | Sequence[str]], ...] = (
        ("pattern", pattern),
        ("prefix", prefix),
        ("glob", glob),
        ("name", name),
    )
    for kind, texts in kinds:
        rules += (Rule(kind, text) for text in ([texts] if isinstance(texts, str) else texts))
    if keys is not None:
        rules.append(Rule("keys", "keys", frozenset(keys)))
    return Selection(tuple(rules), keep, allow_unmatched)


def parse_key_list(text: str) -> frozenset[str]:
    """Return the names in a ``--keys-from`` file: one a line, as ``inspect --keys`` prints them."""
    lines = (line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n"))
    return frozenset(line for line in lines if line.strip())


def _glob_to_regex(glob: str) -> str:
    parts = []
    for part in re.findall(r"\*\*|\[!?\]?[^\]]*\]|.", glob, re.DOTALL):
        if part == "**":
            parts.append(".*")
        elif part == "*":
            parts.append("[^.]*")
        elif part == "?":
            parts.append("[^.]")
        elif len(part) > 1:
            parts.append(_bracket_to_regex(part))
        else:
            parts.append(re.escape(part))
    return f"(?s:{''.join(parts)})"


def _bracket_to_regex(bracket: str) -> str:
    """``[a-c]`` or ``[!a-c]`` as a set of characters that never takes the dot between segments."""
    inside = bracket[1:-1]
    negated = inside.startswith("!")
    escaped = re.sub(r"[\\\[\]^&~|]", r"\\\g<0>", inside[negated:])
    return rf"(?!\.)[{'^' if negated else ''}{escaped}]"
