"""What ``ckpt verify`` is to check beside a file's structure and its checksums."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt_surgery.ops.digest_lists import DigestList
from ckpt_surgery.ops.proofs import Proofs
from ckpt_surgery.ops.verify_policy import Policy
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Checks:
    """What is to be checked beside the file's structure, its checksums and the names in it.

    `values` looks at every element, and imports torch. `require_checksums` makes it an error that
    bytes have no checksum, `strict` every warning one. `digests` are those of which the file must
    have one: ``ckpt1:…`` of a model, or SHA-256 of the whole file; `lists` say more of them, of
    which all that are about the file must be right. `policy` says what is allowed, `proofs` are
    signatures that it is to have.
    """

    values: bool = False
    require_checksums: bool = False
    strict: bool = False
    digests: Sequence[str] = ()
    lists: Sequence[DigestList] = ()
    policy: Policy | None = None
    proofs: Proofs | None = None
