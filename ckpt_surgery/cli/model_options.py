"""The options that name a model to build, and what they come to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ckpt_surgery.models.specs import ModelSpec

_OPTIONS = (
    click.option(
        "--model",
        metavar="SPEC",
        help="The model: 'torchvision:NAME' or 'package.module:callable', built without weights.",
    ),
    click.option(
        "--model-arg",
        multiple=True,
        metavar="NAME=VALUE",
        help="An argument for the model's callable. Repeatable.",
    ),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="MODULE.ATTR=VALUE",
        help="Change a layer of the model, such as fc.out_features=5. Repeatable.",
    ),
)


def model_options(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--model``, ``--model-arg`` and ``--set``."""
    for option in reversed(_OPTIONS):
        callback = option(callback)
    return callback


def model_of(ctx: click.Context) -> ModelSpec | None:
    """The model that the line names, None if it names none. Raises `UsageError`."""
    from ckpt_surgery.errors import UsageError

    given = ctx.params
    if given["model"] is None:
        for name, option in (("model_arg", "--model-arg"), ("settings", "--set")):
            if given[name]:
                raise UsageError(f"'{option}' is about a model", hint="add --model SPEC")
        return None
    from ckpt_surgery.models.specs import ModelSpec, parse_arguments, parse_settings

    return ModelSpec(
        given["model"], parse_arguments(given["model_arg"]), parse_settings(given["settings"])
    )
