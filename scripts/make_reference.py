"""Write the options in docs/commands.md, and the screens of help that tests compare with.

    python scripts/make_reference.py            bring the file up to date
    python scripts/make_reference.py --check    exit code 1 if it is not

An option that several commands have in the same words is listed once, under ``shared``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import click

from ckpt_surgery.cli.main import COMMANDS, cli

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "commands.md"
SCREENS = Path(__file__).resolve().parents[1] / "tests" / "cli" / "screens"
_BLOCK = re.compile(r"(<!-- options: (\S+) -->\n).*?(<!-- end of options -->)", re.DOTALL)


def commands() -> dict[str, click.Command]:
    with click.Context(cli, info_name="ckpt") as context:
        found = {name: cli.get_command(context, name) for name in COMMANDS}
    return {name: command for name, command in found.items() if command is not None}


def describe(option: click.Option) -> tuple[str, str]:
    """How an option is written, and what it does."""
    names = ", ".join(f"`{name}`" for name in option.opts)
    value = option.metavar or ""
    if isinstance(option.type, click.Choice):
        value = "|".join(map(str, option.type.choices))
    if value:
        names = names[:-1] + f" {value}`"
    text = option.help or ""
    if option.show_default:
        text += f" Default: {option.default}."
    return names.replace("|", "\\|"), re.sub(r"[|*\\]", r"\\\g<0>", text)


def options_of(command: click.Command) -> list[tuple[str, str]]:
    return [
        describe(each)
        for each in command.params
        if isinstance(each, click.Option) and not each.hidden
    ]


def usage(name: str, command: click.Command) -> str:
    with click.Context(command, info_name=f"ckpt {name}") as context:
        return " ".join([f"ckpt {name}", *command.collect_usage_pieces(context)])


def blocks() -> dict[str, str]:
    """The text of each block by its name: every command, and ``shared``."""
    users: dict[tuple[str, str], list[str]] = defaultdict(list)
    found = commands()
    for name, command in found.items():
        for row in options_of(command):
            users[row].append(name)
    made = {"shared": "".join(_shared(users))}
    for name, command in found.items():
        own = [row for row in options_of(command) if len(users[row]) == 1]
        made[name] = f"\n```\n{usage(name, command)}\n```\n\n" + "".join(_own(own))
    return made


def _own(rows: list[tuple[str, str]]) -> Iterator[str]:
    if rows:
        yield "| option | |\n|---|---|\n"
        yield from (f"| {names} | {text} |\n" for names, text in rows)
        yield "\n"


def _shared(users: dict[tuple[str, str], list[str]]) -> Iterator[str]:
    yield "\n| option | of | |\n|---|---|---|\n"
    everyone = len(COMMANDS)
    for (names, text), whose in users.items():
        if len(whose) > 1:
            of = "every command" if len(whose) == everyone else ", ".join(whose)
            yield f"| {names} | {of} | {text} |\n"
    yield "\n"


def updated(document: str) -> str:
    """The document with every block made anew. Raises `ValueError` if one has no place."""
    made = blocks()
    places = [match[2] for match in _BLOCK.finditer(document)]
    if sorted(places) != sorted(made):
        raise ValueError(f"the document has blocks for {places}, but there are {list(made)}")
    return _BLOCK.sub(lambda match: match[1] + made[match[2]] + match[3], document)


def help_screens() -> dict[str, str]:
    """The help of `ckpt` and of every command, as on a terminal of 80 columns, by file names."""
    shown = {}
    # of 80 columns Click leaves two empty
    root = click.Context(cli, info_name="ckpt", terminal_width=78, **cli.context_settings)
    for name, command in {"ckpt": cli, **commands()}.items():
        own = root
        if name != "ckpt":
            own = click.Context(command, info_name=name, parent=root, **command.context_settings)
        lines = command.get_help(own).splitlines()
        shown[f"help-{name}.80.txt"] = "\n".join(line.rstrip() for line in lines) + "\n"
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("document", type=Path, nargs="?", default=DOCUMENT)
    given = parser.parse_args()
    screens = help_screens()  # first: Click keeps the option for help as it was first asked for
    old = given.document.read_text(encoding="utf-8")
    new = updated(old)
    if given.check:
        return int(old != new)
    given.document.write_text(new, encoding="utf-8")
    if given.document == DOCUMENT:
        for name, text in screens.items():
            (SCREENS / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
