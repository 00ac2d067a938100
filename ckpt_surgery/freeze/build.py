"""From rules to a plan: what trains, from when, in which group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Final, Literal, TypeVar

from ckpt_surgery.errors import UsageError
from ckpt_surgery.freeze.options import (
    Options,
    OptionValue,
    check_number,
    check_options,
    parse_options,
)
from ckpt_surgery.freeze.plan import FreezeSchedule, Group, PlannedParameter, PlanWarning
from ckpt_surgery.freeze.selectors import FirstChildren, Selector
from ckpt_surgery.names.suggest import near_hint
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.training.parameters import Inventory, Parameter

NO_DECAY_DEFAULT: Final = ("bias", "norm")
_BASE: Final = "base"
_ScheduleT = TypeVar("_ScheduleT", bound=FreezeSchedule)


@dataclass(frozen=True, slots=True)
class FreezeRule:
    """Freeze, or train, what a selector takes."""

    action: Literal["freeze", "train"]
    selector: Selector


@dataclass(frozen=True, slots=True)
class GroupRule:
    """Give what a selector takes optimizer options of its own."""

    selector: Selector
    options: Options


@dataclass(frozen=True, slots=True)
class Stage:
    """Let what a selector takes train from an epoch on."""

    epoch: int
    selector: Selector


@dataclass(frozen=True, slots=True)
class FreezeRecipe:
    """Everything that is asked of a plan.

    `rules`: in order, the later wins. What no rule takes trains, unless the first rule is a
    train rule (or there are only `stages`): then it is frozen.
    `groups`: in order, of one option the later rule's value wins.
    `stages`: a staged parameter trains from the epoch of its earliest stage, whatever the rules
    say of it.
    `lr`, `weight_decay`: of every group that does not give its own; None leaves the optimizer's.
    `layer_decay`: layer i of n has the learning rate ``lr * layer_decay ** (n - 1 - i)`` (timm's
    `param_groups_layer_decay`, after BEiT); `head_multiplier` multiplies the head's.
    A learning rate that a group rule gives is taken as it is.
    `no_decay`: no weight decay for ``bias``, ``norm`` (see `Inventory.is_norm`), or a selector's
    parameters. A group rule's own weight decay comes first.
    """

    rules: Sequence[FreezeRule] = ()
    groups: Sequence[GroupRule] = ()
    stages: Sequence[Stage] = ()
    lr: float | None = None
    weight_decay: float | None = None
    layer_decay: float | None = None
    head_multiplier: float | None = None
    no_decay: Sequence[str | Selector] = ()
    allow_unmatched: bool = False


@dataclass
class _Draft:
    """The state of a build: what each selector took, and the warnings so far."""

    inventory: Inventory
    allow_unmatched: bool
    warnings: list[PlanWarning] = field(default_factory=list)

    def select(self, selector: Selector) -> frozenset[str]:
        """Return the names a selector takes; one that takes none is an
        error, or a warning if allowed.
        """
        chosen = selector.select(self.inventory)
        if not chosen:
            message = f"'{selector.option}' matches no parameter"
            if not self.allow_unmatched:
                raise UsageError(message, hint=near_hint(selector.label, self.inventory.names))
            self.warn("unmatched-rule", message)
        return chosen

    def warn(self, code: str, message: str, names: Sequence[str] = ()) -> None:
        self.warnings.append(PlanWarning(code, message, tuple(names)))


def build(inventory: Inventory, recipe: FreezeRecipe, kind: type[_ScheduleT]) -> _ScheduleT:
    """Return the plan that a recipe makes for these parameters, as an instance of `kind`.

    Raises UsageError if a rule takes nothing (unless allowed), an option is unknown or out of
    range, or options contradict each other.
    """
    _check(inventory, recipe)
    draft = _Draft(inventory, recipe.allow_unmatched)
    starts = _decide(draft, recipe)
    trains = {name for name, start in starts.items() if start is not None}
    groups, membership = _group(draft, recipe, trains)
    parameters = tuple(
        PlannedParameter(
            p.index, p.name, p.shape, p.dtype, starts[p.name], membership.get(p.name), p.aliases
        )
        for p in inventory.parameters
    )
    _warn_about_result(draft, parameters)
    if any(isinstance(rule.selector, FirstChildren) for rule in recipe.rules) and (
        inventory.structure is None
    ):
        draft.warn(
            "named-children",
            "a file shows only the children that have entries: those without (a ReLU, a pooling)"
            " are not counted, as `children()` would",
            inventory.children,
        )
    return kind(parameters, groups, inventory.statistics, tuple(draft.warnings))


def parse_group(text: str) -> tuple[str, dict[str, OptionValue]]:
    """Return the selector's text and the options of ``SELECTION:lr=1e-2,weight_decay=0``."""
    selection, colon, options = text.rpartition(":")
    if not colon or not selection.strip():
        raise UsageError(
            f"'--group {text}' is not SELECTION:name=value,…", hint="for example fc:lr=1e-2"
        )
    return selection.strip(), parse_options(options, f"--group {text}")


def parse_stage(text: str) -> tuple[int, str]:
    """Return the epoch and the selector's text of ``5: layer4``."""
    epoch, colon, selection = text.partition(":")
    if not (colon and epoch.strip().isdecimal() and epoch.strip().isascii() and selection.strip()):
        raise UsageError(
            f"'--stage {text}' is not EPOCH: SELECTION", hint="for example '5: layer4'"
        )
    return int(epoch), selection.strip()


def _check(inventory: Inventory, recipe: FreezeRecipe) -> None:
    if not inventory.parameters:
        raise UsageError("there are no parameters to plan for")
    for name in ("lr", "weight_decay", "layer_decay", "head_multiplier"):
        value = getattr(recipe, name)
        if value is not None:
            check_number(value, f"--{name.replace('_', '-')}")
    if recipe.lr is None and (recipe.layer_decay, recipe.head_multiplier) != (None, None):
        raise UsageError(
            "'--layer-decay' and '--head-multiplier' scale a learning rate", hint="give --lr"
        )
    for rule in recipe.groups:
        check_options(rule.options, rule.selector.option)
    for choice in recipe.no_decay:
        if isinstance(choice, str) and choice not in NO_DECAY_DEFAULT:
            raise UsageError(
                f"'--no-decay {choice}' is neither 'bias' nor 'norm'",
                hint="other parameters go by --group SELECTION:weight_decay=0",
            )


def _decide(draft: _Draft, recipe: FreezeRecipe) -> dict[str, int | None]:
    """Return the epoch from which each parameter trains, by its first name; None: never."""
    rules = [(rule, draft.select(rule.selector)) for rule in recipe.rules]
    stages = [(stage, draft.select(stage.selector)) for stage in recipe.stages]
    begins_frozen = recipe.rules[0].action == "train" if recipe.rules else bool(recipe.stages)
    start: dict[str, int | None] = {}
    decided_by: dict[str, int] = {}
    for name in draft.inventory.names:
        start[name] = None if begins_frozen else 0
        for number, (rule, names) in enumerate(rules):
            if name in names:
                start[name] = 0 if rule.action == "train" else None
                decided_by[name] = number
        epochs = [stage.epoch for stage, names in stages if name in names]
        if epochs:
            start[name] = min(epochs)
    for number, (rule, names) in enumerate(rules):
        if names and number not in decided_by.values():
            draft.warn(
                "overridden-rule",
                f"'{rule.selector.option}' has no effect: later rules decide all that it takes",
            )
    for parameter in draft.inventory.parameters:
        if len({start[name] for name in parameter.names}) > 1:
            draft.warn(
                "tied-differently",
                f"one parameter has several names that the rules treat differently;"
                f" '{parameter.name}' decides",
                parameter.names,
            )
    return {p.name: start[p.name] if p.can_train else None for p in draft.inventory.parameters}


@dataclass(frozen=True, slots=True)
class _Grouping:
    """What the groups are made of: rules with what they take, sets for decay, layers."""

    recipe: FreezeRecipe
    rules: tuple[tuple[GroupRule, frozenset[str]], ...]
    undecayed: frozenset[str]
    inventory: Inventory

    def group_of(self, parameter: Parameter, name: str) -> Group:
        """Return the group that a parameter falls into if it goes by `name`."""
        matching = [rule for rule, names in self.rules if name in names]
        options: dict[str, OptionValue] = {}
        for rule in matching:
            options.update(rule.options)
        labels = [rule.selector.label for rule in matching]
        scale = None
        if "lr" not in options and self.recipe.lr is not None:
            scale, layer_label = self._scale(parameter)
            options["lr"] = self.recipe.lr if scale is None else self.recipe.lr * scale
            labels = [*layer_label, *labels]
        undecayed = parameter.name in self.undecayed
        if "weight_decay" not in options:
            if undecayed:
                options["weight_decay"] = 0.0
                labels.append("no_decay")
            elif self.recipe.weight_decay is not None:
                options["weight_decay"] = self.recipe.weight_decay
        order = ["lr", "weight_decay", *options]
        ordered = {key: options[key] for key in dict.fromkeys(order) if key in options}
        return Group("_".join(labels) or _BASE, ordered, scale)

    def _scale(self, parameter: Parameter) -> tuple[float | None, list[str]]:
        """Return what multiplies the base learning rate, and the words that name it."""
        layers = self.inventory.layers
        in_head = parameter.name in self.inventory.head
        scale, label = None, []
        if self.recipe.layer_decay is not None:
            layer = layers[parameter.index]
            scale = self.recipe.layer_decay ** (max(layers) - layer)
            label = [f"layer_{layer}"]
        if self.recipe.head_multiplier is not None and in_head:
            scale = (1.0 if scale is None else scale) * self.recipe.head_multiplier
            label = label or ["head"]
        return scale, label


def _group(
    draft: _Draft, recipe: FreezeRecipe, trains: set[str]
) -> tuple[tuple[Group, ...], dict[str, str]]:
    """Return the groups in the order of their first parameter, and
    the group's name by parameter.
    """
    grouping = _Grouping(
        recipe,
        tuple((rule, draft.select(rule.selector)) for rule in recipe.groups),
        _undecayed(draft, recipe),
        draft.inventory,
    )
    groups: dict[str, Group] = {}
    membership: dict[str, str] = {}
    for parameter in draft.inventory.parameters:
        if parameter.name not in trains:
            continue
        candidates = [grouping.group_of(parameter, name) for name in parameter.names]
        group = candidates[0]
        if any(other != group for other in candidates):
            draft.warn(
                "tied-in-two-groups",
                f"one parameter has names in several groups; '{parameter.name}' decides",
                parameter.names,
            )
        membership[parameter.name] = _enter(groups, group)
    for rule, names in grouping.rules:
        if names and not names & trains:
            draft.warn(
                "group-frozen", f"'{rule.selector.option}' has no effect: all it takes is frozen"
            )
    return tuple(groups.values()), membership


def _enter(groups: dict[str, Group], group: Group) -> str:
    """Add a group under its name, or under the next free one if other options have that."""
    name, number = group.name, 2
    while name in groups and groups[name].options != group.options:
        name, number = f"{group.name}_{number}", number + 1
    groups.setdefault(name, Group(name, group.options, group.lr_scale))
    return name


def _undecayed(draft: _Draft, recipe: FreezeRecipe) -> frozenset[str]:
    chosen: set[str] = set()
    structure = draft.inventory.structure
    said = None if structure is None else structure.undecayed
    if said is not None and all(choice in recipe.no_decay for choice in NO_DECAY_DEFAULT):
        chosen.update(said)
    for choice in recipe.no_decay:
        if choice == "bias":
            chosen.update(p.name for p in draft.inventory.parameters if p.is_bias)
        elif choice == "norm":
            chosen.update(p.name for p in draft.inventory.parameters if draft.inventory.is_norm(p))
        elif not isinstance(choice, str):
            chosen.update(draft.select(choice))
    return frozenset(chosen)


def _warn_about_result(draft: _Draft, parameters: Sequence[PlannedParameter]) -> None:
    inventory = draft.inventory
    never: Mapping[str, bool] = {p.name: p.train_from is None for p in parameters}
    if all(never.values()):
        draft.warn("nothing-trains", "every parameter is frozen")
    elif inventory.head and all(never.get(name, True) for name in inventory.head):
        draft.warn("frozen-head", "the output layer is frozen", sorted(inventory.head))
    moving = _frozen_statistics(parameters, inventory.statistics)
    if moving:
        layers = "1 frozen layer keeps" if len(moving) == 1 else f"{len(moving)} frozen layers keep"
        draft.warn(
            "moving-statistics",
            f"{layers} running statistics, which move in train mode:"
            " use plan.train_mode(model) instead of model.train()",
            moving,
        )
    if inventory.guessed:
        draft.warn(
            "guessed-roles",
            f"a state dict does not tell parameters from buffers: {inventory.guessed} entries are"
            " taken for parameters by name and type; --model makes it certain",
        )


def _frozen_statistics(
    parameters: Sequence[PlannedParameter], statistics: Sequence[str], epoch: int = 0
) -> list[str]:
    """Return the modules with running statistics whose own parameters are all frozen at an epoch.

    One without parameters goes by the nearest module above it that has any.
    """
    trains: dict[str, bool] = {}
    own: dict[str, bool] = {}
    for parameter in parameters:
        now = parameter.trains_at(epoch)
        own[parameter.module] = own.get(parameter.module, False) or now
        path = parameter.module
        trains[""] = trains.get("", False) or now
        while path:
            trains[path] = trains.get(path, False) or now
            path = path.rpartition(".")[0]
    return [path for path in statistics if not _any_trains(path, own, trains)]


def _any_trains(path: str, own: Mapping[str, bool], below: Mapping[str, bool]) -> bool:
    if path in own:
        return own[path]
    while path and path not in below:
        path = path.rpartition(".")[0]
    return below.get(path, False)
