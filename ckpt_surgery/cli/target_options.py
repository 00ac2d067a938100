"""Options that say what a checkpoint is loaded into."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from ckpt_surgery.cli.options import all_of
from ckpt_surgery.cli.types import CheckpointFile, TextType
from ckpt_surgery.errors import UsageError

if TYPE_CHECKING:
    from ckpt_surgery.models.specs import ModelSpec


class _ModelName(TextType):
    """``torchvision:NAME``, ``package.module:callable``, …; the first are completed."""

    name = "model"

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 - Click's signature
        param: click.Parameter,  # noqa: ARG002 - Click's signature
        incomplete: str,
    ) -> list[CompletionItem]:
        names: list[str] = []
        with suppress(Exception):
            from ckpt_surgery.models.signature_table import load_table

            # from the committed table: asking the libraries would take seconds
            names = sorted(name for group in load_table().names for name in group)
        libraries = ("torchvision:", "timm:") if ":" in incomplete else "torchvision:"
        specs = (name for name in names if name.startswith(libraries))
        return [CompletionItem(spec) for spec in specs if spec.startswith(incomplete)]


model_options = all_of(
    click.option(
        "--model",
        metavar="SPEC",
        type=_ModelName(),
        help="The model: 'torchvision:NAME', 'timm:NAME', 'hf:DIR' (its config.json), 'smp:NAME', "
        "'ultralytics:NAME', or 'package.module:callable', whose code runs.",
    ),
    click.option(
        "--model-arg",
        multiple=True,
        metavar="K=V",
        help="An argument for the model: 'num_classes=5', 'norm=none', 'layers=[3, 4]'. "
        "Repeatable.",
    ),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="MODULE.ATTRIBUTE=VALUE",
        help="Rebuild one layer of the model: 'fc.out_features=5'. Repeatable.",
    ),
    click.option(
        "--build",
        type=click.Choice(["meta", "real"]),
        default="meta",
        show_default=True,
        help="Build the model without weights; 'real' builds it with them, on the CPU, if its code "
        "does not work without.",
    ),
)

target_options = all_of(
    model_options,
    click.option(
        "--like",
        metavar="OTHER",
        type=CheckpointFile(),
        help="Another checkpoint instead of a model, of any format.",
    ),
)


def target_of(ctx: click.Context) -> dict[str, Any]:
    """Return what `ops` takes of these options. Raises `UsageError` for a malformed argument."""
    from ckpt_surgery.models.specs import parse_arguments

    given = ctx.params
    return {
        "model": given["model"],
        "model_args": parse_arguments(given["model_arg"]),
        "settings": given["settings"],
        "like": given["like"],
        "build": given["build"],
    }


def model_of(ctx: click.Context) -> ModelSpec | None:
    """Return the model that `model_options` name, None if they name none. Raises `UsageError`."""
    given = ctx.params
    if given["model"] is None:
        for name, option in (("model_arg", "--model-arg"), ("settings", "--set")):
            if given[name]:
                raise UsageError(f"'{option}' is about a model", hint="add --model SPEC")
        if given["build"] != "meta":
            raise UsageError("'--build' is about a model", hint="add --model SPEC")
        return None
    from ckpt_surgery.models.specs import ModelSpec, parse_arguments, parse_settings

    return ModelSpec(
        given["model"],
        parse_arguments(given["model_arg"]),
        parse_settings(given["settings"]),
        given["build"],
    )
