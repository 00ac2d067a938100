"""Options with older spellings, which work and are not shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click


class Renamed(click.Option):
    """An option with `aliases`: old spellings, which the parser knows and help does not show."""

    def __init__(self, *args: Any, aliases: Sequence[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.aliases = tuple(aliases)

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Let the parser know every spelling."""
        shown = self.opts
        self.opts = [*shown, *self.aliases]
        try:
            super().add_to_parser(parser, ctx)
        finally:
            self.opts = shown


def spellings(option: click.Parameter) -> tuple[str, ...]:
    """Return all spellings of an option, the old ones last."""
    return (*option.opts, *getattr(option, "aliases", ()))
