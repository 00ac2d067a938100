"""Decide from a checkpoint, or from a model, what trains and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ckpt_surgery.checkpoint.description import StateDict
from ckpt_surgery.checkpoint.select import choose_state_dicts
from ckpt_surgery.errors import PathLike, UsageError
from ckpt_surgery.fileio import Source
from ckpt_surgery.fileio.distinct import INPUT, OUTPUT, Role, require_distinct
from ckpt_surgery.formats import read
from ckpt_surgery.freeze.build import FreezeRecipe
from ckpt_surgery.freeze.live import FreezePlan
from ckpt_surgery.freeze.plan import PlanWarning
from ckpt_surgery.reports import envelope
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.averages import usual_models
from ckpt_surgery.training.optimizers.correspond import bare_name
from ckpt_surgery.training.parameters import Inventory

if TYPE_CHECKING:
    from ckpt_surgery.models.specs import ModelSpec


@dataclass(frozen=True, slots=True)
class FreezePlanReport:
    """A freeze plan, what it was made from, and where it was written (None: nowhere)."""

    plan: FreezePlan
    inputs: tuple[str, ...]
    output: str | None = None

    @property
    def exit_code(self) -> int:
        return 0

    def to_dict(self) -> dict[str, Any]:
        """Return the plan's document, which `FreezePlan.from_dict`
        reads, with what every report has.
        """
        document = self.plan.to_dict()
        notices = document.pop("warnings")
        shared = envelope(
            "freeze-plan",
            exit_code=self.exit_code,
            inputs=self.inputs,
            output=self.output,
            warnings=[each["message"] for each in notices],
        )
        return {**shared, **document, **shared, "notices": notices}


def freeze_plan(
    source: PathLike | Source | None,
    recipe: FreezeRecipe,
    *,
    model: ModelSpec | None = None,
    at: str | None = None,
    epoch: int = 0,
    output: PathLike | None = None,
) -> FreezePlanReport:
    """Return the plan that `recipe` makes for the checkpoint in
    `source`, or for `model`, or for both.

    With a model the plan is the model's: its structure is known, and nothing is guessed; a file
    beside it is compared with it. Without one, `at` says which state dict of the file is meant if
    there are several. `epoch` is what the plan shows as frozen. `output` is where the plan will be
    written, which is not done here.

    Raises `UsageError` for a rule that takes nothing, options that contradict each other, or a
    file that has nothing in common with the model, `WriteError` if a file that is read is the
    output, and what `read` and the model's code raise.
    """
    if source is None and model is None:
        raise UsageError("there is neither a file nor a model to plan for", hint="give --model")
    inputs: list[str] = []
    state_dict: StateDict | None = None
    outputs = [] if output is None else [Role(OUTPUT, output)]
    if source is not None:
        with read(source) as checkpoint:
            require_distinct(
                outputs, [Role(INPUT, file) for file in checkpoint.sources], may_replace=False
            )
            inputs.append(checkpoint.file.name)
            state_dict = _the_model(choose_state_dicts(checkpoint, [] if at is None else [at]))
    if model is not None:
        plan = _plan_for_model(model, recipe, state_dict, outputs)
        inputs.append(str(model))
    else:
        assert state_dict is not None  # noqa: S101  # there is a source
        plan = FreezePlan.build(Inventory.of_state_dict(state_dict), recipe)
    return FreezePlanReport(plan.at(epoch), tuple(inputs))


def _the_model(found: Sequence[StateDict]) -> StateDict:
    """Return the one state dict to plan for: averages have their model's names."""
    models = usual_models(found)
    if len(models) > 1:
        paths = ", ".join(f"'{state_dict.path}'" for state_dict in models)
        raise UsageError(
            f"there are {len(models)} state dicts of models: {paths}",
            hint=f"choose one, for example with --at {models[0].path}",
        )
    return models[0]


def _plan_for_model(
    spec: ModelSpec, recipe: FreezeRecipe, state_dict: StateDict | None, outputs: Sequence[Role]
) -> FreezePlan:
    from ckpt_surgery.compute.elements import require_torch

    require_torch()
    from ckpt_surgery.freeze.live import inventory_of
    from ckpt_surgery.models.asking import asking
    from ckpt_surgery.models.building import build_module
    from ckpt_surgery.models.code import code_of

    module = build_module(spec)
    require_distinct(outputs, code_of(spec, module))
    with asking(f"'{spec}' cannot be described"):
        inventory = inventory_of(module)
    plan = FreezePlan.build(inventory, recipe)
    if state_dict is None:
        return plan
    warnings = _compare(inventory, Inventory.of_state_dict(state_dict), str(spec))
    return replace(plan, warnings=(*plan.warnings, *warnings))


def _compare(model: Inventory, file: Inventory, title: str) -> list[PlanWarning]:
    """Return how the parameters of a file differ from the model's, wrappers' prefixes aside."""
    wanted = _shapes(model)
    found = _shapes(file)
    if not wanted.keys() & found.keys():
        raise UsageError(f"no parameter of '{title}' is in the file")
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted and name not in model.buffers]
    mismatched = [name for name in wanted if name in found and found[name] != wanted[name]]
    parts = (
        ("missing-in-file", f"parameters of '{title}' are not in the file", missing),
        ("not-in-model", f"parameters of the file are not in '{title}'", unexpected),
        ("size-mismatch", f"parameters have another shape than in '{title}'", mismatched),
    )
    return [
        PlanWarning(code, f"{len(names)} {what}", tuple(names))
        for code, what, names in parts
        if names
    ]


def _shapes(inventory: Inventory) -> Mapping[str, tuple[int, ...]]:
    return {bare_name(name): p.shape for p in inventory.parameters for name in p.names}
