"""What people type who do not read documentation first, and what they are told."""

from __future__ import annotations

import subprocess
import sys

import pytest


def test_file_alone_is_inspected(folder, invoke):
    assert invoke("net.pth", "--keys").stdout == invoke("inspect", "net.pth", "--keys").stdout


@pytest.mark.parametrize(("alias", "name"), [("ls", "inspect"), ("rm", "strip"), ("mv", "rename")])
def test_aliases(alias, name, invoke):
    assert invoke(alias, "--help").stdout == invoke(name, "--help").stdout
    assert invoke("help", alias).stdout == invoke(name, "--help").stdout


def test_help_is_a_command(invoke):
    assert invoke("help").stdout == invoke("--help").stdout
    assert invoke("help", "strip").stdout == invoke("strip", "--help").stdout


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        (["mrege"], "did you mean 'merge'?"),
        (["hepl"], "did you mean 'help'?"),
        (["help", "stirp"], "did you mean 'strip'?"),
        (["zzzzzzzz"], "see 'ckpt --help'"),
        (["nte.pth"], "no such file\nhint: did you mean 'net.pth'?"),
        (["help", "net.pth"], "error: no such command 'net.pth'\n"),
        (["compare", "net.pth", "big.pth"], "'ckpt diff A B' says what differs"),
        (["inspect", "nte.pth"], "did you mean 'net.pth'?"),
        (["inspect", "./nte.pth"], "did you mean './net.pth'?"),
        (["inspect", "nowhere/net.pth"], "there is no folder 'nowhere'"),
        (["strip", "net.pth", "--replace", "a", "b"], "'--replace' is an option of 'ckpt rename'"),
        (["inspect", "net.pth", "--zzz"], "see 'ckpt inspect --help'"),
        (["strip", "net.pth", "--glob", "*weight", "--dry-run"], "--glob '**weight' matches 6"),
        (["strip", "net.pth", "--pattern", "*.weight"], "for a glob write --glob '*.weight'"),
        (["strip", "net.pth", "--pattern", "**weight"], "for a glob write --glob '**weight'"),
        (["strip", "net.pth", "--glob", r"fc\..*"], r"--pattern 'fc\..*' matches 2 names"),
        (["strip", "net.pth", "--prefix", "fc.*"], "--glob 'fc.*' matches 2 names"),
        (["strip", "net.pth", "--pattern", r"^(head|fcc)\*"], "lists every name"),
        (["strip", "net.pth", "fc"], "--prefix 'fc' matches 2 names"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_hint_says_what_was_meant(line, hint, folder, ckpt):
    done = ckpt(*line)
    assert done.returncode == 2
    assert hint in done.stderr.decode()


def test_names_are_stripped_as_they_stand(folder, invoke):
    report = invoke("strip", "net.pth", "fc.weight", "fc.bias", "-o", "out.pth")
    assert report.exit_code == 0
    assert "--name fc.weight: matched 1 name" in report.stdout
    assert "fc." not in invoke("inspect", "out.pth", "--keys").stdout


def test_device_is_no_input_unless_it_is_named(folder, environment):
    """Cron and CI systems give commands /dev/null."""
    for line, said in (
        ([], "no FILE is named, and standard input is a device"),
        (["-"], "the file is empty"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "ckpt_surgery", "inspect", *line],
            stdin=subprocess.DEVNULL,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert said in done.stderr
