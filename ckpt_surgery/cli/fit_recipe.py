"""The recipe of ``ckpt fit --emit-recipe``: what a line would do, as steps that can be reviewed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import click

from ckpt_surgery.cli.spellings import spellings
from ckpt_surgery.cli.steps import ELSEWHERE
from ckpt_surgery.errors import UsageError
from ckpt_surgery.fileio.distinct import Role
from ckpt_surgery.names.literals import toml_string, toml_value

if TYPE_CHECKING:
    from ckpt_surgery.edits.value_rules import ValueRule
    from ckpt_surgery.fit.decided import Decided
    from ckpt_surgery.ops.fit_layouts import Arranged
    from ckpt_surgery.writing.output import Output

_SETTLED: Final = frozenset({"file", "emit_recipe", "layout", "rename_map", "adapt", "at"})
_OF_OUTPUT: Final = (
    *("allow_loss", "sidecar", "duplicate_ties", "max_shard_size", "hash_name", "plain", "device"),
    *("verify", "provenance"),
)


def emission(ctx: click.Context, output: Output) -> tuple[Output, Callable[[Arranged], None]]:
    """Return the output, which knows of the recipe, and what writes that one.

    Raises `UsageError` if the recipe has no name, or its input has none.
    """
    from ckpt_surgery.fileio.unchanged import write_unless_same

    given = ctx.params
    path = given["emit_recipe"]
    if path == "-":
        raise UsageError("'--emit-recipe -' names no file")
    if given["file"] in {None, "-"}:
        raise UsageError(
            "a recipe names its input, and standard input has no name",
            hint="write it to a file first",
            fields=("emit_recipe",),
        )

    def write(arranged: Arranged) -> None:
        text = "\n".join(_lines(ctx, arranged)) + "\n"
        force, if_changed = given["force"], given["if_changed"]
        write_unless_same(path, text.encode(), force=force, if_changed=if_changed)

    role = Role("'--emit-recipe'", path)
    return replace(output, beside=(*output.beside, role)), write


def _lines(ctx: click.Context, arranged: Arranged) -> Iterator[str]:
    given = ctx.params
    yield "# what 'ckpt fit' does with this file; 'ckpt apply' does it"
    yield "[inputs]"
    yield f"input = {toml_string(given['file'])}"
    at = {"at": list(given["at"])} if given["at"] else {}
    decided = [each for listed in arranged.decided.values() for each in listed]
    if arranged.rules:
        from ckpt_surgery.ops.fit_layouts import optimizer_of

        choice = optimizer_of(arranged.asked)
        if given["rename_map"] is not None:
            follow = "auto" if choice == "reset" else choice
            yield from _step("rename", [{"map": given["rename_map"]}], at, follow)
        yield from _step("edit", _tables(arranged.rules), at, choice)
    elif any(each.steps for each in decided):
        raise UsageError(
            "the state dicts differ in what has to be put into another layout, so one recipe "
            "cannot say it",
            hint="--at chooses one of them",
        )
    yield from _doubts(decided)
    yield ""
    yield "[[steps]]"
    fit = dict(_options(ctx, renamed=bool(arranged.rules))) | at
    yield (
        "fit = { " + ", ".join(f"{key} = {toml_value(value)}" for key, value in fit.items()) + " }"
    )
    if given["output"] not in {None, "-"}:
        yield ""
        yield "[[outputs]]"
        yield f"file = {toml_string(given['output'])}"
        yield from (f"{key} = {toml_value(value)}" for key, value in _of_output(ctx))


def _step(
    verb: str, tables: Sequence[Mapping[str, Any]], at: Mapping[str, Any], optimizer: str
) -> Iterator[str]:
    """Yield a step of several tables of options, a line each."""
    more = dict(at) | ({} if optimizer == "auto" else {"optimizer": optimizer})
    yield ""
    yield "[[steps]]"
    yield f"{verb} = ["
    yield from (f"    {toml_value(table)}," for table in (*tables, *([more] if more else [])))
    yield "]"


def _tables(rules: Sequence[ValueRule]) -> list[dict[str, Any]]:
    """Return the rules as tables of options; those of one kind that follow each other are one."""
    tables: list[dict[str, Any]] = []
    for rule in rules:
        if tables and rule.option in tables[-1]:
            tables[-1][rule.option].append(rule.text)
        else:
            tables.append({rule.option: [rule.text]})
    return tables


def _doubts(decided: Sequence[Decided]) -> Iterator[str]:
    for each in decided:
        if each.steps is None:
            names = ", ".join(each.layout.sources)
            ways = " or ".join(way.name for way in each.layout.ways)
            heads = ", or heads:N" if each.layout.by_heads else ""
            yield ""
            yield f"# ambiguous, and left as it is: {names}: {each.layout.doubt};"
            yield f"# --layout '{each.layout.sources[0]}=HOW' says it: {ways}{heads}"


def _options(ctx: click.Context, *, renamed: bool) -> Iterator[tuple[str, Any]]:
    """Yield the options of the line that the step has as well, but for what other steps did."""
    given = ctx.params
    for option in ctx.command.params:
        name = option.name
        if not isinstance(option, click.Option) or name is None or name in ELSEWHERE:
            continue
        value = given.get(name)
        if name == "adapt":
            value = tuple(how for how in given["adapt"] if how != "layout")
        elif name in _SETTLED and not (name == "rename_map" and not renamed):
            continue
        if value in (None, (), False) or value == option.get_default(ctx):
            continue
        yield _spelled(option), list(value) if isinstance(value, tuple) else value


def _spelled(option: click.Option) -> str:
    """Return the option as a recipe spells it."""
    return next(text[2:] for text in spellings(option) if text.startswith("--"))


def _of_output(ctx: click.Context) -> Iterator[tuple[str, Any]]:
    """Yield what the line says of the output."""
    given = ctx.params
    if given["output_format"] is not None:
        yield "format", given["output_format"]
    for name in _OF_OUTPUT:
        if given.get(name) not in (None, False):
            yield name.replace("_", "-"), given[name]
    if given["metadata"]:
        yield "metadata", dict(text.split("=", 1) for text in given["metadata"])
