"""Recipes as files: TOML, or the JSON report of what is to be done again."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Any, Final

from ckpt_surgery.cli.options import read_text, size_of
from ckpt_surgery.cli.steps import VERBS, action_of, target_of
from ckpt_surgery.edits.plan import Plan
from ckpt_surgery.errors import CkptError, PathLike, ReadError, UsageError
from ckpt_surgery.fileio.distinct import Role
from ckpt_surgery.formats.base import LayoutOptions
from ckpt_surgery.names import near
from ckpt_surgery.recipes.actions import Apply
from ckpt_surgery.recipes.expect import Expect
from ckpt_surgery.recipes.recipe import Action, Recipe, RecipeOutput, Step
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.writing.output import Output

_VARIABLE: Final = re.compile(r"\$\$\{|\$\{([^}]*)\}")
_PARTS: Final = ("inputs", "variables", "steps", "outputs")
_KINDS: Final = (*VERBS, "edits", "expect")


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """A recipe as it was read. `digests` are the SHA-256 of its inputs by name, where known."""

    recipe: Recipe
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RanksFile:
    """A report of ``consolidate`` as it was read, which is no recipe: its input is no checkpoint
    until it is done.

    `files` were named, `axes` are the rules, `edits` what was done after that. `digests` are the
    SHA-256 of the ranks' files by name, where known.
    """

    files: tuple[str, ...]
    axes: tuple[str, ...]
    edits: Plan
    digests: Mapping[str, str] = field(default_factory=dict)


def read_recipe(
    path: str, variables: Mapping[str, str], inputs: Mapping[str, str]
) -> RecipeFile | RanksFile:
    """Read the recipe in a file, with other values for its `variables`, and files for `inputs`.

    The file is read once: it may be a pipe.

    Raises `ReadError` for a file that is neither TOML nor a report, and `UsageError` for what it
    says.
    """
    text = read_text(path, "RECIPE")
    try:
        is_report = text.lstrip().startswith("{")
        found = (
            _of_report(_json(text), variables, inputs)
            if is_report
            else RecipeFile(_of_toml(text, variables, inputs))
        )
    except CkptError as error:
        if error.file is None:
            error.name_file(path)
        raise
    if isinstance(found, RanksFile):
        return found
    itself = [] if path == "-" else [Role("the recipe", path)]
    return replace(found, recipe=replace(found.recipe, read=(*itself, *found.recipe.read)))


def _of_toml(text: str, variables: Mapping[str, str], inputs: Mapping[str, str]) -> Recipe:
    try:
        found = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ReadError(f"is neither TOML nor a report: {error}") from error
    _require_known(found, _PARTS, "the recipe")
    table = _filled(found, _variables(_table(found, "variables"), variables))
    files = {name: _text(file, f"input '{name}'") for name, file in _table(table, "inputs").items()}
    _require_known(inputs, files, "'--input': the recipe")
    read: list[Role] = []
    return Recipe(
        files | dict(inputs),
        tuple(_step(number, each, read) for number, each in enumerate(_list(table, "steps"), 1)),
        tuple(_output(each) for each in _list(table, "outputs")),
        tuple(read),
    )


def _step(number: int, said: Mapping[str, Any], read: list[Role]) -> Step:
    """Return a step; the files that its options name are added to `read`."""
    kinds = [key for key in said if key in _KINDS]
    try:
        _require_known(said, (*_KINDS, "on", "as"), "a step")
        if len(kinds) != 1:
            raise UsageError(f"it says {' and '.join(kinds) or 'nothing to do'}, not one thing")
        on, name = (
            None if said.get(key) is None else _text(said[key], f"'{key}'") for key in ("on", "as")
        )
        action = _action(kinds[0], said[kinds[0]], read)
    except CkptError as error:
        what = f" ({kinds[0]})" if len(kinds) == 1 else ""
        error.message = f"step {number}{what}: {error.message}"
        raise
    return Step(action, on, name, said)


def _action(kind: str, said: Any, read: list[Role]) -> Action:
    if kind == "edits":
        return Apply(Plan.from_dict(said))
    return _expect(said, read) if kind == "expect" else action_of(kind, said, read)


def _expect(said: Any, read: list[Role]) -> Expect:
    if not isinstance(said, dict):
        raise UsageError("it is a table of what is expected")
    known = ("at", "keys", "no_keys", "count", "shape", "dtype", "finite", "matches")
    table = {key.replace("-", "_"): value for key, value in said.items()}
    _require_known(table, known, "'expect'")
    for key in ("keys", "no_keys"):
        if key in table:
            table[key] = _texts(table[key], key)
    if "at" in table:
        paths = table["at"] if isinstance(table["at"], list) else [table["at"]]
        # the path of the top level is empty
        table["at"] = tuple("" if path == "" else _text(path, "'at'") for path in paths)
    if "count" in table and type(table["count"]) is not int:
        raise UsageError(f"'count' is a number of entries, not {table['count']!r}")
    if not isinstance(table.get("finite", False), bool):
        raise UsageError(f"'finite' is true or false, not {table['finite']!r}")
    if isinstance(table.get("dtype"), str):
        table["dtype"] = {"**": table["dtype"]}
    table["dtype"] = {k: _text(v, f"dtype of '{k}'") for k, v in _table(table, "dtype").items()}
    table["shape"] = {k: _sizes(k, v) for k, v in _table(table, "shape").items()}
    if "matches" in table:
        table["matches"] = target_of(table["matches"], read)
    return Expect(**table)


def _sizes(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(size) is not int or size < -1 for size in value):
        raise UsageError(f"the shape of '{name}' is a list of sizes (-1: any), not {value!r}")
    return tuple(value)


def _output(said: Mapping[str, Any]) -> RecipeOutput:
    names = ("allow-loss", "duplicate-ties", "hash-name", "plain", "verify", "provenance")
    texts_of = ("file", "from", "format", "sidecar", "device")
    known = (*texts_of, "metadata", "max-shard-size", *names)
    _require_known(said, known, "an output")
    flags = {name: said.get(name, False) for name in names}
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise UsageError(f"'{name}' of an output is true or false, not {value!r}")
    texts = {k: _text(v, f"metadata '{k}'") for k, v in _table(said, "metadata").items()}
    shard = said.get("max-shard-size")
    most = None if shard is None else size_of(_text(shard, "'max-shard-size'"))
    output = Output(
        path=_text(said.get("file"), "'file' of an output"),
        format=None if "format" not in said else _text(said["format"], "'format'"),
        allow_loss=flags["allow-loss"],
        hash_name=flags["hash-name"],
        sidecar=None if "sidecar" not in said else _text(said["sidecar"], "'sidecar'"),
        options=LayoutOptions(texts, flags["duplicate-ties"], most),
        plain=flags["plain"],
        provenance=flags["provenance"],
        verify=flags["verify"] if "verify" in said else None,
        device=None if "device" not in said else _text(said["device"], "'device'"),
    )
    return RecipeOutput(output, None if "from" not in said else _text(said["from"], "'from'"))


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ReadError(f"is no JSON: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("command"), str):
        raise ReadError("is no report: it does not say of which command")
    return found


def _of_report(
    report: Mapping[str, Any], variables: Mapping[str, str], inputs: Mapping[str, str]
) -> RecipeFile | RanksFile:
    """Return the recipe that does again what a report says was done."""
    if variables:
        raise UsageError("a report has no variables: '--var' is for recipes")
    recorded = report.get("digests")
    known = recorded.get("inputs") if isinstance(recorded, dict) else None
    sums = {k: v for k, v in known.items() if isinstance(v, str)} if isinstance(known, dict) else {}
    if report["command"] == "consolidate":
        if inputs:
            raise UsageError("a report of 'consolidate' has no names of inputs for '--input'")
        return _of_ranks(report, sums)
    files = _inputs_of(report)
    _require_known(inputs, files, "'--input': the report")
    steps = _steps_of(report)
    outputs = _outputs_of(report)
    digests = {
        name: sums[file] for name, file in files.items() if name not in inputs and file in sums
    }
    return RecipeFile(Recipe(files | dict(inputs), steps, outputs), digests)


def _of_ranks(report: Mapping[str, Any], digests: Mapping[str, str]) -> RanksFile:
    plan = _list(report, "plan")
    if not plan or plan[0].get("edit") != "consolidate":
        raise UsageError("the report of 'consolidate' has no plan to apply")
    files, axes = (_texts(plan[0].get(key, []), key) for key in ("files", "axes"))
    if not files:
        raise UsageError("the report of 'consolidate' names no files")
    return RanksFile(files, axes, Plan.from_dict(plan[1:]), digests)


def _inputs_of(report: Mapping[str, Any]) -> dict[str, str]:
    named = report.get("named")
    if report["command"] == "apply" and isinstance(named, dict):
        return {name: _text(file, f"input '{name}'") for name, file in named.items()}
    listed = report.get("inputs")
    files = listed if isinstance(listed, list) else []
    first = _text(report.get("base", files[0] if files else None), "the report's input")
    name = _name_of_edited(report)
    # the plan calls the others by their files; they come in the order of the line
    return {name if f == first else _text(f, "an input of the report"): f for f in files or [first]}


def _name_of_edited(report: Mapping[str, Any]) -> str:
    """Return how the file is called that the plan is about, as no other is."""
    name = "input"
    while name in (report.get("inputs") or ()):
        name += "_"
    return name


def _steps_of(report: Mapping[str, Any]) -> tuple[Step, ...]:
    if report["command"] != "apply":
        if not isinstance(report.get("plan"), list):
            raise UsageError(f"a report of '{report['command']}' has no plan to apply")
        edits = Apply(Plan.from_dict(report["plan"]), report["command"])
        return (Step(edits, _name_of_edited(report)),)
    return tuple(
        Step(
            Apply(Plan.from_dict(each.get("plan", [])), _text(each.get("verb"), "'verb'")),
            _text(each.get("on"), "'on' of a step"),
            _text(each.get("as"), "'as' of a step"),
            each.get("said", {}),
        )
        for each in _list(report, "steps")
    )


def _outputs_of(report: Mapping[str, Any]) -> tuple[RecipeOutput, ...]:
    """Return where an applied recipe wrote; any other report says nothing that goes again."""
    if report["command"] != "apply":
        return ()
    found = []
    for each in _list(report, "outputs"):
        if each.get("output") is None:
            continue
        path, name = _text(each["output"], "'output'"), _text(each.get("from"), "'from'")
        plan = {e["edit"]: e for e in _list(each, "plan") if isinstance(e.get("edit"), str)}
        output = Output(
            path=path,
            format=_text(each.get("format"), "'format'"),
            allow_loss=any(edit.get("allow_loss") is True for edit in plan.values()),
            plain="plain" in plan,
            device="cpu" if "set-device" in plan else None,
            provenance="set-provenance" in plan,
            options=LayoutOptions(dict(_table(plan.get("set-metadata", {}), "values"))),
        )
        found.append(RecipeOutput(output, name))
    return tuple(found)


def _variables(declared: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    _require_known(given, declared, "'--var': the recipe")
    return dict(declared) | {name: _typed(value) for name, value in given.items()}


def _typed(text: str) -> Any:
    """Return the value that a text is in TOML, else the text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _filled(value: Any, variables: Mapping[str, Any]) -> Any:
    """Return a value with ``${NAME}`` in its texts replaced; a text that is all of it gets the
    variable itself.

    The depth is bounded by TOML's own parser, which recurses as well.
    """
    if isinstance(value, dict):
        return {
            key: part if key == "variables" else _filled(part, variables)
            for key, part in value.items()
        }
    if isinstance(value, list):
        return [_filled(part, variables) for part in value]
    if not isinstance(value, str):
        return value
    whole = _VARIABLE.fullmatch(value)
    if whole is not None and whole[1] is not None:
        return _variable(whole[1], variables)
    return _VARIABLE.sub(lambda m: "${" if m[1] is None else str(_variable(m[1], variables)), value)


def _variable(name: str, variables: Mapping[str, Any]) -> Any:
    if name not in variables:
        meant = " or ".join(f"'{each}'" for each in near(name, variables))
        raise UsageError(
            f"'${{{name}}}' is no variable of the recipe",
            hint=f"did you mean {meant}?" if meant else "declare it in [variables]",
        )
    return variables[name]


def _require_known(table: Mapping[str, Any], known: Any, where: str) -> None:
    for key in table:
        if key not in known:
            meant = " or ".join(f"'{each}'" for each in near(key, known))
            listed = ", ".join(known) or "none"
            raise UsageError(
                f"{where} has no '{key}'",
                hint=f"did you mean {meant}?" if meant else f"there are: {listed}",
            )


def _table(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise UsageError(f"'{key}' is a table, not {value!r}")
    return value


def _list(table: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise UsageError(f"'{key}' is a list of tables: write [[{key}]]")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{what} is a text, not {value!r}")
    return value


def _texts(value: Any, what: str) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(_text(each, f"'{what}'") for each in values)


def with_output(recipe: Recipe, output: Output | None, path: PathLike | None) -> Recipe:
    """Return the recipe, whose outputs are written as the options in `output` say, too.

    An output on the line (`path`, or standard output) takes the place of the only one that the
    recipe has. Raises `UsageError` if it has several, also for the one name of a sidecar.
    """
    if output is None:
        return recipe
    own = list(recipe.outputs)
    if len(own) > 1 and (path is not None or output.sidecar is not None):
        option = "-o" if path is not None else "--sidecar"
        raise UsageError(
            f"the recipe has {len(own)} outputs", hint=f"leave out '{option}', or all but one"
        )
    replaced = path is not None or not own
    outputs = [
        replace(each, output=_as_line_says(each.output, output, replaced=replaced))
        for each in own or [RecipeOutput(Output())]
    ]
    return replace(recipe, outputs=tuple(outputs))


def _as_line_says(own: Output, line: Output, *, replaced: bool) -> Output:
    """Return an output of a recipe as the command line says it is; `replaced`: what it is, too."""
    return replace(
        line,
        path=line.path if replaced else own.path,
        stream=line.stream if replaced else own.stream,
        format=line.format or own.format,
        allow_loss=line.allow_loss or own.allow_loss,
        hash_name=own.hash_name,
        sidecar=line.sidecar or own.sidecar,
        options=line.options if line.options != LayoutOptions() else own.options,
        plain=line.plain or own.plain,
        provenance=line.provenance or own.provenance,
        device=line.device or own.device,
        verify=own.verify if line.verify is None else line.verify,
        beside=(*own.beside, *line.beside),
    )
