"""The files of a merge: which ones are meant, what is renamed in them, which state dicts match."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from ckpt_surgery.checkpoint.description import Checkpoint, StateDict
from ckpt_surgery.checkpoint.select import RuleCount
from ckpt_surgery.edits.plan import Plan
from ckpt_surgery.edits.rename import Rename, RenameModule
from ckpt_surgery.errors import CkptError, PathLike, UsageError, about_file
from ckpt_surgery.fileio import Source
from ckpt_surgery.formats import read
from ckpt_surgery.merge.scope import OTHER_FILES
from ckpt_surgery.ranks.files import is_named_like_rank
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    from contextlib import ExitStack

    from ckpt_surgery.names.rewrite import RewriteRule


_CONSOLIDATE: Final = "put all ranks' files together first: ckpt consolidate DIR -o model.pth"


@dataclass(frozen=True, slots=True, eq=False)
class MergeFile:
    """A file of a merge: as it was read, and as its names were changed.

    `label` is what a plan calls it. `names` and `modules` lead from a new name (by state dict) to
    the one in the file.
    """

    label: str
    original: Checkpoint
    checkpoint: Checkpoint
    renaming: Plan
    rules: tuple[RuleCount, ...]
    names: Mapping[tuple[str, str], str]
    modules: Mapping[tuple[str, str], str]

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.original.sources

    def old_name(self, path: str, name: str) -> str:
        return self.names.get((path, name), name)

    def old_module(self, path: str, module: str) -> str:
        return self.modules.get((path, module), module)


def _open_file(source: PathLike | Source, rules: Sequence[RewriteRule]) -> MergeFile:
    """Read a file and rename its entries, on paper. Raises what `read` and renaming raise."""
    original = read(source)
    try:
        with about_file(original.file.name):
            return merge_file(original, original.file.name, rules)
    except CkptError:
        original.close()
        raise


def merge_file(original: Checkpoint, label: str, rules: Sequence[RewriteRule]) -> MergeFile:
    """Rename the entries of a checkpoint, which plans call `label`, on paper."""
    if not rules:
        return MergeFile(label, original, original, Plan(), (), {}, {})
    from ckpt_surgery.edits.rename_plan import plan_rename

    planned = plan_rename(original, rules)
    renamed = planned.plan.apply(original)
    edits = planned.plan.edits
    return MergeFile(
        label,
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
    """Return the state dict of a file that belongs to `wanted` of the base.

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
        "'ckpt convert --state-dict-only --at PATH' takes one out of a file",
    )


class Sources:
    """Which files there are. `inputs` have numbers from 1; the base may be one of them or not."""

    def __init__(
        self,
        sources: Sequence[PathLike | Source],
        base: PathLike | Source | None,
        *,
        base_apart: bool = False,
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

    def require_numbers(self, numbers: Iterable[int]) -> None:
        """Raise `UsageError` for the number of no file."""
        last = self.first_number + len(self.inputs) - 1
        for number in numbers:
            if number != OTHER_FILES and not 1 <= number <= last:
                raise UsageError(f"there is no file {number} to rename: they are 1 to {last}")

    def open(
        self, stack: ExitStack, renames: Mapping[int, Sequence[RewriteRule]]
    ) -> tuple[MergeFile, list[MergeFile]]:
        """Return the base, and all inputs. Raises `UsageError` if a rename names no file."""
        self.require_numbers(renames)
        opened = []
        for number, source in enumerate(self.inputs, self.first_number):
            opened.append(_open_file(source, _rules(renames, number)))
            stack.callback(opened[-1].original.close)
            _require_whole(opened[-1])
        if self.base_place is not None:
            return opened[self.base_place], opened
        rules = _rules(renames, 1 if self.first_number == 2 else OTHER_FILES)
        base = _open_file(self.base, rules)
        stack.callback(base.original.close)
        _require_whole(base)
        return base, opened


def _rules(renames: Mapping[int, Sequence[RewriteRule]], number: int) -> Sequence[RewriteRule]:
    """Return the rules for one file: its own, or those for all that have none."""
    return renames.get(number, renames.get(OTHER_FILES, ()))


def _require_whole(file: MergeFile) -> None:
    """Raise `UsageError` for the file of one rank, of which a merge would make no model."""
    for name, tensor in file.original.tensors:
        if tensor.shard is not None and not tensor.shard.is_whole:
            raise UsageError(
                f"'{name}' is {tensor.shard} of a tensor: this is the file of one rank",
                path=file.label,
                hint=_CONSOLIDATE,
            )
    if is_named_like_rank(file.label):
        raise UsageError(
            "other ranks' files lie beside it: this is the file of one rank",
            path=file.label,
            hint=_CONSOLIDATE,
        )


def _is_same(one: PathLike | Source, other: PathLike | Source) -> bool:
    if isinstance(one, str | os.PathLike) and isinstance(other, str | os.PathLike):
        return os.path.realpath(one) == os.path.realpath(other)
    return one is other


def label_of(source: PathLike | Source) -> str:
    """Return what messages call a source."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else source.name
