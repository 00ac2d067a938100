"""``ckpt freeze-plan``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

import click

import ckpt_surgery.ops.freeze_plan as verb
from ckpt_surgery.cli.base import Command, color_of, in_order
from ckpt_surgery.cli.options import (
    SELECTING,
    at_option,
    if_changed_option,
    input_argument,
    one_at,
    pager_option,
    report_options,
    rule_of,
    selection_options,
    source_of,
)
from ckpt_surgery.cli.target_options import model_of, model_options
from ckpt_surgery.cli.types import KeyName, OutputFile
from ckpt_surgery.errors import UsageError
from ckpt_surgery.fileio.unchanged import write_unless_same
from ckpt_surgery.freeze.build import (
    NO_DECAY_DEFAULT,
    FreezeRecipe,
    FreezeRule,
    GroupRule,
    Stage,
    parse_group,
    parse_stage,
)
from ckpt_surgery.freeze.emit import EMITTERS
from ckpt_surgery.freeze.selectors import (
    Before,
    ByName,
    First,
    FirstChildren,
    FirstKeys,
    Last,
    Selector,
    Until,
    parse_selector,
)
from ckpt_surgery.names import Rule
from ckpt_surgery.ops.freeze_plan import FreezePlanReport
from ckpt_surgery.render.plain import write_json

_BY_SUFFIX: Final = {".json": "json", ".toml": "toml", ".py": "python"}
_Action = Literal["freeze", "train"]


def _word(text: str, option: str) -> Selector:
    return parse_selector(text, f"{option} {text}")


def _prefix(text: str, option: str) -> Selector:
    return ByName(Rule("prefix", text), text, f"{option} {text}")


# Option: what it does, and the selector of its value.
_RULES: Final[dict[str, tuple[_Action, Callable[[Any], Selector]]]] = {
    "freeze": ("freeze", lambda text: _word(text, "--freeze")),
    "train": ("train", lambda text: _word(text, "--train")),
    "freeze_prefix": ("freeze", lambda text: _prefix(text, "--freeze-prefix")),
    "train_prefix": ("train", lambda text: _prefix(text, "--train-prefix")),
    "first": ("freeze", First),
    "first_keys": ("freeze", FirstKeys),
    "first_children": ("freeze", FirstChildren),
    "before": ("freeze", Before),
    "until": ("freeze", Until),
    "last": ("train", Last),
}


@click.command(
    cls=Command,
    headings={
        "What trains": (
            *("freeze", "train", "freeze_prefix", "train_prefix", "first", "first_keys"),
            *("first_children", "pattern", "prefix", "glob", "name", "keys_from", "keep"),
            "allow_unmatched",
            *("before", "until", "last", "stage", "epoch"),
        ),
        "How it trains": (
            *("lr", "weight_decay", "group", "layer_decay", "head_multiplier", "no_decay"),
            "no_decay_for",
        ),
        "Model": ("model", "model_arg", "settings", "build"),
    },
)
@input_argument
@click.option(
    "--freeze",
    multiple=True,
    metavar="SELECTION",
    type=KeyName(),
    help="Freeze a module, a glob, pattern=RE, 'head' or 'all'; a later rule wins.",
)
@click.option(
    "--train", multiple=True, metavar="SELECTION", type=KeyName(), help="Train, likewise."
)
@click.option("--freeze-prefix", multiple=True, metavar="P", type=KeyName(), help="Freeze P.*.")
@click.option("--train-prefix", multiple=True, metavar="P", type=KeyName(), help="Train P.*.")
@click.option(
    "--first",
    multiple=True,
    type=int,
    metavar="N",
    help="Freeze the first N parameters, counted as parameters() does: without buffers.",
)
@click.option(
    "--first-keys",
    multiple=True,
    type=int,
    metavar="N",
    help="Freeze what is among the first N keys of the state dict, buffers counted, as "
    "'inspect --index' numbers them.",
)
@click.option(
    "--first-children",
    multiple=True,
    type=int,
    metavar="N",
    help="Freeze the first N children of the model, counted as children() does with --model.",
)
@click.option(
    "--before",
    multiple=True,
    metavar="NAME",
    type=KeyName(),
    help="Freeze every parameter defined before NAME.",
)
@click.option(
    "--until",
    multiple=True,
    metavar="NAME",
    type=KeyName(),
    help="Freeze every parameter defined up to and with NAME.",
)
@click.option(
    "--last",
    multiple=True,
    type=int,
    metavar="N",
    help="Train the last N parameters; as the first rule it freezes all others.",
)
@click.option(
    "--stage",
    multiple=True,
    metavar="'EPOCH: SELECTION'",
    help="Train SELECTION from EPOCH on, for gradual unfreezing.",
)
@click.option("--epoch", type=click.IntRange(min=0), metavar="N", help="The plan as of epoch N.")
@click.option("--lr", type=float, metavar="X", help="The base learning rate.")
@click.option("--weight-decay", type=float, metavar="X", help="The base weight decay.")
@click.option(
    "--group",
    multiple=True,
    metavar="SELECTION:NAME=X,...",
    help="Options of its own for SELECTION: fc:lr=1e-2,weight_decay=0,momentum=0.9.",
)
@click.option(
    "--layer-decay",
    type=float,
    metavar="X",
    help="Multiply the rate by X for every layer further from the head.",
)
@click.option("--head-multiplier", type=float, metavar="X", help="Multiply the head's rate by X.")
@click.option("--no-decay", is_flag=True, help="No weight decay for biases and normalisations.")
@click.option(
    "--no-decay-for",
    multiple=True,
    metavar="WHAT",
    help="No weight decay for 'bias', 'norm' or a selection.",
)
@selection_options
@at_option
@model_options
@click.option("--fold", is_flag=True, help="One row for a subtree that is treated alike.")
@click.option(
    "--emit",
    type=click.Choice(["table", *EMITTERS]),
    help="Print the plan in this form; 'python' is a module without dependencies.",
)
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    type=OutputFile(),
    help="Write the plan to OUT: .json, .toml or .py, or as --emit says.",
)
@click.option("--force", is_flag=True, help="Replace an existing OUT.")
@if_changed_option
@pager_option
@report_options
@click.pass_context
def freeze_plan(ctx: click.Context, /, **_: Any) -> int:
    r"""Decide what trains and how.

    Rules apply in the order of the line, and the later one wins. What no rule takes trains; if the
    first rule is to train something, everything else is frozen. FILE may be left out if --model
    says what to plan for; with it, children and kinds of layers are known and not guessed.

    \b
    Examples:
      ckpt freeze-plan resnet34.pth --train head --lr 1e-3
      ckpt freeze-plan resnet34.pth --first 60 --fold
      ckpt freeze-plan r34.pth --lr 1e-3 --group fc:lr=1e-2 --emit python > g.py
      ckpt freeze-plan --model torchvision:vit_b_16 --lr 1e-3 --layer-decay 0.75 \
          --no-decay
      ckpt freeze-plan r34.pth --stage '0: head' --stage '5: layer4' -o plan.json
    """
    given = ctx.params
    form = _form(ctx)
    model = model_of(ctx)
    source = None if given["file"] is None and model is not None else source_of(ctx)
    report = verb.freeze_plan(
        source,
        _recipe(ctx),
        model=model,
        at=one_at(ctx),
        epoch=given["epoch"] or 0,
        output=given["output"],
    )
    if given["output"] is not None:
        write_unless_same(
            given["output"],
            EMITTERS[form](report.plan).encode(),
            force=given["force"],
            if_changed=given["if_changed"],
        )
        report = replace(report, output=str(given["output"]))
    if not given["quiet"] and sys.stdout is not None:
        _print(ctx, report, form)
    return report.exit_code


def _form(ctx: click.Context) -> str:
    """Return what to emit: as asked for, else as the output's name says. Raises `UsageError`."""
    given = ctx.params
    emit, output = given["emit"], given["output"]
    if output == "-":
        raise UsageError(
            "'-o -' names no file",
            hint="without -o, --emit json prints the plan, or toml or python",
        )
    if given["as_json"] and emit is not None and output is None:
        raise UsageError("'--json' and '--emit' contradict each other", hint="both with -o OUT")
    if given["fold"] and (given["as_json"] or (output is None and emit not in {None, "table"})):
        raise UsageError("'--fold' is about the table")
    if output is None:
        return emit or "table"
    form = emit or _BY_SUFFIX.get(Path(output).suffix.lower())
    if form is None or form == "table":
        raise UsageError(
            f"'{output}' does not say in which form to write the plan",
            hint="call it .json, .toml or .py, or give --emit json, toml or python",
        )
    return str(form)


def _recipe(ctx: click.Context) -> FreezeRecipe:
    given = ctx.params
    chosen: _Action = "train" if given["keep"] else "freeze"
    rules = []
    for name, value in in_order(ctx, [*_RULES, *SELECTING]):
        if name in SELECTING:
            # as strip removes what is selected, or with --keep all others, this freezes it
            rule = rule_of(name, value)
            rules.append(FreezeRule(chosen, ByName(rule, rule.text, rule.option)))
            continue
        action, make = _RULES[name]
        rules.append(FreezeRule(action, make(value)))
    if given["keep"] and not any(given[name] for name in SELECTING):
        raise UsageError("'--keep' inverts a selection, and there is none")
    groups = []
    for text in given["group"]:
        selection, options = parse_group(text)
        groups.append(GroupRule(_word(selection, "--group"), options))
    stages = []
    for text in given["stage"]:
        epoch, selection = parse_stage(text)
        stages.append(Stage(epoch, _word(selection, "--stage")))
    return FreezeRecipe(
        rules=rules,
        groups=groups,
        stages=stages,
        lr=given["lr"],
        weight_decay=given["weight_decay"],
        layer_decay=given["layer_decay"],
        head_multiplier=given["head_multiplier"],
        no_decay=[
            *(NO_DECAY_DEFAULT if given["no_decay"] else ()),
            *(
                what if what in NO_DECAY_DEFAULT else _word(what, "--no-decay-for")
                for what in given["no_decay_for"]
            ),
        ],
        allow_unmatched=given["allow_unmatched"],
    )


def _print(ctx: click.Context, report: FreezePlanReport, form: str) -> None:
    given = ctx.params
    if given["as_json"]:
        write_json(report, sys.stdout)
    elif form == "table" or given["output"] is not None:
        from ckpt_surgery.render.freeze_plan import show
        from ckpt_surgery.render.screen import paged

        with paged(sys.stdout, color=color_of(ctx), pager=not given["no_pager"]) as screen:
            # what is written has every row; a screen need not
            written = given["output"] is not None and sys.stdout.isatty()
            show(report, screen, folded=given["fold"] or written)
    else:
        sys.stdout.write(EMITTERS[form](report.plan))
