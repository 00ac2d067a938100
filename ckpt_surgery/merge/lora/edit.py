"""Folding low-rank products into a weight, as an edit: ``W + Σ sᵢ·Bᵢ·Aᵢ``, computed when written.

LoRA: Hu et al., ICLR 2022, arXiv:2106.09685. DoRA: Liu et al., ICML 2024, arXiv:2402.09353, eq. 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, ClassVar

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, Tensor, join_path
from ckpt_surgery.edits.base import BatchEdit
from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.places import require_there, state_dict_at, with_state_dicts
from ckpt_surgery.edits.take import source_state_dict
from ckpt_surgery.errors import PlanError
from ckpt_surgery.merge.edit import computed_in_place
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    from ckpt_surgery.merge.lora.job import Factors


@dataclass(frozen=True, slots=True)
class LoraPart:
    """One product: the entries `up` and `down` of the state dict at `state_dict` in `file`.

    With `mid` the kernel of a convolution lies between them (LoCon); without `down` the difference
    is `up` itself. It is multiplied by `scale`, and `transposed` if the weight is stored so. With
    `magnitude` the sum gets these norms (DoRA).
    """

    file: str
    state_dict: str
    up: str
    down: str | None = None
    mid: str | None = None
    magnitude: str | None = None
    scale: float = 1.0
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class FoldLora(BatchEdit):
    """Add the products `parts` to a tensor, with one rounding at the end."""

    kind: ClassVar[str] = "fold-lora"
    state_dict: str
    name: str
    parts: tuple[LoraPart, ...]
    allow_nonfinite: bool = False

    @property
    def path(self) -> str:
        """The entry's state dict and name."""
        return join_path(self.state_dict, self.name)

    @classmethod
    def apply_all(
        cls, run: Sequence[FoldLora], checkpoint: Checkpoint, inputs: Inputs
    ) -> Checkpoint:
        """Return the checkpoint with the sums. Needs torch.

        Raises `PlanError` for shapes that do not fit, naming the adapter's entry.
        """
        from ckpt_surgery.compute.elements import require_torch

        require_torch()
        return _Folding(checkpoint, inputs).carry_out(run)


class _Folding:
    """A run of folds being put into a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, inputs: Inputs) -> None:
        self._checkpoint = checkpoint
        self._inputs = inputs
        self._tables: dict[tuple[str, str], Mapping[str, Entry]] = {}
        self._made: dict[object, Tensor] = {}

    def carry_out(self, run: Sequence[FoldLora]) -> Checkpoint:
        by_path: dict[str, list[FoldLora]] = {}
        for edit in run:
            by_path.setdefault(edit.state_dict, []).append(edit)
        changed = {}
        for path, edits in by_path.items():
            state_dict = state_dict_at(self._checkpoint, path)
            entries = {entry.name: entry for entry in state_dict.entries}
            for edit in edits:
                require_there(path, [edit.name], entries)
                entries[edit.name] = self._folded(edit, entries[edit.name])
            changed[path] = replace(state_dict, entries=tuple(entries.values()))
        return with_state_dicts(self._checkpoint, changed)

    def _folded(self, edit: FoldLora, own: Entry) -> Entry:
        from ckpt_surgery.compute.casting import category

        tensor = own.tensor
        if tensor is None or tensor.storage is None or category(tensor.dtype) != "real":
            what = "no strided tensor" if tensor is None else f"of type {tensor.dtype.name}"
            raise PlanError(f"nothing can be added to '{edit.path}': it is {what}")
        if tensor.dtype.itemsize < 2:
            raise PlanError(
                f"'{edit.path}' is quantised to {tensor.dtype.name}: its numbers have scales "
                "elsewhere",
                hint="fold into the weights before they are quantised",
            )
        # names that are tied to each other and folded alike stay tied
        key = (tensor.identity, edit.parts, edit.allow_nonfinite)
        if key not in self._made:
            self._made[key] = self._computed(edit, tensor)
        made = replace(
            self._made[key], requires_grad=tensor.requires_grad, is_parameter=tensor.is_parameter
        )
        return replace(own, tensor=made, node=None)

    def _computed(self, edit: FoldLora, own: Tensor) -> Tensor:
        from ckpt_surgery.merge.lora.job import LoraJob

        factors = [self._factors(part, edit, own) for part in edit.parts]
        job = LoraJob(
            edit.path,
            own,
            factors,
            self._checkpoint.file.name,
            allow_nonfinite=edit.allow_nonfinite,
        )
        return replace(computed_in_place(own, own.dtype, job), node=None)

    def _tensor(self, part: LoraPart, name: str) -> Tensor:
        place = part.file, part.state_dict
        if place not in self._tables:
            found = source_state_dict(self._inputs, *place)
            self._tables[place] = {entry.name: entry for entry in found.entries}
        table = self._tables[place]
        if name not in table:
            require_there(part.state_dict, [name], table)
        tensor = table[name].tensor
        if tensor is None or tensor.storage is None or tensor.dtype.kind != "float":
            raise PlanError("it is no tensor of numbers", path=part.file, entry=name)
        return tensor

    def _factors(self, part: LoraPart, edit: FoldLora, own: Tensor) -> Factors:
        """Return the tensors of a part. Raises `PlanError` if their shapes do not fit."""
        from ckpt_surgery.merge.lora.job import Factors

        up, down, mid, magnitude = (
            None if name is None else self._tensor(part, name)
            for name in (part.up, part.down, part.mid, part.magnitude)
        )
        if up is None:
            raise PlanError(f"'{edit.path}' gets nothing")
        rows, columns = _matrix(own.shape, transposed=part.transposed)
        if down is None:
            _require(up.numel == own.numel, part, part.up, up, edit, own)
        else:
            rank = up.shape[1] if len(up.shape) > 1 else 0
            is_up = up.numel == rows * rank and up.shape[0] == rows
            _require(is_up, part, part.up, up, edit, own)
            _require_down(part, rank, columns, down, mid, edit, own)
        by_input = magnitude is not None and _is_by_input(part.magnitude or "", magnitude, rows)
        if magnitude is not None:
            fits = magnitude.numel > 0 and (
                columns % magnitude.numel == 0 if by_input else magnitude.numel == rows
            )
            _require(fits, part, part.magnitude or "", magnitude, edit, own)
        return Factors(
            up,
            down,
            mid,
            magnitude,
            part.scale,
            transposed=part.transposed,
            by_input=by_input,
            label=part.file,
            names=tuple(n for n in (part.up, part.down, part.mid, part.magnitude) if n),
        )


def _matrix(shape: tuple[int, ...], *, transposed: bool) -> tuple[int, int]:
    """Return outputs and inputs of a weight, those of a kernel's places counted as inputs."""
    rows = shape[0] if shape else 1
    columns = prod(shape[1:])
    return (columns, rows) if transposed else (rows, columns)


def _require_down(
    part: LoraPart,
    rank: int,
    columns: int,
    down: Tensor,
    mid: Tensor | None,
    edit: FoldLora,
    own: Tensor,
) -> None:
    kernel = 1 if mid is None else prod(mid.shape[2:])
    is_down = bool(down.shape) and down.numel * kernel == rank * columns and down.shape[0] == rank
    _require(is_down, part, part.down or "", down, edit, own)
    if mid is not None:
        _require(mid.shape[:2] == (rank, rank), part, part.mid or "", mid, edit, own)


def _require(
    fits: bool, part: LoraPart, name: str, tensor: Tensor, edit: FoldLora, own: Tensor
) -> None:
    if not fits:
        raise PlanError(
            f"'{name}' of {list(tensor.shape)} does not fit '{edit.path}' of {list(own.shape)}",
            path=part.file,
            entry=name,
        )


def _is_by_input(name: str, magnitude: Tensor, rows: int) -> bool:
    """Return whether magnitudes are norms over the outputs, one for each input.

    LyCORIS has both, told apart by where the axis of one element is; PEFT has one for each output.
    """
    if name.endswith("dora_scale") and len(magnitude.shape) > 1:
        return magnitude.shape[0] == 1
    return magnitude.numel != rows
