"""Digests as lines, in the manner of ``sha256sum``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, TextIO

from ckpt_surgery.checkpoint.description import join_path
from ckpt_surgery.names.escapes import escaped
from ckpt_surgery.render.layout import cells, columns_of, hanging
from ckpt_surgery.render.text import count, visible

if TYPE_CHECKING:
    from ckpt_surgery.reports.hashing import CheckReport, HashReport

_SAID: Final = {"ok": "OK", "differs": "FAILED", "unreadable": "FAILED to read"}


def write_digests(report: HashReport, stream: TextIO) -> None:
    """Write one line a digest: of files, of models, or of their tensors; a list for ``--check``.

    On a terminal that is too narrow for one of them, the name stands above its digest.
    """
    named = list(_named(report))
    width = columns_of(stream) if stream.isatty() else 0
    if width and any(cells(_line(*each)) > width for each in named):
        lines = ((hanging(visible(name), width), f"  {digest}") for digest, name in named)
        stream.writelines(f"{line}\n" for pair in lines for line in pair)
    else:
        stream.writelines(_line(*each) + "\n" for each in named)


def _named(report: HashReport) -> Iterator[tuple[str, str]]:
    """Yield each digest and what it is of."""
    yield from ((file.digest, file.file) for file in report.files)
    for model in report.models:
        lines = {model.address: model.digest}
        if report.per_tensor:
            lines = {
                f"{model.file}#{join_path(model.path, name)}": digest
                for name, digest in model.tensors.items()
            }
        yield from ((digest, address) for address, digest in lines.items())


def _line(digest: str, address: str) -> str:
    """As ``sha256sum`` does, a line begins with a backslash if its name has escapes."""
    safe = escaped(address)
    return f"{digest}  {address}" if safe is None else f"\\{digest}  {safe}"


def write_checked(report: CheckReport, stream: TextIO) -> None:
    """Write what became of each line, then how many are not as they should be."""
    for each in report.checked:
        safe = escaped(each.address)
        address = each.address if safe is None else "\\" + safe
        stream.write(f"{address}: {_SAID[each.status]}\n")
    wrong = report.count("differs")
    if wrong:
        stream.write(f"{count(wrong, 'digest')} of {len(report.checked):,} did not match\n")
