"""Rewriting names: rules applied one after the other, and what each of them changed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field

from ckpt_surgery.errors import UsageError
from ckpt_surgery.names.select import Selection
from ckpt_surgery.names.spellings import NAMED_WRAPPERS
from ckpt_surgery.names.suggest import compile_regex, require_listed, suggestion, with_dot
from ckpt_surgery.startup.lazy_dataclass import dataclass

_COUNTER = "n_averaged"  # stands beside what AveragedModel wraps


@dataclass(frozen=True, slots=True)
class StripPrefix:
    """Take whole leading segments off, once: ``module`` and ``module.`` say the same."""

    prefix: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix", with_dot(self.prefix, "--strip-prefix"))

    def apply(self, name: str) -> str:
        return name.removeprefix(self.prefix)

    @property
    def option(self) -> str:
        return f"--strip-prefix {self.prefix}"

    def to_dict(self) -> dict[str, object]:
        return {"rule": "strip-prefix", "prefix": self.prefix}


@dataclass(frozen=True, slots=True)
class AddPrefix:
    """Put leading segments before every name; the dot after them is understood."""

    prefix: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix", with_dot(self.prefix, "--add-prefix"))

    def apply(self, name: str) -> str:
        return self.prefix + name

    @property
    def option(self) -> str:
        return f"--add-prefix {self.prefix}"

    def to_dict(self) -> dict[str, object]:
        return {"rule": "add-prefix", "prefix": self.prefix}


@dataclass(frozen=True, slots=True)
class Replace:
    """Replace every occurrence of a text, wherever in the name it stands."""

    old: str
    new: str

    def __post_init__(self) -> None:
        if not self.old:
            raise UsageError("'--replace' has an empty text to look for")

    def apply(self, name: str) -> str:
        return name.replace(self.old, self.new)

    @property
    def option(self) -> str:
        return f"--replace {self.old} {self.new or repr('')}"

    def to_dict(self) -> dict[str, object]:
        return {"rule": "replace", "old": self.old, "new": self.new}


@dataclass(frozen=True, slots=True)
class Delete:
    """Take every occurrence of a text out, wherever in the name it stands."""

    text: str

    def __post_init__(self) -> None:
        if not self.text:
            raise UsageError("'--delete' has an empty text to look for")

    def apply(self, name: str) -> str:
        return name.replace(self.text, "")

    @property
    def option(self) -> str:
        return f"--delete {self.text}"

    def to_dict(self) -> dict[str, object]:
        return {"rule": "delete", "text": self.text}


@dataclass(frozen=True, slots=True)
class Substitute:
    """``re.sub``: `regex` is a Python regular expression, `repl` may name its groups.

    Raises `UsageError` for an expression or a group reference that cannot work.
    """

    regex: str
    repl: str
    _compiled: re.Pattern[str] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        compiled = compile_regex(self.regex, self.option)
        try:
            compiled.sub(self.repl, "")  # reads the references even though nothing matches
        except (re.error, IndexError) as error:
            raise UsageError(
                f"'{self.option}' has a bad replacement '{self.repl}': {error}",
                hint="refer to groups of the pattern as '\\1' or '\\g<name>'",
            ) from None
        object.__setattr__(self, "_compiled", compiled)

    def apply(self, name: str) -> str:
        return self._compiled.sub(self.repl, name)

    @property
    def option(self) -> str:
        return f"--sub {self.regex} {self.repl or repr('')}"

    def to_dict(self) -> dict[str, object]:
        return {"rule": "sub", "regex": self.regex, "repl": self.repl}


@dataclass(frozen=True, slots=True)
class MapNames:
    """Exact names, old to new; `source` is the file that lists them."""

    names: Mapping[str, str]
    source: str = "MAP"

    def apply(self, name: str) -> str:
        return self.names.get(name, name)

    @property
    def option(self) -> str:
        return f"--map {self.source}"

    def to_dict(self) -> dict[str, object]:
        return {"rule": "map", "source": self.source, "names": dict(self.names)}


@dataclass(frozen=True, slots=True)
class Unwrap:
    """Take the segments of known wrappers off, however nested, if there are any.

    Those that no model has by itself (``_orig_mod``, …) go wherever they stand; ``module`` only
    from the front, and if all names have it. With `model` Lightning's ``model`` goes as well, once,
    from the names that have it. `prefix` is what goes from the front, known for given names only.
    """

    model: bool = False
    prefix: str = ""

    def resolved(self, names: Sequence[str]) -> Unwrap:
        """Return the rule as it is for these names."""
        prefix, asked = "", self.model
        group = [self._inner(name) for name in names if name != _COUNTER]
        while group:
            if all(name.startswith(f"{prefix}module.") for name in group):
                prefix += "module."
                continue
            inside = [name for name in group if name.startswith(f"{prefix}model.")]
            if not asked or not inside:
                break
            prefix, asked, group = f"{prefix}model.", False, inside
        return Unwrap(self.model, prefix)

    def _inner(self, name: str) -> str:
        *modules, last = name.split(".")
        return ".".join([*(part for part in modules if part not in NAMED_WRAPPERS), last])

    def apply(self, name: str) -> str:
        return self._inner(name).removeprefix(self.prefix)

    @property
    def option(self) -> str:
        return "--unwrap-model" if self.model else "--unwrap"

    def to_dict(self) -> dict[str, object]:
        return {"rule": "unwrap-model" if self.model else "unwrap"}


@dataclass(frozen=True, slots=True)
class Within:
    """Another rule, for those names alone that `selection` takes when its turn comes."""

    rule: RewriteRule
    selection: Selection

    def apply(self, name: str) -> str:
        taken = any(rule.matches(name) for rule in self.selection.rules)
        return name if taken == self.selection.keep else self.rule.apply(name)

    @property
    def option(self) -> str:
        return self.rule.option

    def to_dict(self) -> dict[str, object]:
        rules = [rule.to_dict() for rule in self.selection.rules]
        return self.rule.to_dict() | {"except" if self.selection.keep else "within": rules}


RewriteRule = StripPrefix | AddPrefix | Replace | Delete | Substitute | MapNames | Unwrap | Within


def parse_name_map(text: str, source: str, option: str = "--map") -> MapNames:
    """Return the file `source` of ``--map``: TOML, or JSON if it starts
    with ``{``; old name = new name.

    TOML reads ``conv1.weight = "x"`` as a table in a table; it is taken as the dotted name that
    it looks like. Raises `UsageError` if the text is neither, or holds anything but names.
    """
    import json
    import tomllib

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(found := dict(pairs)) != len(pairs):
            raise ValueError("a name is given twice")
        return found

    text = text.removeprefix("\ufeff")
    is_json = text.lstrip().startswith("{")
    try:
        document = json.loads(text, object_pairs_hook=unique) if is_json else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"'{option} {source}' is not {'JSON' if is_json else 'TOML'}: {error}",
            hint='write lines such as \'"old.name" = "new.name"\'',
        ) from None
    return MapNames(dict(_flatten(document, f"{option} {source}")), source)


def _flatten(document: Mapping[str, object], file: str) -> Iterator[tuple[str, str]]:
    """Leaves of nested tables as (dotted name, text), in order."""
    seen: set[str] = set()
    waiting = [iter([(key, value) for key, value in document.items()])]
    while waiting:
        key, value = next(waiting[-1], (None, None))
        if key is None:
            waiting.pop()
        elif isinstance(value, dict):
            waiting.append(iter([(f"{key}.{below}", leaf) for below, leaf in value.items()]))
        elif not isinstance(value, str):
            raise UsageError(f"'{file}' gives '{key}' a new name that is no text")
        elif key in seen:
            raise UsageError(f"'{file}' names '{key}' twice")
        else:
            seen.add(key)
            yield key, value


@dataclass(frozen=True, slots=True)
class Rewritten:
    """Names after every rule, aligned with the names before.

    `changed` counts the names that each rule changed; `stages` are the names as each rule found
    them, and `rules` what each was for these names.
    """

    names: tuple[str, ...]
    changed: tuple[int, ...]
    stages: tuple[tuple[str, ...], ...] = field(default=(), repr=False)
    rules: tuple[RewriteRule, ...] = field(default=(), repr=False)


def rewrite(names: Sequence[str], rules: Sequence[RewriteRule]) -> Rewritten:
    """Return each rule in turn on what the one before it made.
    Collisions are for the caller to find.

    Raises `UsageError` if a rule brings in what is no text: bytes of the command line that are not
    UTF-8 come as lone surrogates.
    """
    stages = [tuple(names)]
    changed = []
    known: list[RewriteRule] = []
    for given in rules:
        before = stages[-1]
        rule = given.resolved(before) if isinstance(given, Unwrap) else given
        known.append(rule)
        after = tuple(rule.apply(name) for name in before)
        if any(_is_text(old) and not _is_text(new) for old, new in zip(before, after, strict=True)):
            raise UsageError(
                f"'{rule.option}' makes names that are no text",
                hint="the terminal or the script writes another encoding than Python reads",
            )
        changed.append(sum(old != new for old, new in zip(before, after, strict=True)))
        stages.append(after)
    return Rewritten(stages[-1], tuple(changed), tuple(stages[:-1]), tuple(known))


def _is_text(name: str) -> bool:
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_changes(rules: Sequence[RewriteRule], rewritten: Sequence[Rewritten]) -> None:
    """Refuse a rule that changed no name of any of the rewritten mappings; `Unwrap` may.

    A map must find every old name that it lists. Raises `UsageError`.
    """
    for index, rule in enumerate(rules):
        names = list(dict.fromkeys(name for each in rewritten for name in each.stages[index]))
        if isinstance(rule, Within):
            _require_matches(rule.selection, names)
        elif isinstance(rule, MapNames):
            existing = set(names)
            require_listed(rule.option, [old for old in rule.names if old not in existing], names)
        if not isinstance(rule, Unwrap) and not any(each.changed[index] for each in rewritten):
            raise _changes_nothing(rule, names)


def _require_matches(selection: Selection, names: Sequence[str]) -> None:
    """Raise `UsageError` if a rule of the selection takes none of the names."""
    selection.require_matches(selection.choose(names).counts, names)


def find_collisions(old: Sequence[str], new: Sequence[str]) -> list[tuple[str, list[str]]]:
    """New names that more than one old name would get, with those, in order."""
    sources: dict[str, list[str]] = {}
    for before, after in zip(old, new, strict=True):
        sources.setdefault(after, []).append(before)
    return [(after, olds) for after, olds in sources.items() if len(olds) > 1]


def _changes_nothing(rule: RewriteRule, names: Iterable[str]) -> UsageError:
    hint: str | None = None
    match rule:
        case StripPrefix(prefix=text) | Replace(old=text) | Substitute(regex=text):
            hint = suggestion(text, names)
        case Delete(text=text):
            hint = suggestion(text, names)
    return UsageError(f"'{rule.option}' changes no name", hint=hint)
