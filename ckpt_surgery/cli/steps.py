"""Steps of recipes from the options that the verbs have on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

from ckpt_surgery.cli.fields import name_options
from ckpt_surgery.cli.files import read_for_options
from ckpt_surgery.cli.spellings import spellings
from ckpt_surgery.errors import CkptError, UsageError
from ckpt_surgery.names import near
from ckpt_surgery.names.literals import toml_value

if TYPE_CHECKING:
    from ckpt_surgery.fileio.distinct import Role
    from ckpt_surgery.matching.request import MatchRequest
    from ckpt_surgery.recipes.recipe import Action

VERBS: Final = ("strip", "rename", "edit", "set", "convert", "merge", "fit")
"""The verbs that a step may be, each a module of `cli.commands` with a `request_of`."""

_WITH: Final = "with"
"""What a merge calls the other checkpoints in a recipe."""

_VALUES: Final = "values"
"""What `set` calls the table of paths and values in a recipe."""

# Options of verbs that say where something is read or written, or how it is shown: an input, an
# output or the line of `ckpt apply` says it.
ELSEWHERE: Final = frozenset(
    {
        "output", "output_template", "jsonl", "in_place", "force", "if_changed", "fsync",
        "output_format", "allow_loss", "sidecar", "metadata", "duplicate_ties", "max_shard_size",
        "dry_run", "record", "hash_name", "as_json", "quiet", "color", "no_color", "no_pager",
        "help", "base", "last", "best", "metric", "higher_better", "recipe", "methods", "threads",
        "memory", "emit_map", "emit_recipe", "device", "plain", "verify", "provenance",
    }
)  # fmt: skip


def action_of(verb: str, said: object, read: list[Role] | None = None) -> Action:
    """Return what a step does that says `verb` and, in a table or several, its options.

    The files that these name are added to `read`.

    Raises `UsageError` for options that the verb does not have, and for values that they cannot
    have.
    """
    from ckpt_surgery.recipes.actions import Ask, Fit, Merge

    tables = [dict(table) for table in _tables(verb, said)]
    names: list[str] = []
    if verb == "merge":
        for table in tables:
            names += _texts(f"{verb}.{_WITH}", table.pop(_WITH, []))
    context, request_of = _parsed(verb, tables, _arguments(verb, tables, names))
    with context:
        request: Any = _asked(context, request_of, read)
    if verb == "merge":
        return Merge(request, names)
    return Fit(request) if verb == "fit" else Ask(verb, request)


def _arguments(verb: str, tables: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    """Return what a line of the verb says without options; `set` has a table of values."""
    if verb == "merge":
        return ["base", *names]
    if verb != "set":
        return []
    found = ["-"]
    for table in tables:
        values = table.pop(_VALUES, {})
        if not isinstance(values, dict):
            raise UsageError(f"'{_VALUES}' of 'set' is a table of paths and values")
        found += (f"{path}={toml_value(value)}" for path, value in values.items())
    return found


def target_of(said: object, read: list[Role] | None = None) -> MatchRequest:
    """Return what a checkpoint is to load into: a model as a text, or options of ``ckpt match``.

    The files that these name are added to `read`.
    """
    tables = [{"model": said}] if isinstance(said, str) else list(_tables("matches", said))
    context, request_of = _parsed("match", tables, [])
    with context:
        found: MatchRequest = _asked(context, request_of, read)
    return found


def _asked(
    context: click.Context,
    request_of: Callable[[click.Context], Any],
    read: list[Role] | None,
) -> Any:
    if read is not None:
        read += read_for_options(context)
    try:
        return request_of(context)
    except CkptError as error:
        name_options(error, context.command.params)
        raise


def _parsed(
    verb: str, tables: Sequence[Mapping[str, Any]], files: Sequence[str]
) -> tuple[click.Context, Callable[[click.Context], Any]]:
    """Return what the verb's own parser makes of the options in tables."""
    module = import_module(f"ckpt_surgery.cli.commands.{verb}")
    command: click.Command = getattr(module, f"{verb}_" if verb == "set" else verb)
    words = [word for table in tables for word in _words(command, table)]
    try:
        context = command.make_context(verb, [*words, "--", *files])
    except click.ClickException as error:
        message = error.format_message()
        raise UsageError(message[:1].lower() + message[1:].removesuffix(".")) from error
    return context, module.request_of


def _words(command: click.Command, table: Mapping[str, Any]) -> Iterator[str]:
    """Yield the words of a command line that says what a table says, in its order."""
    options = {
        spelling[2:]: option
        for option in command.params
        if isinstance(option, click.Option) and option.name not in ELSEWHERE
        for spelling in spellings(option)
        if spelling.startswith("--")
    }
    for key, value in table.items():
        name = key.replace("_", "-")
        option = options.get(name)
        if option is None:
            meant = " or ".join(f"'{each}'" for each in near(name, options))
            raise UsageError(
                f"'{command.name}' has no '{key}' in a recipe",
                hint=f"did you mean {meant}?" if meant else f"it has {', '.join(sorted(options))}",
            )
        yield from _option_words(option, name, value)


def _option_words(option: click.Option, name: str, value: Any) -> Iterator[str]:
    if option.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"'{name}' is true or false, not {value!r}")
        yield from [f"--{name}"] if value else option.secondary_opts[:1]
        return
    if option.nargs == 1:
        values = value if isinstance(value, list) else [value]
        if len(values) != 1 and not option.multiple:
            raise UsageError(f"'{name}' takes one value, not {len(values)}")
        for each in values:
            yield f"--{name}={_word(name, each)}"
        return
    several = value if value and isinstance(value, list) and isinstance(value[0], list) else [value]
    for each in several:
        words = _texts(name, each)
        if len(words) != option.nargs:
            raise UsageError(f"'{name}' takes {option.nargs} texts, not {len(words)}")
        yield from (f"--{name}", *words)


def _word(name: str, value: Any) -> str:
    if isinstance(value, bool | dict | list) or value is None:
        raise UsageError(f"'{name}' is a text or a number, not {value!r}")
    return str(value)


def _texts(name: str, value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [_word(name, each) for each in values]


def _tables(name: str, said: object) -> Sequence[Mapping[str, Any]]:
    tables: list[Any] = said if isinstance(said, list) else [said]
    if not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"'{name}' is a table of options, or a list of tables")
    return tables
