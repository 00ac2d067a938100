"""Names as literals of JSON and TOML, with what does not print as itself escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

_DELETE = "\x7f"
_BARE_KEY: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def json_string(text: str) -> str:
    """Return a JSON string: letters of any script as they are, what does not print escaped."""
    if text.isprintable():
        return json.dumps(text, ensure_ascii=False)
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else _json(c) for c in text) + '"'


def toml_string(text: str) -> str:
    """Return a basic string of TOML. Its escapes are JSON's but for characters beyond 16 bits.

    Half of a surrogate pair, which TOML cannot spell, stays as it is.
    """
    if text.isprintable():
        return json.dumps(text, ensure_ascii=False)
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else _toml(c) for c in text) + '"'


def toml_key(key: str) -> str:
    """Return a key of a TOML table, quoted where it has to be."""
    return key if key and _BARE_KEY.issuperset(key) else toml_string(key)


def toml_value(value: object) -> str:
    """Return a value as TOML has it on one line: a text, a number, a list, an inline table.

    TOML has no null: what is None in a table is left out.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return toml_string(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        items = [f"{toml_key(k)} = {toml_value(v)}" for k, v in value.items() if v is not None]
        return "{ " + ", ".join(items) + " }" if items else "{}"
    return repr(value)


def _json(character: str) -> str:
    return "\\u007f" if character == _DELETE else json.dumps(character)[1:-1]


def _toml(character: str) -> str:
    code = ord(character)
    if 0xD800 <= code <= 0xDFFF:
        return character
    return f"\\U{code:08x}" if code > 0xFFFF else _json(character)
