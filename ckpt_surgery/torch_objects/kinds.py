"""Tell what entries are by their form and their name: roles, averages, types."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ckpt_surgery.checkpoint.description import (
    Entry,
    Role,
    StateDictKind,
    Tensor,
)
from ckpt_surgery.pickles import (
    Dict,
    Global,
    Node,
    Object,
    PersistentId,
)
from ckpt_surgery.torch_objects.averages import layout_of
from ckpt_surgery.torch_objects.mappings import mapping_length, mapping_pairs
from ckpt_surgery.torch_objects.storages import text
from ckpt_surgery.torch_objects.training_state import training_names

# Patterns, compiled when they are first tried.
NOT_WEIGHTS = r"(^|_)(hyper_?param(eter)?s|hparams|args|cfg|config|metric)s?$"
_EMA = r"(^|[_\-.])(ema|swa|averaged?|shadow)([_\-.]|$)"

_BUFFER_NAMES = frozenset({"running_mean", "running_var", "num_batches_tracked"})


_STATISTICS = frozenset(
    {"mean", "means", "std", "stds", "var", "count", "min", "max", "median", "n", "eps", "epsilon"}
    | {"running_mean", "running_var", "running_std", "mu", "sigma"}
)
_STATISTIC_OF = r"(?!weight|bias)[a-z0-9]+(_[a-z0-9]+)*_(mean|std|var)"


_SHOWN_TEXT = 200


def entry_counts(node: Node) -> dict[str, int]:
    """Return what can be counted in an entry: an optimizer's groups
    and states, a container's length.
    """
    if isinstance(node, (list, tuple)):
        return {"entries": len(node)}
    length = mapping_length(node) or 0
    if training_names(node) >= {"state", "param_groups"}:
        named = {text(key): value for key, value in mapping_pairs(node) or ()}
        groups, states = named.get("param_groups"), mapping_length(named.get("state"))
        if isinstance(groups, list) and states is not None:
            return {"groups": len(groups), "states": states}
    return {"entries": length} if length else {}


def role_of(name: str, tensor: Tensor | None) -> Role:
    """Parameter or buffer, as far as a bare state dict can tell."""
    if tensor is None:
        return "unknown"
    if tensor.is_parameter:
        return "parameter"
    if name.rpartition(".")[2] in _BUFFER_NAMES or tensor.dtype.kind in {"int", "bool"}:
        return "buffer"
    return "unknown"


def are_statistics(entries: Sequence[Entry]) -> bool:
    """Return whether entries are statistics of data that a model is
    used with, not a model of its own.

    Such a dictionary (of an input's ``mean`` and ``std``) does not take part in what is done to
    the model beside it; nor does one of ``target_mean`` and ``target_std``.
    """
    return all(
        entry.name in _STATISTICS or re.fullmatch(_STATISTIC_OF, entry.name) for entry in entries
    )


def kind_of(path: str, names: list[str] | None = None) -> StateDictKind:
    """Model weights, or a moving average of them: by their path, or the layout of their names.

    What holds both is a model.
    """
    layout = layout_of(names or [])
    averaged = layout is not None and not any(
        layout.beside and name.startswith(layout.beside) for name in names or ()
    )
    return "ema" if averaged or re.search(_EMA, path.lower().replace("/", ".")) else "model"


def type_name(node: Node) -> str:
    """Return the qualified name of the class whose object `node`
    would be, as far as it can be told.
    """
    if isinstance(node, Dict):
        return "dict"
    if isinstance(node, Object):
        if node.name.endswith("._reconstructor") and isinstance(node.args, tuple) and node.args:
            return type_name(Object("NEWOBJ", node.args[0], ()))
        return node.name[:_SHOWN_TEXT] or "object"
    if isinstance(node, PersistentId):
        return "torch.Storage"
    if isinstance(node, Global):
        return node.qualified[:_SHOWN_TEXT]
    if text(node) is not None:
        return "str"
    return "None" if node is None else type(node).__name__.lower()


def printed_key(key: Node) -> str:
    """Return the name by which paths call an entry that stands under `key`."""
    if (name := text(key)) is not None:
        return name
    return str(key) if isinstance(key, (int, float)) else type_name(key)


def plain_value(node: Node) -> str | int | float | bool | None:
    """Return the value of a scalar or a short text; None for anything else."""
    if isinstance(node, (bool, float)):
        return node
    if isinstance(node, int) and abs(node) < 2**63:
        return node
    shown = text(node)
    return shown if shown is not None and len(shown) <= _SHOWN_TEXT else None
