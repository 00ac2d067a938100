"""JSON that comes with weights, read strictly: what readers could take differently is refused."""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

from ckpt_surgery.errors import DamagedFileError

_SHOWN: Final = 200  # characters of what the parser says


def load_object(data: bytes, *, path: str, what: str) -> dict[str, Any]:
    """Return the JSON object in `data`, which messages call `what` of the file `path`.

    Raises `DamagedFileError` if it is no JSON in UTF-8 or no object, if a name stands twice in one
    object, and for NaN, infinities and lone surrogates, which JSON does not have.
    """
    try:
        found = json.loads(
            data.decode("utf-8-sig"), object_pairs_hook=_distinct, parse_constant=_refuse
        )
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"{what} is not UTF-8", path=path) from error
    except RecursionError as error:
        raise DamagedFileError(f"{what} is nested too deeply", path=path) from error
    except ValueError as error:  # what JSON forbids, a number of too many digits, our own checks
        said = str(error)[:_SHOWN].lower()
        raise DamagedFileError(f"{what} is not valid: {said}", path=path) from error
    if not isinstance(found, dict):
        raise DamagedFileError(f"{what} is no JSON object", path=path)
    return found


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    for pair in pairs:
        for text in pair:
            if isinstance(text, str) and not text.isascii():
                text.encode()  # UnicodeEncodeError, which is a ValueError, for a lone surrogate
    return found


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"'{name}' is not JSON")
