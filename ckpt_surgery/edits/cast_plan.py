"""Planning casts: what ``--dtype`` takes, what it keeps, and what it must not touch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, StateDict, Tensor
from ckpt_surgery.checkpoint.select import RuleCount, all_names
from ckpt_surgery.dtypes import BY_NAME, NAMES, named
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.cast import Cast, is_castable, kind_of, require_no_scale
from ckpt_surgery.edits.plan import Plan, Planned
from ckpt_surgery.edits.remarks import remarks
from ckpt_surgery.edits.rule_texts import selection_rule
from ckpt_surgery.errors import UsageError
from ckpt_surgery.names.suggest import near_hint
from ckpt_surgery.startup.lazy_dataclass import dataclass

_WIDE: Final = 4  # bytes of a real number from which on norms are kept
_NORM: Final = re.compile(r"norm|(^|_)(ln|bn|gn|rms)(\d|_|$)", re.IGNORECASE)
_STATISTICS: Final = frozenset(
    {"running_mean", "running_var", "running_std", "moving_mean", "moving_variance"}
)
_FACTORS: Final = {"weight": "bias", "gamma": "beta"}


@dataclass(frozen=True, slots=True)
class CastRule:
    """``TYPE`` for all floating-point tensors, or ``SELECTION=TYPE`` for those of the selection.

    Raises `UsageError` for a text that names no type, or one that only a selection can have.
    """

    text: str

    def __post_init__(self) -> None:
        selection, _, name = self.text.rpartition("=")
        dtype = named(name)
        if dtype is None:
            raise UsageError(
                f"'--dtype {self.text}': there is no element type '{name}'",
                hint=near_hint(name, NAMES),
            )
        if kind_of(dtype) is None:
            raise UsageError(
                f"'--dtype {self.text}': an element of '{dtype.name}' is not one number of its own"
            )
        if not selection and dtype.kind in {"int", "bool"}:
            raise UsageError(
                f"'--dtype {self.text}': '{dtype.name}' is no floating-point type",
                hint=f"say which tensors: --dtype 'SELECTION={name}'",
            )

    @property
    def selection(self) -> str:
        """What is chosen; empty for all floating-point tensors."""
        return self.text.rpartition("=")[0]

    @property
    def dtype(self) -> str:
        """The name of the type in torch."""
        found = named(self.text.rpartition("=")[2])
        return "" if found is None else found.name

    def chosen(self, state_dict: StateDict) -> Iterator[str]:
        """Yield the names of tensors that the rule is about."""
        kind = BY_NAME[self.dtype].kind
        rule = selection_rule(self.selection, state_dict.names) if self.selection else None
        for name, tensor in state_dict.tensors:
            if rule.matches(name) if rule else tensor.dtype.kind == kind and is_castable(tensor):
                yield name

    def to_dict(self) -> dict[str, object]:
        """Return the rule as reports have it."""
        return {"rule": "dtype", "text": self.text}


@dataclass(frozen=True, slots=True)
class _Kept:
    """The default that keeps norms, as a rule of a report."""

    def to_dict(self) -> dict[str, object]:
        return {"rule": "keep-norms", "text": ""}


def plan_casts(
    checkpoint: Checkpoint,
    state_dicts: Sequence[StateDict],
    rules: Sequence[CastRule],
    *,
    keep_norms: bool = True,
    max_loss: float | None = None,
) -> Planned:
    """Return the casts of `state_dicts` by `rules`: of several for one tensor the last holds.

    Those with a selection go before those without. With `keep_norms` the latter leave norm layers
    and running statistics in their type of 32 bits or more if the new one has fewer. Raises
    `UsageError` for a rule that matches nothing, and `PlanError` for a type that does not convert
    and for numbers that a scale beside them belongs to.
    """
    ordered = sorted(dict.fromkeys(rules), key=lambda rule: bool(rule.selection))
    counts: dict[CastRule, int] = dict.fromkeys(rules, 0)
    edits: list[Edit] = []
    warnings: list[str] = []
    kept = 0
    for state_dict in state_dicts:
        wanted: dict[str, CastRule] = {}
        for rule in ordered:
            chosen = dict.fromkeys(rule.chosen(state_dict), rule)
            counts[rule] += len(chosen)
            wanted |= chosen
        norms = _norms_of(state_dict) if keep_norms else frozenset[str]()
        names, casts = set(state_dict.names), list[Edit]()
        for name, tensor in state_dict.tensors:
            taken = wanted.get(name)
            if taken is None or BY_NAME[taken.dtype] is tensor.dtype:
                continue
            if not taken.selection and name in norms and _narrows(tensor, taken.dtype):
                kept += 1
                continue
            require_no_scale(state_dict.path, name, tensor, names, "--dtype")
            cast = Cast(state_dict.path, name, taken.dtype, max_loss)
            cast.tensor(tensor)  # raises what does not convert
            casts.append(cast)
        warnings += remarks(state_dict, casts)
        edits += casts
    for rule, count in counts.items():
        if rule.selection and not count:
            raise UsageError(
                f"'--dtype {rule.text}' matches nothing",
                path=checkpoint.file.name,
                hint=near_hint(rule.selection, all_names(state_dicts))
                or "'ckpt inspect --keys' lists every name",
            )
    done = [RuleCount(rule, count) for rule, count in counts.items()]
    spared = [RuleCount(_Kept(), kept)] if kept else []
    return Planned(Plan(tuple(edits)), (*done, *spared), tuple(warnings))


def _norms_of(state_dict: StateDict) -> frozenset[str]:
    """Return the names of norm layers' tensors and of running statistics, by form and name.

    A norm's weight has the shape of its bias, or its module has running statistics; without a bias
    it has one dimension and a module that is called so (``norm1``, ``ln_f``, ``input_layernorm``).
    """
    tensors = dict(state_dict.tensors)
    found: set[str] = set()
    for name, tensor in tensors.items():
        module, dot, leaf = name.rpartition(".")
        if leaf in _STATISTICS:
            found.add(name)
        if leaf not in _FACTORS:
            continue
        shift = f"{module}{dot}{_FACTORS[leaf]}"
        beside = tensors.get(shift)
        tracked = f"{module}{dot}running_mean" in tensors
        alike = beside is not None and beside.shape == tensor.shape
        called = len(tensor.shape) < 2 and _NORM.search(module.rpartition(".")[2]) is not None
        if tracked or alike or (called and beside is None):
            found |= {name} if beside is None else {name, shift}
    return frozenset(found)


def _narrows(tensor: Tensor, dtype: str) -> bool:
    parts = 2 if tensor.dtype.kind == "complex" else 1
    was, now = tensor.dtype.itemsize // parts, BY_NAME[dtype].itemsize // parts
    return was >= _WIDE > now
