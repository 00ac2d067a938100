"""Integers and bools: counters, indices and masks, which an average would only damage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from ckpt_surgery.errors import LossyEditError, MismatchError, UsageError
from ckpt_surgery.merge.policies import IntegerPolicy

COUNTER: Final = "num_batches_tracked"
"""Batch norm's counter: how many batches its running statistics have seen."""


def merge_integers(
    name: str,
    tensors: Sequence[Tensor],
    policy: IntegerPolicy = "auto",
    *,
    labels: Sequence[str] | None = None,
) -> Tensor:
    """Integers or bools of one name and one shape, as the policy says, in the first one's type.

    The first tensor is the base's. ``base`` takes it; ``error`` wants all to be equal; ``auto``
    (the default) takes the base's ``num_batches_tracked`` and wants others to be equal. ``max``,
    ``sum`` and ``mean`` (rounded to nearest, ties to even) are exact in whole numbers; of bools,
    ``max`` and ``sum`` are true where any is, ``mean`` where most are (a tie: the base).

    Raises `MismatchError` if the tensors should be equal and are not, or differ in shape;
    `LossyEditError` if the result does not fit the type; `UsageError` for a sum or mean of uint64.
    """
    first = tensors[0]
    if any(tensor.shape != first.shape for tensor in tensors):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise MismatchError(f"'{name}' has the shapes {shapes}", entry=name)
    if policy == "auto":
        policy = "base" if name.rpartition(".")[2] == COUNTER else "error"
    if policy == "base":
        return first.clone()
    if policy == "error":
        _require_equal(name, tensors, labels)
        return first.clone()
    if all(tensor.dtype == torch.bool for tensor in tensors):
        return _merge_bools(tensors, policy)
    if any(tensor.dtype == torch.uint64 for tensor in tensors):
        return _merge_unsigned(name, tensors, policy)
    wide = [tensor.long() for tensor in tensors]
    merged = {"max": _maximum, "sum": _sum, "mean": _mean}[policy](name, wide)
    narrow = merged.to(first.dtype)
    if not torch.equal(narrow.long(), merged):
        raise _overflow(name, policy, first.dtype)
    return narrow


def _require_equal(name: str, tensors: Sequence[Tensor], labels: Sequence[str] | None) -> None:
    first = tensors[0]
    for which, tensor in enumerate(tensors[1:], 1):
        both_wide = torch.uint64 not in {first.dtype, tensor.dtype}
        same = (
            torch.equal(first.long(), tensor.long())
            if both_wide
            else first.dtype == tensor.dtype and torch.equal(first, tensor)
        )
        if not same:
            files = f" in '{labels[0]}' and '{labels[which]}'" if labels else ""
            raise MismatchError(
                f"the {_type_name(first.dtype)} tensor '{name}' differs{files}",
                entry=name,
                hint="say with --int what to do: base, max, sum or mean",
            )


def _merge_bools(tensors: Sequence[Tensor], policy: IntegerPolicy) -> Tensor:
    votes = torch.stack([tensor.int() for tensor in tensors]).sum(0)
    if policy != "mean":
        return votes > 0
    return ((2 * votes) > len(tensors)) | (((2 * votes) == len(tensors)) & tensors[0])


def _merge_unsigned(name: str, tensors: Sequence[Tensor], policy: IntegerPolicy) -> Tensor:
    """Return the maximum of 64 bits unsigned, for which torch has no arithmetic."""
    if policy != "max" or any(tensor.dtype != torch.uint64 for tensor in tensors):
        raise UsageError(
            f"the uint64 tensor '{name}' has no {policy} here",
            hint="take the base's with --int base",
        )
    # with the top bit flipped, unsigned order is signed order
    top = torch.iinfo(torch.int64).min
    flipped = [tensor.view(torch.int64) ^ top for tensor in tensors]
    return (_maximum(name, flipped) ^ top).view(torch.uint64)


def _maximum(_name: str, tensors: Sequence[Tensor]) -> Tensor:
    result = tensors[0]
    for tensor in tensors[1:]:
        result = result.maximum(tensor)
    return result


def _sum(name: str, tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0].clone()
    wrapped = torch.zeros_like(total)
    for tensor in tensors[1:]:
        before = total.clone()
        total += tensor
        # a signed sum wraps around if both terms have the sign that the sum has not: count which
        # way, since a later term may bring it back
        wrapped += ((before ^ total) & (tensor ^ total) < 0) * before.sign()
    if bool(wrapped.any()):
        raise _overflow(name, "sum", torch.int64)
    return total


def _mean(_name: str, tensors: Sequence[Tensor]) -> Tensor:
    n = len(tensors)
    whole = torch.zeros_like(tensors[0])
    rest = torch.zeros_like(tensors[0])
    for tensor in tensors:
        quotient = tensor.div(n, rounding_mode="floor")
        whole += quotient
        rest += tensor - quotient * n
    carry = rest.div(n, rounding_mode="floor")
    whole += carry
    rest -= carry * n
    tie = (2 * rest == n) & (whole % 2 != 0)
    return whole + ((2 * rest > n) | tie)


def _overflow(name: str, policy: str, dtype: torch.dtype) -> LossyEditError:
    return LossyEditError(
        f"the {policy} of '{name}' does not fit {_type_name(dtype)}",
        entry=name,
        hint="take the base's with --int base",
    )


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
