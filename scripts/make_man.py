"""Make manual pages, ckpt.1 and one a command, from the commands themselves: make_man.py FOLDER.

Building a wheel does it (setup.py), so that ``man ckpt-strip`` says what ``ckpt strip -h`` says.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from ckpt_surgery import __version__
from ckpt_surgery.cli.main import COMMANDS, cli

_PARAGRAPH = re.compile(r"\n\s*\n")


def pages() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of every page."""
    context = click.Context(cli, info_name="ckpt")
    yield "ckpt.1", _page(cli, context, [f"ckpt-{name}" for name in COMMANDS])
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        own = click.Context(command, info_name=name, parent=context)
        yield f"ckpt-{name}.1", _page(command, own, ["ckpt"])


def main() -> None:
    """Write all pages into the folder that the line names."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages():
        (folder / name).write_text(text, "utf-8")


def _page(command: click.Command, context: click.Context, others: list[str]) -> str:
    title = context.command_path.replace(" ", "-")
    summary, *paragraphs = _PARAGRAPH.split(inspect.cleandoc(command.help or ""))
    lines = [
        f'.TH "{_roff(title.upper())}" "1" "" "ckpt {__version__}" "ckpt manual"',
        ".SH NAME",
        f"{_roff(title)} \\- {_roff(' '.join(summary.split()).removesuffix('.'))}",
        ".SH SYNOPSIS",
        f".B {_roff(context.command_path)}",
        _roff(" ".join(command.collect_usage_pieces(context))),
        ".SH DESCRIPTION",
    ]
    for paragraph in paragraphs:
        lines += _paragraph(paragraph)
    for heading, records in _options(command, context):
        lines.append(f".SH {_roff(heading.upper())}")
        for spelling, text in records:
            lines += [".TP", f"\\fB{_roff(spelling)}\\fR", _roff(" ".join(text.split()))]
    lines += [".SH SEE ALSO", _roff(", ".join(f"{other}(1)" for other in others))]
    return "\n".join(lines) + "\n"


def _paragraph(text: str) -> Iterator[str]:
    """Yield the lines of a paragraph, which stay as they are after a backspace (Click's mark)."""
    body = text.removeprefix("\b").strip("\n")
    if body != text.strip("\n"):
        yield from (".PP", ".nf", *(_roff(line) for line in body.split("\n")), ".fi")
    else:
        yield from (".PP", _roff(" ".join(body.split())))


def _options(
    command: click.Command, context: click.Context
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return what help lists under its headings: options, and of the whole tool its commands."""

    class Collected(click.HelpFormatter):
        found: list[tuple[str, list[tuple[str, str]]]]

        def write_heading(self, heading: str) -> None:
            self.found.append((heading, []))

        def write_dl(self, rows: object, *_: object, **__: object) -> None:
            self.found[-1][1].extend(rows)  # type: ignore[arg-type]

    formatter = Collected()
    formatter.found = []
    command.format_options(context, formatter)
    if isinstance(command, click.Group):
        command.format_commands(context, formatter)
    return [(heading, rows) for heading, rows in formatter.found if rows]


def _roff(text: str) -> str:
    r"""Escape what groff takes for itself: backslashes, dashes, a dot first; what is no ASCII."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    escaped = "".join(c if c.isascii() else f"\\[u{ord(c):04X}]" for c in escaped)
    return f"\\&{escaped}" if escaped[:1] in {".", "'"} else escaped


if __name__ == "__main__":
    main()
