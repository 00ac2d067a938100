"""What ``load_state_dict`` would say about a state dict, from names, shapes and types alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.models.target import Metadata, Shape, Target, TensorSpec
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A name that both sides have, with different shapes."""

    name: str
    checkpoint: Shape
    model: Shape

    def __str__(self) -> str:
        return (
            f"size mismatch for {self.name}: copying a param with shape "
            f"{_torch_size(self.checkpoint)} from checkpoint, the shape in current model is "
            f"{_torch_size(self.model)}."
        )


@dataclass(frozen=True, slots=True)
class Uncopyable:
    """A name with equal shapes whose values torch cannot copy.

    `checkpoint` and `model` are their layouts, or their element types if those are the reason.
    """

    name: str
    shape: Shape
    checkpoint: str
    model: str

    def __str__(self) -> str:
        size = _torch_size(self.shape)
        return (
            f'While copying the parameter named "{self.name}", whose dimensions in the model are '
            f"{size} and whose dimensions in the checkpoint are {size}, an exception occurred: "
            f"the checkpoint's tensor is {self.checkpoint}, the model's {self.model}."
        )


@dataclass(frozen=True, slots=True)
class DTypeDifference:
    """A name that both sides have, with different element types; ``load_state_dict`` converts."""

    name: str
    checkpoint: str
    model: str


@dataclass(frozen=True, slots=True)
class TiedName:
    """A name that is missing, while the same tensor is there under another name (`present`).

    ``load_state_dict(strict=True)`` calls it missing, although the tensor is loaded.
    """

    name: str
    present: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """A state dict against a target: `missing` has only the target, `unexpected` only the other.

    `matched` are the names with equal shapes, in the target's order; `uncopyable` have them, too,
    but ``load_state_dict`` refuses to copy such a tensor (sparse, quantized, a DTensor). `renamed`
    pairs old names with those that the model's own code gives them when it loads (an older version
    of a module).
    `defaulted` are absent, and that code does without them: the counters of old batch norms.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[Mismatch, ...] = ()
    uncopyable: tuple[Uncopyable, ...] = ()
    dtype_differences: tuple[DTypeDifference, ...] = ()
    tied: tuple[TiedName, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    defaulted: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether everything the target wants is there in the right shape, and nothing else."""
        return not (self.missing or self.unexpected or self.mismatched or self.uncopyable)

    @property
    def exit_code(self) -> int:
        return 0 if self.fits else 1

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of the JSON report of ``ckpt match``."""
        return {
            "missing_keys": list(self.missing),
            "unexpected_keys": list(self.unexpected),
            "mismatched_keys": [
                [m.name, list(m.checkpoint), list(m.model)] for m in self.mismatched
            ],
            "uncopyable_keys": [[u.name, u.checkpoint, u.model] for u in self.uncopyable],
            "dtype_differences": [[d.name, d.checkpoint, d.model] for d in self.dtype_differences],
            "tied": [[t.name, t.present] for t in self.tied],
            "renamed": [list(pair) for pair in self.renamed],
            "defaulted": list(self.defaulted),
            "matched": len(self.matched),
        }

    def wording(self, class_name: str) -> str:
        """Return the same in torch's own words: the message of its
        error, or that all keys matched.
        """
        lines = []
        if self.missing:
            lines.append(f"Missing key(s) in state_dict: {_quoted(self.missing)}. ")
        if self.unexpected:
            lines.append(f"Unexpected key(s) in state_dict: {_quoted(self.unexpected)}. ")
        lines.extend(str(mismatch) for mismatch in self.mismatched)
        lines.extend(str(uncopyable) for uncopyable in self.uncopyable)
        if not lines:
            return "<All keys matched successfully>"
        return "\n\t".join([f"Error(s) in loading state_dict for {class_name}:", *lines])


def _torch_size(shape: Shape) -> str:
    """``torch.Size([64, 3, 7, 7])``."""
    return f"torch.Size([{', '.join(map(str, shape))}])"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def compare(
    source: Sequence[TensorSpec],
    target: Target,
    *,
    source_metadata: Metadata | None = None,
    source_extra_state: Sequence[str] = (),
) -> Comparison:
    """Compare by torch's rules, for a target known by its description alone.

    A model's own code for loading older versions of itself is not run (`verdict.judge` runs it),
    except for the one that everybody meets: a batch norm that was saved before torch 0.4.1
    (version below 2 in its metadata, or no metadata) needs no ``num_batches_tracked``.
    """
    by_name = {spec.name: spec for spec in source}
    shared = [(by_name[want.name], want) for want in target.tensors if want.name in by_name]
    absent = [spec.name for spec in target.tensors if spec.name not in by_name]
    defaulted = [name for name in absent if _defaults_to_zero(name, target, source_metadata)]
    absent = [name for name in absent if name not in set(defaulted)]
    absent += [name for name in target.extra_state if name not in source_extra_state]
    known = target.by_name.keys() | set(target.extra_state)
    tied, missing = split_tied(absent, target, by_name)
    return Comparison(
        matched=tuple(
            want.name
            for have, want in shared
            if loads_into(have.shape, want.shape) and copies_into(have, want)
        ),
        missing=missing,
        unexpected=tuple(
            name
            for name in (*(spec.name for spec in source), *source_extra_state)
            if name not in known
        ),
        mismatched=tuple(
            Mismatch(want.name, have.shape, want.shape)
            for have, want in shared
            if not loads_into(have.shape, want.shape)
        ),
        uncopyable=uncopyable(
            (have, want) for have, want in shared if loads_into(have.shape, want.shape)
        ),
        dtype_differences=dtype_differences(shared),
        tied=tied,
        defaulted=tuple(defaulted),
    )


def loads_into(checkpoint: Shape, model: Shape) -> bool:
    """Return whether torch loads the one shape into the other:
    equal, or torch 0.3's (1,) into ().
    """
    return checkpoint == model or (model == () and checkpoint == (1,))


_DENSE: Final = frozenset({"strided", "device"})


def copies_into(have: TensorSpec, want: TensorSpec) -> bool:
    """Return whether torch copies a tensor into another one of its shape.

    Not from layout to layout (whether the class of a ``subclass`` permits it is not known), nor
    between types of which it has no conversion (torch 2.13).
    """
    if have.layout != want.layout and not {have.layout, want.layout} <= _DENSE:
        return False
    return have.dtype == want.dtype or (_converts(have.dtype) and _converts(want.dtype))


def _converts(name: str) -> bool:
    dtype = BY_NAME[name]
    return dtype.in_torch and dtype.kind != "bits" and name != "float4_e2m1fn_x2"


def uncopyable(pairs: Iterable[tuple[TensorSpec, TensorSpec]]) -> tuple[Uncopyable, ...]:
    """Of pairs of checkpoint and model that have equal shapes, those that torch does not copy."""
    return tuple(
        Uncopyable(want.name, want.shape, have.layout, want.layout)
        if have.layout != want.layout
        else Uncopyable(want.name, want.shape, have.dtype, want.dtype)
        for have, want in pairs
        if not copies_into(have, want)
    )


def dtype_differences(
    pairs: Iterable[tuple[TensorSpec, TensorSpec]],
) -> tuple[DTypeDifference, ...]:
    """Of pairs of checkpoint and model that torch copies, those whose element types differ."""
    return tuple(
        DTypeDifference(want.name, have.dtype, want.dtype)
        for have, want in pairs
        if have.dtype != want.dtype and copies_into(have, want)
    )


def split_tied(
    absent: Iterable[str], target: Target, present: Iterable[str]
) -> tuple[tuple[TiedName, ...], tuple[str, ...]]:
    """Part absent names into aliases of tensors that are present, and those that are missing."""
    tied: list[TiedName] = []
    missing: list[str] = []
    names = set(present)
    firsts = {group[0]: next((n for n in group if n in names), None) for group in target.ties}
    for name in absent:
        alias = firsts.get(target.leader_of.get(name, name))
        if alias is None:
            missing.append(name)
        else:
            tied.append(TiedName(name, alias))
    return tuple(tied), tuple(missing)


def _defaults_to_zero(name: str, target: Target, metadata: Metadata | None) -> bool:
    module, _, leaf = name.rpartition(".")
    if leaf != "num_batches_tracked" or target.by_name[name].shape != ():
        return False
    return lacks_counter(module, metadata)


def lacks_counter(module: str, metadata: Metadata | None) -> bool:
    """Return whether the batch norm at the path `module` was saved before it counted batches.

    That is, before torch 0.4.1, or by something that leaves no ``_metadata``: torch then starts
    ``num_batches_tracked`` at the model's own value, as ``load_state_dict`` says nothing of it.
    """
    version = (metadata or {}).get(module, {}).get("version")
    return version is None or (isinstance(version, int) and version < 2)
