"""A checkpoint of the first rank's structure, in which every tensor is whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint, Entry, StateDict, Tensor
from ckpt_surgery.errors import DamagedFileError, UsageError
from ckpt_surgery.pickles import Node, PersistentId
from ckpt_surgery.pickles.emit import emit
from ckpt_surgery.ranks.axes import AxisRule, How, published_llama
from ckpt_surgery.ranks.join import Joined, join
from ckpt_surgery.ranks.parts import Part, RankFile, Way
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.find import assemble
from ckpt_surgery.torch_objects.kinds import role_of
from ckpt_surgery.torch_objects.rebuild import Lowered, settled
from ckpt_surgery.torch_objects.tensor_calls import build

_MOST_NAMED: Final = 4
_FLAT: Final = ("_flat_param", "flat_param")
_FORMAT: Final = "torch-zip"


@dataclass(frozen=True, slots=True)
class Consolidated:
    """A whole checkpoint, and how each tensor of it came about, by its name."""

    checkpoint: Checkpoint
    joined: Mapping[str, Joined]
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def consolidate_ranks(
    ranks: Sequence[RankFile], rules: Sequence[AxisRule], *, is_llama: bool = False
) -> Consolidated:
    """Return the first rank's checkpoint with whole tensors.

    `rules` say how tensors are joined whose files do not say it; those of a LLaMA model follow
    from their names. Raises `DamagedFileError` if the files do not belong together, and
    `UsageError` if it is not known how tensors are joined.
    """
    files = [rank.name for rank in ranks]
    _require_same_names([rank.parts for rank in ranks], files)
    known = [*rules, *(_llama_rules(ranks) if is_llama else ())]
    ways = list(ranks[0].parts)
    hows = {way: _how(way, known) for way in ways}
    _require_used(rules, [_names(way) for way in ways])
    _require_known([rank.parts for rank in ranks], hows)
    joined: dict[Way, Joined] = {}
    replaced: dict[int, Node] = {}
    ties: dict[object, Joined] = {}
    for way in ways:
        parts = [rank.parts[way] for rank in ranks]
        key = (_identity(parts), hows[way])
        if key not in ties:
            ties[key] = join("/".join(way), parts, files, hows[way])
        joined[way] = ties[key]
        tensor = joined[way].tensor
        if parts[0].kind != "plain" or tensor is not parts[0].tensor:
            replaced[id(parts[0].node)] = build(PersistentId(None, tensor.storage), tensor)
    checkpoint = assemble(
        settled(Lowered(ranks[0].root, replaced)),
        sources=tuple(rank.checkpoint.file for rank in ranks),
        format=_FORMAT,
        unwritable=ranks[0].checkpoint.unwritable,
    )
    return Consolidated(
        replace(checkpoint, architecture=ranks[0].checkpoint.architecture),
        {"/".join(way): each for way, each in joined.items()},
        (*checkpoint.notes, *_different_values(ranks)),
    )


def _names(way: Way) -> tuple[str, str]:
    """Return what a rule may call a tensor: its name, or the whole way to it."""
    return (way[-1] if way else "", "/".join(way))


def _how(way: Way, rules: Sequence[AxisRule]) -> How | None:
    return next((rule.how for rule in rules if rule.matches(_names(way))), None)


def _require_used(rules: Sequence[AxisRule], names: Sequence[tuple[str, str]]) -> None:
    """Raise `UsageError` for a rule that matches no tensor."""
    for rule in rules:
        if not any(rule.matches(each) for each in names):
            raise UsageError(
                f"'{rule.option}' matches nothing", hint="the names are those of 'ckpt inspect'"
            )


def _identity(parts: Sequence[Part]) -> object:
    """Return what the parts of tied tensors have in common."""
    if not any(part.chunks for part in parts):
        return id(parts)
    places = [(at, tensor.identity) for part in parts for at, tensor in part.chunks]
    return parts[0].shape, tuple(places)


def _require_same_names(ranks: Sequence[Mapping[Way, Part]], files: Sequence[str]) -> None:
    if not ranks[0]:
        raise UsageError(f"there is no tensor in '{files[0]}'")
    for number in range(1, len(ranks)):
        for one, other in ((0, number), (number, 0)):
            way = next((way for way in ranks[one] if way not in ranks[other]), None)
            if way is not None:
                raise DamagedFileError(
                    f"the tensor is in '{files[one]}' and not in '{files[other]}'",
                    path=files[other],
                    entry="/".join(way),
                    hint="give the files of all ranks of one checkpoint, and no others",
                )


def _require_known(ranks: Sequence[Mapping[Way, Part]], hows: Mapping[Way, How | None]) -> None:
    """Raise `UsageError` if nothing says how some tensors are split, or what is in them.

    Beside tensors that know their places, one that does not is the same on every rank.
    """
    parts = ranks[0]
    flat = next((way for way in parts if _is_flat(_names(way)[0])), None)
    if flat is not None:
        raise UsageError(
            f"'{'/'.join(flat)}' is a flat parameter, and the files do not say what is in it",
            hint="its FSDP model alone can load it (StateDictType.LOCAL_STATE_DICT), and save it "
            "with SHARDED_STATE_DICT or FULL_STATE_DICT",
        )
    if len(ranks) == 1 or any(part.is_placed for part in parts.values()):
        return
    plain = [way for way, part in parts.items() if part.kind == "plain"]
    unknown = ["/".join(way) for way in plain if hows[way] is None]
    if unknown:
        shown = ", ".join(f"'{name}'" for name in unknown[:_MOST_NAMED])
        more = len(unknown) - _MOST_NAMED
        raise UsageError(
            f"the files do not say how these tensors are split: {shown}"
            + (f" and {more} more" if more > 0 else ""),
            hint="say it: --axis 'GLOB=0' joins along the first axis, 'GLOB=copies' if every rank "
            "has all of it",
        )


def _is_flat(name: str) -> bool:
    return name.rpartition(".")[2].startswith(_FLAT)


def _llama_rules(ranks: Sequence[RankFile]) -> Sequence[AxisRule]:
    """Return the published axes; that of the embedding follows from the width of the model."""
    parts = ranks[0].parts
    embedding, norm = parts.get(("tok_embeddings.weight",)), parts.get(("norm.weight",))
    if embedding is None or norm is None or len(embedding.shape) != 2:
        return [rule for rule in published_llama(0) if not rule.glob.startswith("tok")]
    return published_llama(0 if embedding.shape[1:] == norm.shape else 1)


def _different_values(ranks: Sequence[RankFile]) -> Iterator[str]:
    """Yield a remark of values beside the tensors that differ between the ranks."""
    different = [
        "/".join(way)
        for way, node in ranks[0].values.items()
        if any(_bytes(rank.values.get(way)) != _bytes(node) for rank in ranks[1:])
    ]
    if different:
        shown = ", ".join(different[:_MOST_NAMED])
        more = len(different) - _MOST_NAMED
        shown += f" and {more} more" if more > 0 else ""
        yield f"the ranks differ, and the first one's value is kept: {shown}"


def _bytes(node: Node) -> bytes:
    """Return a value as bytes that equal ones have in common; storages are left out."""
    return emit(node, persistent_id=lambda _: None)


def flat_checkpoint(files: Sequence[Checkpoint], tensors: Mapping[str, Tensor]) -> Checkpoint:
    """Return one state dict of `tensors` that come from `files`."""
    entries = tuple(Entry(name, each, role_of(name, each)) for name, each in tensors.items())
    return Checkpoint(
        format=_FORMAT,
        sources=tuple(each.file for each in files),
        root=None,
        state_dicts=(StateDict("", "model", entries),),
    )


def join_flat(
    ranks: Sequence[Mapping[str, Tensor]], files: Sequence[str], rules: Sequence[AxisRule]
) -> dict[str, Joined]:
    """Return the tensors of several ranks of tensor parallelism, joined as `rules` say.

    Raises what `consolidate_ranks` does.
    """
    parts: list[Mapping[Way, Part]] = [
        {
            (name,): Part("plain", t.shape, "strided", (((0,) * len(t.shape), t),))
            for name, t in each.items()
        }
        for each in ranks
    ]
    return join_parts(parts, files, rules, rules)


def join_parts(
    ranks: Sequence[Mapping[Way, Part]],
    files: Sequence[str],
    asked: Sequence[AxisRule],
    known: Sequence[AxisRule],
) -> dict[str, Joined]:
    """Return what the ranks have parts of, by name, joined as the first of `known` says.

    Each of `asked` is to match something. Raises what `consolidate_ranks` does.
    """
    _require_same_names(ranks, files)
    hows: dict[Way, How | None] = {way: _how(way, known) for way in ranks[0]}
    _require_used(asked, [_names(way) for way in hows])
    _require_known([{w: p for w, p in each.items() if not p.is_placed} for each in ranks], hows)
    return {
        way[0]: join(way[0], [each[way] for each in ranks], files, how) for way, how in hows.items()
    }
