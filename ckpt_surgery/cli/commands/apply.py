"""``ckpt apply``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from ckpt_surgery.cli.base import Command
from ckpt_surgery.cli.options import new_file_options, output_of, report_options
from ckpt_surgery.cli.output import finish
from ckpt_surgery.cli.types import CheckpointFile, InputFile
from ckpt_surgery.errors import UsageError

if TYPE_CHECKING:
    from ckpt_surgery.cli.recipe_file import RanksFile, RecipeFile
    from ckpt_surgery.recipes.recipe import Recipe


@click.command(cls=Command, headings={"What to do": ("var", "inputs")})
@click.argument("recipe", type=InputFile())
@click.argument("files", nargs=-1, type=CheckpointFile(), metavar="[FILE]...")
@click.option(
    "--var",
    multiple=True,
    metavar="NAME=VALUE",
    help="Another value for a variable of the recipe. Repeatable.",
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=FILE",
    help="Another file for the input NAME. Repeatable.",
)
@new_file_options
@report_options
@click.pass_context
def apply(ctx: click.Context, /, recipe: str, **_: Any) -> int:
    r"""Carry out a recipe, or do again what a report says.

    RECIPE is a TOML file of inputs, steps and outputs (docs/recipes.md): each step is a verb with
    the options that it has on the command line, edits, or an assertion. All steps are carried out
    in one pass over the bytes. Or RECIPE is the JSON report of strip, rename, edit, convert, fit,
    merge, consolidate or apply, whose plan is applied again. FILE takes the place of the recipe's
    inputs, in their order.

    \b
    Examples:
      ckpt apply recipe.toml
      ckpt apply recipe.toml --var classes=10 --dry-run
      ckpt apply recipe.toml other.pth -o out.pth
      ckpt strip a.pth --prefix fc -o b.pth --record strip.json
      ckpt apply strip.json -o again.pth
    """
    from ckpt_surgery.cli.recipe_file import RanksFile, read_recipe
    from ckpt_surgery.recipes.run import apply_recipe
    from ckpt_surgery.render.applying import show

    given = ctx.params
    found = read_recipe(recipe, _pairs("var", given["var"]), _pairs("input", given["inputs"]))
    if isinstance(found, RanksFile):
        return _consolidate_again(ctx, found)
    wanted = _with_output(ctx, _with_files(found.recipe, given["files"]))
    _require_same(found, wanted)
    report = apply_recipe(wanted)
    to_stdout = any(each.output.stream is not None for each in wanted.outputs)
    return finish(ctx, report, show, sys.stderr if to_stdout else sys.stdout)


def _consolidate_again(ctx: click.Context, found: RanksFile) -> int:
    """Put the files of ranks together as a report says; FILE of the line takes their place."""
    from dataclasses import replace

    from ckpt_surgery.fileio.distinct import Role
    from ckpt_surgery.ops.consolidate import consolidate
    from ckpt_surgery.render.consolidating import show

    named = ctx.params["files"]
    if not named:
        _require_same_ranks(found)
    output, path = output_of(ctx), ctx.params["recipe"]
    if path != "-":
        output = replace(output, beside=(*output.beside, Role("the report", path)))
    report = consolidate(named or found.files, output, axes=found.axes, edits=found.edits)
    return finish(ctx, report, show)


def _require_same_ranks(found: RanksFile) -> None:
    """Raise `UsageError` if a rank's file is another than was recorded, or was not there."""
    from ckpt_surgery.cli.digests import file_digest
    from ckpt_surgery.ranks.files import find_rank_files

    if not found.digests:
        return
    hint = "to put others together, name them, or their directory, after the report"
    ranks = [str(path) for path in find_rank_files(found.files).paths if path.is_file()]
    for file in dict.fromkeys([*found.digests, *ranks]):
        if file not in found.digests:
            what = "was not there when this was recorded"
        elif file_digest(file) != found.digests[file]:
            what = "is not the file that it was when this was recorded"
        else:
            continue
        raise UsageError(what, path=file, hint=hint)


def _pairs(option: str, texts: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"'--{option} {text}' is not of the form NAME=VALUE")
        if name in found:
            raise UsageError(f"'--{option}' gives '{name}' twice")
        found[name] = value
    return found


def _with_files(recipe: Recipe, files: tuple[str, ...]) -> Recipe:
    """Return the recipe with files of the line in the place of its inputs, in their order."""
    from dataclasses import replace

    if len(files) > len(recipe.inputs):
        raise UsageError(
            f"{len(files)} files are given for {len(recipe.inputs)} inputs",
            hint=f"the inputs are: {', '.join(recipe.inputs)}",
        )
    return replace(
        recipe, inputs={**recipe.inputs, **dict(zip(recipe.inputs, files, strict=False))}
    )


def _with_output(ctx: click.Context, recipe: Recipe) -> Recipe:
    """Return the recipe with the output of the line, or its own as the line says they are."""
    from ckpt_surgery.cli.recipe_file import with_output

    given = ctx.params
    if given["output"] is None and recipe.outputs and not given["dry_run"]:
        # nothing goes to standard output, whatever that is
        ctx.params["output"] = str(recipe.outputs[-1].output.path)
        try:
            return with_output(recipe, output_of(ctx), None)
        finally:
            ctx.params["output"] = None
    return with_output(recipe, output_of(ctx), given["output"])


def _require_same(found: RecipeFile, wanted: Recipe) -> None:
    """Raise `UsageError` if an input is not the file that was recorded, and no other is named."""
    from ckpt_surgery.cli.digests import file_digest

    for name, digest in found.digests.items():
        file = found.recipe.inputs[name]
        if wanted.inputs[name] == file and isinstance(file, str) and file_digest(file) != digest:
            raise UsageError(
                "is not the file that it was when this was recorded",
                path=file,
                hint=f"to apply it to another, name that: --input {name}=FILE",
            )
