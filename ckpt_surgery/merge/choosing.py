"""Choose which of several files are merged: patterns, the last ones, the best ones."""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, Tensor
from ckpt_surgery.errors import UsageError
from ckpt_surgery.formats import read
from ckpt_surgery.formats.detect import is_checkpoint_directory
from ckpt_surgery.formats.sharded_index import INDEX_SUFFIX
from ckpt_surgery.names import near

_SUFFIXES: Final = (".pt", ".pth", ".tar", ".ckpt", ".bin", ".pkl", ".safetensors")
"""What a file in a directory must be called to count as a checkpoint."""


_NUMBER: Final = re.compile(r"\d+")


def expand(names: Iterable[str]) -> list[str]:
    """Directories and patterns as the files in them, sorted with numbers as numbers.

    A directory that is one checkpoint (shards with their index, a distributed checkpoint) stands
    for itself. Raises `UsageError` for a directory or a pattern without a checkpoint.
    """
    files: list[str] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            found = [str(p) for p in path.iterdir() if p.suffix in _SUFFIXES and p.is_file()]
            has_index = any(p.name.endswith(INDEX_SUFFIX) for p in path.iterdir())
            if (has_index or not found) and is_checkpoint_directory(path):
                found = [name]
            if not found:
                raise UsageError(
                    "the directory holds no checkpoint",
                    path=name,
                    hint=f"files that end in {', '.join(_SUFFIXES)} count as one",
                )
        elif name != "-" and glob.has_magic(name) and not path.exists():
            found = glob.glob(name)  # noqa: PTH207 - the pattern may be absolute
            if not found:
                raise UsageError(f"no file matches '{name}'")
        else:
            found = [name]
        files += sorted(found, key=_natural)
    return files


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name)]


def last(files: Sequence[str], count: int) -> list[str]:
    """Return the `count` files with the highest numbers in their names, in ascending order.

    Files without a number (``checkpoint_best.pt``) are left out. Raises `UsageError` if there are
    not as many, or if their names differ in more than the numbers.
    """
    if count < 1:
        raise UsageError(f"'--last {count}' is no number of files")
    numbered = [file for file in files if _NUMBER.search(Path(file).name)]
    shapes = {_NUMBER.sub("N", Path(file).name): file for file in numbered}
    if len(shapes) > 1:
        first, second = list(shapes.values())[:2]
        raise UsageError(
            f"'{first}' and '{second}' are not numbered alike",
            hint="name the files with a pattern, such as 'run/checkpoint*.pt'",
        )
    if len(numbered) < count:
        raise UsageError(f"'--last {count}': there are {len(numbered)} files with a number")
    numbered.sort(key=lambda file: [int(n) for n in _NUMBER.findall(Path(file).name)])
    return numbered[-count:]


def best(files: Sequence[str], count: int, metric: str, *, higher: bool) -> list[str]:
    """Return the `count` files with the best value at `metric` inside them, the best one first.

    Raises `UsageError` if a file has no number there, or there are not as many files.
    """
    if count < 1 or len(files) < count:
        raise UsageError(f"'--best {count}': there are {len(files)} files")
    values: dict[str, float] = {}
    for file in files:
        with read(file) as checkpoint:
            values[file] = _metric_of(checkpoint, metric)
    return sorted(values, key=lambda file: -values[file] if higher else values[file])[:count]


def _metric_of(checkpoint: Checkpoint, metric: str) -> float:
    """Return the number at the path `metric`, a plain one or a tensor of one element.

    Raises `UsageError` if there is none, or if it is no finite number.
    """
    numbers: dict[str, float | Tensor] = {}
    for other in checkpoint.others:
        if isinstance(other.value, int | float) and not isinstance(other.value, bool):
            numbers[other.path] = other.value
        elif len(other.tensors) == 1 and other.tensors[0].numel == 1:
            numbers[other.path] = other.tensors[0]
    if metric not in numbers:
        known = near(metric, numbers) or list(numbers)[:5]
        raise UsageError(
            f"there is no number at '{metric}'",
            path=checkpoint.file.name,
            hint="there are numbers at: " + ", ".join(f"'{path}'" for path in known)
            if known
            else "'ckpt inspect' shows what the file holds",
        )
    value = numbers[metric]
    if isinstance(value, Tensor):
        from ckpt_surgery.compute.elements import load_elements

        elements = load_elements(value)
        value = float("nan") if elements is None else float(elements[0])
    if not math.isfinite(value):
        raise UsageError(f"'{metric}' is no finite number: {value}", path=checkpoint.file.name)
    return value
