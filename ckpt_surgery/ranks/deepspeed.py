"""ZeRO checkpoints of DeepSpeed: the float32 weights that the ranks' optimizers have parts of.

The rules are those of ``deepspeed/utils/zero_to_fp32.py``. At stages 1 and 2 the parameters of a
group are one vector, of which each rank has one run; at stage 3 each rank has a run of every
parameter, padded to equal lengths. The model's own file has the names and shapes, and the buffers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, Tensor
from ckpt_surgery.errors import DamagedFileError, ReadError, about_file
from ckpt_surgery.fileio import ByteSource
from ckpt_surgery.formats import read
from ckpt_surgery.pickles import Node
from ckpt_surgery.ranks.flat import Vector, item, shaped
from ckpt_surgery.ranks.join import whole
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.calls import sizes
from ckpt_surgery.torch_objects.mappings import mapping_pairs
from ckpt_surgery.torch_objects.row_major import row_major
from ckpt_surgery.torch_objects.storages import text
from ckpt_surgery.torch_objects.tensors import TensorReader

_OPTIMIZER: Final = "optimizer_state_dict"
_VECTORS: Final = {1: "single_partition_of_fp32_groups", 2: "single_partition_of_fp32_groups"}
_VECTORS_OF_STAGE_3: Final = "fp32_flat_groups"
_MODEL: Final = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")
_OPTIM: Final = re.compile(r".*zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_ALIGNED: Final = 2  # elements for each rank, to which vectors of stages 1 and 2 are padded


@dataclass(frozen=True, slots=True)
class ZeroRank:
    """The weights of one rank of tensor parallelism, and the files that they come from."""

    stage: int
    tensors: Mapping[str, Tensor]
    files: tuple[Checkpoint, ...]
    left_out: tuple[str, ...]


def read_zero(folder: Path, opened: list[Checkpoint]) -> list[ZeroRank]:
    """Return the weights in a directory, for each rank of tensor parallelism in turn.

    Files that are opened go to `opened`. Raises `ReadError` if files are missing, and
    `DamagedFileError` if they are not of the form that DeepSpeed writes.
    """
    models, optimizers = _by_rank(folder, _MODEL), _by_rank(folder, _OPTIM)
    if not models or models.keys() != optimizers.keys():
        raise ReadError(
            "the files '*_model_states.pt' and '*_optim_states.pt' do not belong together",
            path=str(folder),
            hint="the directory of one saved step has both, of every rank",
        )
    found: list[ZeroRank] = []
    for rank in sorted(models):
        opened_models = [_open(path, opened) for path in models[rank]]
        opened_optimizers = [_open(path, opened) for path in optimizers[rank]]
        with about_file(opened_models[0].file.name):
            found.append(_read_rank(opened_models, opened_optimizers))
    return found


def _by_rank(folder: Path, form: re.Pattern[str]) -> dict[int, list[Path]]:
    """Return the files whose names are of a form, by the rank of tensor parallelism, in order."""
    found: dict[int, list[tuple[int, Path]]] = {}
    for path in folder.iterdir():
        named = form.fullmatch(path.name)
        if named is not None:
            found.setdefault(int(named[2]), []).append((int(named[1] or 0), path))
    return {rank: [path for _, path in sorted(paths)] for rank, paths in found.items()}


def _open(path: Path, opened: list[Checkpoint]) -> Checkpoint:
    checkpoint = read(path)
    opened.append(checkpoint)
    return checkpoint


def _read_rank(models: Sequence[Checkpoint], optimizers: Sequence[Checkpoint]) -> ZeroRank:
    model = models[0].root
    _refuse_experts(model)
    stage = item(optimizers[0].root, _OPTIMIZER, "zero_stage")
    if type(stage) is not int or stage not in (1, 2, 3):
        raise DamagedFileError("the optimizer's file names no stage of ZeRO from 1 to 3")
    _require_ranks(optimizers)
    vectors = [_vectors(each, stage) for each in optimizers]
    tensors = _buffers(model)
    tensors |= _frozen(models, stage)
    shapes = _shapes(model)
    tensors |= _from_ranks(shapes, vectors) if stage == 3 else _from_groups(shapes, vectors)
    for name, source in _texts(item(model, "shared_params")).items():
        if source in tensors:
            tensors[name] = tensors[source]
    left_out = tuple(name for name, _ in _pairs(model) if name != "module")
    return ZeroRank(stage, tensors, (*models, *optimizers), left_out)


def _refuse_experts(model: Node) -> None:
    """Raise `DamagedFileError` if experts are partitioned over groups of their own."""
    if any("autoep" in name.lower() for name, _ in _pairs(model)):
        raise DamagedFileError(
            "experts are partitioned over groups of ranks of their own",
            hint="DeepSpeed's ds_to_universal.py converts these",
        )


def _require_ranks(optimizers: Sequence[Checkpoint]) -> None:
    count = item(optimizers[0].root, _OPTIMIZER, "partition_count")
    if isinstance(count, list | tuple):
        count = max((n for n in count if type(n) is int), default=None)
    if count != len(optimizers):
        raise DamagedFileError(
            f"it was saved by {count} ranks, and there are {len(optimizers)} files "
            "'*_optim_states.pt'",
            hint="a rank did not save, or files of another run are left in the directory",
        )


def _vectors(optimizer: Checkpoint, stage: int) -> list[Tensor]:
    key = _VECTORS.get(stage, _VECTORS_OF_STAGE_3)
    found = item(optimizer.root, _OPTIMIZER, key)
    reader = TensorReader()
    tensors = [reader.describe(each) for each in found] if isinstance(found, list) else []
    known = [tensor for tensor in tensors if tensor is not None and tensor.storage is not None]
    if not known or len(known) != len(tensors):
        raise DamagedFileError("holds no vectors of weights", path=optimizer.file.name, entry=key)
    return known


def _shapes(model: Node) -> list[dict[str, tuple[int, ...]]]:
    """Return names and shapes of the parameters, for each group."""
    found = item(model, "param_shapes")
    groups = found if isinstance(found, list) else [found]
    return [{name: sizes(shape) for name, shape in _pairs(group)} for group in groups]


def _buffers(model: Node) -> dict[str, Tensor]:
    """Return the buffers; those in half precision as float32, as the weights are."""
    names = item(model, "buffer_names")
    wanted = {text(name) for name in names} if isinstance(names, list | tuple) else set()
    reader = TensorReader()
    found: dict[str, Tensor] = {}
    for name, node in _pairs(item(model, "module")):
        tensor = reader.describe(node)
        if name in wanted and tensor is not None:
            found[name] = _widened(name, tensor)
    return found


def _widened(name: str, tensor: Tensor) -> Tensor:
    from ckpt_surgery.dtypes import BY_NAME
    from ckpt_surgery.ranks.widen import Widened

    if tensor.dtype.name not in {"float16", "bfloat16"}:
        return tensor
    data: ByteSource = Widened(row_major(tensor), tensor.dtype.name == "bfloat16")
    return whole(name, tensor.shape, BY_NAME["float32"], data)


def _frozen(models: Sequence[Checkpoint], stage: int) -> dict[str, Tensor]:
    """Return parameters that are not trained: whole up to stage 2, then in runs like the others."""
    shapes = _pairs(item(models[0].root, "frozen_param_shapes"))
    reader = TensorReader()
    found: dict[str, Tensor] = {}
    for name, shape in shapes:
        files = models if stage == 3 else models[:1]
        runs = [reader.describe(item(m.root, "frozen_param_fragments", name)) for m in files]
        if any(run is None or run.storage is None for run in runs):
            raise DamagedFileError("a frozen parameter has no values", entry=name)
        known = [run for run in runs if run is not None]
        found[name] = shaped(name, sizes(shape), known) if stage == 3 else known[0]
    return found


def _from_groups(
    shapes: Sequence[Mapping[str, tuple[int, ...]]], vectors: Sequence[Sequence[Tensor]]
) -> dict[str, Tensor]:
    """Return the parameters of stages 1 and 2: each group is one vector over all ranks."""
    if any(len(each) != len(shapes) for each in vectors):
        raise DamagedFileError("the ranks have other groups of parameters than the model")
    align = _ALIGNED * len(vectors)
    found: dict[str, Tensor] = {}
    for number, group in enumerate(shapes):
        vector = Vector([each[number] for each in vectors])
        start = 0
        for name, shape in group.items():
            found[name] = shaped(name, shape, vector.runs(start, prod(shape)))
            start += prod(shape)
        if -(-start // align) != -(-vector.numel // align):
            raise _not_consumed(start, vector.numel)
    return found


def _from_ranks(
    shapes: Sequence[Mapping[str, tuple[int, ...]]], vectors: Sequence[Sequence[Tensor]]
) -> dict[str, Tensor]:
    """Return the parameters of stage 3: each rank has an equal run of every one."""
    ranks = [Vector(each) for each in vectors]
    found: dict[str, Tensor] = {}
    start = 0
    for group in shapes:
        for name, shape in group.items():
            length = -(-prod(shape) // len(ranks))
            runs = [run for rank in ranks for run in rank.runs(start, length)]
            found[name] = shaped(name, shape, runs)
            start += length
    if any(rank.numel != start for rank in ranks):
        raise _not_consumed(start, ranks[0].numel)
    return found


def _not_consumed(used: int, there: int) -> DamagedFileError:
    return DamagedFileError(
        f"the parameters have {used} elements, and the ranks' vectors {there}",
        hint="are these files of one saved step?",
    )


def _texts(node: Node) -> dict[str, str]:
    named = ((name, text(value)) for name, value in _pairs(node))
    return {name: value for name, value in named if value is not None}


def _pairs(node: Node) -> list[tuple[str, Node]]:
    """Return the items of a mapping that stand under texts; none of anything else."""
    named = ((text(key), value) for key, value in mapping_pairs(node) or ())
    return [(name, value) for name, value in named if name is not None]
