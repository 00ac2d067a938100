"""Plain values beside the weights: put, taken away, read."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any, Final

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.drop import Drop
from ckpt_surgery.edits.entry_plan import plan_entry_drops
from ckpt_surgery.edits.metadata import SetMetadata, metadata_texts
from ckpt_surgery.edits.plan import Plan, Planned
from ckpt_surgery.edits.set_value import SetValue
from ckpt_surgery.errors import PathLike, PlanError, UsageError, about_file
from ckpt_surgery.fileio import Source
from ckpt_surgery.formats import read, registry
from ckpt_surgery.formats.safetensors_header import METADATA
from ckpt_surgery.names.entries import EntryRule
from ckpt_surgery.names.literals import toml_string, toml_value
from ckpt_surgery.names.suggest import near_hint
from ckpt_surgery.ops.run import edit as run_edit
from ckpt_surgery.pickles import Node
from ckpt_surgery.reports.edits import EditReport, SetReport, ValueChange
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.torch_objects.kinds import type_name
from ckpt_surgery.torch_objects.locate import all_places, locate, near_values, not_found
from ckpt_surgery.torch_objects.tensors import TensorReader
from ckpt_surgery.torch_objects.values import NoValueError, kind_name, value_of
from ckpt_surgery.training.optimizers.scalars import scalar
from ckpt_surgery.writing.output import Output

_WORD: Final = re.compile(r"[^\W\d][\w./:@+~ -]*|[/~.]+[^\W\d][\w./:@+~ -]*")
_NO_WORDS: Final = frozenset({"true", "false", "none", "null", "nan", "inf", "infinity"})


@dataclass(frozen=True, slots=True)
class SetRequest:
    """Which values are put: pairs of a path and a value of TOML as a text.

    What lies at the paths `delete` goes. With `like_type` a value becomes of the kind that the one
    before it was: int, float, a tuple, a number of numpy. Raises `UsageError` if nothing is asked
    for, but with `allow_nothing`, and if a path is both put and deleted.
    """

    values: Sequence[tuple[str, str]] = ()
    delete: Sequence[str] = ()
    like_type: bool = False
    allow_nothing: bool = False

    def __post_init__(self) -> None:
        if not self.values and not self.delete and not self.allow_nothing:
            raise UsageError("nothing is to be set", hint="write PATH=VALUE, such as epoch=0")
        for path, _ in self.values:
            if path in self.delete:
                raise UsageError(f"'{path}' is both set and deleted")

    def plan(self, checkpoint: Checkpoint) -> Planned:
        """Plan it. Raises `PlanError` for a path that leads to nothing, or a value that cannot be.

        A new last part of a path is added.
        """
        return _planned(self, checkpoint)[0]


def set_values(
    source: PathLike | Source,
    output: Output | PathLike,
    request: SetRequest | Mapping[str, object],
    **choices: Any,
) -> SetReport:
    """Write `source` with other plain values beside its weights.

    ``set_values(file, output, {"epoch": 0}, like_type=True)`` is short for
    ``set_values(file, output, SetRequest([("epoch", "0")], like_type=True))``. Raises what planning
    and `strip` raise.
    """
    if not isinstance(request, SetRequest):
        pairs = [(path, toml_value(value)) for path, value in request.items()]
        request = SetRequest(pairs, **choices)
    elif choices:
        raise TypeError("the request says it all; make another with dataclasses.replace")
    changes: list[ValueChange] = []

    def build(checkpoint: Checkpoint) -> Planned:
        planned, found = _planned(request, checkpoint)
        changes.extend(found)
        return planned

    report = run_edit("set", source, output, build)
    given = {field.name: getattr(report, field.name) for field in fields(EditReport)}
    return SetReport(**given, values=tuple(changes))


def get_value(source: PathLike | Source, path: str) -> Any:
    """Return the plain value at a path: a text, a number, None, a list, a dictionary.

    A number of numpy, or of a tensor of one element, is that number; a tuple is a list, an object
    its attributes. Raises `PlanError` if nothing, or no plain value, lies there.
    """
    with read(source) as checkpoint, about_file(checkpoint.file.name):
        texts = metadata_texts(checkpoint)
        if texts is not None and path == METADATA:
            return dict(texts)
        if texts is not None and path.startswith(f"{METADATA}/"):
            return _text_at(texts, path, checkpoint)
        found = locate(checkpoint, path)
        if found is None:
            raise not_found(checkpoint, path)
        tensor = found.entry[1].tensor if found.entry else TensorReader().describe(found.node)
        if tensor is not None:
            number = scalar(found.node, tensor)
            if number is None:
                raise PlanError("it is a tensor", entry=path, hint="'ckpt inspect' shows tensors")
            return float(number) if tensor.dtype.kind == "float" else number
        try:
            return value_of(found.node)
        except NoValueError as error:
            raise PlanError(str(error), entry=path) from error


def list_values(source: PathLike | Source) -> dict[str, Any]:
    """Return every text, number, truth value and None beside the weights, by its path."""
    found: dict[str, Any] = {}
    with read(source) as checkpoint:
        for key, value in (metadata_texts(checkpoint) or {}).items():
            found[f"{METADATA}/{key}"] = value
        for path, node in all_places(checkpoint):
            with suppress(NoValueError):
                value = value_of(node)
                if value is None or isinstance(value, str | int | float):
                    found.setdefault(path, value)
    return found


def typed(path: str, text: str) -> str:
    """Return what a text on the line is as a value of TOML: itself, or a word as a text.

    Raises `UsageError` for what is neither.
    """
    if path.startswith(f"{METADATA}/"):
        return toml_string(_toml(text)) if isinstance(_toml(text), str) else toml_string(text)
    if _toml(text) is not None:
        return text
    if _WORD.fullmatch(text) and text.lower() not in _NO_WORDS:
        return toml_string(text)
    hint = f"a text in quotes always is: {path}='{toml_string(text)}'"
    if text.lower() in {"true", "false"}:
        hint = f"TOML writes {text.lower()}"
    raise UsageError(f"'{path}={text}': '{text}' is no value of TOML", hint=hint)


def _toml(text: str) -> Any:
    """Return the value that a text is in TOML; None if it is none."""
    try:
        # in braces neither a comment nor a second line can end the value
        table = tomllib.loads(f"table = {{ value = {text} }}")["table"]
    except (ValueError, RecursionError):
        return None
    return table["value"] if len(table) == 1 else None


def _planned(request: SetRequest, checkpoint: Checkpoint) -> tuple[Planned, list[ValueChange]]:
    edits: list[Edit] = []
    changes: list[ValueChange] = []
    warnings: list[str] = []
    current = checkpoint
    for path, value in request.values:
        edit = _edit(current, path, value, like_type=request.like_type)
        after = Plan((edit,)).apply(current)
        changes.append(_change(path, current, after))
        warnings += _remarks(changes[-1], current)
        edits.append(edit)
        current = after
    for path in request.delete:
        found = _removal(current, path)
        after = Plan(tuple(found)).apply(current)
        changes.append(_change(path, current, after))
        edits += found
        current = after
    return Planned(Plan(tuple(edits)), warnings=tuple(warnings)), changes


def _edit(checkpoint: Checkpoint, path: str, value: str, *, like_type: bool) -> Edit:
    if checkpoint.root is not None:
        return SetValue(path, value, like_type)
    key = path.removeprefix(f"{METADATA}/")
    text = _toml(value)
    if "metadata" not in registry.get(checkpoint.format).honours:
        where = f"a file of '{checkpoint.format}' has no texts beside the tensors"
        hint = "'-o FILE.safetensors' has a place for them"
        if key == path:
            where = f"'{path}' is not there, and what would hold it are the weights"
            hint = "'ckpt rename --wrap model' puts a dictionary around them"
        raise PlanError(where, path=checkpoint.file.name, entry=path, hint=hint)
    if key in {path, ""} or not isinstance(text, str):
        raise PlanError(
            f"a file of '{checkpoint.format}' holds texts beside the tensors, and nothing else",
            path=checkpoint.file.name,
            entry=path,
            hint=f"they lie at '{METADATA}/KEY'",
        )
    return SetMetadata({key: text})


def _removal(checkpoint: Checkpoint, path: str) -> list[Edit]:
    if checkpoint.root is None and path.startswith(f"{METADATA}/"):
        return [SetMetadata(removed=(path.removeprefix(f"{METADATA}/"),))]
    found = locate(checkpoint, path)
    if found is None:
        raise not_found(checkpoint, path)
    if found.entry is None:
        return plan_entry_drops(checkpoint, [EntryRule(path)])[0]
    state_dict, entry = found.entry
    if entry.tensor is not None:
        raise PlanError(
            "it is a tensor",
            path=checkpoint.file.name,
            entry=path,
            hint="'ckpt strip FILE NAME' removes tensors",
        )
    return [Drop(state_dict.path, entry.name)]


def _change(path: str, before: Checkpoint, after: Checkpoint) -> ValueChange:
    """Return what became of what lies at a path."""
    old, old_type = _seen(before, path)
    new, new_type = _seen(after, path)
    return ValueChange(path, old, new, old_type, new_type)


def _seen(checkpoint: Checkpoint, path: str) -> tuple[Any, str | None]:
    """Return the value at a path, or what it is, and its type; None, None if there is none."""
    if checkpoint.root is None:
        text = (metadata_texts(checkpoint) or {}).get(path.removeprefix(f"{METADATA}/"))
        return text, None if text is None else "str"
    found = locate(checkpoint, path)
    if found is None:
        return None, None
    return _shown(found.node), kind_name(found.node)


def _shown(node: Node) -> Any:
    try:
        return value_of(node)
    except NoValueError:
        return type_name(node)


def _remarks(change: ValueChange, checkpoint: Checkpoint) -> list[str]:
    """Return what to say of a change that may not be meant."""
    if change.old_type is None:
        near = near_values(checkpoint, change.path) if checkpoint.root is not None else None
        return [f"'{change.path}' is new: {near}"] if near else []
    if change.old_type not in {change.new_type, "None"}:
        said = f"the type of '{change.path}' is {change.new_type} by now, it was {change.old_type}"
        return [f"{said}: --like-type keeps it"]
    return []


def _text_at(texts: Mapping[str, str], path: str, checkpoint: Checkpoint) -> str:
    key = path.removeprefix(f"{METADATA}/")
    if key not in texts:
        raise PlanError(
            f"the metadata has no '{key}'",
            path=checkpoint.file.name,
            hint=near_hint(key, texts),
        )
    return texts[key]
