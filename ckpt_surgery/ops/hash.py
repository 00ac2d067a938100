"""Say what a model is by one digest, and whether files still are what a list says."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing

from ckpt_surgery.checkpoint.description import Checkpoint, StateDict, Tensor, join_path
from ckpt_surgery.checkpoint.select import choose_state_dicts, require_whole
from ckpt_surgery.errors import CkptError, PathLike, UsageError, about_file
from ckpt_surgery.fileio import CHUNK, ByteRange, Source
from ckpt_surgery.fileio.member import require_whole_members
from ckpt_surgery.fileio.parallel import Tally, in_threads, shown
from ckpt_surgery.formats import read
from ckpt_surgery.formats.detect import opened_file
from ckpt_surgery.reports import Failure
from ckpt_surgery.reports.hashing import (
    FileDigest,
    HashReport,
    ModelDigest,
)
from ckpt_surgery.torch_objects.digest import PREFIX, model_digest, tensor_digest
from ckpt_surgery.writing.output import ProgressBar


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


def _name(source: PathLike | Source) -> str:
    return os.fspath(source) if isinstance(source, str | os.PathLike) else source.name


def _hash_models(
    source: PathLike | Source, at: Sequence[str], threads: int | None, progress: ProgressBar | None
) -> list[ModelDigest]:
    with read(source) as checkpoint, about_file(checkpoint.file.name):
        require_whole_members(checkpoint.sources)
        chosen = choose_state_dicts(checkpoint, at)
        require_whole(checkpoint, chosen, "has no digest")
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
    found: dict[str, str] = {}
    for key, digest in each_digest(wanted, threads, progress).items():
        if isinstance(digest, CkptError):
            raise digest
        found[key] = digest
    return found


DigestOrError = str | CkptError
"""A digest, or why there is none."""


def each_digest(
    wanted: Mapping[str, tuple[str, Tensor]], threads: int | None, progress: ProgressBar | None
) -> dict[str, DigestOrError]:
    """Return the digests of tensors, 64 hexadecimal digits, by a key of their own.

    Each is hashed under its name. One that has no digest does not keep the others from theirs.
    """
    total = sum(tensor.nbytes for _, tensor in wanted.values())
    with shown(progress, total) as tally:

        def hash_one(item: tuple[str, Tensor]) -> DigestOrError:
            try:
                return tensor_digest(*item, tally)
            except CkptError as error:
                return error

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
    """Return the digest of every state dict of a checkpoint that was read in full."""
    whole = [each for each in checkpoint.state_dicts if not each.missing]
    wanted = {
        join_path(each.path, name): (name, tensor)
        for each in whole
        for name, tensor in each.tensors
    }
    digests = _tensor_digests(wanted, threads, progress)
    return [_model(checkpoint, each, digests).digest for each in whole]


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
    opened = opened_file(source) if isinstance(source, str | os.PathLike) else source
    with closing(opened) as file:
        require_whole_members([file])
        return FileDigest(file.name, _sha256(file, tally), file.size)


def _sha256(file: Source, tally: Tally) -> str:
    import hashlib

    sha256 = hashlib.sha256()
    for chunk in ByteRange(file, 0, file.size).chunks(CHUNK):
        sha256.update(chunk)
        tally(len(chunk))
    return sha256.hexdigest()
