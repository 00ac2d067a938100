"""What a check of a file finds, as data."""

from __future__ import annotations

from typing import Final, Literal

from ckpt_surgery.errors import CkptError
from ckpt_surgery.startup.lazy_dataclass import dataclass

_OF_TRUNCATION: Final = ("truncated", "ends at byte", "interrupted save", "did not finish")

Severity = Literal["error", "warning", "note"]
Rule = Literal[
    "truncated",
    "damaged",
    "checksum",
    "no-checksum",
    "structure",
    "hidden-bytes",
    "polyglot",
    "layout-promise",
    "torch-refuses",
    "weights-only",
    "dangerous-global",
    "unknown-global",
    "not-finite",
    "values",
    "digest",
    "signature",
    "policy",
]

RULES: Final[dict[Rule, str]] = {
    "truncated": "The file ends too early",
    "damaged": "The file breaks a rule of its format",
    "checksum": "Bytes are not those that their checksum was computed from",
    "no-checksum": "Bytes have no checksum that could show whether they are right",
    "structure": "The structure around the data is not what the format's own writer writes",
    "hidden-bytes": "The file holds bytes that nothing refers to",
    "polyglot": "The file is of a second format as well",
    "layout-promise": "torch may compute another place for a storage than where it is",
    "torch-refuses": "torch does not load the file",
    "weights-only": "torch.load needs weights_only=False for the file, which runs code in it",
    "dangerous-global": "Loading the file calls or imports something dangerous",
    "unknown-global": "Loading the file imports something that is not known to be harmless",
    "not-finite": "A tensor holds NaN or infinity",
    "values": "The elements of a tensor are unusual",
    "digest": "The model or the file is not the one that the digest is of",
    "signature": "A signature is not of the key, or not of these bytes",
    "policy": "The file is not what the policy allows",
}
"""What each kind of finding says of a file."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a check found: an ``error`` keeps the file from being used as it is.

    `entry` is the record, tensor or name that it is about, `offset` the byte of the file where it
    is, as far as there is one.
    """

    severity: Severity
    message: str
    entry: str | None = None
    hint: str | None = None
    rule: Rule = "damaged"
    offset: int | None = None


def finding_of(error: CkptError) -> Finding:
    """Return what an error of reading says about the file, as an ``error`` among findings."""
    said = f"{error.message} {error.hint or ''}"
    rule: Rule = "damaged"
    if any(words in said for words in _OF_TRUNCATION):
        rule = "truncated"
    elif "checksum" in said:
        rule = "checksum"
    return Finding("error", error.message, error.entry, error.hint, rule)
