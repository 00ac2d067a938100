"""Completion in the shell."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from ckpt_surgery.cli.base import COMPLETION_VARIABLE
from ckpt_surgery.cli.commands.completion import answer_shell
from ckpt_surgery.cli.main import COMMANDS, cli, main


@pytest.fixture
def complete(monkeypatch, capsys):
    """What could come next on a line, for a shell of fish's kind."""

    def run(line: str) -> list[str]:
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", "" if line.endswith(" ") else line.rsplit(maxsplit=1)[-1])
        assert answer_shell(cli, "fish_complete") == 0
        lines = capsys.readouterr().out.split("\n")
        return [line.partition(",")[2].partition("\t")[0] for line in lines if line]

    return run


def test_commands_complete_without_being_imported(complete):
    assert complete("ckpt ") == list(COMMANDS)
    assert complete("ckpt in") == ["inspect"]


def test_options_complete(complete):
    assert "--params-only" in complete("ckpt inspect --pa")


def test_names_complete_segment_by_segment(folder, complete):
    assert complete("ckpt strip net.pth --prefix ") == ["blocks", "fc", "head"]
    assert complete("ckpt strip net.pth --prefix b") == ["blocks"]
    assert complete("ckpt strip net.pth --prefix blocks") == ["blocks.0", "blocks.1"]
    assert complete("ckpt strip net.pth --prefix blocks.1") == ["blocks.1.0", "blocks.1.1"]
    assert complete("ckpt inspect net.pth --pattern fc.w") == ["fc.weight"]
    assert complete("ckpt rename train.pth.tar --strip-prefix m") == ["module"]


def test_paths_of_state_dicts_complete(folder, complete):
    paths = ["state_dict", "state_dict_ema"]
    assert complete("ckpt inspect train.pth.tar --at ") == paths
    assert complete("ckpt convert train.pth.tar --at state_dict_") == paths[1:]


@pytest.mark.parametrize("file", ["", "nope.pth ", ". "])
def test_completion_is_silent_on_any_error(folder, complete, capsys, file):
    assert complete(f"ckpt strip {file}--prefix ") == []
    assert complete(f"ckpt strip {file}--at ") == []
    assert capsys.readouterr().err == ""


def test_names_that_a_shell_would_take_for_its_own_are_left_out(folder, complete):
    assert complete("ckpt strip rude.pth --prefix t") == []
    assert complete("ckpt strip rude.pth --prefix [") == []  # a pattern


def test_unknown_shell_gets_nothing(capsys):
    assert answer_shell(cli, "tcsh_complete") == 1
    assert answer_shell(cli, "") == 1
    assert capsys.readouterr() == ("", "")


def test_file_completes_as_a_file(monkeypatch, capsys):
    monkeypatch.setenv("COMP_WORDS", "ckpt inspect ne")
    monkeypatch.setenv("COMP_CWORD", "ne")
    answer_shell(cli, "fish_complete")
    assert capsys.readouterr().out.startswith("file,ne")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_of_every_shell_is_printed(invoke, shell):
    if shell == "bash" and not shutil.which("bash"):
        pytest.skip("no bash here")
    result = invoke("completion", shell)
    assert result.exit_code == 0
    assert f"{COMPLETION_VARIABLE}={shell}_complete" in result.stdout


def test_other_shells_are_refused(invoke):
    assert invoke("completion", "tcsh").exit_code == 2


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_bash_completes_with_the_script(folder, environment):
    (folder / "ckpt").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ckpt_surgery "$@"\n')
    (folder / "ckpt").chmod(0o755)
    script = (
        'eval "$(ckpt completion bash)"\n'
        "COMP_WORDS=(ckpt strip net.pth --prefix bl); COMP_CWORD=4\n"
        "compopt() { :; }\n"
        '_ckpt_completion ckpt; echo "${COMPREPLY[@]}"\n'
    )
    path = f"{folder}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env=environment | {"PATH": path}, capture_output=True, timeout=60
    )
    assert done.stdout == b"blocks\n", done.stderr


def test_entry_point_is_the_command_or_answers_the_shell(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ckpt", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("ckpt ")
    monkeypatch.setenv(COMPLETION_VARIABLE, "odd")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1


def test_shell_without_a_script_is_refused(invoke, monkeypatch):
    monkeypatch.setattr("ckpt_surgery.cli.commands.completion.get_completion_class", lambda _: None)
    result = invoke("completion", "fish")
    assert result.exit_code == 2
    assert "fish" in result.stderr


def test_main_answers_the_shell(ckpt, folder):
    done = ckpt(_CKPT_COMPLETE="fish_complete", COMP_WORDS="ckpt in", COMP_CWORD="in")
    assert done.stdout.startswith(b"plain,inspect")
    assert ckpt(_CKPT_COMPLETE="odd").stdout == b""


@pytest.mark.parametrize("command", ["match", "fit", "freeze-plan"])
def test_models_complete_without_torch(folder, complete, command):
    found = complete(f"ckpt {command} net.pth --model torchvision:squeezenet")
    assert found == ["torchvision:squeezenet1_0", "torchvision:squeezenet1_1"]
    assert "torchvision:raft_small" in complete(f"ckpt {command} --model ")
    assert complete(f"ckpt {command} net.pth --model my_models:") == []


def test_paths_complete_for_every_command_that_takes_a_target(folder, complete):
    for command in ("match", "fit", "freeze-plan", "merge"):
        assert complete(f"ckpt {command} train.pth.tar --at state_dict_") == ["state_dict_ema"]


def test_initial_names_complete_from_the_target(folder, complete):
    assert complete("ckpt fit net.pth --initial bl") == ["blocks"]
    assert complete("ckpt fit net.pth --like big.pth --initial b") == ["big"]
    assert complete("ckpt fit net.pth --like nope.pth --initial b") == []


def test_names_of_a_merge_and_a_freeze_plan_complete(folder, complete):
    assert complete("ckpt merge net.pth big.pth --prefix bl") == ["blocks"]
    assert complete("ckpt freeze-plan net.pth --freeze-prefix blocks") == ["blocks.0", "blocks.1"]


@pytest.mark.parametrize(
    "line", ["match net.pth --like ", "fit net.pth --like ", "merge net.pth ", "fit ", "match ",
             "merge net.pth --base ", "freeze-plan "],
)  # fmt: skip
def test_files_are_left_to_the_shell(monkeypatch, capsys, line):
    monkeypatch.setenv("COMP_WORDS", f"ckpt {line}ne")
    monkeypatch.setenv("COMP_CWORD", "ne")
    answer_shell(cli, "fish_complete")
    assert capsys.readouterr().out.startswith("file,ne")


@pytest.mark.parametrize(
    ("pieces", "answers"),
    [
        (["--model", "torchvision", ":", "squeezenet"], ["squeezenet1_0", "squeezenet1_1"]),
        (["--model", "=", "torchvision", ":", "squeezenet1_1"], ["squeezenet1_1"]),
        (["--model", "torchvision:squeezenet1_1"], ["torchvision:squeezenet1_1"]),
        (["--set", "fc.bias", "=", "no", "net.pth", "--initial", "bl"], ["blocks"]),
        (["net.pth", "--initial", ""], ["blocks", "fc", "head"]),
        (["net.pth", "--initial", "=", "bl"], ["blocks"]),
        (["--model", ":"], []),
    ],
)
def test_bash_breaks_words_at_colons_and_wants_the_last_piece(
    folder, monkeypatch, capsys, pieces, answers
):
    """As bash gives them by its COMP_WORDBREAKS; no model could be completed."""
    words = ["ckpt", "fit", *pieces]
    monkeypatch.setenv("COMP_WORDS", "\n".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    assert answer_shell(cli, "bash_complete") == 0
    lines = capsys.readouterr().out.split()
    assert [line.removeprefix("plain,") for line in lines] == answers


def test_bash_completes_all_models_after_the_colon(monkeypatch, capsys):
    monkeypatch.setenv("COMP_WORDS", "ckpt\nmatch\n--model\ntorchvision\n:")
    monkeypatch.setenv("COMP_CWORD", "4")
    assert answer_shell(cli, "bash_complete") == 0
    lines = capsys.readouterr().out.split()
    assert "plain,resnet18" in lines
    assert len(lines) > 100
