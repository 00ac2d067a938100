"""Signatures that a file is to have, beside what can be seen of it."""

from __future__ import annotations

from dataclasses import replace

from ckpt_surgery.checkpoint.findings import Finding
from ckpt_surgery.errors import PathLike
from ckpt_surgery.reports.verification import Verdict
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Proofs:
    """Files that `sign` wrote, and the public key in PEM that they are to be of."""

    public_key: PathLike
    signature: PathLike | None = None
    statement: PathLike | None = None


def proved(verdict: Verdict, proofs: Proofs | None) -> Verdict:
    """Return the verdict with what its signatures say; one that is wrong is an error in it.

    Right ones are of all bytes, so that nothing is left to say of bytes without a checksum.
    Raises `ReadError` for a key or a signature that cannot be read.
    """
    if proofs is None:
        return verdict
    from ckpt_surgery.ops.signing import ForgedError, check_signature, check_statement

    said: list[dict[str, str]] = []
    wrong: list[Finding] = []
    for check, file in (
        (check_signature, proofs.signature),
        (check_statement, proofs.statement),
    ):
        if file is None:
            continue
        try:
            said.append(check(verdict.file, file, proofs.public_key).to_dict())
        except ForgedError as error:
            wrong.append(Finding("error", error.message, str(file), rule="signature"))
    known = [each for each in verdict.findings if wrong or each.rule != "no-checksum"]
    return replace(verdict, findings=(*known, *wrong), proofs=tuple(said))
