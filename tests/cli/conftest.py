"""Checkpoints and ways to run `ckpt` for the tests of the command line."""

from __future__ import annotations

import argparse
import os
import struct
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from ckpt_surgery.cli.main import cli

_REPOSITORY = Path(__file__).resolve().parents[2]


class Net(torch.nn.Module):
    """Two blocks with batch norm, a tied head: parameters, buffers, keyless modules, a tie."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.Sequential(*(self.block() for _ in range(2)))
        self.fc = torch.nn.Linear(4, 4)
        self.head = torch.nn.Linear(4, 4, bias=False)
        self.head.weight = self.fc.weight

    @staticmethod
    def block() -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Conv2d(4, 4, 1, bias=False), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
        )


@pytest.fixture(scope="session")
def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory, net: torch.nn.Module) -> Path:
    """A folder of checkpoints that nobody changes."""
    folder = tmp_path_factory.mktemp("originals")
    torch.save(net.state_dict(), folder / "net.pth")
    wrapper = torch.nn.Module()
    wrapper.module = net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.save(
        {
            "epoch": 3,
            "arch": "net",
            "state_dict": wrapper.state_dict(),
            "state_dict_ema": wrapper.state_dict(),
            "optimizer": optimizer.state_dict(),
            "args": argparse.Namespace(lr=0.1),
            "loss": float("nan"),
        },
        folder / "train.pth.tar",
    )
    torch.save(
        OrderedDict({f"layers.{i}.attention.weight": torch.zeros(2) for i in range(3000)}),
        folder / "many.pth",
    )
    torch.save(OrderedDict({"big": torch.zeros(1 << 19)}), folder / "big.pth")
    torch.save(
        OrderedDict(
            {
                "\x1b[31mred\x1b]0;title\x07": torch.zeros(1),
                "[bold]markup[/bold]": torch.zeros(1),
                "two\nlines": torch.zeros(1),
                "long" * 200: torch.zeros(1),
            }
        ),
        folder / "rude.pth",
    )
    return folder


@pytest.fixture
def folder(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with its own copies of the checkpoints."""
    for original in originals.iterdir():
        (tmp_path / original.name).write_bytes(original.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def invoke() -> Callable[..., Result]:
    """Run the command line in this process; standard input is a pipe, output no terminal."""

    def run(*args: str | Path, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(cli, [str(arg) for arg in args], input=stdin)

    return run


@pytest.fixture
def environment() -> dict[str, str]:
    """What a subprocess needs to find the package, whether it is installed or not."""
    paths = [str(_REPOSITORY), os.environ.get("PYTHONPATH", "")]
    kept = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR", "COLUMNS"}}
    return kept | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TERM": "xterm-256color",
        "PAGER": "cat",
    }


@pytest.fixture
def at_terminal(environment: dict[str, str]) -> Callable[..., tuple[int, str]]:
    """Run `ckpt` on a terminal of some width; give its exit code and all that it was sent."""
    fcntl = pytest.importorskip("fcntl", reason="no terminals of this kind here")
    pty = pytest.importorskip("pty")
    termios = pytest.importorskip("termios")

    def run(*args: str, columns: int = 100, **extra: str) -> tuple[int, str]:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        process = subprocess.Popen(
            [sys.executable, "-m", "ckpt_surgery", *args],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment | extra,
        )
        os.close(slave)
        seen = b""
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:  # Linux says EIO when the last writer is gone
                break
            if not data:
                break
            seen += data
        os.close(master)
        return process.wait(60), seen.decode().replace("\r\n", "\n")

    return run


@pytest.fixture
def ckpt(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Run `ckpt` in its own process."""

    def run(
        *args: str | Path, stdin: bytes = b"", **extra: str
    ) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "ckpt_surgery", *map(str, args)]
        return subprocess.run(
            command, input=stdin, capture_output=True, env=environment | extra, timeout=120
        )

    return run
