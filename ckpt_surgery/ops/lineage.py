"""Where a checkpoint comes from: what the record of an edit says of inputs, plan and output."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from ckpt_surgery.errors import PathLike, ReadError
from ckpt_surgery.fileio import FileSource
from ckpt_surgery.ops.hash import file_digest
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class EditRecord:
    """What ``--record`` kept of an edit: the command, digests of its files, and every edit.

    `inputs` and `outputs` are SHA-256 by name; what is no file (a directory, a stream) has none.
    """

    command: str
    version: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    plan: tuple[Any, ...]

    @classmethod
    def read(cls, path: PathLike) -> EditRecord:
        """Read a file of ``--record``. Raises `ReadError` if it is none."""
        try:
            document = json.loads(Path(path).read_bytes())
        except OSError as error:
            raise ReadError(f"cannot be read: {str(error.strerror).lower()}", path=path) from error
        except ValueError as error:
            raise ReadError("it is no JSON, and so no record of an edit", path=path) from error
        try:
            digests = document["digests"]
            return cls(
                document["command"],
                document["version"],
                _known(digests["inputs"]),
                _known(digests["outputs"]),
                tuple(document["plan"] if "plan" in document else document["steps"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ReadError(
                "it is no record of an edit",
                path=path,
                hint="an edit with --record FILE writes one",
            ) from error

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> EditRecord:
        """Return the record that `to_dict` gave. Raises `ValueError` if it is none."""
        try:
            inputs, outputs = ({e["name"]: e["digest"]["sha256"] for e in said[k]} for k in _FILES)
            return cls(said["command"], said["version"], inputs, outputs, tuple(said["plan"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("it is no record of edits") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the predicate: command, version, plan, and files as in-toto describes them."""
        files = {
            kind: [{"name": name, "digest": {"sha256": digest}} for name, digest in each.items()]
            for kind, each in zip(_FILES, (self.inputs, self.outputs), strict=True)
        }
        return {"command": self.command, "version": self.version, "plan": list(self.plan), **files}

    @property
    def words(self) -> str:
        """What was done to what, as one line."""
        each = [f"{name} (sha256 {digest[:12]}…)" for name, digest in self.inputs.items()]
        edits = f"{len(self.plan)} {'edit' if len(self.plan) == 1 else 'edits'}"
        return f"{self.command} of {', '.join(each) or 'no file'}: {edits}"


_FILES = ("inputs", "outputs")


def _known(digests: Mapping[str, str | None]) -> dict[str, str]:
    return {name: digest for name, digest in digests.items() if digest is not None}


def require_output(model: PathLike, digests: Iterable[str]) -> str:
    """Return SHA-256 of a file, which is to be one of `digests`, those of an edit's outputs.

    Raises `ReadError` if it is not.
    """
    with closing(FileSource.open(model)) as file:
        found = file_digest(file)
    if found not in set(digests):
        raise ReadError(
            f"the record is about another file: '{model}' is not what the edit wrote", path=model
        )
    return found
