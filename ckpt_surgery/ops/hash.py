"""Say what a model is by one digest, and whether files still are what a list says."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, StateDict, Tensor, join_path
from ckpt_surgery.checkpoint.select import choose_state_dicts
from ckpt_surgery.errors import CkptError, PathLike, ReadError, UsageError, about_file
from ckpt_surgery.fileio import CHUNK, ByteRange, FileSource, Source
from ckpt_surgery.fileio.parallel import Tally, in_threads, shown
from ckpt_surgery.formats import read
from ckpt_surgery.names.escapes import unescaped
from ckpt_surgery.reports import Failure
from ckpt_surgery.reports.hashing import (
    CheckedDigest,
    CheckReport,
    FileDigest,
    HashReport,
    ModelDigest,
    Status,
)
from ckpt_surgery.torch_objects.digest import PREFIX, model_digest, tensor_digest
from ckpt_surgery.writing.output import ProgressBar

_LINE: Final = re.compile(r"(\\?)((?:ckpt1:)?[0-9a-fA-F]{64})(?: [ *]|\t)(.+)")


def digest(
    sources: Sequence[PathLike | Source],
    *,
    at: Sequence[str] = (),
    per_tensor: bool = False,
    files: bool = False,
    threads: int | None = None,
    progress: ProgressBar | None = None,
) -> HashReport:
    """Compute the digest of every model in `sources`, or of those at the paths `at`.

    The digest is that of ``docs/hash.md``: it depends on names, shapes, element types and elements
    and on nothing else. With `per_tensor` the report lists every tensor's, too; with `files` it has
    SHA-256 of the whole files instead. A source that cannot be read is listed in the report's
    ``failures``, and does not stop the others.
    """
    if files and (at or per_tensor):
        raise UsageError(
            "whole files have no state dicts: 'files' goes with neither 'at' nor 'per_tensor'",
            fields=("files", "at", "per_tensor"),
        )
    names = tuple(_name(source) for source in sources)
    if files:
        digests, failures = _hash_files(sources, threads, progress)
        return HashReport(names, files=digests, failures=failures)
    models: list[ModelDigest] = []
    failed: list[Failure] = []
    for source in sources:
        try:
            models += _hash_models(source, at, threads, progress)
        except CkptError as error:
            failed.append(Failure.of(error, _name(source)))
    return HashReport(names, tuple(models), (), tuple(failed), per_tensor=per_tensor)


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
    lines = list(_parse_list(text, list_name))
    groups: dict[str, list[_Line]] = {}
    for line in lines:
        groups.setdefault(line.file, []).append(line)
    failures: list[Failure] = []
    found: dict[_Line, str] = {}
    for file, wanted in groups.items():
        for line, result in _find_digests(file, wanted, threads, progress):
            if isinstance(result, Failure):
                failures.append(result)
            else:
                found[line] = result
    return CheckReport(
        list_name, tuple(_checked(line, found.get(line)) for line in lines), tuple(failures)
    )


def _checked(line: _Line, found: str | None) -> CheckedDigest:
    if found is None:
        return CheckedDigest(line.address, line.digest, None, "unreadable")
    status: Status = "ok" if found == line.digest else "differs"
    return CheckedDigest(line.address, line.digest, found, status)


def _name(source: PathLike | Source) -> str:
    return os.fspath(source) if isinstance(source, str | os.PathLike) else source.name


def _hash_models(
    source: PathLike | Source, at: Sequence[str], threads: int | None, progress: ProgressBar | None
) -> list[ModelDigest]:
    with read(source) as checkpoint, about_file(checkpoint.file.name):
        chosen = choose_state_dicts(checkpoint, at)
        wanted = {
            join_path(each.path, name): (name, tensor)
            for each in chosen
            for name, tensor in each.tensors
        }
        digests = _tensor_digests(wanted, threads, progress)
        return [_model(checkpoint, each, digests) for each in chosen]


def _model(
    checkpoint: Checkpoint, state_dict: StateDict, digests: Mapping[str, str]
) -> ModelDigest:
    tensors = {name: digests[join_path(state_dict.path, name)] for name, _ in state_dict.tensors}
    file = checkpoint.file.name
    return ModelDigest(
        file,
        state_dict.path,
        state_dict.kind,
        PREFIX + model_digest(tensors),
        file if len(checkpoint.state_dicts) == 1 else f"{file}#{state_dict.path}",
        {name: PREFIX + digest for name, digest in tensors.items()},
        numel=sum(tensor.numel for _, tensor in state_dict.tensors),
        nbytes=sum(tensor.nbytes for _, tensor in state_dict.tensors),
        left_out=tuple(entry.name for entry in state_dict.entries if entry.tensor is None),
    )


def _tensor_digests(
    wanted: Mapping[str, tuple[str, Tensor]], threads: int | None, progress: ProgressBar | None
) -> dict[str, str]:
    """Return the digests of tensors by a key of their own; each is hashed under its name."""
    total = sum(tensor.nbytes for _, tensor in wanted.values())
    with shown(progress, total) as tally:

        def hash_one(item: tuple[str, Tensor]) -> str:
            return tensor_digest(*item, tally)

        return dict(
            zip(wanted, in_threads(hash_one, wanted.values(), threads=threads), strict=True)
        )


def file_digest(file: Source, progress: ProgressBar | None = None) -> str:
    """Return SHA-256 of all bytes of an open source, as 64 hexadecimal digits."""
    with shown(progress, file.size) as tally:
        return _sha256(file, tally)


def model_digests(
    checkpoint: Checkpoint, threads: int | None = None, progress: ProgressBar | None = None
) -> list[str]:
    """Return the digest of every state dict of a checkpoint."""
    wanted = {
        join_path(each.path, name): (name, tensor)
        for each in checkpoint.state_dicts
        for name, tensor in each.tensors
    }
    digests = _tensor_digests(wanted, threads, progress)
    return [_model(checkpoint, each, digests).digest for each in checkpoint.state_dicts]


def _hash_files(
    sources: Sequence[PathLike | Source], threads: int | None, progress: ProgressBar | None
) -> tuple[tuple[FileDigest, ...], tuple[Failure, ...]]:
    """SHA-256 of whole files, several at once."""
    with shown(progress, sum(map(_size, sources))) as tally:

        def hash_one(source: PathLike | Source) -> FileDigest | Failure:
            try:
                return _hash_file(source, tally)
            except CkptError as error:
                return Failure.of(error, _name(source))

        results = list(in_threads(hash_one, sources, threads=threads))
    digests = tuple(each for each in results if isinstance(each, FileDigest))
    return digests, tuple(each for each in results if isinstance(each, Failure))


def _size(source: PathLike | Source) -> int:
    """Return bytes of a source, as far as they are known before it is opened."""
    if not isinstance(source, str | os.PathLike):
        return source.size
    try:
        return os.stat(source).st_size  # noqa: PTH116
    except (OSError, ValueError):
        return 0


def _hash_file(source: PathLike | Source, tally: Tally) -> FileDigest:
    opened = FileSource.open(source) if isinstance(source, str | os.PathLike) else source
    with closing(opened) as file:
        return FileDigest(file.name, _sha256(file, tally), file.size)


def _sha256(file: Source, tally: Tally) -> str:
    import hashlib

    sha256 = hashlib.sha256()
    for chunk in ByteRange(file, 0, file.size).chunks(CHUNK):
        sha256.update(chunk)
        tally(len(chunk))
    return sha256.hexdigest()


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of a list: `digest` of the `part` (None: the whole) of `file`."""

    number: int
    digest: str
    address: str
    file: str
    part: str | None


def _parse_list(text: str, list_name: str) -> Iterator[_Line]:
    lines = enumerate(text.split("\n"), 1)
    wanted = [(n, line) for n, line in lines if line.strip() and not line.startswith("#")]
    if not wanted:
        raise ReadError("the list is empty", path=list_name)
    for number, line in wanted:
        match = _LINE.fullmatch(line.rstrip("\r"))
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
        yield _Line(number, found.lower(), address, file, part)


def _split(address: str) -> tuple[str, str | None]:
    """Return the file of an address, and the part after ``#``: names of files may hold one, too."""
    if os.path.exists(address) or "#" not in address:  # noqa: PTH110
        return address, None
    places = [at for at, character in enumerate(address) if character == "#"]
    known = [at for at in places if os.path.exists(address[:at])]  # noqa: PTH110
    at = (known or places)[0]
    return address[:at], address[at + 1 :]


def _find_digests(
    file: str, lines: Sequence[_Line], threads: int | None, progress: ProgressBar | None
) -> Iterator[tuple[_Line, str | Failure]]:
    """Yield what each line of one file should have said, or why that is not known."""
    try:
        whole = [line for line in lines if not line.digest.startswith(PREFIX)]
        if whole:
            with shown(progress, _size(file)) as tally:
                found = _hash_file(file, tally).digest
            yield from ((line, found) for line in whole)
        inside = [line for line in lines if line.digest.startswith(PREFIX)]
        if inside:
            yield from _find_models(file, inside, threads, progress)
    except CkptError as error:
        failure = Failure.of(error, file)
        yield from ((line, failure) for line in lines)


def _find_models(
    file: str, lines: Sequence[_Line], threads: int | None, progress: ProgressBar | None
) -> Iterator[tuple[_Line, str | Failure]]:
    """Read a file once, and only the tensors that some line is about."""
    with read(file) as checkpoint, about_file(file):
        targets: dict[_Line, StateDict | str] = {}
        names = {name for name, _ in checkpoint.tensors}
        for line in lines:
            try:
                targets[line] = _target(checkpoint, line.part, names)
            except ReadError as error:
                yield line, Failure.of(error, file)
        whole = {target.path for target in targets.values() if isinstance(target, StateDict)}
        single = {target for target in targets.values() if isinstance(target, str)}
        wanted = {
            join_path(state_dict.path, name): (name, tensor)
            for state_dict in checkpoint.state_dicts
            for name, tensor in state_dict.tensors
            if state_dict.path in whole or join_path(state_dict.path, name) in single
        }
        digests = _tensor_digests(wanted, threads, progress)
        for line, target in targets.items():
            if isinstance(target, StateDict):
                yield line, _model(checkpoint, target, digests).digest
            else:
                yield line, PREFIX + digests[target]


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
