"""Run one command line again and again, each time with something going wrong one call later.

Standard input is a JSON list of jobs ``{"line": […], "input": file, "output": name or null,
"exists": whether there is an old one, "faults": […]}``. Each is run once undisturbed, in a folder
of its own, which counts the system calls by which a file comes into being (`CALLS`); then once for
every fault and every such call, the fault happening just after it (signals) or instead of it
(errors). For each run a line of JSON comes out: what happened, the exit code, whether the
destination is the ``old`` file, the ``new`` one or something ``else``, and what is left beside it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CALLS = ("open", "write", "copy_file_range", "sendfile", "fchmod", "fsync", "link", "replace")
SIGNALS = {"kill": signal.SIGKILL, "interrupt": signal.SIGINT, "terminate": signal.SIGTERM}
NO_MEMORY = "no memory"
ERRORS = {"no space": errno.ENOSPC, "i/o error": errno.EIO, "not permitted": errno.EACCES}


def main() -> None:
    from ckpt_surgery.cli.main import COMMANDS, cli

    for name in COMMANDS:
        cli.get_command(None, name)  # type: ignore[arg-type]  # our group needs no context
    for job in json.load(sys.stdin):
        for result in _results(job):
            sys.stdout.write(json.dumps(result) + "\n")
            sys.stdout.flush()


def _results(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    count, new = _run(job, None, None, b"")
    yield {"fault": None, "calls": count["calls"], "code": count["code"]}
    for fault in job["faults"]:
        for point in range(1, len(count["calls"]) + 1):
            yield _run(job, fault, point, new)[0] | {"call": count["calls"][point - 1]}


def _run(
    job: dict[str, Any], fault: str | None, point: int | None, new: bytes
) -> tuple[dict[str, Any], bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        original = Path(job["input"])
        shutil.copy(original, folder / "in.pth")
        destination = folder / (job["output"] or "in.pth")
        if job["exists"] and not destination.exists():
            destination.write_bytes(b"something old")
        old = destination.read_bytes() if destination.exists() else b""
        told = _forked(folder, job["line"], fault, point)
        found = destination.read_bytes() if destination.exists() else b""
        state = "old" if found == old else "new" if found == new else "else"
        left = sorted({path.name for path in folder.iterdir()} - {"in.pth", destination.name})
        kept = (folder / "in.pth").read_bytes() == original.read_bytes()
        return told | {
            "fault": fault,
            "point": point,
            "destination": state,
            "input_kept": kept,
            "left": left,
        }, found


def _forked(folder: Path, line: list[str], fault: str | None, point: int | None) -> dict[str, Any]:
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        code = 99
        calls: list[str] = []
        try:
            os.chdir(folder)
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in (1, 2):
                os.dup2(nowhere, stream)
            code = _attempt(line, fault, point, calls)
        finally:
            _write(send, json.dumps({"code": code, "calls": calls}).encode())
            os._exit(0)
    os.close(send)
    told = b""
    while piece := os.read(receive, 1 << 16):
        told += piece
    os.close(receive)
    _, status = os.waitpid(child, 0)
    return json.loads(told) if told else {"code": -os.WTERMSIG(status), "calls": []}


_write = os.write


def _attempt(line: list[str], fault: str | None, point: int | None, calls: list[str]) -> int:
    from ckpt_surgery.cli.main import cli

    for name in CALLS:
        setattr(os, name, _disturbed(name, getattr(os, name), fault, point, calls))
    try:
        cli.main(line)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else -1


def _disturbed(
    name: str, call: Callable[..., Any], fault: str | None, point: int | None, calls: list[str]
) -> Callable[..., Any]:
    def instead(*args: Any, **named: Any) -> Any:
        if name == "open" and not args[1] & os.O_CREAT:
            return call(*args, **named)
        calls.append(name)
        now = len(calls) == point
        if now and fault == NO_MEMORY:
            raise MemoryError
        if now and fault in ERRORS:
            raise OSError(ERRORS[fault], os.strerror(ERRORS[fault]))
        result = call(*args, **named)
        if now and fault in SIGNALS:
            os.kill(os.getpid(), SIGNALS[fault])
        return result

    return instead


if __name__ == "__main__":
    main()
