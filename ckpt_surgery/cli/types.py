"""Parameter types that complete from the checkpoint named on the line.

Completion is best effort: whatever goes wrong, there is nothing to complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import click
from click.shell_completion import CompletionItem

from ckpt_surgery.checkpoint.description import Checkpoint

_MOST: Final = 1000  # candidates
_PLAIN: Final = frozenset("_.-/:@%+,=")  # characters that no shell acts on within a word


if TYPE_CHECKING:
    TextType = click.ParamType[str]
else:  # generic only since Click 8.2
    TextType = click.ParamType


class CheckpointFile(TextType):
    """The path of a checkpoint, or ``-``. Whether it can be read is for the reader to say."""

    name = "file"

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 - Click's signature
        param: click.Parameter,  # noqa: ARG002 - Click's signature
        incomplete: str,
    ) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


class InputFile(click.Path):
    """A file beside FILE that is read. Whoever opens it says whether it can be."""

    def __init__(self) -> None:
        super().__init__(readable=False)


class OutputFile(click.Path):
    """A file that is written, which must be none that is read."""

    def __init__(self) -> None:
        super().__init__(readable=False)


class KeyName(TextType):
    """A name, or a part of names, in the state dicts of the file; completed segment by segment."""

    name = "name"

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002 - Click's signature
        incomplete: str,
    ) -> list[CompletionItem]:
        names: list[str] = []
        with suppress(Exception), self._open(ctx) as checkpoint:
            for state_dict in checkpoint.state_dicts:
                names += state_dict.names
        return _items(_next_segments(names, incomplete))

    def _open(self, ctx: click.Context) -> Checkpoint:
        return _open(ctx)


class TargetName(KeyName):
    """A name in the target: in that of `--like`, else in the file, which mostly has the same."""

    def _open(self, ctx: click.Context) -> Checkpoint:
        from ckpt_surgery.formats import read

        like = ctx.params.get("like")
        return read(like) if like else _open(ctx)


class FormatName(TextType):
    """The name of a format that can be written; whether there is one is for the writer to say."""

    name = "format"

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 - Click's signature
        param: click.Parameter,  # noqa: ARG002 - Click's signature
        incomplete: str,
    ) -> list[CompletionItem]:
        from ckpt_surgery.formats.registry import writable

        return _items(name for name in writable() if name.startswith(incomplete))


class FormatOption(click.Option):
    """An option for the name of a format, whose help says which there are."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return how it is written and what it does; the names are looked up only for help."""
        from ckpt_surgery.formats.registry import writable

        record = super().get_help_record(ctx)
        return record and (record[0], f"{record[1]} There are {', '.join(writable())}.")


class StateDictPath(TextType):
    """The path of a state dict in the file."""

    name = "path"

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002 - Click's signature
        incomplete: str,
    ) -> list[CompletionItem]:
        paths: list[str] = []
        with suppress(Exception), _open(ctx) as checkpoint:
            paths = [s.path for s in checkpoint.state_dicts if s.path.startswith(incomplete)]
        return _items(paths)


class EntryPath(StateDictPath):
    """The path of anything in the file that is no entry of a state dict."""

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002 - Click's signature
        incomplete: str,
    ) -> list[CompletionItem]:
        paths: list[str] = []
        with suppress(Exception), _open(ctx) as checkpoint:
            from ckpt_surgery.torch_objects.entries import Entries

            entries = Entries(checkpoint)
            for top in entries.top():
                paths.append(top.path)
                if incomplete.startswith(f"{top.path}/"):
                    paths += (place.path for place in entries.below(top))
        return _items(path for path in paths if path.startswith(incomplete))


def _open(ctx: click.Context) -> Checkpoint:
    from ckpt_surgery.formats import read

    several = ctx.params.get("files")
    return read(several[0] if several else ctx.params["file"])


def _next_segments(names: Iterable[str], incomplete: str) -> Iterator[str]:
    for name in names:
        if name.startswith(incomplete):
            dot = name.find(".", len(incomplete) + 1)
            yield name if dot == -1 else name[:dot]


def _items(values: Iterable[str]) -> list[CompletionItem]:
    harmless = (value for value in values if _is_harmless(value))
    return [CompletionItem(value) for value in list(dict.fromkeys(harmless))[:_MOST]]


def _is_harmless(value: str) -> bool:
    """Return whether every shell takes `value` for itself: no substitution, pattern, end of a
    command.

    Nor may it begin like an option, a home directory or a job.
    """
    begins = value[:1].isalnum() or value[:1] in {"_", ".", "/"}
    return begins and all(c.isalnum() or c in _PLAIN for c in value)
