"""The sum of a weight and low-rank products, computed in rows while it is written."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, prod
from typing import Any, Final

import torch
from torch import Tensor as Elements

from ckpt_surgery.checkpoint.description import Tensor
from ckpt_surgery.compute import casting, elements
from ckpt_surgery.compute.casts import CastCount, CastTally
from ckpt_surgery.compute.spans import PIECE, RUN, spans
from ckpt_surgery.errors import NonFiniteError
from ckpt_surgery.merge.inputs import require_finite
from ckpt_surgery.merge.jobs import MergeJob
from ckpt_surgery.merge.lora.rounding import RoundingTally
from ckpt_surgery.startup.lazy_dataclass import dataclass

_WORKING: Final = 8  # bytes of a number in the widest working type


@dataclass(frozen=True, slots=True)
class Factors:
    """The tensors of one product, and how it is added; the fields are those of `LoraPart`.

    `by_input` says that a magnitude is the norm of what one input gives, not of what one output
    takes. `label` and `names` are for errors.
    """

    up: Tensor
    down: Tensor | None
    mid: Tensor | None
    magnitude: Tensor | None
    scale: float
    transposed: bool
    by_input: bool
    label: str
    names: tuple[str, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them that there are."""
        every = (self.up, self.down, self.mid, self.magnitude)
        return tuple(tensor for tensor in every if tensor is not None)

    @property
    def needs_columns(self) -> bool:
        """Whether norms go over columns as the weight is stored, which takes a pass over all."""
        return self.magnitude is not None and self.transposed != self.by_input


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A product in memory: ``left @ right`` as the weight is stored, and what a DoRA needs.

    Without `right` the difference is `left`. `columns` are factors of the columns, known after a
    first pass; `magnitudes` norms of the rows.
    """

    left: Elements
    right: Elements | None
    magnitudes: Elements | None = None
    columns: Elements | None = None

    def rows(self, start: int, stop: int) -> Elements:
        """Return rows of the difference."""
        left = self.left[start:stop]
        return left if self.right is None else left @ self.right


class LoraJob(MergeJob):
    """A weight with products added, in runs of whole rows."""

    def __init__(
        self,
        name: str,
        own: Tensor,
        factors: Sequence[Factors],
        label: str,
        *,
        allow_nonfinite: bool = False,
    ) -> None:
        self._name, self._own, self._factors, self._label = name, own, factors, label
        self._allow_nonfinite = allow_nonfinite
        self._dtype = casting.torch_dtype(own.dtype)
        self._work = casting.work_dtype([self._dtype])
        self._columns = max(prod(own.shape[1:]), 1)
        self.numel = own.numel
        self.itemsize = self._dtype.itemsize
        self.run_size = max(RUN // self._columns, 1) * self._columns
        self.big_endian = own.storage is not None and own.storage.big_endian
        self._counts = self.tally = CastTally(name, own.dtype.name, own.dtype.name, own.numel)
        self.made_of = (own, *(tensor for each in factors for tensor in each.tensors))
        self.rounding = RoundingTally(name)
        self.workspace = sum(_WORKING * t.numel for each in factors for t in each.tensors)
        self.workspace += 0 if own.is_contiguous else own.nbytes

    def begin(self) -> tuple[Any, list[_Loaded]]:
        read = elements.run_reader(self._own)
        return read, [self._loaded(each, read) for each in self._factors]

    def run(self, begun: tuple[Any, list[_Loaded]], start: int, stop: int) -> Elements:
        read, loaded = begun
        result = torch.empty(stop - start, dtype=self._dtype)
        count = CastCount()
        for first, last in self._pieces(start, stop):
            before = self._before(read, first, last)
            exact = self._sum(before, loaded, first // self._columns)
            flat = exact.reshape(-1)
            if not self._allow_nonfinite and not isfinite(float(flat.sum())):
                require_finite(before.reshape(-1), self._label, self._name, first)
                self._require_sums(flat)
            rounded = result[first - start : last - start]
            rounded.copy_(casting.before_rounding(flat, self._dtype))
            count += casting.count_cast(flat, rounded, zeros=False)
            if self.rounding.wanted:
                self.rounding.add(first, before.reshape(-1), flat, rounded)
        self._counts.add(count, part=start)
        return result

    def _require_sums(self, exact: Elements) -> None:
        if not bool(exact.isfinite().all()):
            raise NonFiniteError(
                f"'{self._name}' with what is added holds NaN or infinity",
                path=self._label,
                entry=self._name,
                hint="a row without length has no direction that a magnitude could be given to",
            )

    def _pieces(self, start: int, stop: int) -> Any:
        return spans(start, stop, max(PIECE // self._columns, 1) * self._columns)

    def _before(self, read: Any, start: int, stop: int) -> Elements:
        return read(start, stop).to(self._work).view(-1, self._columns)  # type: ignore[no-any-return]

    def _sum(self, before: Elements, loaded: Sequence[_Loaded], row: int) -> Elements:
        """Return rows of the result, from the rows `before`, the first of which is `row`."""
        total = before
        for each in loaded:
            difference = each.rows(row, row + before.shape[0])
            if each.magnitudes is not None:  # the norm is that of one adapter, as PEFT has it
                norms = torch.linalg.vector_norm(before + difference, dim=1)
                factors = each.magnitudes[row : row + before.shape[0]] / norms
                total = (total + difference) * factors[:, None]
            elif each.columns is not None:
                total = (total + difference) * each.columns
            else:
                total = total + difference
        return total

    def _loaded(self, factors: Factors, read: Any) -> _Loaded:
        left, right = self._product(factors)
        if factors.magnitude is None:
            return _Loaded(left, right)
        magnitudes = self._load(factors.magnitude, factors).reshape(-1)
        if not factors.needs_columns:
            return _Loaded(left, right, magnitudes=magnitudes)
        bare = _Loaded(left, right)
        squares = torch.zeros(self._columns, dtype=self._work)
        for first, last in self._pieces(0, self.numel):
            row = first // self._columns
            rows = self._before(read, first, last)
            squares += (rows + bare.rows(row, row + rows.shape[0])).square().sum(0)
        each = self._columns // magnitudes.numel()
        norms = squares.view(-1, each).sum(1).sqrt()
        return _Loaded(left, right, columns=(magnitudes / norms).repeat_interleave(each))

    def _product(self, factors: Factors) -> tuple[Elements, Elements | None]:
        up = self._load(factors.up, factors) * factors.scale
        if factors.down is None:
            return up.reshape(-1, self._columns), None
        down = self._load(factors.down, factors)
        rank = down.shape[0]
        up = up.reshape(-1, rank)
        if factors.mid is not None:
            mid = self._load(factors.mid, factors)
            inner = down.reshape(down.shape[0], -1)
            down = torch.einsum("mnk,ni->mik", mid.reshape(rank, rank, -1), inner)
        down = down.reshape(rank, -1)
        return (down.T.contiguous(), up.T.contiguous()) if factors.transposed else (up, down)

    def _load(self, tensor: Tensor, factors: Factors) -> Elements:
        loaded = elements.load_elements(tensor)
        if loaded is None:
            raise TypeError(tensor.dtype)
        values = loaded.reshape(tensor.shape).to(self._work)
        if not self._allow_nonfinite:
            name = factors.names[[t is tensor for t in factors.tensors].index(True)]
            require_finite(values.reshape(-1), factors.label, name)
        return values
