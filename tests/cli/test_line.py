"""Laws of the line: no option takes the next option for its value."""

from __future__ import annotations

import click
import pytest
from click.shell_completion import BashComplete

from ckpt_surgery.cli.line import refuse_swallowed_options
from ckpt_surgery.cli.main import COMMANDS, cli
from ckpt_surgery.cli.spellings import spellings
from ckpt_surgery.errors import UsageError

_LINE = click.Context(cli, info_name="ckpt")


def _command(name: str) -> click.Command:
    command = cli.get_command(_LINE, name)
    assert command is not None
    return command


def _valued():
    """(command, spelling, how many values) of every option that takes any."""
    for name in COMMANDS:
        for option in _command(name).params:
            if isinstance(option, click.Option) and not (option.is_flag or option.count):
                for spelling in option.opts:
                    yield pytest.param(name, spelling, option.nargs, id=f"{name} {spelling}")


def test_every_command_has_options_with_values():
    """So that the tests below speak of something: `completion` alone has none."""
    assert {param.values[0] for param in _valued()} == COMMANDS.keys() - {"completion"}


@pytest.mark.parametrize(("name", "spelling", "nargs"), list(_valued()))
@pytest.mark.parametrize("swallowed", ["--json", "-h", "--help", "--jsonn", "--json=x", "--"])
def test_no_option_takes_an_option_for_its_value(name, spelling, nargs, swallowed):
    command = _command(name)
    for given in range(nargs):
        line = [*["x"] * given, swallowed, "y", "y"]
        for words in ([spelling, *line], ["--no-color", "FILE", spelling, *line]):
            with pytest.raises(UsageError, match=f"'{spelling}' lacks a value") as caught:
                command.make_context(name, list(words), parent=_LINE)
            assert f"'{swallowed}'" in str(caught.value)
            hint = str(caught.value.hint)
            assert "write ''" in hint
            joint = "=" if spelling.startswith("--") else ""
            assert (f"{spelling}{joint}{swallowed}" in hint) == (given == 0)


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"completion"}))
def test_every_option_of_the_command_is_refused_as_the_value_of_every_other(name):
    command = _command(name)
    options = [option for option in command.params if isinstance(option, click.Option)]
    swallowed = [word for o in options for word in (*spellings(o), *o.secondary_opts)]
    valued = [o for o in options if not (o.is_flag or o.count)]
    for spelling, nargs in [(word, o.nargs) for o in valued for word in spellings(o)]:
        for word in swallowed:
            with pytest.raises(UsageError, match=f"'{spelling}' lacks a value"):
                command.make_context(name, [spelling, *["x"] * (nargs - 1), word], parent=_LINE)


@pytest.mark.parametrize(("name", "spelling", "nargs"), list(_valued()))
def test_a_value_inside_the_word_of_its_option_may_look_like_anything(name, spelling, nargs):
    joint = "=" if spelling.startswith("--") else ""
    words = [f"{spelling}{joint}--json", *["x"] * (nargs - 1), "--json"]
    refuse_swallowed_options("ckpt", _command(name).params, words)


@pytest.mark.parametrize(
    "words",
    [
        ["--seed", "-5", "-o", "-"],
        ["--classes", "a", "b", "--json"],
        ["--fill", "-into", "--", "-o", "--json"],
        ["--fill", "---", "-qi", "-", "--no-such", "-z", "--json"],
        ["-qoOUT", "--json"],
        ["-o"],
    ],
)
def test_what_is_no_option_is_left_to_click(words):
    refuse_swallowed_options("ckpt fit", _command("fit").params, words)


@pytest.mark.parametrize("words", [["-qo", "-i"], ["-o", "-qi"], ["-o", "-qofile"]])
def test_letters_in_one_word_are_options_too(words):
    with pytest.raises(UsageError, match="'-o' lacks a value"):
        refuse_swallowed_options("ckpt fit", _command("fit").params, words)


def test_a_dry_run_is_not_taken_for_the_new_text(folder, invoke):
    before = (folder / "net.pth").read_bytes()
    done = invoke("rename", "net.pth", "--replace", "fc.", "--dry-run", "-i")
    assert done.exit_code == 2
    assert "error: '--replace' lacks a value: the word after it, '--dry-run'" in done.stderr
    assert (folder / "net.pth").read_bytes() == before


def test_no_file_is_called_like_an_option(folder, invoke):
    for words in (["convert", "net.pth"], ["freeze-plan", "net.pth"]):
        assert invoke(*words, "-o", "--force").exit_code == 2
    assert not (folder / "--force").exists()
    assert invoke("convert", "net.pth", "--output=--force").exit_code == 0
    assert (folder / "--force").exists()


def test_a_line_being_completed_is_never_refused(folder):
    complete = BashComplete(cli, {}, "ckpt", "_CKPT_COMPLETE")
    assert complete.get_completions(["strip", "net.pth", "-o", "--prefix", "--keep"], "--f")
