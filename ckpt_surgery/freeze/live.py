"""Carrying out a freeze plan on a live model. torch is imported when a model is at hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Self

from ckpt_surgery.errors import PlanError
from ckpt_surgery.freeze.asked import Answers, ask
from ckpt_surgery.freeze.build import FreezeRecipe, build
from ckpt_surgery.freeze.plan import FreezeSchedule, PlannedParameter
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.training.parameters import Inventory, ModuleKind, NamedEntry, Structure

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

# Names under which wrappers keep the module that they wrap; nobody else uses these.
_WRAPPED: Final = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class PlanFit:
    """How a plan fits a model. Shapes are the plan's, then the model's.

    `missing`: in the plan, not in the model; `unexpected`: the reverse. `tied`: parameters that
    the plan treats differently, but that are one in the model.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    tied: tuple[tuple[str, ...], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether `FreezePlan.apply` would take the model."""
        return not (self.missing or self.unexpected or self.mismatched or self.tied)

    def __str__(self) -> str:
        if self.ok:
            return "the plan fits the model"
        shapes = [f"{name} (plan {a}, model {b})" for name, a, b in self.mismatched]
        parts = (
            ("missing in the model", self.missing),
            ("not in the plan", self.unexpected),
            ("size mismatch", shapes),
            ("one parameter, treated in several ways", [" = ".join(t) for t in self.tied]),
        )
        return "; ".join(f"{what}: {_some(names)}" for what, names in parts if names)


@dataclass(frozen=True, slots=True)
class FreezePlan(FreezeSchedule):
    """A freeze plan: read it, see it from an epoch, carry it out.

    >>> plan = FreezePlan.load("plan.json")
    >>> optimizer = torch.optim.SGD(plan.apply(model), lr=1e-3, momentum=0.9)
    >>> for batch in batches:
    ...     plan.train_mode(model)

    Models wrapped by DataParallel, DistributedDataParallel, FSDP, torch.compile or AveragedModel
    are seen through, at every depth. Apply the plan before wrapping with
    DistributedDataParallel: it looks at `requires_grad` once, when it is made.
    """

    @classmethod
    def build(cls, inventory: Inventory, recipe: FreezeRecipe) -> Self:
        """Return the plan that a recipe makes (see `ckpt_surgery.freeze.build.build`)."""
        return build(inventory, recipe, cls)

    @classmethod
    def for_model(cls, model: nn.Module, recipe: FreezeRecipe) -> Self:
        """Return the plan that a recipe makes for a model; it may be on the meta device."""
        return build(inventory_of(model), recipe, cls)

    def check(self, model: nn.Module) -> PlanFit:
        """Return what of the plan does not fit a model; changes nothing."""
        names = _Names(self, model)
        found = list(names.parameters())
        met = {p.index for _, planned, _ in found for p in planned}
        shapes = (
            (own[0], planned[0].shape, tuple(parameter.shape))
            for own, planned, parameter in found
            if planned and planned[0].shape != tuple(parameter.shape)
        )
        return PlanFit(
            missing=tuple(p.name for p in self.parameters if p.index not in met),
            unexpected=tuple(own[0] for own, planned, _ in found if not planned),
            mismatched=tuple(shapes),
            tied=tuple(
                tuple(p.name for p in planned)
                for _, planned, _ in found
                if len({(p.train_from, p.group) for p in planned}) > 1
            ),
        )

    def apply(self, model: nn.Module, *, named: bool = False) -> list[dict[str, Any]]:
        """Set `requires_grad` of every parameter; return the groups for an optimizer.

        Each trainable parameter is in exactly one group, in the model's order. A group has
        ``params``, ``name`` and the options of the plan. With `named`, ``params`` holds pairs of
        name and parameter (torch 2.6 and later), so that the optimizer's state dict tells which
        state belongs to which parameter. Raises PlanError, before anything is changed, if the
        plan does not fit.
        """
        fit = self.check(model)
        if not fit.ok:
            raise PlanError(
                f"the plan does not fit the model: {fit}",
                hint="plan.check(model) lists everything",
            )
        members: dict[str, list[Any]] = {group.name: [] for group in self.groups}
        for own, planned, parameter in _Names(self, model).parameters():
            trains = planned[0].trains_at(self.epoch)
            parameter.requires_grad_(trains)
            if trains and planned[0].group is not None:
                members[planned[0].group].append((own[0], parameter) if named else parameter)
        return [
            {"params": members[group.name], "name": group.name, **group.options}
            for group in self.groups
            if members[group.name]
        ]

    def add_to(self, optimizer: Optimizer, model: nn.Module) -> list[dict[str, Any]]:
        """Apply, and add to an optimizer the groups of parameters that it does not hold yet.

        For the later stages of gradual unfreezing: the state of what already trains is kept.
        Returns the groups that were added.
        """
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        added = []
        for group in self.apply(model):
            fresh = [p for p in group["params"] if id(p) not in held]
            if fresh:
                added.append({**group, "params": fresh})
                optimizer.add_param_group(added[-1])
        return added

    def train_mode(self, model: nn.Module, *, dropout: bool = True) -> nn.Module:
        """`model.train()` that keeps what is frozen as it is; returns the model.

        A module with running statistics (batch norms of every kind, instance norms that track)
        stays in evaluation mode if its own parameters are all frozen at the plan's epoch; one
        without parameters goes by the nearest module above it that has any. With `dropout`
        False the same holds for dropout layers.
        """
        model.train()
        trains: dict[int, bool] = {
            id(parameter): any(p.trains_at(self.epoch) for p in planned)
            for _, planned, parameter in _Names(self, model).parameters()
        }
        modules = dict(model.named_modules())
        for path, module in modules.items():
            tracks = getattr(module, "running_mean", None) is not None
            if not tracks and (dropout or _kind(module) != "dropout"):
                continue
            owner = path
            while owner and next(modules[owner].parameters(), None) is None:
                owner = owner.rpartition(".")[0]
            if not any(trains.get(id(p), True) for p in modules[owner].parameters()):
                module.eval()
        return model


def inventory_of(model: nn.Module) -> Inventory:
    """Return the parameters, buffers and structure of a model, under
    the names of the unwrapped one.
    """
    hidden = _hidden(model)
    entries = [
        NamedEntry(
            _bare(name, hidden),
            tuple(parameter.shape),
            str(parameter.dtype).removeprefix("torch."),
            "parameter",
            id(parameter),
        )
        for name, parameter in model.named_parameters(remove_duplicate=False)
    ]
    entries += [
        NamedEntry(
            _bare(name, hidden), tuple(b.shape), str(b.dtype).removeprefix("torch."), "buffer"
        )
        for name, b in model.named_buffers(remove_duplicate=False)
    ]
    kinds = {_bare(path, hidden): _kind(module) for path, module in model.named_modules()}
    kinds.pop("", None)
    children = dict.fromkeys(path for path in kinds if "." not in path)
    inner = _inner(model, hidden)
    said = Answers() if inner is None else ask(inner)
    return Inventory.of(
        entries,
        Structure(tuple(children), kinds, said.layers, said.undecayed, said.classifier),
        [_bare(name, hidden) for name in model.state_dict(keep_vars=True)],
    )


def _inner(model: nn.Module, hidden: frozenset[str]) -> nn.Module | None:
    """Return the model inside its wrappers; None if others deeper inside change its names."""
    path = ""
    for depth, path in enumerate(sorted(hidden, key=len), 1):
        if len(path.split(".")) != depth or not all(p in hidden for p in _parents(path)):
            return None
    inside: nn.Module = model.get_submodule(path)
    return inside


def _parents(path: str) -> Iterator[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


class _Names:
    """The parameters of a model beside those of a plan that share a name with them."""

    def __init__(self, plan: FreezeSchedule, model: nn.Module) -> None:
        hidden = _hidden(model)
        self._own: dict[int, list[str]] = {}
        self._live: dict[int, nn.Parameter] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._own.setdefault(id(parameter), []).append(_bare(name, hidden))
            self._live[id(parameter)] = parameter
        tops = {name.split(".")[0] for names in self._own.values() for name in names}
        written = {name: _unwrapped(name) for p in plan.parameters for name in p.names}
        if "module" not in tops and all(n.startswith("module.") for n in written.values()):
            written = {name: _without_module(bare) for name, bare in written.items()}
        self._planned = {written[name]: p for p in plan.parameters for name in p.names}

    def parameters(self) -> Iterator[tuple[list[str], list[PlannedParameter], nn.Parameter]]:
        """Yield names in the model, what the plan says of them (several if it says them apart)."""
        for key, own in self._own.items():
            planned = {p.index: p for p in map(self._planned.get, own) if p is not None}
            yield own, list(planned.values()), self._live[key]


def _hidden(model: nn.Module) -> frozenset[str]:
    """Return paths of modules that are wrapped: the last segment of
    each is the wrapper's, not a name.
    """
    from torch.nn.parallel import DataParallel, DistributedDataParallel
    from torch.optim.swa_utils import AveragedModel

    paths: set[str] = set()
    for path, module in model.named_modules(remove_duplicate=False):
        names = list(_WRAPPED)
        if isinstance(module, (DataParallel, DistributedDataParallel, AveragedModel)):
            names.append("module")
        children = dict(module.named_children())
        paths.update(f"{path}.{name}".lstrip(".") for name in names if name in children)
    return frozenset(paths)


def _bare(name: str, hidden: frozenset[str]) -> str:
    parts = name.split(".")
    return ".".join(
        part for depth, part in enumerate(parts, 1) if ".".join(parts[:depth]) not in hidden
    )


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


def _without_module(name: str) -> str:
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def _kind(module: nn.Module) -> ModuleKind:
    """Return what a module is, by its class's name: that of every
    norm of torch, and of most others.
    """
    name = type(module).__name__.lower()
    if "dropout" in name:
        return "dropout"
    return "norm" if "norm" in name and next(module.children(), None) is None else "other"


def _some(names: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:_SHOWN]) + more
