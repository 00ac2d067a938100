"""Assertions about a checkpoint: what it must hold, or nothing is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Final

from ckpt_surgery.checkpoint.description import Checkpoint, StateDict, Tensor, join_path
from ckpt_surgery.checkpoint.select import choose_state_dicts, missing_of, missing_said
from ckpt_surgery.dtypes import NAMES, named
from ckpt_surgery.edits.plan import Plan, Planned
from ckpt_surgery.errors import PlanError, UsageError
from ckpt_surgery.names import Rule, near
from ckpt_surgery.recipes.work import Work
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    from ckpt_surgery.matching.target_source import TargetRequest

_ANY: Final = -1
"""A size in an expected shape that may be any."""

_MOST_SAID: Final = 5


@dataclass(frozen=True, slots=True)
class Expect:
    """What the state dicts of a checkpoint, or those at the paths `at`, must be.

    Names are globs. `keys` must be there, `no_keys` not, `count` is the number of entries; `shape`
    and `dtype` say what tensors of these names are (a size of -1 may be any; ``"**"`` as a name of
    `dtype` means all of floating point). `finite`: no NaN and no infinity in any, which takes
    reading them. `matches`: what they load into strictly.

    Raises `UsageError` for an unknown element type.
    """

    at: Sequence[str] = ()
    keys: Sequence[str] = ()
    no_keys: Sequence[str] = ()
    count: int | None = None
    shape: Mapping[str, Sequence[int]] = field(default_factory=dict)
    dtype: Mapping[str, str] = field(default_factory=dict)
    finite: bool = False
    matches: TargetRequest | None = None
    verb: str = "expect"

    def __post_init__(self) -> None:
        for name in self.dtype.values():
            if named(name) is None:
                meant = " or ".join(f"'{each}'" for each in near(name, NAMES))
                raise UsageError(
                    f"there is no element type '{name}'",
                    hint=f"did you mean {meant}?" if meant else None,
                )

    def plan(self, checkpoint: Checkpoint, work: Work) -> Planned:
        """Return no edits. Raises `PlanError`, which says all that is otherwise."""
        failed: list[str] = []
        chosen = choose_state_dicts(checkpoint, self.at)
        for state_dict in chosen:
            where = f"'{state_dict.path}': " if len(chosen) > 1 else ""
            failed += (where + text for text in self._failures(state_dict, work))
        if failed:
            more = len(failed) - _MOST_SAID
            raise PlanError(
                "; ".join(failed[:_MOST_SAID]) + (f"; and {more} more" if more > 0 else ""),
                path=checkpoint.file.name,
                hint="nothing was written",
            )
        return Planned(Plan())

    def _failures(self, state_dict: StateDict, work: Work) -> Iterator[str]:
        names = state_dict.names
        if self.count is not None and len(names) != self.count:
            yield f"{self.count} entries are expected, and there are {len(names)}"
        for pattern in self.keys:
            if not _matching(pattern, names):
                yield f"'{pattern}' is expected, and no name is like it"
        for pattern in self.no_keys:
            found = _matching(pattern, names)
            if found:
                yield f"'{pattern}' is not expected, and there is '{found[0]}'"
        tensors = dict(state_dict.tensors)
        yield from self._wrong_shapes(tensors)
        yield from self._wrong_types(tensors)
        if self.finite:
            yield from _not_finite(state_dict)
        if self.matches is not None:
            yield from _mismatch(state_dict, self.matches, work)

    def _wrong_shapes(self, tensors: Mapping[str, Tensor]) -> Iterator[str]:
        for pattern, shape in self.shape.items():
            found = _matching(pattern, tensors)
            if not found:
                yield f"'{pattern}' is expected, and no tensor is called so"
            for name in found:
                have = tensors[name].shape
                if len(have) != len(shape) or any(
                    want not in (_ANY, size) for want, size in zip(shape, have, strict=True)
                ):
                    yield f"'{name}' is expected to be {list(shape)}, and is {list(have)}"

    def _wrong_types(self, tensors: Mapping[str, Tensor]) -> Iterator[str]:
        for pattern, dtype in self.dtype.items():
            wanted = named(dtype)
            everything = pattern == "**"
            found = _matching(pattern, tensors)
            if not found and not everything:
                yield f"'{pattern}' is expected, and no tensor is called so"
            for name in found:
                have = tensors[name].dtype
                if have is not wanted and not (everything and have.kind != "float"):
                    yield f"'{name}' is expected to be {dtype}, and is {have.name}"


def _matching(pattern: str, names: Sequence[str] | Mapping[str, object]) -> list[str]:
    rule = Rule("glob", pattern)
    return [name for name in names if rule.matches(name)]


def _not_finite(state_dict: StateDict) -> Iterator[str]:
    """Say of each floating-point tensor that it holds NaN or infinity, if it does."""
    from ckpt_surgery.compute.elements import can_load, require_torch, run_reader
    from ckpt_surgery.compute.spans import RUN, spans

    require_torch()
    for name, tensor in state_dict.tensors:
        if tensor.dtype.kind not in {"float", "complex"} or not can_load(tensor):
            continue
        numel = tensor.numel * (2 if tensor.dtype.kind == "complex" else 1)
        read = run_reader(tensor)
        for start, stop in spans(0, numel, RUN):
            run = read(start, stop)
            if not bool((run.float() if run.dtype.itemsize == 1 else run).isfinite().all()):
                yield f"'{join_path(state_dict.path, name)}' holds NaN or infinity"
                break


def _mismatch(state_dict: StateDict, target: TargetRequest, work: Work) -> Iterator[str]:
    """Say what keeps a state dict from loading strictly, if anything does."""
    from ckpt_surgery.matching.target_source import describe, find_target

    if state_dict.missing:
        yield missing_said(missing_of([state_dict]), "cannot be compared")
        return
    aim = find_target(target, work.__getitem__)
    work.code += aim.code
    found = aim.compare(describe(state_dict))
    if found.exit_code:
        wrong = [
            (found.missing, "missing"),
            (found.unexpected, "unexpected"),
            ([each.name for each in found.mismatched], "of another shape"),
        ]
        said = ", ".join(f"{len(names)} {how} ('{names[0]}')" for names, how in wrong if names)
        yield f"it does not load into '{aim.target.title}': {said or 'see ckpt match'}"
