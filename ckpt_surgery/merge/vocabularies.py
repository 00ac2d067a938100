"""Vocabularies of tokenizers beside models: which token each row of an embedding is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ckpt_surgery.errors import MismatchError, ReadError
from ckpt_surgery.formats.strict_json import load_object
from ckpt_surgery.startup.lazy_dataclass import dataclass

_WHOLE: Final = "tokenizer.json"
_PLAIN: Final = "vocab.json"
_ADDED: Final = "added_tokens.json"
_BESIDE: Final = (
    *("tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "merges.txt"),
    *("chat_template.jinja", "chat_template.json"),
)
_MAX_BYTES: Final = 1 << 27


@dataclass(frozen=True, slots=True)
class _Tokens:
    """What the tokenizer in a folder knows: `plain` and `added` tokens and their rows."""

    folder: Path
    plain: Mapping[str, int]
    added: Mapping[str, int]

    @property
    def all(self) -> dict[str, int]:
        return {**self.plain, **self.added}


@dataclass(frozen=True, slots=True)
class Vocabularies:
    """The tokens of the files of a merge, and those of its result, in the order of their rows.

    `files` are all files with what is known of their tokens, `base` is the one whose rows are
    taken for tokens that another lacks, `donor` the one whose tokenizer the result has; with
    `is_union` it also knows the tokens of all others.
    """

    files: Mapping[str, Mapping[str, int]]
    wanted: tuple[str, ...]
    base: str
    donor: Path
    is_union: bool = False
    notes: tuple[str, ...] = ()

    @property
    def are_one(self) -> bool:
        """Whether every row stays where it is."""
        own = {token: row for row, token in enumerate(self.wanted)}
        return all(dict(each) == own for each in self.files.values())

    @property
    def folders(self) -> set[Path]:
        """Where the tokenizers are that were read."""
        return {self.donor, *map(_folder, self.files)}

    def tokenizer_files(self) -> dict[str, bytes]:
        """Return the files of the result's tokenizer by their names."""
        found = {}
        for name in (_WHOLE, _PLAIN, _ADDED, *_BESIDE):
            if (self.donor / name).is_file():
                found[name] = _bytes(self.donor / name)
        if self.is_union:
            known = _tokens(self.donor)
            more = [t for t in self.wanted if known is None or t not in known.all]
            _add_tokens(found, more, {t: row for row, t in enumerate(self.wanted)}, self)
        return found


def _add_tokens(
    found: dict[str, bytes], more: Sequence[str], rows: Mapping[str, int], said: Vocabularies
) -> None:
    """Let the files of a tokenizer know more tokens, as `add_tokens` of transformers does."""
    if not more:
        return
    if _WHOLE not in found:
        added = json.loads(found[_ADDED]) if _ADDED in found else {}
        added |= {token: rows[token] for token in more}
        found[_ADDED] = _json(added)
        return
    content = json.loads(found[_WHOLE])
    own = {each["content"]: each for each in _added_elsewhere(said)}
    for token in more:
        plain = {
            "single_word": False, "lstrip": False, "rstrip": False, "normalized": True,
            "special": False,
        }  # fmt: skip
        known = {k: v for k, v in own.get(token, {}).items() if k in plain}
        entry = {"id": rows[token], "content": token, **plain, **known}
        content.setdefault("added_tokens", []).append(entry)
    found[_WHOLE] = _json(content)


def _added_elsewhere(said: Vocabularies) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for file in said.files:
        whole = _folder(file) / _WHOLE
        if whole.is_file():
            found += (
                load_object(_bytes(whole), path=str(whole), what=_WHOLE).get("added_tokens") or []
            )
    return found[::-1]  # of several that know it, the first says how


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def vocabularies(files: Sequence[str], base: str, source: str) -> Vocabularies | str:
    """Return the tokens of `files` and of their merge; or a text, if they are not known.

    `source` is ``union``, ``base``, or the model whose tokenizer the result has. A file without a
    tokenizer is taken to have the base's, as mergekit does. Raises `MismatchError` if tokens have
    numbers that are no rows, and `ReadError` for files of another kind.
    """
    known = {file: _tokens(_folder(file)) for file in dict.fromkeys([base, *files])}
    donor = base if source in ("union", "base") else source
    own, chosen = known[base], known.get(donor) or _tokens(_folder(donor))
    if own is None or chosen is None:
        lacking = base if own is None else donor
        return f"'{_WHOLE}' is not beside '{lacking}': it is not known which tokens its rows are"
    notes = [
        f"'{_WHOLE}' is not beside '{file}': it is not known which tokens its rows are; those of "
        f"'{base}' are assumed"
        for file, each in known.items()
        if each is None
    ]
    wanted = dict(chosen.all)
    if source == "union":
        for each in known.values():
            for part in () if each is None else (each.plain, each.added):
                for token in sorted(part, key=part.__getitem__):
                    wanted.setdefault(token, len(wanted))
    order = sorted(wanted, key=wanted.__getitem__)
    if [wanted[token] for token in order] != list(range(len(order))):
        raise MismatchError(
            "the numbers of its tokens have gaps, or two have one number",
            path=chosen.folder / _WHOLE,
            hint="rows cannot be counted off by them",
        )
    tokens = {file: own.all if each is None else each.all for file, each in known.items()}
    found = Vocabularies(tokens, tuple(order), base, chosen.folder, source == "union", ())
    if found.are_one:
        notes.append("the models have one vocabulary, which the result has, too")
    else:
        notes.append(
            f"rows of embeddings are put into the order of {len(order):,} tokens; 'config.json' is "
            f"not written: its 'vocab_size' has to be {len(order)}"
        )
    return Vocabularies(tokens, tuple(order), base, chosen.folder, source == "union", tuple(notes))


def _folder(file: str) -> Path:
    place = Path(file)
    return place if place.is_dir() else place.parent


def _tokens(folder: Path) -> _Tokens | None:
    """Return the tokens of the tokenizer in a folder; None if there is none that is known.

    Raises `ReadError` for a file of another kind.
    """
    whole, plain = folder / _WHOLE, folder / _PLAIN
    if whole.is_file():
        found = load_object(_bytes(whole), path=str(whole), what=_WHOLE)
        return _Tokens(folder, _of_model(found, whole), _of_added(found, whole))
    if not plain.is_file():
        return None
    added = folder / _ADDED
    more = load_object(_bytes(added), path=str(added), what=_ADDED) if added.is_file() else {}
    tokens = load_object(_bytes(plain), path=str(plain), what=_PLAIN)
    return _Tokens(folder, _rows(tokens, plain), _rows(more, added))


def _of_model(found: Mapping[str, Any], file: Path) -> dict[str, int]:
    model: Any = found.get("model")
    tokens: Any = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(tokens, list):  # Unigram has pairs of a token and its score
        pairs = (each if isinstance(each, list) and each else [None] for each in tokens)
        tokens = {pair[0]: number for number, pair in enumerate(pairs)}
    if not isinstance(tokens, dict):
        raise ReadError("has no vocabulary", path=file)
    return _rows(tokens, file)


def _of_added(found: Mapping[str, Any], file: Path) -> dict[str, int]:
    added: Any = found.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(each, dict) for each in added):
        raise ReadError("has no list of added tokens", path=file)
    return _rows({each.get("content"): each.get("id") for each in added}, file)


def _rows(tokens: Mapping[Any, Any], file: Path) -> dict[str, int]:
    """Return tokens and their rows. Raises `ReadError` for anything else."""
    for token, row in tokens.items():
        if not isinstance(token, str) or type(row) is not int or row < 0:
            raise ReadError(f"the token {token!r} has the number {row!r}", path=file)
    return dict(tokens)


def _bytes(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ReadError(f"cannot be read: {error.strerror}", path=file) from error
    if len(data) > _MAX_BYTES:
        raise ReadError("is larger than any tokenizer", path=file)
    return data
