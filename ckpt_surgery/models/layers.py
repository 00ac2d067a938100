"""Rebuilding one layer with a changed constructor argument (``--set fc.out_features=5``)."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ckpt_surgery.errors import UsageError
from ckpt_surgery.models.specs import Setting
from ckpt_surgery.names.suggest import near_hint

_CONV = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "bias",
    "padding_mode",
)
_ARGUMENTS: Sequence[tuple[type[nn.Module], tuple[str, ...]]] = (
    (nn.Linear, ("in_features", "out_features", "bias")),
    (_ConvTransposeNd, (*_CONV, "output_padding")),
    (_ConvNd, _CONV),
    (
        nn.Embedding,
        (
            "num_embeddings",
            "embedding_dim",
            "padding_idx",
            "max_norm",
            "norm_type",
            "scale_grad_by_freq",
            "sparse",
        ),
    ),
    (_NormBase, ("num_features", "eps", "momentum", "affine", "track_running_stats")),
    (nn.GroupNorm, ("num_groups", "num_channels", "eps", "affine")),
    (nn.LayerNorm, ("normalized_shape", "eps", "elementwise_affine", "bias")),
)
"""The layers that can be rebuilt, and which of their attributes are constructor arguments."""


def apply_settings(model: nn.Module, settings: Iterable[Setting]) -> None:
    """Replace the layers of `model` that `settings` name by ones with the changed arguments.

    A new layer has its class's own initialisation, the old one's dtype and training mode. All
    settings of one layer are applied together. Raises UsageError if a module or an attribute does
    not exist, if the layer is of no kind that can be rebuilt, if its constructor refuses the
    values, or if the layer shares a parameter with another one.
    """
    ordered = sorted(settings, key=lambda setting: setting.module)
    for path, group in groupby(ordered, key=lambda setting: setting.module):
        layer = _find(model, path)
        changes = list(group)
        _refuse_shared(model, layer, path)
        rebuilt = _rebuild(layer, path, changes)
        for parent, name in list(_places(model, layer)):
            setattr(parent, name, rebuilt)


def _find(model: nn.Module, path: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if path not in modules:
        children = ", ".join(f"'{name}'" for name, _ in model.named_children())
        raise UsageError(
            f"the model has no module '{path}'",
            hint=near_hint(path, filter(None, modules)) or f"it has {children}",
        )
    return modules[path]


def _places(model: nn.Module, layer: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for parent in model.modules():
        for name, child in parent._modules.items():  # noqa: SLF001 named_children() hides repeats
            if child is layer:
                yield parent, name


def _refuse_shared(model: nn.Module, layer: nn.Module, path: str) -> None:
    own = {id(parameter) for parameter in layer.parameters(recurse=False)}
    for other_path, other in model.named_modules():
        if other is layer:
            continue
        for name, parameter in other.named_parameters(recurse=False):
            if id(parameter) in own:
                raise UsageError(
                    f"'{path}' shares a parameter with '{other_path}.{name}', "
                    "so rebuilding it would break the tie",
                    hint="change both through the model's own arguments with --model-arg",
                )


def _rebuild(layer: nn.Module, path: str, changes: Sequence[Setting]) -> nn.Module:
    arguments = _arguments(layer, path)
    for change in changes:
        if change.attribute not in arguments:
            known = ", ".join(f"'{name}'" for name in arguments)
            raise UsageError(
                f"'{path}' is a {type(layer).__name__}, which has no attribute "
                f"'{change.attribute}' to set",
                hint=near_hint(change.attribute, arguments) or f"it has {known}",
            )
        arguments[change.attribute] = change.value
    tensor = next(layer.parameters(recurse=False), None)
    if tensor is not None:
        arguments["dtype"] = tensor.dtype
    try:
        rebuilt = type(layer)(**arguments)
    except Exception as error:
        settings = ", ".join(str(change) for change in changes)
        raise UsageError(
            f"{type(layer).__name__} refuses {settings}: {type(error).__name__}: {error}"
        ) from error
    return rebuilt.train(layer.training)


def _arguments(layer: nn.Module, path: str) -> dict[str, Any]:
    """Return the arguments that `layer` was built with, read back from its attributes."""
    for kind, names in _ARGUMENTS:
        if isinstance(layer, kind):
            accepted = inspect.signature(type(layer)).parameters
            return {
                name: getattr(layer, name) is not None if name == "bias" else getattr(layer, name)
                for name in names
                if name in accepted or _takes_any(accepted)
            }
    raise UsageError(
        f"'{path}' is a {type(layer).__name__}, which is no layer that can be rebuilt",
        hint="name a Linear, Conv, ConvTranspose, Embedding or norm layer inside it"
        if path and next(layer.children(), None) is not None
        else "only Linear, Conv, ConvTranspose, Embedding and norm layers can be",
    )


def _takes_any(parameters: Any) -> bool:
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
