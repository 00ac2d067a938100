"""What `hash` found: the digests of models and files, or whether those of a list are right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from typing import Any, Final, Literal

from ckpt_surgery.reports import Failure, envelope
from ckpt_surgery.startup.lazy_dataclass import dataclass

_ALGORITHM: Final = "ckpt1"
"""The name of the definition in ``docs/hash.md``."""

Status = Literal["ok", "differs", "unreadable"]


@dataclass(frozen=True, slots=True)
class ModelDigest:
    """The digest of one state dict.

    `digest` is ``ckpt1:`` and 64 hexadecimal digits. `address` is what a list calls it: the file,
    and ``#path`` where the file has several. `tensors` are those of its tensors by name, `left_out`
    the names of entries that are no tensors and so no part of it.
    """

    file: str
    path: str
    kind: str
    digest: str
    address: str
    tensors: Mapping[str, str]
    numel: int
    nbytes: int
    left_out: tuple[str, ...] = ()

    def to_dict(self, *, per_tensor: bool) -> dict[str, Any]:
        found: dict[str, Any] = {
            "file": self.file,
            "path": self.path,
            "kind": self.kind,
            "address": self.address,
            "digest": self.digest,
            "numel": self.numel,
            "nbytes": self.nbytes,
            "left_out": list(self.left_out),
        }
        if per_tensor:
            found["tensors"] = [{"name": n, "digest": d} for n, d in self.tensors.items()]
        return found


@dataclass(frozen=True, slots=True)
class FileDigest:
    """SHA-256 of a whole file, as 64 hexadecimal digits."""

    file: str
    digest: str
    nbytes: int

    def to_dict(self) -> dict[str, Any]:
        return {"file": self.file, "digest": self.digest, "nbytes": self.nbytes}


@dataclass(frozen=True, slots=True)
class HashReport:
    """The digests of every file that could be read, and why others could not."""

    inputs: tuple[str, ...]
    models: tuple[ModelDigest, ...] = ()
    files: tuple[FileDigest, ...] = ()
    failures: tuple[Failure, ...] = ()
    per_tensor: bool = False

    def each(self) -> Iterator[HashReport]:
        """Yield a report of each file by itself."""
        named = {*(m.file for m in self.models), *(f.file for f in self.files)}
        for name in [name for name in self.inputs if name in named]:
            models = tuple(model for model in self.models if model.file == name)
            files = tuple(file for file in self.files if file.file == name)
            yield replace(self, inputs=(name,), models=models, files=files, failures=())
        for failure in self.failures:
            yield replace(self, inputs=(failure.file,), models=(), files=(), failures=(failure,))

    @property
    def exit_code(self) -> int:
        return 2 if self.failures else 0

    def to_dict(self) -> dict[str, Any]:
        return {
            **envelope("hash", exit_code=self.exit_code, inputs=self.inputs),
            "algorithm": _ALGORITHM,
            "models": [model.to_dict(per_tensor=self.per_tensor) for model in self.models],
            "files": [file.to_dict() for file in self.files],
            "failures": [failure.to_dict() for failure in self.failures],
        }


@dataclass(frozen=True, slots=True)
class CheckedDigest:
    """One line of a list. `found` is what there is instead of `expected`; None if nothing is."""

    address: str
    expected: str
    found: str | None
    status: Status

    def to_dict(self) -> dict[str, Any]:
        return {
            "address": self.address,
            "status": self.status,
            "expected": self.expected,
            "found": self.found,
        }


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What became of every line of a list of digests."""

    list_name: str
    checked: tuple[CheckedDigest, ...]
    failures: tuple[Failure, ...] = field(default=())

    def count(self, status: Status) -> int:
        return sum(each.status == status for each in self.checked)

    @property
    def exit_code(self) -> int:
        if self.count("unreadable"):
            return 2
        return 1 if self.count("differs") else 0

    def to_dict(self) -> dict[str, Any]:
        return {
            **envelope("hash", exit_code=self.exit_code, inputs=(self.list_name,)),
            "algorithm": _ALGORITHM,
            "checked": [each.to_dict() for each in self.checked],
            "failures": [failure.to_dict() for failure in self.failures],
        }
