"""What a live model says of itself: its layers, what it does not decay, its output layer.

timm's models have ``group_matcher``, ``no_weight_decay`` and ``get_classifier``, and others follow
them. How a matcher is read is timm's own code, so that it is what `param_groups_layer_decay` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field
from fnmatch import fnmatch
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from typing import TYPE_CHECKING, Any

from ckpt_surgery.errors import ConstructionError
from ckpt_surgery.models.asking import asking
from ckpt_surgery.models.torchvision_import import beside_torchvision
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model says, under its own names.

    `layers`: the layer of each parameter, counted from the input; None if it does not say.
    `undecayed`: the parameters that timm spares from weight decay; None for a model that has no
    opinion. `classifier`: the parameters of its output layer, empty if it does not say.
    """

    layers: Mapping[str, int] | None = None
    undecayed: frozenset[str] | None = None
    classifier: frozenset[str] = field(default_factory=frozenset)


def ask(model: nn.Module) -> Answers:
    """Ask a model, which may be on the meta device. Raises ConstructionError if its code raises."""
    with asking(f"'{type(model).__name__}' cannot be asked about its layers"):
        own = dict(model.named_parameters())
        layers = _layers(model, own)
        return Answers(layers, _undecayed(model, own, layers), frozenset(_classifier(model)))


def _layers(model: nn.Module, own: Mapping[str, Any]) -> Mapping[str, int] | None:
    has_matcher = callable(getattr(model, "group_matcher", None))
    if not (has_matcher or hasattr(model, "pretrained_cfg")) or find_spec("timm") is None:
        return None
    found = _timm_layers(model, has_matcher)
    # one layer for everything says nothing; what timm leaves out it takes for the last
    last = max(found.values(), default=0)
    return {name: found.get(name, last) for name in own} if last else None


def _timm_layers(model: nn.Module, has_matcher: bool) -> dict[str, int]:
    manipulate: Any = beside_torchvision(lambda: import_module("timm.models"))
    matcher: Any = model
    if has_matcher:
        given = matcher.group_matcher(coarse=False)
        grouped: dict[str, int] = manipulate.group_parameters(model, given, reverse=True)
        return grouped
    group: Any = getattr(import_module("timm.optim._param_groups"), "auto_group_layers", None)
    automatic: dict[str, int] = {} if group is None else group(model)
    return automatic


def _undecayed(
    model: nn.Module, own: Mapping[str, Any], layers: Mapping[str, int] | None
) -> frozenset[str] | None:
    """Return the parameters of at most one axis, and those that the model names, with wildcards."""
    named = getattr(model, "no_weight_decay", None)
    named = named if callable(named) and _takes_nothing(named) else None
    if layers is None and not callable(named):
        return None
    patterns = _several(model, "no_weight_decay", named()) if callable(named) else []
    return frozenset(
        name
        for name, parameter in own.items()
        if parameter.ndim <= 1 or any(fnmatch(name, str(pattern)) for pattern in patterns)
    )


def _classifier(model: nn.Module) -> Iterator[str]:
    """Yield the parameters of what ``get_classifier`` gives: a module, or several."""
    get = getattr(model, "get_classifier", None)
    if not callable(get) or not _takes_nothing(get):
        return
    found = get()
    heads = found if isinstance(found, tuple | list) else (found,)
    wanted = {id(head) for head in heads}
    for path, module in model.named_modules():
        if path and id(module) in wanted:
            yield from (f"{path}.{name}" for name, _ in module.named_parameters())


def _takes_nothing(method: Callable[..., Any]) -> bool:
    """Return whether it can be called without arguments, as timm's; another is no answer."""
    try:
        signature(method).bind()
    except (TypeError, ValueError):
        return False
    return True


def _several(model: nn.Module, method: str, found: Any) -> list[Any]:
    """Return the elements of an answer that is to be a collection of names."""
    if not isinstance(found, Iterable):
        raise ConstructionError(
            f"'{type(model).__name__}' cannot be asked about its layers: "
            f"'{method}' gave '{type(found).__name__}', no names"
        )
    return list(found)
