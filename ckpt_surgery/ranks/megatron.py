"""Megatron-LM's files of tensor parallelism: ``iter_0000001/mp_rank_00/model_optim_rng.pt``.

Every rank has its share of the model's weights under ``model``, along an axis that follows from the
names (``ColumnParallelLinear``, ``RowParallelLinear`` and ``VocabParallelEmbedding`` in
``megatron/core/tensor_parallel/layers.py``). A gated first layer (``swiglu``) is split on each rank
into its two halves, which come together half by half. Only the weights are taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, Tensor
from ckpt_surgery.errors import DamagedFileError, ReadError, UsageError
from ckpt_surgery.pickles import NO_STATE, Node, Object
from ckpt_surgery.ranks.axes import AxisRule
from ckpt_surgery.ranks.parts import Part, RankFile, Way, read_parts
from ckpt_surgery.ranks.structure import Consolidated, flat_checkpoint, join_parts
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.mappings import named_items

_LATEST: Final = "latest_checkpointed_iteration.txt"
"""The file beside the steps that names the last one."""

_FOLDER: Final = re.compile(r"mp_rank_(\d{2,})((?:_\d{3,}){0,2})")
_FILES: Final = ("model_optim_rng.pt", "model_rng.pt")
_MODEL: Final = "model"
_RANKS: Final = "tensor_model_parallel_size"
_CHUNKS: Final = re.compile(r"model\d+")  # of a virtual pipeline
_TOOL: Final = (
    "Megatron-LM's tools/checkpoint/convert.py writes it again with "
    "--target-tensor-parallel-size 1 --target-pipeline-parallel-size 1"
)
_LEAST_VERSION: Final = 2  # before it, queries, keys and values of all heads lay apart
_GATED: Final = AxisRule("**mlp.linear_fc1.*", 0), AxisRule("**mlp.dense_h_to_4h.*", 0)
_PUBLISHED: Final = (
    *(
        AxisRule(f"**{name}.*", 0)
        for name in ("self_attention.linear_qkv", "self_attention.query_key_value",
                     "cross_attention.linear_q", "cross_attention.linear_kv")
    ),
    *(AxisRule(f"**{name}.weight", 0) for name in ("word_embeddings", "output_layer")),
    *(
        AxisRule(f"**{name}.weight", 1)
        for name in ("self_attention.linear_proj", "self_attention.dense", "mlp.linear_fc2",
                     "mlp.dense_4h_to_h", "cross_attention.linear_proj")
    ),
    *(
        AxisRule(f"**{name}.bias", "copies")
        for name in ("self_attention.linear_proj", "self_attention.dense", "mlp.linear_fc2",
                     "mlp.dense_4h_to_h", "cross_attention.linear_proj")
    ),
    *(AxisRule(f"**{name}", "copies") for name in ("norm.weight", "norm.bias")),
    *(AxisRule(f"**{name}.weight", "copies") for name in ("position_embeddings",
                                                          "tokentype_embeddings")),
)  # fmt: skip
_INSIDE: Final = (
    AxisRule("**.layer_norm_weight", "copies"),
    AxisRule("**.layer_norm_bias", "copies"),
)


@dataclass(frozen=True, slots=True)
class _Settings:
    """What the files say about themselves: whether the first layer is gated, and how many ranks
    there are; None if not that.
    """

    gated: bool | None
    ranks: int | None
    version: float | None


def step_folder(folder: Path) -> Path:
    """Return the directory of the last step, if `folder` is the one beside which it is named."""
    pointer = folder / _LATEST
    if not pointer.is_file():
        return folder
    tag = pointer.read_bytes()[:64].decode("ascii", "replace").strip()
    name = tag if tag == "release" else f"iter_{int(tag):07d}" if tag.isdecimal() else ""
    if not name or not (folder / name).is_dir():
        raise ReadError("does not name a directory beside it", path=str(pointer))
    return folder / name


def find_megatron(folder: Path) -> list[Path]:
    """Return the files of the ranks below a step, in order; none if it holds no ``mp_rank_NN``.

    Raises `UsageError` for what is split otherwise, too, and `ReadError` for a missing rank.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        named = _FOLDER.fullmatch(path.name)
        file = next((path / name for name in _FILES if (path / name).is_file()), None)
        if named is None or file is None:
            continue
        if named[2]:
            raise UsageError(
                f"'{folder}' is split among a pipeline's stages or among experts, too "
                f"('{path.name}'), which number layers each for itself",
                hint=_TOOL,
            )
        found[int(named[1])] = file
    missing = [str(rank) for rank in range(max(found, default=0)) if rank not in found]
    if missing:
        raise ReadError(
            f"the files of these ranks are missing: {', '.join(missing[:4])}", path=str(folder)
        )
    return [found[rank] for rank in sorted(found)]


def consolidate_megatron(files: Sequence[Checkpoint], rules: Sequence[AxisRule]) -> Consolidated:
    """Return the weights of a model from the files of all ranks.

    `rules` come before the published ones. Raises `UsageError` for names whose axis is not
    published, and for what a rank's own order of rows hides; else as `join_parts` does.
    """
    ranks = [read_parts(each) for each in files]
    settings = _settings(ranks[0])
    if settings.ranks not in (None, len(ranks)):
        raise ReadError(
            f"holds {len(ranks)} of the {settings.ranks} ranks that saved it",
            path=str(Path(files[0].file.name).parents[1]),
            hint=f"'{_RANKS}' of the arguments in '{ranks[0].name}' says so",
        )
    if len(ranks) > 1 and settings.version is not None and settings.version < _LEAST_VERSION:
        raise UsageError(
            f"checkpoint_version {settings.version:g} has queries, keys and values "
            "in another order",
            hint=_TOOL,
        )
    weights = [_weights(rank) for rank in ranks]
    known = [*rules, *_INSIDE, *_PUBLISHED]
    if settings.gated is False:
        known += _GATED
    elif settings.gated and len(ranks) > 1:
        chosen = [w for w in weights[0] if _is_gated(w[-1]) and not _matches(rules, w[-1])]
        for rank, each in enumerate(weights):
            each |= {way: _halves(way, weights, rank) for way in chosen if way in each}
    joined = join_parts(weights, [each.name for each in ranks], rules, known)
    left_out = tuple(dict.fromkeys(way[0] for way in (*ranks[0].parts, *ranks[0].values)))
    return Consolidated(
        flat_checkpoint(files, {name: each.tensor for name, each in joined.items()}),
        joined,
        _notes(ranks),
        tuple(name for name in left_out if name != _MODEL),
    )


def _weights(rank: RankFile) -> dict[Way, Part]:
    """Return the model's tensors by their names as torch has them: with dots, however nested."""
    chunk = next((way for way in rank.parts if _CHUNKS.fullmatch(way[0])), None)
    if chunk is not None:
        raise UsageError(
            f"'{rank.name}' has a model in parts ('{chunk[0]}', …), as a virtual pipeline has it",
            hint=_TOOL,
        )
    found: dict[Way, Part] = {
        (".".join(way[1:]),): part
        for way, part in rank.parts.items()
        if way[0] == _MODEL and len(way) > 1
    }
    if not found:
        raise DamagedFileError("has no weights under 'model'", path=rank.name)
    return found


def _is_gated(name: str) -> bool:
    inside = _matches(_INSIDE, name)
    return not inside and _matches(_GATED, name)


def _matches(rules: Sequence[AxisRule], name: str) -> bool:
    return any(rule.matches((name,)) for rule in rules)


def _halves(way: Way, weights: Sequence[Mapping[Way, Part]], rank: int) -> Part:
    """Return a rank's part of a gated layer as two chunks that know their places.

    Its first rows are of the gate, as many behind them of what is gated; so it is in the whole.
    """
    part = weights[rank][way]
    if part.kind != "plain" or not part.shape or part.shape[0] % 2:
        raise UsageError(
            f"'{way[-1]}' is said to be gated, and is no tensor of two halves", hint=_TOOL
        )
    rows = part.shape[0] // 2
    count, rest = len(weights), part.shape[1:]
    zeros = (0,) * len(rest)
    return Part(
        "sharded",
        (2 * rows * count, *rest),
        "strided",
        tuple(
            ((half * rows * count + rank * rows, *zeros), _rows(part.tensor, half * rows, rows))
            for half in range(2)
        ),
    )


def _rows(tensor: Tensor, first: int, count: int) -> Tensor:
    offset = tensor.offset + first * tensor.stride[0]
    return replace(tensor, shape=(count, *tensor.shape[1:]), offset=offset, node=None)


def _settings(rank: RankFile) -> _Settings:
    """Return what ``args`` and ``checkpoint_version`` say; the arguments are a Namespace."""
    arguments = rank.values.get(("args",))
    items = (
        named_items(arguments.state)
        if isinstance(arguments, Object) and arguments.state is not NO_STATE
        else None
    ) or {}
    gated, count = items.get("swiglu"), items.get(_RANKS)
    version: Node = rank.values.get(("checkpoint_version",))
    return _Settings(
        gated if isinstance(gated, bool) else None,
        count if type(count) is int else None,
        float(version) if isinstance(version, int | float) else None,
    )


def _notes(ranks: Sequence[RankFile]) -> tuple[str, ...]:
    padded = any(way[-1].endswith("word_embeddings.weight") for way in _weights(ranks[0]))
    return (
        ("the word embeddings have the rows that Megatron-LM pads them with",)
        if padded and len(ranks) > 1
        else ()
    )
