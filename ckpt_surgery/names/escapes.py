"""Names with everything that does not print as escapes, and back."""

from __future__ import annotations

import re
from typing import Final

_ESCAPE: Final = re.compile(r"\\(?:[\\nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")


def escaped(text: str) -> str | None:
    """Return `text` with what does not print, and backslashes, as escapes; None if it has none."""
    if text.isprintable() and "\\" not in text:
        return None
    return "".join(
        c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def unescaped(text: str) -> str:
    """Return the text that `escaped`, or ``sha256sum``, wrote like this."""
    return _ESCAPE.sub(lambda match: match[0].encode("ascii").decode("unicode_escape"), text)
