"""A freeze plan as a value: which parameter trains from when, in which group, with what options.

The document (`to_dict`; JSON, and TOML without the keys that are null) is versioned:

``schema``        1
``kind``          ``"freeze-plan"``
``epoch``         the epoch that ``frozen`` and ``totals`` describe, 0 unless chosen with `at`
``parameters``    in the order of ``parameters()``: ``index``, ``name``, ``shape``, ``dtype``,
                  ``numel``, ``frozen``, ``group`` (null if it never trains), and where they apply
                  ``train_from`` (the first epoch at which a staged parameter trains) and
                  ``aliases`` (further names of a tied parameter)
``groups``        ``name``, ``options`` (what the optimizer's group gets: ``lr``,
                  ``weight_decay``, …), ``lr_scale`` (already part of ``lr``), ``parameters``
                  (how many of them train now)
``statistics``    modules that keep running statistics, known from the file's buffers
``totals``        ``trainable`` and ``frozen``, each with ``parameters``, ``elements``, ``bytes``
                  (``weights``, ``gradients`` and the optimizer state of ``sgd``, ``momentum``,
                  ``adam``); ``share``, the trainable part of all elements
``warnings``      ``code``, ``message``, ``names``

Reading takes everything but ``totals``, ``numel`` and counts, which follow from the rest.
"""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Final, Self

from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.errors import DamagedFileError, LimitExceededError, PathLike, UsageError
from ckpt_surgery.freeze.options import Options, check_number, check_options
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.training.parameters import require_short

_SCHEMA: Final = 1
_KIND: Final = "freeze-plan"
_MAX_DOCUMENT_BYTES: Final = 256 * 2**20
_ADAM_STEP_BYTES: Final = 4  # torch keeps `step` as one float32 a parameter


@dataclass(frozen=True, slots=True)
class PlannedParameter:
    """A parameter and its fate: it trains from epoch `train_from` on (None: never) in `group`."""

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    train_from: int | None
    group: str | None
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return BY_NAME[self.dtype].nbytes(self.numel)

    def trains_at(self, epoch: int) -> bool:
        """Return whether it trains at an epoch, counted from 0."""
        return self.train_from is not None and self.train_from <= epoch


@dataclass(frozen=True, slots=True)
class Group:
    """A parameter group: `options` go to the optimizer, `lr_scale` says how `lr` came about."""

    name: str
    options: Options
    lr_scale: float | None = None


@dataclass(frozen=True, slots=True)
class PlanWarning:
    """Something that is allowed and probably not meant. `code` is stable, `message` is not."""

    code: str
    message: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over parameters. Bytes of state are those after the optimizer's first step."""

    parameters: int
    elements: int
    weights: int
    adam_steps: int

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of weights, gradients, and optimizer state by kind of optimizer.

        SGD keeps nothing, momentum one buffer like the weights, Adam two and a step count.
        """
        return {
            "weights": self.weights,
            "gradients": self.weights,
            "sgd": 0,
            "momentum": self.weights,
            "adam": 2 * self.weights + self.adam_steps,
        }

    @classmethod
    def of(cls, parameters: Iterable[PlannedParameter]) -> Totals:
        """Return the sums over these parameters."""
        chosen = list(parameters)
        return cls(
            len(chosen),
            sum(p.numel for p in chosen),
            sum(p.nbytes for p in chosen),
            _ADAM_STEP_BYTES * len(chosen),
        )

    def to_dict(self) -> dict[str, Any]:
        return {"parameters": self.parameters, "elements": self.elements, "bytes": self.nbytes}


@dataclass(frozen=True, slots=True)
class FreezeSchedule:
    """What trains and how. `ckpt_surgery.freeze.live.FreezePlan` carries it out on a model."""

    parameters: tuple[PlannedParameter, ...]
    groups: tuple[Group, ...]
    statistics: tuple[str, ...] = ()
    warnings: tuple[PlanWarning, ...] = ()
    epoch: int = 0

    def __post_init__(self) -> None:
        names = [name for parameter in self.parameters for name in parameter.names]
        for name in names:
            require_short(name)
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UsageError(f"the plan names '{twice}' twice")
        groups = [group.name for group in self.groups]
        if len(set(groups)) != len(groups):
            raise UsageError("two groups of the plan have one name")
        for index, parameter in enumerate(self.parameters):
            if parameter.index != index:
                raise UsageError(f"parameter {index} of the plan has the index {parameter.index}")
            if parameter.train_from is not None and parameter.group not in groups:
                raise UsageError(f"'{parameter.name}' trains, but in no group of the plan")

    def frozen(self, parameter: PlannedParameter) -> bool:
        """Return whether a parameter is frozen at the plan's epoch."""
        return not parameter.trains_at(self.epoch)

    @property
    def trainable(self) -> tuple[PlannedParameter, ...]:
        """The parameters that train at the plan's epoch."""
        return tuple(p for p in self.parameters if p.trains_at(self.epoch))

    @property
    def stages(self) -> tuple[int, ...]:
        """The epochs at which parameters begin to train."""
        return tuple(sorted({p.train_from for p in self.parameters if p.train_from is not None}))

    @property
    def totals(self) -> tuple[Totals, Totals]:
        """Sums over the trainable and over the frozen parameters."""
        return (
            Totals.of(self.trainable),
            Totals.of(p for p in self.parameters if self.frozen(p)),
        )

    def at(self, epoch: int) -> Self:
        """Return the same plan seen from an epoch, counted from 0."""
        if epoch < 0:
            raise UsageError(f"epoch {epoch} is before the first one, which is 0")
        return replace(self, epoch=epoch)

    def to_dict(self) -> dict[str, Any]:
        """Return the document that the module describes; plain lists, dictionaries and numbers."""
        trainable, frozen = self.totals
        elements = trainable.elements + frozen.elements
        counts = Counter(p.group for p in self.trainable)
        return {
            "schema": _SCHEMA,
            "kind": _KIND,
            "epoch": self.epoch,
            "parameters": [self._parameter_dict(p) for p in self.parameters],
            "groups": [_group_dict(g, counts[g.name]) for g in self.groups],
            "statistics": list(self.statistics),
            "totals": {
                "trainable": trainable.to_dict(),
                "frozen": frozen.to_dict(),
                "share": trainable.elements / elements if elements else 0.0,
            },
            "warnings": [
                {"code": w.code, "message": w.message, "names": list(w.names)}
                for w in self.warnings
            ],
        }

    def _parameter_dict(self, parameter: PlannedParameter) -> dict[str, Any]:
        document: dict[str, Any] = {
            "index": parameter.index,
            "name": parameter.name,
            "shape": list(parameter.shape),
            "dtype": parameter.dtype,
            "numel": parameter.numel,
            "frozen": self.frozen(parameter),
            "group": parameter.group,
        }
        if parameter.train_from:
            document["train_from"] = parameter.train_from
        if parameter.aliases:
            document["aliases"] = list(parameter.aliases)
        return document

    @classmethod
    def from_dict(cls, document: object) -> Self:
        """Return the plan that a document describes; UsageError says what is wrong with one."""
        fields = _mapping(document, "the plan")
        if fields.get("kind") != _KIND:
            raise UsageError("this document is no freeze plan", hint=f"'kind' must be '{_KIND}'")
        if fields.get("schema") != _SCHEMA:
            raise UsageError(
                f"the plan has schema {fields.get('schema')!r}",
                hint=f"this version of ckpt reads schema {_SCHEMA}",
            )
        epoch = _count(fields.get("epoch", 0), "'epoch'")
        return cls(
            parameters=tuple(_read_parameter(item, epoch) for item in _list(fields, "parameters")),
            groups=tuple(_read_group(item) for item in _list(fields, "groups")),
            statistics=_texts(fields.get("statistics", []), "'statistics'"),
            warnings=tuple(_read_warning(item) for item in _notices(fields)),
            epoch=epoch,
        )

    @classmethod
    def load(cls, path: PathLike) -> Self:
        """Read a plan from a JSON or TOML file, told apart by content.

        Raises DamagedFileError if it is neither, UsageError if it is no valid plan.
        """
        return cls.from_dict(_read_document(Path(path)))


def _notices(fields: Mapping[str, Any]) -> list[Any]:
    """Return the plan's warnings; those of a report are texts, with the same as ``notices``."""
    name = "notices" if "notices" in fields else "warnings"
    return _list({"warnings": [], **fields}, name)


def _read_document(path: Path) -> object:
    try:
        if path.stat().st_size > _MAX_DOCUMENT_BYTES:
            raise LimitExceededError("this is too large for a freeze plan", path=path)
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read the plan: {error.strerror}", path=path) from error
    except UnicodeDecodeError as error:
        raise DamagedFileError("a freeze plan is UTF-8 text, this is not", path=path) from error
    try:
        return json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(
            f"neither JSON nor TOML: {error}", path=path, hint="write it with --emit json or toml"
        ) from error


def _group_dict(group: Group, parameters: int) -> dict[str, Any]:
    options = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in group.options.items()
    }
    return {
        "name": group.name,
        "options": options,
        "lr_scale": group.lr_scale,
        "parameters": parameters,
    }


def _read_parameter(item: object, epoch: int) -> PlannedParameter:
    fields = _mapping(item, "a parameter")
    name = _text(fields.get("name"), "a parameter's 'name'")
    dtype = _text(fields.get("dtype", "float32"), f"the 'dtype' of '{name}'")
    if dtype not in BY_NAME:
        raise UsageError(f"'{name}' has the unknown element type '{dtype}'")
    shape = fields.get("shape")
    if not isinstance(shape, list):
        raise UsageError(f"'{name}' has no 'shape'")
    frozen = fields.get("frozen")
    if not isinstance(frozen, bool):
        raise UsageError(f"'frozen' of '{name}' must be true or false")
    train_from = fields.get("train_from")
    if train_from is None:
        train_from = None if frozen else 0
    else:
        train_from = _count(train_from, f"'train_from' of '{name}'")
        if frozen == (train_from <= epoch):
            raise UsageError(
                f"'frozen' and 'train_from' of '{name}' contradict each other at epoch {epoch}"
            )
    group = fields.get("group")
    return PlannedParameter(
        index=_count(fields.get("index"), f"the 'index' of '{name}'"),
        name=name,
        shape=tuple(_count(size, f"a size of '{name}'") for size in shape),
        dtype=dtype,
        train_from=train_from,
        group=None if group is None else _text(group, f"the 'group' of '{name}'"),
        aliases=_texts(fields.get("aliases", []), f"the 'aliases' of '{name}'"),
    )


def _read_group(item: object) -> Group:
    fields = _mapping(item, "a group")
    name = _text(fields.get("name"), "a group's 'name'")
    options = _mapping(fields.get("options", {}), f"the 'options' of group '{name}'")
    scale = fields.get("lr_scale")
    if scale is not None:
        check_number(scale, f"group {name}: lr_scale")
    return Group(name, check_options(options, f"group {name}"), scale)


def _read_warning(item: object) -> PlanWarning:
    fields = _mapping(item, "a warning")
    return PlanWarning(
        _text(fields.get("code"), "a warning's 'code'"),
        _text(fields.get("message"), "a warning's 'message'"),
        _texts(fields.get("names", []), "a warning's 'names'"),
    )


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{what} must be a table of names and values")
    return value


def _list(fields: Mapping[str, Any], name: str) -> list[object]:
    value = fields.get(name)
    if not isinstance(value, list):
        raise UsageError(f"the plan has no list of '{name}'")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{what} must be a text")
    return value


def _texts(value: object, what: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise UsageError(f"{what} must be a list of texts")
    return tuple(_text(item, what) for item in value)


def _count(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise UsageError(f"{what} must be a whole number from 0 to 2**63 - 1")
    return value
