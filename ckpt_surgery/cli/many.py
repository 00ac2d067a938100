"""Commands on several files: each file by itself, none stopped by another, one table at the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from string import Formatter
from threading import Event
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import click

from ckpt_surgery.cli.base import color_of
from ckpt_surgery.cli.boundary import REFUSED, say_failure
from ckpt_surgery.cli.failing import error_line
from ckpt_surgery.cli.fields import name_options
from ckpt_surgery.cli.files import read_for_options
from ckpt_surgery.cli.inputs import sources_of
from ckpt_surgery.cli.options import output_of
from ckpt_surgery.errors import CkptError, PathLike, UsageError
from ckpt_surgery.fileio import Source
from ckpt_surgery.render.plain import write_jsonl
from ckpt_surgery.reports import Report
from ckpt_surgery.reports.edits import EditReport
from ckpt_surgery.startup.collector import never_freezing
from ckpt_surgery.startup.lazy_dataclass import dataclass

if TYPE_CHECKING:
    from ckpt_surgery.fileio.sink import Progress
    from ckpt_surgery.render.screen import Screen
    from ckpt_surgery.writing.output import Output

_Report = TypeVar("_Report", bound=Report)

_SUFFIXES: Final = (".index.json", ".tar")  # which stand after another suffix
_FOR_ONE: Final = {"as_json": "--json", "record": "--record", "sidecar": "--sidecar"}


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[_Report]):
    """What became of one file: its report, or why there is none."""

    file: str
    report: _Report | None
    error: CkptError | None = None


def edit_each(
    ctx: click.Context, edit: Callable[[PathLike | Source, Output], EditReport], **how: Any
) -> int:
    """Edit each file of the line; return the exit code, 2 if one could not be edited.

    `how` are further fields of every output. Raises `UsageError` for an output that several files
    cannot have.
    """
    from ckpt_surgery.render.many import show_edits

    _refuse_for_many(ctx)
    sources = sources_of(ctx)
    outputs = dict(zip(map(_name, sources), _outputs(ctx, sources), strict=True))

    def work(source: PathLike | Source, progress: Progress) -> EditReport:
        own = replace(outputs[_name(source)], progress=lambda _: nullcontext(progress), **how)
        return edit(source, own)

    return run_each(ctx, work, show_edits, sources=sources)


def run_each(
    ctx: click.Context,
    work: Callable[[PathLike | Source, Progress], _Report],
    show: Callable[[Sequence[_Report], Screen], None],
    *,
    sources: Sequence[PathLike | Source] | None = None,
) -> int:
    """Do `work` on each file of the line, and print the reports: one line a file, or a table.

    A file that fails is said on standard error, and does not stop the others. `work` gets what is
    to be called with bytes that are done. The exit code is 2 if a file failed, else the highest
    of the reports'.
    """
    given = ctx.params
    found = sources_of(ctx) if sources is None else sources
    reports: list[_Report] = []
    code = failed = 0
    for outcome in _outcomes(ctx, found, work):
        if outcome.report is None:
            code = REFUSED
            failed += 1
            _say(ctx, outcome)
        else:
            code = max(code, outcome.report.exit_code)
            if not given["jsonl"]:
                reports.append(outcome.report)
            elif not given["quiet"] and sys.stdout is not None:
                write_jsonl(outcome.report, sys.stdout)
    if reports and not given["quiet"] and sys.stdout is not None:
        from ckpt_surgery.render.many import show_failed
        from ckpt_surgery.render.screen import paged

        pager = not given.get("no_pager", True)
        with paged(sys.stdout, color=color_of(ctx), pager=pager) as screen:
            show(reports, screen)
            show_failed(failed, screen)
    return code


def _outcomes(
    ctx: click.Context,
    sources: Sequence[PathLike | Source],
    work: Callable[[PathLike | Source, Progress], _Report],
) -> Iterator[_Outcome[_Report]]:
    """Yield what became of each file, in their order, working on some at once."""
    stopped = Event()
    parameters = ctx.command.params

    def attempt(source: PathLike | Source) -> _Outcome[_Report]:
        done = 0

        def advance(nbytes: int) -> None:
            nonlocal done
            if stopped.is_set():
                raise CkptError("stopped")
            done = min(done + nbytes, size)
            bar(nbytes if done < size else 0)

        size = _size(source)
        try:
            report = work(source, advance)
        except CkptError as error:
            name_options(error, parameters)
            return _Outcome(_name(source), None, error)
        except MemoryError:
            lack = CkptError("out of memory", path=_name(source))
            return _Outcome(_name(source), None, lack)
        finally:
            bar(size - done)
        return _Outcome(_name(source), report)

    with _bar(ctx, sum(map(_size, sources))) as bar, never_freezing():
        if ctx.params["threads"] == 1:
            yield from map(attempt, sources)
            return
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(ctx.params["threads"]) as pool:
            try:
                yield from pool.map(attempt, sources)
            except BaseException:
                stopped.set()
                pool.shutdown(cancel_futures=True)
                raise


@contextmanager
def _bar(ctx: click.Context, total: int) -> Iterator[Progress]:
    """Give what is told of bytes that are done, of `total` in all files."""
    from ckpt_surgery.render.progress import progress_bar

    bar = None if ctx.params["quiet"] else progress_bar(color=color_of(ctx))
    if bar is None:
        yield lambda _: None
        return
    with bar(total) as advance:
        yield advance


def _say(ctx: click.Context, outcome: _Outcome[Any]) -> None:
    error = outcome.error
    assert error is not None  # noqa: S101 - there is no report
    if error.file is None:
        error.name_file(outcome.file)
    say_failure(str(error), error.hint, color_of(ctx))
    if ctx.params["jsonl"] and sys.stdout is not None:
        sys.stdout.write(error_line(str(ctx.info_name), outcome.file, error))


def _refuse_for_many(ctx: click.Context) -> None:
    given = ctx.params
    for name, option in _FOR_ONE.items():
        if given.get(name):
            hint = "--jsonl prints a document for each" if name != "sidecar" else None
            raise UsageError(f"'{option}' is for one file", hint=hint)
    if given["output"] is not None:
        raise UsageError(
            "'-o' names one output for several files",
            hint="give -i, or --output-template '{stem}.safetensors'",
        )
    if given["in_place"] and given["output_template"] is not None:
        raise UsageError("'--output-template' and '--in-place' contradict each other")
    if not (given["in_place"] or given["output_template"] or given["dry_run"]):
        raise UsageError(
            "several files need an output each",
            hint="give -i, or --output-template '{stem}.safetensors'",
        )


def _outputs(ctx: click.Context, sources: Sequence[PathLike | Source]) -> list[Output]:
    """Return the output of each file.

    Raises `UsageError` for a template that gives two files one name, `WriteError` for one that
    gives the name of a file that is read.
    """
    from ckpt_surgery.fileio.distinct import INPUT, OUTPUT, Role, require_distinct

    template: str | None = ctx.params["output_template"]
    ctx.params["output"] = template
    base = output_of(ctx)
    if template is None:
        return [base] * len(sources)
    paths = [_expanded(template, _name(source)) for source in sources]
    seen: dict[str, str] = {}
    for path, source in zip(paths, sources, strict=True):
        real, name = os.path.realpath(path), _name(source)
        if real in seen:
            raise UsageError(
                f"'--output-template': '{path}' would be the output of '{seen[real]}' and '{name}'",
                hint="{parent} is the folder of the input, {name} its whole name",
            )
        if not os.path.isdir(os.path.dirname(real)):  # noqa: PTH112, PTH120 - of many files
            raise UsageError(
                f"'--output-template': the directory of '{path}' does not exist",
                hint=f"mkdir -p '{os.path.dirname(path)}'",  # noqa: PTH120
            )
        seen[real] = name
    read = [*(Role(INPUT, source) for source in sources), *read_for_options(ctx)]
    require_distinct([Role(OUTPUT, path) for path in paths], read)
    return [replace(base, path=path) for path in paths]


def _expanded(template: str, name: str) -> str:
    """Return the output's path for an input. Raises `UsageError` for an unknown placeholder."""
    path = Path(name)
    last = next((end for end in _SUFFIXES if path.name.endswith(end)), "")
    stem, first = os.path.splitext(path.name.removesuffix(last))  # noqa: PTH122 - a name, not a path
    suffix = first + last
    values = {"stem": stem, "suffix": suffix, "name": path.name, "parent": str(path.parent)}
    with suppress(KeyError, ValueError):
        return "".join(
            text + ("" if field is None else values[field])
            for text, field, _, _ in Formatter().parse(template)
        )
    raise UsageError(
        f"'--output-template {template}' has a placeholder that there is not",
        hint=f"there are {', '.join(f'{{{each}}}' for each in values)}",
    )


def _name(source: PathLike | Source) -> str:
    return os.fspath(source) if isinstance(source, str | os.PathLike) else source.name


def _size(source: PathLike | Source) -> int:
    """Return the bytes of a file, for the bar; 0 for what has no size of its own."""
    if not isinstance(source, str | os.PathLike):
        return source.size
    try:
        return os.stat(source).st_size  # noqa: PTH116 - of many files
    except OSError:
        return 0
