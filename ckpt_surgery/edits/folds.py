"""Edits that fold what a network does after a weight, or to it, into the weight.

Batch norm and branches: Jacob et al., CVPR 2018, arXiv:1712.05877, eq. 14; Ding et al., RepVGG,
CVPR 2021, arXiv:2101.03697, section 3.3. Weight norm: Salimans and Kingma, NeurIPS 2016,
arXiv:1602.07868, eq. 2. Spectral norm: Miyato et al., ICLR 2018, arXiv:1802.05957, eq. 8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import ClassVar, Self

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, StateDict, Tensor, join_path
from ckpt_surgery.compute.casts import CastTally
from ckpt_surgery.compute.lazy import computed_tensor
from ckpt_surgery.edits.base import BatchEdit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.places import edit_state_dicts, require_distinct, require_there
from ckpt_surgery.edits.values import Elements, elements_of, require_plain, tally_of, tensor_of
from ckpt_surgery.errors import PlanError
from ckpt_surgery.startup.lazy_dataclass import dataclass

_NORM_ENTRIES = ("running_mean", "running_var", "weight", "bias", "num_batches_tracked")
"""What a batch norm has; all but the first two may be missing."""


class _Fold(BatchEdit):
    """An edit that puts a few entries in the place of others."""

    __slots__ = ()
    state_dict: str

    @property
    def results(self) -> tuple[str, ...]:
        """The names that are made."""
        raise NotImplementedError

    def _made(self, known: Mapping[str, Entry]) -> tuple[list[Entry], set[str]]:
        """Return what is made, to stand at the first of what it is made of, and what goes."""
        raise NotImplementedError

    @classmethod
    def apply_all(
        cls,
        run: Sequence[Self],
        checkpoint: Checkpoint,
        inputs: Inputs,  # noqa: ARG003
    ) -> Checkpoint:
        """Return the checkpoint with the folded weights.

        Raises `PlanError` for shapes that do not fit, `NameCollisionError` for a name twice.
        """
        return edit_state_dicts(run, checkpoint, _folded)


def _folded(state_dict: StateDict, edits: Sequence[_Fold]) -> StateDict:
    known = {entry.name: entry for entry in state_dict.entries}
    at_first: dict[str, list[Entry]] = {}
    gone: set[str] = set()
    for edit in edits:
        made, used = edit._made(known)  # noqa: SLF001 - of this module's classes
        first = next(entry.name for entry in state_dict.entries if entry.name in used)
        if used & gone:
            name = min(used & gone)
            raise PlanError("it is folded twice", entry=join_path(state_dict.path, name))
        at_first[first] = made
        gone |= used
    entries: list[Entry] = []
    for entry in state_dict.entries:
        if entry.name in at_first:
            entries += at_first[entry.name]
        elif entry.name not in gone:
            entries.append(entry)
    require_distinct(state_dict.path, (entry.name for entry in entries))
    return replace(state_dict, entries=tuple(entries))


@dataclass(frozen=True, slots=True)
class Branch:
    """One way through a block: the entries of a convolution, and the module of a batch norm.

    Without `kernel` it is the identity.
    """

    kernel: str | None = None
    bias: str | None = None
    norm: str | None = None


@dataclass(frozen=True, slots=True)
class FoldBranches(_Fold):
    """Put one kernel in the place of branches that are added up, with `bias` beside it.

    `eps` is that of the batch norms, which no file holds; `dim` the axis of the outputs: 1 for a
    transposed convolution.
    """

    kind: ClassVar[str] = "fold-branches"
    state_dict: str
    weight: str
    bias: str
    branches: tuple[Branch, ...]
    eps: float = 1e-5
    dim: int = 0

    @property
    def results(self) -> tuple[str, ...]:
        """The kernel and the bias."""
        return self.weight, self.bias

    def _made(self, known: Mapping[str, Entry]) -> tuple[list[Entry], set[str]]:
        kernels = [self._tensor(known, branch.kernel) for branch in self.branches]
        biases = [self._tensor(known, branch.bias) for branch in self.branches]
        norms = [self._norm(known, branch.norm) for branch in self.branches]
        largest = max((k for k in kernels if k is not None), key=lambda k: k.numel, default=None)
        if largest is None:
            raise PlanError("no branch has a kernel", entry=join_path(self.state_dict, self.weight))
        self._require_fitting(kernels, norms, largest)
        big_endian = largest.storage is not None and largest.storage.big_endian
        channels = _channels(largest, norms, self.dim)

        tallies = {name: tally_of(self.state_dict, name, largest) for name in self.results}

        def kernel() -> Elements:
            from ckpt_surgery.compute.casting import torch_dtype
            from ckpt_surgery.compute.folding import sum_of_branches

            loaded = [None if k is None else elements_of(k) for k in kernels]
            dtype = torch_dtype(largest.dtype)
            count = tallies[self.weight].add
            return sum_of_branches(
                loaded, self._loaded(norms), largest.shape, self.dim, dtype, count
            )

        def bias() -> Elements:
            from ckpt_surgery.compute.casting import torch_dtype
            from ckpt_surgery.compute.folding import sum_of_offsets

            loaded = [None if b is None else elements_of(b) for b in biases]
            dtype, count = torch_dtype(largest.dtype), tallies[self.bias].add
            return sum_of_offsets(loaded, self._loaded(norms), dtype, count)

        normed = (tensor for norm in norms if norm is not None for tensor in norm)
        read = [each for each in (*kernels, *biases, *normed) if each is not None]
        shapes = ((self.weight, largest.shape, kernel), (self.bias, (channels,), bias))
        made = [
            Entry(
                name,
                replace(
                    computed_tensor(
                        shape,
                        largest.dtype,
                        compute,
                        key=name,
                        device=largest.device,
                        big_endian=big_endian,
                        tally=tallies[name],
                        made_of=read,
                    ),
                    requires_grad=largest.requires_grad,
                ),
                "parameter",
            )
            for name, shape, compute in shapes
        ]
        return made, set(self._used(known))

    def _used(self, known: Mapping[str, Entry]) -> list[str]:
        used = [n for branch in self.branches for n in (branch.kernel, branch.bias) if n]
        for branch in self.branches:
            if branch.norm is not None:
                names = (f"{branch.norm}.{each}" for each in _NORM_ENTRIES)
                used += (name for name in names if name in known)
        return used

    def _tensor(self, known: Mapping[str, Entry], name: str | None) -> Tensor | None:
        if name is None:
            return None
        require_there(self.state_dict, [name], known)
        tensor = tensor_of(self.state_dict, known[name])
        require_plain(self.state_dict, name, tensor)
        if tensor.dtype.kind != "float":
            raise PlanError(
                f"it holds {tensor.dtype.name}, which has no fractions",
                entry=join_path(self.state_dict, name),
            )
        return tensor

    def _norm(self, known: Mapping[str, Entry], module: str | None) -> list[Tensor | None] | None:
        """Return mean, variance, weight and bias of a batch norm; the last two may be missing."""
        if module is None:
            return None
        names = [f"{module}.{each}" for each in _NORM_ENTRIES[:4]]
        require_there(self.state_dict, names[:2], known)
        found = [self._tensor(known, name) if name in known else None for name in names]
        if len({tensor.shape for tensor in found if tensor is not None}) > 1:
            raise PlanError("its entries differ in shape", entry=join_path(self.state_dict, module))
        return found

    def _loaded(self, norms: Sequence[list[Tensor | None] | None]) -> list[Elements]:
        from ckpt_surgery.compute.folding import batch_norm

        loaded: list[Elements] = []
        for norm in norms:
            if norm is None:
                loaded.append(None)
                continue
            parts: list[Elements] = [None if t is None else elements_of(t) for t in norm]
            loaded.append(batch_norm(parts[0], parts[1], parts[2], parts[3], self.eps))
        return loaded

    def _require_fitting(
        self,
        kernels: Sequence[Tensor | None],
        norms: Sequence[list[Tensor | None] | None],
        largest: Tensor,
    ) -> None:
        where = join_path(self.state_dict, self.weight)
        if len(largest.shape) <= self.dim:
            raise PlanError(f"{list(largest.shape)} has no dimension {self.dim}", entry=where)
        channels = _channels(largest, norms, self.dim)
        for norm in norms:
            mean = None if norm is None else norm[0]
            if mean is not None and mean.shape != (channels,):
                raise PlanError(
                    f"a batch norm of {list(mean.shape)} does not fit {list(largest.shape)}",
                    entry=where,
                    hint="of a transposed convolution the outputs are dimension 1: add :dim=1",
                )
        for kernel in kernels:
            inner = () if kernel is None else zip(largest.shape[2:], kernel.shape[2:], strict=False)
            if kernel is not None and (
                kernel.shape[:2] != largest.shape[:2]
                or len(kernel.shape) != len(largest.shape)
                or any(whole < part or (whole - part) % 2 for whole, part in inner)
            ):
                raise PlanError(
                    f"kernels of {list(kernel.shape)} and {list(largest.shape)} do not add up",
                    entry=where,
                )
        if None in kernels and (self.dim or channels % largest.shape[1]):
            raise PlanError(f"{list(largest.shape)} has no identity", entry=where)


def _channels(kernel: Tensor, norms: Sequence[list[Tensor | None] | None], dim: int) -> int:
    """Return how many outputs there are: of a transposed one in groups, what its norm has."""
    size = kernel.shape[dim]
    means = [norm[0] for norm in norms if norm is not None]
    mean = means[0] if means else None
    groups = mean.numel // size if dim and mean is not None and size else 1
    if mean is not None and groups * size == mean.numel and kernel.shape[0] % max(groups, 1) == 0:
        return mean.numel
    return size


@dataclass(frozen=True, slots=True)
class FoldWeightNorm(_Fold):
    """Put ``g·v/‖v‖`` in the place of a magnitude and a direction."""

    kind: ClassVar[str] = "fold-weight-norm"
    state_dict: str
    name: str
    magnitude: str
    direction: str

    @property
    def results(self) -> tuple[str, ...]:
        """The weight."""
        return (self.name,)

    def _made(self, known: Mapping[str, Entry]) -> tuple[list[Entry], set[str]]:
        used = [self.magnitude, self.direction]
        g, v = _floats(self.state_dict, used, known)
        fits = not g.shape or (
            len(g.shape) == len(v.shape)
            and all(a in (1, b) for a, b in zip(g.shape, v.shape, strict=True))
        )
        if not fits:
            raise PlanError(
                f"a magnitude of {list(g.shape)} does not fit {list(v.shape)}",
                entry=join_path(self.state_dict, self.magnitude),
            )

        tally = tally_of(self.state_dict, self.name, v)

        def compute() -> Elements:
            from ckpt_surgery.compute.folding import weight_normed

            return weight_normed(elements_of(g), elements_of(v), tally.add)

        return [_like(v, self.name, compute, tally, (g, v))], set(used)


@dataclass(frozen=True, slots=True)
class FoldSpectralNorm(_Fold):
    """Put the weight through its largest singular value, as `left` and `right` estimate it.

    Those are vectors beside the weight `original`; `dim` is the axis that the rows are.
    """

    kind: ClassVar[str] = "fold-spectral-norm"
    state_dict: str
    name: str
    original: str
    left: str
    right: str
    dim: int = 0

    @property
    def results(self) -> tuple[str, ...]:
        """The weight."""
        return (self.name,)

    def _made(self, known: Mapping[str, Entry]) -> tuple[list[Entry], set[str]]:
        used = [self.original, self.left, self.right]
        weight, u, v = _floats(self.state_dict, used, known)
        rows = weight.shape[self.dim] if self.dim < len(weight.shape) else 0
        if u.shape != (rows,) or v.shape != (prod(weight.shape) // max(rows, 1),):
            raise PlanError(
                f"vectors of {list(u.shape)} and {list(v.shape)} do not fit {list(weight.shape)}",
                entry=join_path(self.state_dict, self.original),
                hint="of a transposed convolution the rows are dimension 1: add :dim=1",
            )

        tally = tally_of(self.state_dict, self.name, weight)

        def compute() -> Elements:
            from ckpt_surgery.compute.folding import spectrally_normed

            loaded = (elements_of(weight), elements_of(u), elements_of(v))
            return spectrally_normed(*loaded, self.dim, tally.add)

        return [_like(weight, self.name, compute, tally, (weight, u, v))], set(used)


def _floats(path: str, names: Sequence[str], known: Mapping[str, Entry]) -> list[Tensor]:
    require_there(path, names, known)
    found = [tensor_of(path, known[name]) for name in names]
    for name, tensor in zip(names, found, strict=True):
        require_plain(path, name, tensor)
        if tensor.dtype.kind != "float":
            raise PlanError(f"it holds {tensor.dtype.name}", entry=join_path(path, name))
    return found


def _like(
    tensor: Tensor,
    name: str,
    compute: Callable[[], Elements],
    tally: CastTally,
    made_of: Sequence[Tensor],
) -> Entry:
    big_endian = tensor.storage is not None and tensor.storage.big_endian
    made = computed_tensor(
        tensor.shape,
        tensor.dtype,
        compute,
        key=name,
        device=tensor.device,
        big_endian=big_endian,
        tally=tally,
        made_of=made_of,
    )
    return Entry(
        name,
        replace(made, requires_grad=tensor.requires_grad),
        "parameter",
    )
