"""Compare files, and what is in them, with a list of digests that `hash` printed."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, StateDict, join_path
from ckpt_surgery.errors import CkptError, ReadError, about_file
from ckpt_surgery.fileio import FileSource
from ckpt_surgery.formats import read
from ckpt_surgery.names.escapes import unescaped
from ckpt_surgery.ops.hash import DigestOrError, each_digest, file_digest
from ckpt_surgery.reports import Failure
from ckpt_surgery.reports.hashing import CheckedDigest, CheckReport, Status
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.digest import PREFIX, model_digest
from ckpt_surgery.writing.output import ProgressBar

_TAGGED: Final = re.compile(r"(\\?)SHA256 \((.+)\) = ([0-9a-fA-F]{64})")  # sha256sum --tag
_LINE: Final = re.compile(r"(\\?)((?:ckpt1:)?[0-9a-fA-F]{64})(?: [ *]|\t)(.+)")


@dataclass(frozen=True, slots=True)
class DigestLine:
    """A line of a list: `digest` of the `part` (None: the whole) of `file`."""

    number: int
    digest: str
    address: str
    file: str
    part: str | None

    @property
    def is_of_whole_file(self) -> bool:
        """Whether the digest is SHA-256 of all bytes of the file."""
        return not self.digest.startswith(PREFIX)


@dataclass(frozen=True, slots=True)
class DigestList:
    """Digests as `hash` prints them; `name` is the file that they were read from."""

    name: str
    lines: tuple[DigestLine, ...]

    @classmethod
    def parse(cls, text: str, name: str) -> DigestList:
        """Read lines as those of ``sha256sum``: a digest, two spaces and what it is of.

        That is a file, or ``FILE#PATH`` for a state dict or a tensor in it. Digits alone are
        SHA-256 of a whole file, which may be written as with ``--tag``. Raises `ReadError` for a
        line of another form.
        """
        return cls(name, tuple(_parse_lines(text, name)))

    def about(self, file: str) -> list[DigestLine]:
        """Return the lines about `file`: by its path, from here or
        from the list's folder, else by its base name.
        """
        wanted = os.path.abspath(file)  # noqa: PTH100
        folder = os.path.dirname(self.name) or "."  # noqa: PTH120
        named = [
            line
            for line in self.lines
            if any(os.path.abspath(f"{at}{line.file}") == wanted for at in ("", f"{folder}/"))  # noqa: PTH100
        ]
        base = os.path.basename(file)  # noqa: PTH119
        return named or [line for line in self.lines if os.path.basename(line.file) == base]  # noqa: PTH119


def check_digests(
    text: str,
    *,
    list_name: str,
    threads: int | None = None,
    progress: ProgressBar | None = None,
) -> CheckReport:
    """Compare models, tensors and whole files with the list `text`, which `hash` printed.

    Lines are as those of ``sha256sum``: a digest, two spaces and what it is of: a file, or
    ``FILE#PATH`` for a state dict or a tensor in it. Digits alone are SHA-256 of a whole file.
    Raises `ReadError` for a line of another form.
    """
    lines = DigestList.parse(text, list_name).lines
    groups: dict[str, list[DigestLine]] = {}
    for line in lines:
        groups.setdefault(line.file, []).append(line)
    failures: dict[Failure, None] = {}
    found: dict[DigestLine, str] = {}
    for file, wanted in groups.items():
        for line, result in _find_digests(file, wanted, threads, progress):
            if isinstance(result, CkptError):
                failures[Failure.of(result, file)] = None
            else:
                found[line] = result
    return CheckReport(
        list_name, tuple(_checked(line, found.get(line)) for line in lines), tuple(failures)
    )


def _checked(line: DigestLine, found: str | None) -> CheckedDigest:
    if found is None:
        return CheckedDigest(line.address, line.digest, None, "unreadable")
    status: Status = "ok" if found == line.digest else "differs"
    return CheckedDigest(line.address, line.digest, found, status)


def _parse_lines(text: str, list_name: str) -> Iterator[DigestLine]:
    lines = enumerate(text.split("\n"), 1)
    wanted = [(n, line) for n, line in lines if line.strip() and not line.startswith("#")]
    if not wanted:
        raise ReadError("the list is empty", path=list_name)
    for number, line in wanted:
        match = _LINE.fullmatch(_TAGGED.sub(r"\1\3  \2", line.rstrip("\r")))
        if match is None:
            raise ReadError(
                f"'{line[:60]}' is no digest followed by a name",
                path=list_name,
                entry=f"line {number}",
                hint="'ckpt hash FILE...' prints such a list",
            )
        escaped, found, address = match.groups()
        address = unescaped(address) if escaped else address
        file, part = (address, None) if PREFIX not in found.lower() else _split(address)
        yield DigestLine(number, found.lower(), address, file, part)


def _split(address: str) -> tuple[str, str | None]:
    """Return the file of an address, and the part after ``#``: names of files may hold one, too."""
    if os.path.exists(address) or "#" not in address:  # noqa: PTH110
        return address, None
    places = [at for at, character in enumerate(address) if character == "#"]
    known = [at for at in places if os.path.exists(address[:at])]  # noqa: PTH110
    at = (known or places)[0]
    return address[:at], address[at + 1 :]


def _find_digests(
    file: str, lines: Sequence[DigestLine], threads: int | None, progress: ProgressBar | None
) -> Iterator[tuple[DigestLine, DigestOrError]]:
    """Yield what each line of one file should have said, or why that is not known."""
    try:
        whole = [line for line in lines if line.is_of_whole_file]
        if whole:
            with closing(FileSource.open(file)) as source:
                found = file_digest(source, progress)
            yield from ((line, found) for line in whole)
        inside = [line for line in lines if not line.is_of_whole_file]
        if inside:
            with read(file) as checkpoint, about_file(file):
                yield from find_models(checkpoint, inside, threads, progress)
    except CkptError as error:
        yield from ((line, error) for line in lines)


def find_models(
    checkpoint: Checkpoint,
    lines: Sequence[DigestLine],
    threads: int | None = None,
    progress: ProgressBar | None = None,
) -> Iterator[tuple[DigestLine, DigestOrError]]:
    """Yield what each line about a model or tensor should have said, or why that is not known.

    Only the tensors that some line is about are read.
    """
    targets: dict[DigestLine, StateDict | str] = {}
    names = {name for name, _ in checkpoint.tensors}
    for line in lines:
        try:
            targets[line] = _target(checkpoint, line.part, names)
        except ReadError as error:
            yield line, error
    whole = {target.path for target in targets.values() if isinstance(target, StateDict)}
    single = {target for target in targets.values() if isinstance(target, str)}
    wanted = {
        join_path(state_dict.path, name): (name, tensor)
        for state_dict in checkpoint.state_dicts
        for name, tensor in state_dict.tensors
        if state_dict.path in whole or join_path(state_dict.path, name) in single
    }
    digests = each_digest(wanted, threads, progress)
    for line, target in targets.items():
        if isinstance(target, StateDict):
            yield line, _model_digest(target, digests)
        else:
            found = digests[target]
            yield line, found if isinstance(found, CkptError) else PREFIX + found


def _model_digest(state_dict: StateDict, digests: dict[str, DigestOrError]) -> DigestOrError:
    """Return the digest of a state dict, or why one of its tensors has none."""
    tensors: dict[str, str] = {}
    for name, _ in state_dict.tensors:
        found = digests[join_path(state_dict.path, name)]
        if isinstance(found, CkptError):
            return found
        tensors[name] = found
    return PREFIX + model_digest(tensors)


def _target(checkpoint: Checkpoint, part: str | None, names: Collection[str]) -> StateDict | str:
    """Return the state dict that a line is about, or the ``path/name`` of its tensor."""
    by_path = {state_dict.path: state_dict for state_dict in checkpoint.state_dicts}
    if part is None and len(by_path) == 1:
        return checkpoint.state_dicts[0]
    if part is not None and part in by_path:
        return by_path[part]
    if part is not None and part in names:
        return part
    if part is None:
        raise ReadError(f"there are {len(by_path)} state dicts in it, and the list names none")
    raise ReadError(f"there is no state dict and no tensor '{part}' in it")
