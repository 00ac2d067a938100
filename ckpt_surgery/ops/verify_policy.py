"""What a file may be: rules of a project, read from TOML and checked by `verify`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.checkpoint.findings import Finding
from ckpt_surgery.dtypes import named
from ckpt_surgery.errors import UsageError
from ckpt_surgery.formats import registry
from ckpt_surgery.names import near
from ckpt_surgery.startup.lazy_dataclass import dataclass

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?) ?([kKMGT]i?)?B?")
_UNITS: Final = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    f"{letter}i": 2**power for letter, power in zip("kKMGT", (10, 10, 20, 30, 40), strict=True)
}
_KEYS: Final[Mapping[str, frozenset[str]]] = {
    "file": frozenset({"formats", "max_size", "checksums", "weights_only"}),
    "globals": frozenset({"allow", "deny"}),
    "tensors": frozenset({"dtypes", "names", "deny_names", "max_count", "max_elements"}),
    "entries": frozenset({"allow"}),
}


@dataclass(frozen=True, slots=True)
class Policy:
    """What is allowed; None where there is no rule.

    `globals_allow` and `globals_deny`, `entries_allow` are patterns in which ``*`` stands for any
    text, `names` and `deny_names` regular expressions that names must match in full, or must not.
    Sizes are in bytes.
    """

    formats: tuple[str, ...] | None = None
    max_size: int | None = None
    checksums: bool = False
    weights_only: bool = False
    globals_allow: tuple[str, ...] | None = None
    globals_deny: tuple[str, ...] = ()
    dtypes: tuple[str, ...] | None = None
    names: tuple[re.Pattern[str], ...] | None = None
    deny_names: tuple[re.Pattern[str], ...] = ()
    max_count: int | None = None
    max_elements: int | None = None
    entries_allow: tuple[str, ...] | None = None

    def findings(
        self, checkpoint: Checkpoint, names: tuple[str, ...], *, loads: bool
    ) -> Iterator[Finding]:
        """Yield what of a checkpoint is not allowed.

        `names` are those of its globals, `loads` says whether ``weights_only=True`` loads it.
        """
        if self.formats is not None and checkpoint.format not in self.formats:
            yield _broken(f"the format is '{checkpoint.format}'", "file.formats")
        if self.max_size is not None and checkpoint.size > self.max_size:
            yield _broken(f"the file has {checkpoint.size} bytes", "file.max_size")
        if self.weights_only and not loads:
            yield _broken("weights_only=True does not load the file", "file.weights_only")
        yield from self._globals(names)
        yield from self._tensors(checkpoint)
        for other in checkpoint.others:
            if self.entries_allow is not None and not _matches(other.path, self.entries_allow):
                yield _broken("the entry is not on the list", "entries.allow", other.path)

    def _globals(self, names: tuple[str, ...]) -> Iterator[Finding]:
        for name in names:
            if _matches(name, self.globals_deny):
                yield _broken("the name is denied", "globals.deny", name)
            elif self.globals_allow is not None and not _matches(name, self.globals_allow):
                yield _broken("the name is not on the list", "globals.allow", name)

    def _tensors(self, checkpoint: Checkpoint) -> Iterator[Finding]:
        count = 0
        for state_dict in checkpoint.state_dicts:
            for name, tensor in state_dict.tensors:
                count += 1
                dtype = tensor.dtype.name
                if self.dtypes is not None and dtype not in self.dtypes:
                    yield _broken(f"the type is '{dtype}'", "tensors.dtypes", name)
                if self.max_elements is not None and tensor.numel > self.max_elements:
                    what = f"the tensor has {tensor.numel} elements"
                    yield _broken(what, "tensors.max_elements", name)
                if self.names is not None and not any(p.fullmatch(name) for p in self.names):
                    yield _broken("the name matches none of the list", "tensors.names", name)
                if any(pattern.fullmatch(name) for pattern in self.deny_names):
                    yield _broken("the name is denied", "tensors.deny_names", name)
        if self.max_count is not None and count > self.max_count:
            yield _broken(f"there are {count} tensors", "tensors.max_count")


def _broken(what: str, rule: str, entry: str | None = None) -> Finding:
    return Finding("error", f"{what}, and the policy says otherwise", entry, rule, "policy")


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def parse_policy(text: str, path: str) -> Policy:
    """Read a policy. Raises `UsageError` for anything in it that is not understood."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"'--policy {path}' is not TOML: {str(error)[:200].lower()}") from error
    _require_known(document, path)
    try:
        return _policy(document)
    except (TypeError, ValueError, re.error) as error:
        raise UsageError(f"'--policy {path}': {error}") from error


def _require_known(document: Mapping[str, Any], path: str) -> None:
    for section, content in document.items():
        known = _KEYS.get(section)
        if known is None or not isinstance(content, dict):
            raise _unknown(path, f"section '{section}'", section, _KEYS)
        for key in content:
            if key not in known:
                raise _unknown(path, f"key '{section}.{key}'", key, known)


def _unknown(path: str, what: str, name: str, known: Any) -> UsageError:
    meant = " or ".join(f"'{each}'" for each in near(name, known))
    return UsageError(
        f"'--policy {path}' has an unknown {what}",
        hint=f"did you mean {meant}?" if meant else f"there are: {', '.join(sorted(known))}",
    )


def _policy(document: Mapping[str, Any]) -> Policy:
    file, names = document.get("file", {}), document.get("globals", {})
    tensors, entries = document.get("tensors", {}), document.get("entries", {})
    dtypes = _texts(tensors, "tensors", "dtypes")
    types = {dtype: named(dtype) for dtype in dtypes or ()}
    for dtype, known in types.items():
        if known is None:
            raise ValueError(f"'{dtype}' in tensors.dtypes is no element type of torch")
    formats = _texts(file, "file", "formats")
    for each in formats or ():
        if each not in registry.names():
            raise ValueError(f"'{each}' in file.formats is no format that ckpt reads")
    return Policy(
        formats=formats,
        max_size=_size(file.get("max_size")),
        checksums=_flag(file, "file", "checksums"),
        weights_only=_flag(file, "file", "weights_only"),
        globals_allow=_texts(names, "globals", "allow"),
        globals_deny=_texts(names, "globals", "deny") or (),
        dtypes=None if dtypes is None else tuple(known.name for known in types.values() if known),
        names=_patterns(tensors, "names"),
        deny_names=_patterns(tensors, "deny_names") or (),
        max_count=_number(tensors, "max_count"),
        max_elements=_number(tensors, "max_elements"),
        entries_allow=_texts(entries, "entries", "allow"),
    )


def _texts(section: Mapping[str, Any], name: str, key: str) -> tuple[str, ...] | None:
    found = section.get(key)
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise TypeError(f"{name}.{key} is not a list of texts")
    return tuple(found)


def _patterns(section: Mapping[str, Any], key: str) -> tuple[re.Pattern[str], ...] | None:
    found = _texts(section, "tensors", key)
    return None if found is None else tuple(re.compile(each) for each in found)


def _flag(section: Mapping[str, Any], name: str, key: str) -> bool:
    found = section.get(key, False)
    if not isinstance(found, bool):
        raise TypeError(f"{name}.{key} is neither true nor false")
    return found


def _number(section: Mapping[str, Any], key: str) -> int | None:
    found = section.get(key)
    if found is not None and (type(found) is not int or found < 0):
        raise TypeError(f"tensors.{key} is not a number from 0 on")
    return found


def _size(found: object) -> int | None:
    if found is None:
        return None
    match = _SIZE.fullmatch(found) if isinstance(found, str) else None
    if type(found) is int and found >= 0:
        return found
    if match is None:
        raise TypeError("file.max_size is not a size such as 5000000 or '5 GB'")
    return int(float(match[1]) * _UNITS[match[2] or ""])
