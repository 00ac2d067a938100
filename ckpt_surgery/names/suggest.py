"""What choosing and rewriting share: dotted paths, near names, and refusals that suggest them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from ckpt_surgery.errors import UsageError

_LONGEST_PATH: Final = 1024  # characters; a longer name has no module path worth following
_MOST_CANDIDATES: Final = 50_000  # names looked at for a suggestion
_MOST_WANTED: Final = 200  # characters of what near names are looked for
_MOST_COMPARED: Final = 40_000_000  # pairs of characters; a file may have absurd names
_ALIKE: Final = 0.6  # difflib's ratio: twice what is common over the characters of both


def ancestors(path: str) -> Iterator[str]:
    """Yield paths above a dotted path, from the root ``""`` down;
    none but the root if it is absurd.
    """
    if not path:
        return
    yield ""
    if len(path) > _LONGEST_PATH:
        return
    dot = path.find(".")
    while dot != -1:
        if dot:
            yield path[:dot]
        dot = path.find(".", dot + 1)


def with_dot(prefix: str, option: str) -> str:
    bare = prefix.removesuffix(".")
    if not bare:
        raise UsageError(f"'{option.split(maxsplit=1)[0]}' needs at least one segment of a name")
    return f"{bare}."


def compile_regex(regex: str, option: str, *, hint: str | None = None) -> re.Pattern[str]:
    """Compile what `option` gave. Raises UsageError, with `hint` or how to write literal signs."""
    try:
        with warnings.catch_warnings():
            # "possible nested set" is about a future Python, not about this request
            warnings.simplefilter("ignore", FutureWarning)
            return re.compile(regex)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(
            f"'{option}' is no valid pattern: {error}",
            hint=hint or "write a literal dot or bracket as '\\.' or '\\['",
        ) from None


def near(text: str, names: Iterable[str], most: int = 3) -> list[str]:
    """Return names, or dotted prefixes of names, that `text` may
    have meant; the likeliest first.
    """
    import difflib
    from itertools import islice

    wanted = text.replace("\\", "").strip(".*^$")[:_MOST_WANTED]
    if not wanted:
        return []
    known = [name for name in islice(names, _MOST_CANDIDATES) if len(name) <= _LONGEST_PATH]
    ending = _ending(wanted, known)
    folded: dict[str, str] = {}
    for path in _comparable(wanted, known):
        folded.setdefault(path.casefold(), path)
    alike = difflib.get_close_matches(wanted.casefold(), folded, n=4 * most, cutoff=_ALIKE)
    # `layer5` means `layer4` rather than the likelier-looking `layer3.5`
    alike.sort(key=lambda path: abs(path.count(".") - wanted.count(".")))
    return list(dict.fromkeys([*ending, *(folded[match] for match in alike)]))[:most]


def _ending(wanted: str, names: Iterable[str]) -> list[str]:
    """Return names, and dotted prefixes of names, whose last segments are `wanted`."""
    tail = f".{wanted}"
    found: dict[str, None] = {}
    for name in names:
        start = f"{name}.".find(f"{tail}.")
        if start > 0:
            found[name[: start + len(tail)]] = None
    return list(found)


def _comparable(wanted: str, names: Iterable[str]) -> Iterator[str]:
    """Yield names and dotted prefixes of names, none too long or too short to be alike `wanted`."""
    spread = 2 / _ALIKE - 1
    shortest, longest = len(wanted) / spread, int(len(wanted) * spread)
    left = _MOST_COMPARED // len(wanted)
    seen: set[str] = set()
    for name in names:
        for path in (*_short_ancestors(name, longest), name):
            if path in seen or not shortest <= len(path) <= longest:
                continue
            left -= len(path)
            if left < 0:
                return
            seen.add(path)
            yield path


def _short_ancestors(name: str, longest: int) -> Iterator[str]:
    """Yield paths above `name` that have no more characters than `longest`."""
    dot = name.find(".", 1, longest + 1)
    while dot != -1:
        yield name[:dot]
        dot = name.find(".", dot + 1, longest + 1)


def suggestion(text: str, names: Iterable[str]) -> str:
    found = ", ".join(f"'{name}'" for name in near(text, names))
    listing = "'ckpt inspect --keys' lists every name"
    return f"near it: {found}; {listing}" if found else listing


def require_listed(option: str, missing: Sequence[str], names: Iterable[str]) -> None:
    if not missing:
        return
    more = f" and {len(missing) - 1} more names" if len(missing) > 1 else ""
    raise UsageError(
        f"'{option}' lists '{missing[0]}'{more}, which the checkpoint does not have",
        hint=suggestion(missing[0], names),
    )


def near_hint(name: str, candidates: Iterable[str]) -> str | None:
    """Return ``did you mean 'a' or 'b'?``, or None if nothing is near."""
    return did_you_mean(near(name, candidates))


def did_you_mean(names: Sequence[str]) -> str | None:
    """Return a hint at what may have been meant; None if that is nothing."""
    return "did you mean " + " or ".join(f"'{name}'" for name in names) + "?" if names else None
