"""``ckpt fit``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ckpt_surgery.cli.base import Command
from ckpt_surgery.cli.options import (
    at_option,
    input_argument,
    output_of,
    output_options,
    read_text,
    report_options,
    source_of,
)
from ckpt_surgery.cli.output import finish
from ckpt_surgery.cli.spellings import Renamed
from ckpt_surgery.cli.target_options import target_of, target_options
from ckpt_surgery.cli.types import InputFile, OutputFile, TargetName
from ckpt_surgery.errors import UsageError
from ckpt_surgery.names import Rule, Selection
from ckpt_surgery.names.rewrite import parse_name_map

if TYPE_CHECKING:
    from ckpt_surgery.fit.request import FitRequest
    from ckpt_surgery.render.screen import Screen
    from ckpt_surgery.reports.fitting import FitReport

_NOTHING = "none"
_PLAIN = (
    *("match", "emit_map", "adapt", "layout", "grid", "fill", "dtype", "seed", "optimizer"),
    *("optimizer_group", "state_dict_only"),
)


@click.command(
    cls=Command,
    headings={
        "Target": ("model", "model_arg", "settings", "build", "like"),
        "Which name is which": ("match", "rename_map", "emit_map", "emit_recipe"),
        "Values": ("adapt", "layout", "grid", "classes", "fill", "initial", "dtype", "seed"),
        "Optimizer": ("optimizer", "optimizer_group"),
    },
)
@input_argument
@target_options
@click.option(
    "--match",
    type=click.Choice(["name", "prefix", "suffix", "order"]),
    default="prefix",
    show_default=True,
    help="How boldly names that differ are paired; 'order' goes by shapes alone.",
)
@click.option(
    "--map",
    "rename_map",
    cls=Renamed,
    aliases=["--rename-map"],
    metavar="MAP",
    type=InputFile(),
    help="Pair names as the file MAP says: TOML or JSON, old = new.",
)
@click.option(
    "--emit-map",
    metavar="MAP",
    type=OutputFile(),
    help="Write the pairs that were found to MAP for review, also in a dry run.",
)
@click.option(
    "--emit-recipe",
    metavar="RECIPE",
    type=OutputFile(),
    help="Write what '--adapt layout' does, and the rest of the line, to RECIPE for review, also "
    "in a dry run: 'ckpt apply RECIPE' does it.",
)
@click.option(
    "--adapt",
    multiple=True,
    metavar="HOW",
    help="Carry over what differs in shape: layout (transposed, fused, split), squeeze, reshape, "
    "channels[=mean|repeat|zero|first[:scaled]], rows, overlap, interpolate. Repeatable.",
)
@click.option(
    "--layout",
    multiple=True,
    metavar="NAME=HOW",
    help="Where '--adapt layout' calls a NAME (or a glob) of FILE ambiguous, what it is: "
    "transposed, as-is, heads:N. Repeatable.",
)
@click.option(
    "--grid",
    metavar="[OLD:]NEW",
    help="The grid that '--adapt interpolate' goes to, where it is no square: 4x6; after the "
    "checkpoint's, 14x14:4x6, if that is none either.",
)
@click.option(
    "--classes",
    nargs=2,
    metavar="OLD NEW",
    type=InputFile(),
    help="Files of class names, one a line: with '--adapt rows' each class keeps its row.",
)
@click.option(
    "--fill",
    multiple=True,
    metavar="[NAME=]HOW",
    help="Instead of initial values: zeros, ones, constant:V, normal[:STD], uniform[:BOUND], "
    "kaiming, xavier, init; for one NAME also a way of adapting channels. Repeatable.",
)
@click.option(
    "--initial",
    multiple=True,
    metavar="NAME",
    type=TargetName(),
    help="Refuse any initial tensor that is not at or below NAME, or a glob; 'none' allows none. "
    "Repeatable.",
)
@click.option("--dtype", metavar="TYPE", help="Element type of all floating-point tensors.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="What initial values are drawn from."
)
@click.option(
    "--optimizer",
    type=click.Choice(["resize", "reset", "keep", "drop"]),
    default="resize",
    show_default=True,
    help="The moments of an adapted tensor are adapted too, or begin anew; or leave the whole "
    "optimizer as it is, or out.",
)
@click.option(
    "--state-dict-only",
    is_flag=True,
    help="Write the state dict alone, without what lies beside it.",
)
@click.option(
    "--optimizer-group",
    multiple=True,
    metavar="NAME=K",
    help="New parameters at or below NAME join group K of the optimizer, counted from 0. "
    "Repeatable.",
)
@at_option
@output_options
@report_options
@click.pass_context
def fit(ctx: click.Context, /, **_: Any) -> int:
    r"""Write a checkpoint that loads strictly into a model.

    Every tensor of the model is copied from FILE where name and shape agree, adapted where
    --adapt permits it, and otherwise takes the model's own initial value. The report names all
    that is not copied. What lies beside the state dicts of FILE is carried over; an optimizer
    follows its model.

    \b
    Examples:
      ckpt fit r34.pth --model torchvision:resnet34 --set fc.out_features=5 \
          -o r5.pth
      ckpt fit alexnet.pth --like spp_init.pth -o spp.pth
      ckpt fit r50.pth --model torchvision:resnet50 --set conv1.in_channels=4 \
          --fill conv1=first --initial none -o rgbd.pth
      ckpt fit old.pth --model my.models:net --match suffix --dry-run \
          --emit-map map.toml
      ckpt fit r34.pth --model torchvision:resnet34 --set fc.out_features=5 \
          --adapt rows --classes imagenet.txt mine.txt -o mine.pth
      ckpt fit conv1d.pth --like linear.pth --adapt layout -o fitted.pth
    """
    from ckpt_surgery.ops.fit import fit as run

    given, output = ctx.params, output_of(ctx)
    if given["emit_map"] == "-":
        raise UsageError("'--emit-map -' names no file")
    review = None
    if given["emit_recipe"] is not None:
        from ckpt_surgery.cli.fit_recipe import emission

        output, review = emission(ctx, output)
    return finish(ctx, run(source_of(ctx), output, request_of(ctx), review=review), _show)


def request_of(ctx: click.Context) -> FitRequest:
    """Return what the line asks for. Raises `UsageError` for what cannot work."""
    from ckpt_surgery.fit.request import FitRequest

    given = ctx.params
    return FitRequest(
        **target_of(ctx),
        **_texts(given),
        initial=_selection(given["initial"]),
        **{name: given[name] for name in _PLAIN},
        at=given["at"],
    )


def _show(report: FitReport, screen: Screen) -> None:
    from ckpt_surgery.render.matching import show_fit

    show_fit(report, screen)


def _texts(given: dict[str, Any]) -> dict[str, Any]:
    """Return what the map and the lists of classes say."""
    renames, classes = given["rename_map"], given["classes"]
    return {
        "renames": None
        if renames is None
        else parse_name_map(read_text(renames, "--map"), renames).names,
        "classes": None if classes is None else tuple(_classes(path) for path in classes),
    }


def _classes(path: str) -> tuple[str, ...]:
    from ckpt_surgery.fit.adaptations import parse_classes

    text = read_text(path, "--classes")
    try:
        return parse_classes(text)
    except UsageError as error:
        error.name_file(path)
        raise


def _selection(texts: tuple[str, ...]) -> Selection | None:
    if not texts:
        return None
    if _NOTHING in texts and len(texts) > 1:
        raise UsageError("'--initial none' contradicts every other '--initial'")
    return Selection(
        tuple(
            Rule("glob" if any(c in text for c in "*?[") else "prefix", text)
            for text in texts
            if text != _NOTHING
        )
    )
