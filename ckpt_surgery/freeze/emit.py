"""Plans as text: JSON, TOML, and a Python function that needs nothing but the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Final

from ckpt_surgery.errors import UsageError
from ckpt_surgery.freeze.plan import FreezeSchedule, PlannedParameter
from ckpt_surgery.names.literals import toml_key, toml_value

_PYTHON: Final = '''\
"""What trains and how, written by `ckpt freeze-plan`; needs only the model."""

# first epoch at which the parameters below a module (or one parameter) train, and their group
RULES = {rules}
# options of each group
GROUPS = {groups}
PARAMETERS = {count}


def _rule(name):
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in RULES:
            return RULES[".".join(parts[:end])]
    raise ValueError(f"the plan does not know the parameter {{name!r}}")


def _bare(name):
    """The name without what DataParallel, DistributedDataParallel and torch.compile add."""
    name = name.replace("_orig_mod.", "")
    while name.startswith("module.") and "module" not in _TOPS:
        name = name.removeprefix("module.")
    return name


_TOPS = {{key.split(".")[0] for key in RULES}}


def parameter_groups(model, epoch=0):
    """Freeze and unfreeze the parameters of `model`; return a list of groups for an optimizer."""
    groups = {{name: dict(options, name=name, params=[]) for name, options in GROUPS.items()}}
    found = 0
    for name, parameter in model.named_parameters():
        start, group = _rule(_bare(name))
        found += 1
        parameter.requires_grad_(start is not None and start <= epoch)
        if parameter.requires_grad:
            groups[group]["params"].append(parameter)
    if found != PARAMETERS:
        raise ValueError(f"the plan is for {{PARAMETERS}} parameters, the model has {{found}}")
    return [group for group in groups.values() if group["params"]]


def train_mode(model):
    """`model.train()` that keeps the running statistics of frozen layers as they are."""
    model.train()
    modules = dict(model.named_modules())
    for path, module in modules.items():
        while path and not list(modules[path].parameters()):
            path = path.rpartition(".")[0]
        trains = any(parameter.requires_grad for parameter in modules[path].parameters())
        if getattr(module, "running_mean", None) is not None and not trains:
            module.eval()
    return model
'''


def _to_json(plan: FreezeSchedule) -> str:
    """Return the plan's document as JSON, one line a parameter."""
    document = plan.to_dict()
    lines = []
    for key, value in document.items():
        if isinstance(value, list) and value:
            items = ",\n".join(f"    {json.dumps(item)}" for item in value)
            lines.append(f"  {json.dumps(key)}: [\n{items}\n  ]")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _to_toml(plan: FreezeSchedule) -> str:
    """Return the plan's document as TOML; keys that are null are left out.

    Raises UsageError for a name that is not valid Unicode (half of a surrogate pair).
    """
    document = plan.to_dict()
    tables = {k: v for k, v in document.items() if _is_tables(v)}
    lines = [f"{key} = {toml_value(value)}" for key, value in document.items() if key not in tables]
    for key, items in tables.items():
        for item in items:
            lines.append(f"\n[[{key}]]")
            lines += [f"{toml_key(k)} = {toml_value(v)}" for k, v in item.items() if v is not None]
    text = "\n".join(lines) + "\n"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            "TOML cannot hold a name that is not valid Unicode", hint="--emit json can"
        ) from error
    return text


def _to_python(plan: FreezeSchedule) -> str:
    """Return a module with `parameter_groups(model, epoch=0)` and `train_mode(model)`.

    The groups are those of `FreezePlan.apply`, in lists (an iterator would be empty when it is
    used again), and every name is looked up when the function is called, not when the optimizer
    first needs it. Modules whose parameters share one fate are one line.
    """
    rules = {prefix: _fate(p) for prefix, p in _cover(plan).items()}
    groups = {group.name: dict(group.options) for group in plan.groups}
    return _PYTHON.format(rules=_python(rules), groups=_python(groups), count=len(plan.parameters))


EMITTERS: Final[Mapping[str, Callable[[FreezeSchedule], str]]] = {
    "json": _to_json,
    "toml": _to_toml,
    "python": _to_python,
}


def _fate(parameter: PlannedParameter) -> tuple[int | None, str | None]:
    return parameter.train_from, parameter.group


def _cover(plan: FreezeSchedule) -> dict[str, PlannedParameter]:
    """Return the shortest paths below which all parameters share one fate, each with an example."""
    fates: dict[str, set[tuple[int | None, str | None]]] = {}
    for parameter in plan.parameters:
        parts = parameter.name.split(".")
        for depth in range(1, len(parts) + 1):
            fates.setdefault(".".join(parts[:depth]), set()).add(_fate(parameter))
    cover: dict[str, PlannedParameter] = {}
    for parameter in plan.parameters:
        parts = parameter.name.split(".")
        paths = (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
        cover.setdefault(next(path for path in paths if len(fates[path]) == 1), parameter)
    return cover


def _python(table: Mapping[str, object]) -> str:
    if not table:
        return "{}"
    return "{\n" + "".join(f"    {key!r}: {value!r},\n" for key, value in table.items()) + "}"


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)
