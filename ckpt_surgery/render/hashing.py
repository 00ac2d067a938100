"""Digests as lines, in the manner of ``sha256sum``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TextIO

from ckpt_surgery.checkpoint.description import join_path
from ckpt_surgery.names.escapes import escaped
from ckpt_surgery.render.text import count

if TYPE_CHECKING:
    from ckpt_surgery.reports.hashing import CheckReport, HashReport

_SAID: Final = {"ok": "OK", "differs": "FAILED", "unreadable": "FAILED to read"}


def write_digests(report: HashReport, stream: TextIO) -> None:
    """Write one line a digest: of files, of models, or of their tensors; a list for ``--check``."""
    stream.writelines(_line(file.digest, file.file) for file in report.files)
    for model in report.models:
        lines = {model.address: model.digest}
        if report.per_tensor:
            lines = {
                f"{model.file}#{join_path(model.path, name)}": digest
                for name, digest in model.tensors.items()
            }
        stream.writelines(_line(digest, address) for address, digest in lines.items())


def _line(digest: str, address: str) -> str:
    """As ``sha256sum`` does, a line begins with a backslash if its name has escapes."""
    safe = escaped(address)
    return f"{digest}  {address}\n" if safe is None else f"\\{digest}  {safe}\n"


def write_checked(report: CheckReport, stream: TextIO) -> None:
    """Write what became of each line, then how many are not as they should be."""
    for each in report.checked:
        safe = escaped(each.address)
        address = each.address if safe is None else "\\" + safe
        stream.write(f"{address}: {_SAID[each.status]}\n")
    wrong = report.count("differs")
    if wrong:
        stream.write(f"{count(wrong, 'digest')} of {len(report.checked):,} did not match\n")
