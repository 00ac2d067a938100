"""Run command lines on hostile files, each file in a process of its own, and tell what happened.

Standard input is a JSON list of jobs, ``{"name": …, "lines": [[argument, …], …], "writable":
[folder, …]}``; the first is honest and imports what an honest run imports. For each other a line
of JSON comes out: the exit code of every command line, the seconds of processor time that the
slowest took, the peak of resident memory in bytes, and whatever was tried that reading a file
never needs (see `_suspicious`). The processes are forked from the one that did the honest job,
which costs milliseconds.
"""

from __future__ import annotations

import codecs
import gc
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from ckpt_surgery.startup.lazy_dataclass import _compile_constructor

MEMORY = 2 << 30  # bytes of address space; far more is a bomb that went off
SECONDS = 60  # of processor time for all lines of a job, after which the kernel ends the process

_FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.", "subprocess.Popen",
    "socket.", "urllib.", "http.", "ftplib.", "smtplib.", "imaplib.", "webbrowser.", "shutil.",
    "pickle.find_class", "marshal.", "code.__new__", "ctypes.", "os.putenv", "os.unsetenv",
    "os.kill", "os.chmod", "os.chown", "os.mkdir", "os.symlink", "os.rmdir",
)  # fmt: skip


def main() -> None:
    honest, *jobs = json.load(sys.stdin)
    # Done in this process first, so that whatever is imported later comes from a hostile file.
    for line in honest["lines"]:
        _run(line)
    # imported when first used, by honest files as well
    codecs.lookup("raw_unicode_escape")
    codecs.lookup("cp437")  # names in zip archives
    import_module("ckpt_surgery.formats.archive_members")
    import_module("ckpt_surgery.edits.names_elsewhere")
    gc.collect()
    gc.freeze()
    for job in jobs:
        sys.__stdout__.write(json.dumps(_isolated(job)) + "\n")  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]


def _isolated(job: dict[str, Any]) -> dict[str, Any]:
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        try:
            told = json.dumps(_attempt(job))
        except BaseException as error:
            told = json.dumps({"crash": f"{type(error).__name__}: {error}"})
        os.write(send, told.encode())
        os._exit(0)
    os.close(send)
    told = b""
    while piece := os.read(receive, 1 << 16):
        told += piece
    os.close(receive)
    _, status, usage = os.wait4(child, 0)
    found = json.loads(told) if told else {"crash": f"ended by {_end(status)}"}
    return {"name": job["name"], "resident": usage.ru_maxrss << 10} | found


def _end(status: int) -> str:
    return signal.Signals(status).name if os.WIFSIGNALED(status) else str(status)


def _attempt(job: dict[str, Any]) -> dict[str, Any]:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    environment = dict(os.environ)
    before = set(sys.modules)
    seen: list[str] = []
    sys.addaudithook(_watch(seen, tuple(job["writable"])))
    codes, slowest, said = [], 0.0, ""
    for line in job["lines"]:
        start = time.process_time()
        code, text = _run(line)
        slowest = max(slowest, time.process_time() - start)
        codes.append(code)
        said += text
    new = sorted(set(sys.modules) - before)
    if dict(os.environ) != environment:
        seen.append("the environment changed")
    return {
        "codes": codes,
        "seconds": slowest,
        "seen": seen[:20],
        "imported": new,
        "said": said[-2000:],
    }


def _run(line: list[str]) -> tuple[int, str]:
    from ckpt_surgery.cli.main import cli

    report, errors = _scratch(), _scratch()
    sys.stdout, sys.stderr = report, errors
    try:
        cli.main(line)
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    errors.seek(0)
    return code if isinstance(code, int) else -1, errors.read(4000)


def _scratch() -> TextIO:
    """An anonymous file in memory as a text stream, so that output takes no memory of ours."""
    return open(os.memfd_create("output"), "w+", encoding="utf-8")  # noqa: PTH123 (no path)


def _watch(seen: list[str], writable: tuple[str, ...]) -> Callable[[str, tuple[Any, ...]], None]:
    def hook(event: str, args: tuple[Any, ...]) -> None:
        said = _suspicious(event, args, writable)
        if said:
            seen.append(said)

    return hook


def _suspicious(event: str, args: tuple[Any, ...], writable: tuple[str, ...]) -> str | None:
    """What an event of the interpreter says that reading a checkpoint never does; else None.

    Left alone are opening to read, making and renaming files below `writable`, and what the
    standard library compiles for itself: regular expressions are no code, `dataclasses` and
    `namedtuple` run at import only. Ours compile a constructor, of names of fields, when the first
    object of a class is made.
    """
    if event in {"exec", "compile"} and _makes_a_constructor():
        return None
    if event in {"exec", "compile", "import"}:
        return f"{event} {str(args[0])[:80]}"
    if event == "open":
        path, _, flags = args
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not writes or isinstance(path, int) or path == os.devnull:
            return None
        return None if _inside(path, writable) else f"open {path} to write"
    if event in {"os.remove", "os.rename", "os.link"}:
        paths = [path for path in args if isinstance(path, (str, bytes, os.PathLike))]
        if all(_inside(path, writable) for path in paths):
            return None
        return f"{event} {args}"
    return f"{event} {args}"[:200] if event.startswith(_FORBIDDEN) else None


def _makes_a_constructor() -> bool:
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is _compile_constructor.__code__:
            return True
    return False


def _inside(path: str | bytes | os.PathLike[str], writable: tuple[str, ...]) -> bool:
    place = Path(os.path.realpath(os.fsdecode(path)))
    return any(place.is_relative_to(folder) for folder in writable)


if __name__ == "__main__":
    main()
