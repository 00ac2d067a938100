"""Which files are those of the ranks, in their order, and who wrote them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Final, Literal

from ckpt_surgery.errors import PathLike, ReadError, UsageError
from ckpt_surgery.startup.lazy_dataclass import dataclass

_Writer = Literal["ranks", "llama", "deepspeed", "megatron", "dcp"]

_SUFFIXES: Final = frozenset({".pt", ".pth", ".bin", ".ckpt", ".safetensors"})
_LLAMA: Final = re.compile(r"consolidated\.\d+\.pth")
_OF_DEEPSPEED: Final = re.compile(r"(.*zero_pp_rank_\d+_)?mp_rank_\d+_(model|optim)_states\.pt")
_ZERO: Final = "*_optim_states.pt"
_INDEX: Final = ".index.json"
_LATEST: Final = "latest"
_AFTER_RANK: Final = re.compile(r"^(.*rank[_-]?)(\d+)(?!.*rank[_-]?\d)(.*)$")
_LAST_NUMBER: Final = re.compile(r"^(.*?)(\d+)(\D*)$")
_WORLD_SIZE: Final = re.compile(r"world_size_(\d+)")
_LONGEST_TAG: Final = 255
_MOST_NAMED: Final = 4


@dataclass(frozen=True, slots=True)
class RankFiles:
    """The files in the order of the ranks; a directory alone if its writer has rules for it."""

    writer: _Writer
    paths: tuple[Path, ...]


def find_rank_files(named: Sequence[PathLike]) -> RankFiles:
    """Return the files of the ranks in a directory, or those that are named.

    Raises `UsageError` if there are none or if it is not clear which are meant, and `ReadError` if
    a rank's file is missing.
    """
    paths = [Path(each) for each in named]
    if not paths:
        raise UsageError("no files of ranks are named")
    if len(paths) == 1 and paths[0].is_dir():
        return _in_directory(paths[0])
    for path in paths:
        if path.is_dir():
            raise UsageError(
                f"'{path}' is a directory among several inputs",
                hint="name one directory, or the files of all ranks",
            )
    if all(_LLAMA.fullmatch(path.name) for path in paths):
        return RankFiles("llama", tuple(sorted(paths)))
    return RankFiles("ranks", tuple(sorted(paths, key=lambda path: _numbered(path.name)[1])))


def is_named_like_rank(path: PathLike) -> bool:
    """Return whether a file has a name that LLaMA or DeepSpeed gives to those of ranks.

    Others are to lie beside it: of a model on one rank the only file is whole.
    """
    name = Path(path).name
    if not _LLAMA.fullmatch(name) and not _OF_DEEPSPEED.fullmatch(name):
        return False
    form = _numbered(name)[0]
    try:
        beside = [each.name for each in Path(path).parent.iterdir()]
    except OSError:
        return False
    return sum(_numbered(each)[0] == form for each in beside) > 1


def _in_directory(folder: Path) -> RankFiles:
    from ckpt_surgery.ranks.megatron import find_megatron, step_folder

    folder = _latest(step_folder(folder))
    try:
        megatron = find_megatron(folder)
        files = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise ReadError(
            f"cannot be read: {(error.strerror or str(error)).lower()}", path=str(folder)
        ) from error
    if megatron:
        return RankFiles("megatron", tuple(megatron))
    if any(path.match(_ZERO) for path in files):
        return RankFiles("deepspeed", (folder,))
    if any(path.name == ".metadata" or path.name.startswith("shard-") for path in files):
        return RankFiles("dcp", (folder,))
    if any(path.name.endswith(_INDEX) for path in files):
        raise UsageError(
            f"'{folder}' holds one checkpoint in shards, and no files of ranks",
            hint=f"write it as one file: ckpt convert {folder} -o OUT",
        )
    llama = [path for path in files if _LLAMA.fullmatch(path.name)]
    if llama:
        return RankFiles("llama", tuple(_complete(llama)))
    return RankFiles("ranks", tuple(_complete(_one_group(folder, files))))


def _latest(folder: Path) -> Path:
    """Return the directory that DeepSpeed's ``latest`` names below `folder`, else `folder`."""
    pointer = folder / _LATEST
    if not pointer.is_file():
        return folder
    try:
        with pointer.open("rb") as file:
            tag = file.read(_LONGEST_TAG + 1).decode().strip()
    except (OSError, ValueError) as error:
        raise ReadError("does not name a directory", path=str(pointer)) from error
    if not tag or len(tag) > _LONGEST_TAG or Path(tag).name != tag or not (folder / tag).is_dir():
        raise ReadError("does not name a directory beside it", path=str(pointer))
    return folder / tag


def _one_group(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Return the files whose names differ by a number only."""
    groups: dict[str, list[Path]] = {}
    for path in files:
        if path.suffix.lower() in _SUFFIXES:
            groups.setdefault(_numbered(path.name)[0], []).append(path)
    several = {name: paths for name, paths in groups.items() if "#" in name}
    chosen = several or groups
    if not chosen:
        raise UsageError(
            f"there are no files of ranks in '{folder}'",
            hint="files are recognised by their suffix: " + " ".join(sorted(_SUFFIXES)),
        )
    if len(chosen) > 1:
        shown = ", ".join(f"'{name}' ({len(paths)})" for name, paths in chosen.items())
        raise UsageError(
            f"'{folder}' holds several groups of files: {shown[:300]}",
            hint=f"name the files of one: {folder}/{next(iter(chosen)).replace('#', '*')}",
        )
    return next(iter(chosen.values()))


def _numbered(name: str) -> tuple[str, int, str]:
    """Return a name with ``#`` for the number of its rank, and that number."""
    found = _AFTER_RANK.match(name)
    if found is None:
        stem, dot, suffix = name.rpartition(".")
        found = _LAST_NUMBER.match(stem)
        if found is None:
            return name, 0, name
        return f"{found[1]}#{found[3]}{dot}{suffix}", int(found[2]), name
    return f"{found[1]}#{found[3]}", int(found[2]), name


def _complete(paths: Sequence[Path]) -> list[Path]:
    """Return the files in the order of their ranks. Raises `ReadError` if one is missing."""
    by_number = {_numbered(path.name)[1]: path for path in paths}
    size = _WORLD_SIZE.search(paths[0].name)
    count = int(size[1]) if size is not None else max(by_number) + 1
    first = 0 if size is not None else min(by_number)
    expected = range(first, count) if first <= 1 else range(count)
    gaps = (str(number) for number in expected if number not in by_number)
    missing = list(islice(gaps, _MOST_NAMED + 1))
    if missing:
        shown = ", ".join(missing[:_MOST_NAMED]) + ("…" if len(missing) > _MOST_NAMED else "")
        raise ReadError(f"the files of these ranks are missing: {shown}", path=str(paths[0].parent))
    return [by_number[number] for number in sorted(by_number)]
