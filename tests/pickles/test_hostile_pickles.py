"""Attacks end in a graph or a refusal, in little time and memory, and nothing of them is run."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from pickle_bombs import BOMBS

from ckpt_surgery.errors import CkptError
from ckpt_surgery.pickles import Limits, parse, walk
from ckpt_surgery.pickles.emit import emit


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[str]]:
    """What came of each bomb, in a process that may crash, with 1 GiB of memory."""
    script = Path(__file__).resolve().parents[1] / "support" / "pickle_bombs.py"
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    said = {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0, (list(said)[-1:], done.returncode, done.stderr[-2000:])
    return said


@pytest.mark.parametrize("name", BOMBS)
def test_bomb_does_no_harm(name: str, outcomes: dict[str, list[str]]) -> None:
    assert outcomes[name] == list(BOMBS[name][1:])


def survives(data: bytes, limits: Limits) -> bool:
    """Whether it could be read; anything but a `CkptError` passes through."""
    try:
        root = parse(data, limits=limits).root
    except CkptError:
        return False
    try:
        list(walk(root, limits=limits))
        written = emit(root, limits=limits)
    except CkptError:
        return True
    assert emit(parse(written).root) == written
    return True


def test_hostile_files_end_in_a_graph_or_a_refusal(shared_dir: Path) -> None:
    files = [*(shared_dir / "hostile").glob("*.p*kl*")]
    read = [file.name for file in files if survives(file.read_bytes(), Limits())]
    assert len(files) > 30
    assert len(read) > 25


def test_hostile_names_are_seen(shared_dir: Path) -> None:
    """Even of the files that break off: what is not read is not run."""
    seen: set[str] = set()
    for file in (shared_dir / "hostile").glob("*.pkl"):
        try:
            parsed = parse(file.read_bytes())
        except CkptError:
            continue
        assert parsed.globals or file.name.startswith("benign")
        seen |= {name.qualified for name in parsed.globals}
    assert {"builtins.eval", "os.system"} & seen or {"posix.system"} & seen
    assert len(seen) > 20


def test_random_changes_end_in_a_graph_or_a_refusal() -> None:
    """Seeded, so that a failure comes again."""
    rng = random.Random(20240229)
    limits = Limits(operations=5_000, depth=100)
    opcodes = bytes(sorted({op for code in _SEEDS for op in code}))
    read = 0
    for _ in range(6_000):
        data = bytearray(rng.choice(_SEEDS))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            match rng.randrange(4):
                case 0:
                    data[at] = rng.choice(opcodes)
                case 1:
                    data[at] = rng.randrange(256)
                case 2:
                    data.insert(at, rng.choice(opcodes))
                case _:
                    other = rng.choice(_SEEDS)
                    start = rng.randrange(len(other))
                    data[at : at + rng.randint(0, 5)] = other[start : start + 12]
        read += survives(bytes(data), limits)
    assert 200 < read < 5_900


_SEEDS = [
    b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x01X\x01\x00\x00\x00bq\x02]q\x03(G?\xf8\0\0\0\0\0\0N\x88eu.",
    b"\x80\x02]q\x00(h\x00(h\x00h\x00h\x00h\x00tq\x01e.",
    b"\x80\x02cm\nC\nq\x00)\x81q\x01}q\x02X\x01\x00\x00\x00aq\x03h\x01sb.",
    b"\x80\x02cm\nf\nq\x00)Rq\x01(K\x01K\x02e(K\x03K\x04u}b.",
    b"\x80\x02((X\x07\x00\x00\x00storageq\x00cm\nS\nq\x01X\x01\x00\x00\x000q\x02K\x02tq\x03QK\x00t.",
    b"\x80\x02c__builtin__\nset\nq\x00]q\x01(K\x01K\x02e\x85q\x02Rq\x03.",
    b"\x80\x02]q\x00cm\nf\nq\x01h\x00\x85q\x02Rq\x03ah\x03\x85q\x040h\x04.",
    b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8f\x94(\x8c\x01a\x94C\x01b\x94K\x01\x90\x8c\x01m\x8c\x01g\x93.",
    b"(lp0\nI1\naF1.5\naV\\u0041\np1\naS'a\\x41'\np2\na(dp3\nI01\nL5L\nsa(im\nC\np4\nag3\na.",
    b"\x80\x05\x96\x02\0\0\0\0\0\0\0ab\x94(cm\nC\nK\x01o\x94\x83\x01\x00(K\x01\x91\x94cm\nC\n)}\x92\x94t.",
]
