"""``ckpt merge``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

from ckpt_surgery.cli.base import Command, color_of, in_order
from ckpt_surgery.cli.options import (
    at_option,
    optimizer_option,
    output_of,
    output_options,
    pager_option,
    report_options,
    selection_of,
    selection_options,
)
from ckpt_surgery.cli.output import finish
from ckpt_surgery.cli.spellings import Renamed
from ckpt_surgery.cli.types import CheckpointFile, InputFile, TextType
from ckpt_surgery.errors import PathLike, UsageError
from ckpt_surgery.fileio import FileSource, Source
from ckpt_surgery.merge.choosing import best, expand, last
from ckpt_surgery.merge.policies import INTEGER_POLICIES, KEY_POLICIES, SHAPE_POLICIES
from ckpt_surgery.merge.request import FOLDS, STRUCTURAL, MergeRequest, methods
from ckpt_surgery.merge.scope import OTHER_FILES, MergeScope
from ckpt_surgery.ops.merge import merge as merge_files
from ckpt_surgery.ops.merge import merge_recipe
from ckpt_surgery.render.merging import show

if TYPE_CHECKING:
    from ckpt_surgery.merge.recipe import Override
    from ckpt_surgery.names.rewrite import RewriteRule

_HEADINGS: Final[dict[str, tuple[str, ...]]] = {
    "What to do": ("method", "recipe", "base", "methods"),
    "Choosing files": ("last", "best", "metric", "higher_better"),
    "Overlay and fill": ("only_existing", "same_shape", "compact"),
    "Numbers": (
        *("weight", "weight_for", "normalize", "density", "lambda_", "t", "decay", "parameter"),
        *("seed", "dtype"),
    ),
    "Adapters (method 'lora')": ("scale", "check_rounding"),
    "Where files differ": ("keys", "on_shape", "integers", "allow_nonfinite"),
    "Names": (
        *(
            "prefix_b",
            "add_prefix",
            "strip_prefix",
            "pattern",
            "prefix",
            "glob",
            "name",
            "keys_from",
        ),
        *("keep", "allow_unmatched", "at", "state_dict_only"),
    ),
    "Resources": ("threads", "memory"),
}
_PARAMETERS: Final = {"lambda_": "lambda", "density": "density", "t": "t", "decay": "decay"}
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class _Method(TextType):
    """The name of a method; whether there is one of that name is for `ops` to say."""

    name = "method"

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 - Click's signature
        param: click.Parameter,  # noqa: ARG002 - Click's signature
        incomplete: str,
    ) -> list[CompletionItem]:
        return [CompletionItem(name) for name in methods() if name.startswith(incomplete)]


def _print_methods(ctx: click.Context) -> None:
    """List the methods, the structural ones first."""
    from ckpt_surgery.merge.method import catalogue
    from ckpt_surgery.render.screen import Column, Grid, paged

    rows = [
        ("overlay", "", "later files win: the dictionary update", ""),
        ("fill", "", "earlier files win", ""),
        (
            "lora",
            "",
            "adapters added to the weights that they change",
            "Hu et al., LoRA, ICLR 2022, arXiv:2106.09685",
        ),
    ]
    rows += (
        (
            name,
            " ".join(p.name for p in method.parameters),
            method.summary,
            method.citation,
        )
        for name, method in catalogue().items()
    )
    columns = (
        Column("method", style="bold"),
        Column("parameters", wraps=True),
        Column("what it is", wraps=True),
        Column("definition", wraps=True, spare=1),
    )
    with paged(sys.stdout, color=color_of(ctx), pager=not ctx.params["no_pager"]) as screen:
        screen.grid(Grid(columns, rows))


@click.command(cls=Command, headings=_HEADINGS)
@click.argument("files", nargs=-1, type=CheckpointFile(), metavar="[BASE] [OTHER]...")
@click.option(
    "-m", "--method", type=_Method(), metavar="NAME", help="How to merge (default: overlay)."
)
@click.option(
    "--recipe",
    metavar="FILE",
    type=InputFile(),
    help="Method, files and numbers from FILE: TOML, or mergekit's YAML.",
)
@click.option(
    "--base",
    metavar="FILE",
    type=CheckpointFile(),
    help="What gives everything that is not merged, and what task vectors are measured from "
    "(default: the first file).",
)
@click.option(
    "--methods",
    is_flag=True,
    help="List all methods, with their parameters and where they are defined.",
)
@click.option("--last", type=int, metavar="N", help="The N files with the highest numbers.")
@click.option("--best", type=int, metavar="N", help="The N files with the best --metric.")
@click.option("--metric", metavar="PATH", help="The number inside the files that --best compares.")
@click.option(
    "--higher-better/--lower-better",
    default=None,
    help="Which end of --metric is the best.",
)
@click.option("--only-existing", is_flag=True, help="Take only names that the base has.")
@click.option("--same-shape", is_flag=True, help="Take no tensor of another shape than the base's.")
@click.option("--compact", is_flag=True, help="Drop bytes that no tensor uses.")
@click.option(
    "--weight",
    multiple=True,
    type=float,
    metavar="W",
    help="The weight of a file; once for each, in their order, the method's base left out.",
)
@click.option(
    "--weight-for",
    multiple=True,
    metavar="SEL=W,W",
    help="Other weights for some tensors, such as 'prefix:layer4=0.3,0.7'. Repeatable.",
)
@click.option("--normalize/--no-normalize", default=None, help="Divide by the sum of the weights.")
@click.option("--density", metavar="D[,D]", help="Share of a task vector that stays.")
@click.option("--lambda", "lambda_", metavar="L", help="Factor of the merged task vector.")
@click.option("--t", metavar="T", help="Where between two files: 0 is the first, 1 the second.")
@click.option("--decay", metavar="D", help="How much of the average so far 'ema' keeps.")
@click.option(
    "--method-arg",
    "parameter",
    cls=Renamed,
    aliases=["--set"],
    multiple=True,
    metavar="NAME=VALUE",
    help="Any other parameter of the method; --methods lists them. Repeatable.",
)
@click.option(
    "--scale",
    metavar="S[,S]",
    help="How much of the adapters is added: 0.8, or one number for each of them (default: 1).",
)
@click.option(
    "--check-rounding",
    is_flag=True,
    help="Count how much of the adapters is left in the weights' element type; of adapters, "
    "--verify does that too.",
)
@click.option("--seed", type=int, default=0, help="Seed of methods that draw numbers (default: 0).")
@click.option("--dtype", metavar="TYPE", help="Floating type of the result (default: the base's).")
@click.option(
    "--keys",
    type=click.Choice(KEY_POLICIES),
    default="strict",
    help="Names that not every file has: refuse them (the default), keep them unmerged, drop them.",
)
@click.option(
    "--on-shape",
    type=click.Choice(SHAPE_POLICIES),
    default="error",
    help="Shapes that differ: refuse, leave the name out, take the base's, merge what overlaps.",
)
@click.option(
    "--int",
    "integers",
    type=click.Choice(INTEGER_POLICIES),
    default="auto",
    help="Integers and bools. By default batch norm's counter is the base's, others must be equal.",
)
@click.option("--allow-nonfinite", is_flag=True, help="Merge NaN and infinity like other numbers.")
@click.option("--prefix-b", metavar="P", help="Put P before every name of the second file.")
@click.option(
    "--add-prefix", multiple=True, metavar="N:P", help="Put P before every name of file N."
)
@click.option(
    "--strip-prefix", multiple=True, metavar="N:P", help="Take P off the names of file N."
)
@selection_options
@at_option
@optimizer_option
@click.option("--state-dict-only", is_flag=True, help="Write the state dict alone.")
@click.option("-j", "--threads", type=int, metavar="N", help="Threads that compute (default: all).")
@click.option(
    "--memory",
    metavar="SIZE",
    help="Most bytes of results that may wait to be written, such as 512M (default: 64M).",
)
@output_options
@pager_option
@report_options
@click.pass_context
def merge(ctx: click.Context, /, files: tuple[str, ...], recipe: str | None, **_: Any) -> int:
    r"""Merge checkpoints into one.

    Everything that is not merged (epoch, optimizer, arguments) comes from the base. A selection
    narrows what is merged. Numbers are computed tensor by tensor while they are written.

    \b
    Examples:
      ckpt merge init.pth pretrained.pth --only-existing --same-shape -o ready.pth
      ckpt merge backbone.pth head.pth --prefix-b head. -o model.pth
      ckpt merge a.pth b.pth c.pth -m average -o soup.pth
      ckpt merge run/ --last 5 -m average -o averaged.pth
      ckpt merge run/ --best 3 --metric best_acc1 --higher-better -m average \
          -o averaged.pth
      ckpt merge a.pth b.pth -m linear --weight 0.7 --weight 0.3 -o mixed.pth
      ckpt merge base.pth math.pth code.pth -m ties --density 0.2 -o both.pth
      ckpt merge -m lora llama/ adapter/ --scale 0.8 -o merged/
      ckpt merge --recipe merge.toml -o merged.pth --dry-run
    """
    if ctx.params["methods"]:
        _print_methods(ctx)
        return 0
    output = output_of(ctx)
    if recipe is not None:
        _require_alone(ctx)
        return finish(ctx, merge_recipe(recipe, output, **_common(ctx)), show)
    names, base = _chosen(ctx, files, ctx.params["method"] or "overlay")
    request = request_of(ctx, None if base is None else _source(base))
    return finish(ctx, merge_files([_source(name) for name in names], output, request), show)


def request_of(ctx: click.Context, base: PathLike | Source | None = None) -> MergeRequest:
    """Return what the line asks of a merge. Raises `UsageError` for what cannot work."""
    given = ctx.params
    return MergeRequest(
        given["method"] or "overlay",
        base=base,
        only_existing=given["only_existing"],
        same_shape=given["same_shape"],
        weights=given["weight"] or None,
        parameters=_parameters(ctx),
        overrides=_overrides(given["weight_for"]),
        seed=given["seed"],
        dtype=given["dtype"],
        integers=given["integers"],
        scales=_scales(given["scale"]),
        check_rounding=given["check_rounding"] or _verifies_adapters(given),
        **_common(ctx),
    )


def _common(ctx: click.Context) -> dict[str, Any]:
    """Return what is said of a merge on the line whether or not a recipe says the rest."""
    given = ctx.params
    return {
        "scope": MergeScope(
            selection=selection_of(ctx),
            at=given["at"],
            renames=_renames(ctx),
            state_dict_only=given["state_dict_only"],
            compact=given["compact"],
            optimizer=given["optimizer"],
        ),
        "keys": given["keys"],
        "on_shape": given["on_shape"],
        "allow_nonfinite": given["allow_nonfinite"],
        "threads": given["threads"],
        "memory": _memory(given["memory"]),
    }


def _chosen(ctx: click.Context, names: Sequence[str], method: str) -> tuple[list[str], str | None]:
    """Return the files that are meant, and the base if it is not the first of them."""
    given = ctx.params
    base: str | None = given["base"]
    last_count, best_count, metric = given["last"], given["best"], given["metric"]
    higher = given["higher_better"]
    # a directory is an adapter or a sharded base, and not the checkpoints in it
    files = list(names) if method in FOLDS else expand(names)
    if last_count is None and best_count is None:
        if metric is not None or higher is not None:
            raise UsageError("'--metric' and '--higher-better' go with '--best N'")
        return files, base
    if last_count is not None and best_count is not None:
        raise UsageError("'--last' and '--best' contradict each other")
    if last_count is not None:
        chosen = last(files, last_count)
    elif metric is None or higher is None:
        raise UsageError(
            "'--best' needs to know what is best",
            hint="add --metric PATH, and --higher-better or --lower-better",
        )
    else:
        chosen = best(files, best_count, metric, higher=higher)
    if base is None and method not in STRUCTURAL:
        from ckpt_surgery.merge.method import catalogue

        known = catalogue().get(method.replace("_", "-"))
        if known is not None and known.needs_base:
            raise UsageError(f"method '{method}' needs '--base' where files are chosen by number")
        # the state beside the weights should be that of the newest, or of the best
        base = chosen[-1] if last_count is not None else chosen[0]
    return chosen, base


def _source(name: str) -> PathLike | Source:
    if name != "-":
        return name
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("standard input is no file to read")
    return FileSource.from_stream(sys.stdin.buffer)


def _verifies_adapters(given: dict[str, Any]) -> bool:
    """Return whether a fold is to be verified: whether the adapters survive it, too."""
    return given["method"] == "lora" and bool(given["verify"])


def _parameters(ctx: click.Context) -> dict[str, object]:
    given = ctx.params
    found: dict[str, object] = {
        name: _values(given[option])
        for option, name in _PARAMETERS.items()
        if given[option] is not None
    }
    if given["normalize"] is not None:
        found["normalize"] = given["normalize"]
    for text in given["parameter"]:
        name, equals, value = text.partition("=")
        if not equals or name in found:
            raise UsageError(
                f"'--method-arg {text}' " + ("gives it twice" if equals else "has no value"),
                hint="write --method-arg NAME=VALUE",
            )
        found[name] = _values(value)
    return found


def _scales(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    from ckpt_surgery.merge.parameters import numbers_of

    return numbers_of("--scale", text)


def _overrides(texts: Sequence[str]) -> list[Override]:
    if not texts:
        return []
    from ckpt_surgery.merge.recipe import parse_weight_for

    return [parse_weight_for(text) for text in texts]


def _values(text: str) -> object:
    return tuple(text.split(",")) if "," in text else text


def _renames(ctx: click.Context) -> dict[int, list[RewriteRule]]:
    rules: dict[int, list[RewriteRule]] = {}
    given = in_order(ctx, ("add_prefix", "strip_prefix"))
    if not given and ctx.params["prefix_b"] is None:
        return rules
    from ckpt_surgery.names.rewrite import AddPrefix, StripPrefix

    for option, value in given:
        number, colon, prefix = value.partition(":")
        if not colon or not number.isascii() or not number.isdigit():
            number, prefix = str(OTHER_FILES), value  # as in rename
        rule = AddPrefix(prefix) if option == "add_prefix" else StripPrefix(prefix)
        for_all = rules.setdefault(OTHER_FILES, [])
        own = rules.setdefault(int(number), list(for_all))
        for each in rules.values() if own is for_all else [own]:
            each.append(rule)
    if ctx.params["prefix_b"] is not None:
        rules.setdefault(2, list(rules.get(OTHER_FILES, ()))).append(
            AddPrefix(ctx.params["prefix_b"])
        )
    return rules


def _memory(text: str | None) -> int | None:
    if text is None:
        return None
    unit = text[-1:].upper()
    number = text[:-1] if unit in _UNITS and unit else text
    factor = _UNITS.get(unit, 1) if unit and not unit.isdigit() else 1
    if not number.isascii() or not number.isdigit() or int(number) < 1:
        raise UsageError(f"'--memory {text}' is no size", hint="write it like 512M or 2G")
    return int(number) * factor


def _require_alone(ctx: click.Context) -> None:
    """Refuse on the line what the recipe says."""
    given = ctx.params
    said: tuple[str, ...] = (
        *("files", "method", "base", "last", "best", "metric", "weight", "weight_for", "density"),
        *("lambda_", "t", "decay", "parameter", "seed", "dtype", "only_existing", "same_shape"),
        *("compact", "scale", "check_rounding"),
    )
    twice = [name for name in said if given[name]]
    twice += [name for name in ("normalize", "higher_better") if given[name] is not None]
    twice += ["integers"] if given["integers"] != "auto" else []
    if twice:
        option = {"lambda_": "lambda", "parameter": "method-arg", "integers": "int"}.get(
            twice[0], twice[0].replace("_", "-")
        )
        what = "files" if option == "files" else f"'--{option}'"
        raise UsageError(f"'--recipe' and {what} contradict each other: the recipe says it")
