"""Say what differs between two checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import field, replace

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.checkpoint.select import choose_state_dicts, require_whole
from ckpt_surgery.errors import PathLike, UsageError
from ckpt_surgery.fileio import Source
from ckpt_surgery.formats import read
from ckpt_surgery.matching.pairs import pair_state_dicts
from ckpt_surgery.ops.comparing import Comparer
from ckpt_surgery.reports.difference import DiffedFile, DiffReport
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.writing.output import ProgressBar


@dataclass(frozen=True, slots=True)
class DiffRequest:
    """How two checkpoints are to be compared.

    `structure` reads no tensor: names, shapes and types only. `values` measures how far numbers
    are apart, and imports torch; numbers within `atol` + `rtol` times the larger of both are then
    close, which is no difference. `renames` are names of the first file and of the second, `at`
    the paths of state dicts, in both, outside which nothing is compared.
    """

    structure: bool = False
    values: bool = False
    rtol: float = 0.0
    atol: float = 0.0
    renames: Mapping[str, str] = field(default_factory=dict)
    at: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.structure and self.values:
            raise UsageError(
                "'structure' and 'values' contradict each other", fields=("structure", "values")
            )
        if not (self.rtol >= 0 and self.atol >= 0):
            raise UsageError("'rtol' and 'atol' are no numbers from 0 on", fields=("rtol", "atol"))
        if (self.rtol or self.atol) and not self.values:
            raise UsageError(
                "'rtol' and 'atol' are about numbers",
                hint="add 'values'",
                fields=("rtol", "atol", "values"),
            )


def diff(
    a: PathLike | Source,
    b: PathLike | Source,
    request: DiffRequest | None = None,
    *,
    threads: int | None = None,
    progress: ProgressBar | None = None,
) -> DiffReport:
    """Compare two checkpoints, of whatever formats.

    State dicts are compared by path and by name, whatever wrapper they or their names are in.
    Tensors are equal if their files' checksums say so; others are read. Raises `ReadError` if a
    file cannot be read, and `UsageError` for a path or a name that is in neither.
    """
    request = request or DiffRequest()
    with ExitStack() as stack:
        first, second = (stack.enter_context(read(source)) for source in (a, b))
        sides = [_narrowed(each, request.at) for each in (first, second)]
        for side in sides:
            require_whole(side, side.state_dicts, "cannot be compared")
        pairs = pair_state_dicts(*sides, renames=request.renames)
        _require_known(request.renames, first)
        comparer = Comparer(
            request.structure, request.values, request.rtol, request.atol, threads, progress
        )
        found = comparer.compare(pairs)
        trees = [] if request.at else comparer.others(first, second)
        return DiffReport(
            DiffedFile(first.file.name, first.format, first.size),
            DiffedFile(second.file.name, second.format, second.size),
            tuple(found),
            tuple(trees),
            tuple(comparer.warnings),
        )


def _narrowed(checkpoint: Checkpoint, at: Sequence[str]) -> Checkpoint:
    if not at:
        return checkpoint
    return replace(checkpoint, state_dicts=tuple(choose_state_dicts(checkpoint, at)))


def _require_known(renames: Mapping[str, str], checkpoint: Checkpoint) -> None:
    names = {name for state_dict in checkpoint.state_dicts for name in state_dict.names}
    for old in renames:
        if old not in names:
            raise UsageError(
                f"there is no '{old}' to be compared under another name",
                path=checkpoint.file.name,
                fields=("renames",),
            )
