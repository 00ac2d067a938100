"""Names as literals of JSON and TOML, with what does not print as itself escaped."""

from __future__ import annotations

import json

_DELETE = "\x7f"


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


def _json(character: str) -> str:
    return "\\u007f" if character == _DELETE else json.dumps(character)[1:-1]


def _toml(character: str) -> str:
    code = ord(character)
    if 0xD800 <= code <= 0xDFFF:
        return character
    return f"\\U{code:08x}" if code > 0xFFFF else _json(character)
