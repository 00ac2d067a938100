"""The files of a merge: which ones are meant, what is renamed in them, which state dicts match."""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ckpt_surgery.checkpoint import Checkpoint, StateDict, Tensor
from ckpt_surgery.choosing import RuleCount
from ckpt_surgery.errors import CkptError, PathLike, UsageError
from ckpt_surgery.fileio import SourceFile
from ckpt_surgery.formats import read
from ckpt_surgery.plan import Plan, Rename, RenameModule, apply
from ckpt_surgery.rules import near

if TYPE_CHECKING:
    from contextlib import ExitStack

    from ckpt_surgery.rules.rewriting import RewriteRule

SUFFIXES: Final = (".pt", ".pth", ".tar", ".ckpt", ".bin", ".pkl", ".safetensors")
"""What a file in a directory must be called to count as a checkpoint."""

_NUMBER: Final = re.compile(r"\d+")

Source = PathLike | SourceFile


def expand(names: Iterable[str]) -> list[str]:
    """Directories and patterns as the files in them, sorted with numbers as numbers.

    Raises `UsageError` for a directory or a pattern without a checkpoint.
    """
    files: list[str] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            found = [str(p) for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file()]
            if not found:
                raise UsageError(
                    "the directory holds no checkpoint",
                    path=name,
                    hint=f"files that end in {', '.join(SUFFIXES)} count as one",
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
    """The `count` files with the highest numbers in their names, in ascending order.

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
    """The `count` files with the best value at `metric` inside them, the best one first.

    Raises `UsageError` if a file has no number there, or there are not as many files.
    """
    if count < 1 or len(files) < count:
        raise UsageError(f"'--best {count}': there are {len(files)} files")
    values: dict[str, float] = {}
    for file in files:
        with read(file) as checkpoint:
            values[file] = metric_of(checkpoint, metric)
    return sorted(values, key=lambda file: -values[file] if higher else values[file])[:count]


def metric_of(checkpoint: Checkpoint, metric: str) -> float:
    """The number at the path `metric`, a plain one or a tensor of one element.

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
        from ckpt_surgery.arithmetic.elements import load_elements

        elements = load_elements(value)
        value = float("nan") if elements is None else float(elements[0])
    if not math.isfinite(value):
        raise UsageError(f"'{metric}' is no finite number: {value}", path=checkpoint.file.name)
    return value


@dataclass(frozen=True, slots=True, eq=False)
class MergeFile:
    """A file of a merge: as it was read, and as its names were changed.

    `names` and `modules` lead from a new name (by state dict) to the one in the file.
    """

    original: Checkpoint
    checkpoint: Checkpoint
    renaming: Plan
    rules: tuple[RuleCount, ...]
    names: Mapping[tuple[str, str], str]
    modules: Mapping[tuple[str, str], str]

    @property
    def label(self) -> str:
        return self.original.file.name

    @property
    def file(self) -> SourceFile:
        return self.original.file

    def old_name(self, path: str, name: str) -> str:
        return self.names.get((path, name), name)

    def old_module(self, path: str, module: str) -> str:
        return self.modules.get((path, module), module)


def open_file(source: PathLike | SourceFile, rules: Sequence[RewriteRule]) -> MergeFile:
    """Read a file and rename its entries, on paper. Raises what `read` and renaming raise."""
    original = read(source)
    if not rules:
        return MergeFile(original, original, Plan(), (), {}, {})
    from ckpt_surgery.renaming import plan_rename

    try:
        planned = plan_rename(original, rules)
        renamed = apply(planned.plan, original)
    except CkptError as error:
        original.close()
        if error.path is None:
            error.name_file(original.file.name)
        raise
    edits = planned.plan.edits
    return MergeFile(
        original,
        renamed,
        planned.plan,
        planned.rules,
        {(e.state_dict, e.new): e.old for e in edits if isinstance(e, Rename)},
        {
            (e.state_dict, e.new): e.old
            for e in edits
            if isinstance(e, RenameModule) and e.new is not None
        },
    )


def partner(wanted: StateDict, file: MergeFile) -> StateDict:
    """The state dict of a file that belongs to `wanted` of the base.

    It is the one at the same path, or the only one, or the only one of that kind (a model's, or a
    moving average). Raises `UsageError` if that leaves none or several.
    """
    found = file.checkpoint.state_dicts
    same = [s for s in found if s.path == wanted.path]
    alike = [s for s in found if s.kind == wanted.kind]
    for candidates in (same, found, alike):
        if len(candidates) == 1:
            return candidates[0]
    paths = ", ".join(f"'{s.path}'" for s in found) or "none"
    where = f"'{wanted.path}'" if wanted.path else "the base's state dict"
    raise UsageError(
        f"no state dict belongs to {where}; there are: {paths}",
        path=file.label,
        hint="'--at PATH' narrows the merge to one state dict of the base; "
        "'ckpt convert --at PATH' takes one out of a file",
    )


class Sources:
    """Which files there are. `inputs` have numbers from 1; the base may be one of them or not."""

    def __init__(
        self, sources: Sequence[Source], base: Source | None, *, base_apart: bool = False
    ) -> None:
        self.inputs = list(sources)
        self.first_number = 1
        self.base_place: int | None = None
        if base is None:
            self.base = self.inputs[0]
            if base_apart:
                self.inputs, self.first_number = self.inputs[1:], 2
            else:
                self.base_place = 0
        else:
            self.base = base
            if not base_apart:
                same = [i for i, source in enumerate(self.inputs) if _is_same(source, base)]
                self.base_place = same[0] if same else None

    def open(
        self, stack: ExitStack, renames: Mapping[int, Sequence[RewriteRule]]
    ) -> tuple[MergeFile, list[MergeFile]]:
        """The base, and all inputs. Raises `UsageError` if a rename names no file."""
        last = self.first_number + len(self.inputs) - 1
        for number in renames:
            if not 1 <= number <= last:
                raise UsageError(f"there is no file {number} to rename: they are 1 to {last}")
        opened = []
        for number, source in enumerate(self.inputs, self.first_number):
            opened.append(open_file(source, renames.get(number, ())))
            stack.callback(opened[-1].original.close)
        if self.base_place is not None:
            return opened[self.base_place], opened
        rules = renames.get(1, ()) if self.first_number == 2 else ()
        base = open_file(self.base, rules)
        stack.callback(base.original.close)
        return base, opened


def _is_same(one: Source, other: Source) -> bool:
    if isinstance(one, SourceFile) or isinstance(other, SourceFile):
        return one is other
    return os.path.realpath(one) == os.path.realpath(other)


def label_of(source: Source) -> str:
    """What messages call a source."""
    return source.name if isinstance(source, SourceFile) else os.fspath(source)
