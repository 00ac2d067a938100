"""Vocabularies of tokenizers beside models: whether rows of embeddings mean the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ckpt_surgery.errors import MismatchError, ReadError
from ckpt_surgery.formats.strict_json import load_object

_NAME: Final = "tokenizer.json"
_MAX_BYTES: Final = 1 << 27


def same_vocabularies(files: Sequence[str]) -> str:
    """Return what to say of the vocabularies of models, which are the same as far as is known.

    Raises `MismatchError` if two of them give a token another number, or do not both have it: rows
    of embeddings would be mixed that mean other tokens.
    """
    known: dict[str, dict[str, int]] = {}
    unknown = []
    for file in files:
        place = Path(file)
        found = (place if place.is_dir() else place.parent) / _NAME
        if found.is_file():
            known[file] = _vocabulary(found)
        else:
            unknown.append(file)
    if unknown:
        return f"'{_NAME}' is not beside '{unknown[0]}': it is not known which tokens its rows are"
    first, *others = known
    for other in others:
        _require_same(known[first], known[other], first, other)
    return "the models have one vocabulary, which the result has, too"


def _require_same(one: dict[str, int], other: dict[str, int], first: str, second: str) -> None:
    if one == other:
        return
    token = next(t for t in (*one, *other) if one.get(t) != other.get(t))
    rows = " and ".join(str(each.get(token, "no row")) for each in (one, other))
    raise MismatchError(
        f"the vocabularies of '{first}' and '{second}' differ: {token!r} is {rows}",
        path=second,
        hint="rows of embeddings are not moved to another vocabulary; merge all but these with "
        "filters, or give the models one tokenizer",
    )


def _vocabulary(file: Path) -> dict[str, int]:
    """Return the number of every token. Raises `ReadError` for a file of another kind."""
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ReadError(f"cannot be read: {error.strerror}", path=file) from error
    if len(data) > _MAX_BYTES:
        raise ReadError("is larger than any tokenizer", path=file)
    found = load_object(data, path=str(file), what=_NAME)
    model: Any = found.get("model")
    tokens: Any = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(tokens, list):  # Unigram has pairs of a token and its score
        tokens = {pair[0]: number for number, pair in enumerate(tokens)}
    if not isinstance(tokens, dict):
        raise ReadError("has no vocabulary", path=file)
    added = found.get("added_tokens") or []
    return {**tokens, **{each["content"]: each["id"] for each in added}}
