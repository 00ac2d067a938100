"""What was signed, with which key, and where the signature is."""

from __future__ import annotations

from typing import Any

from ckpt_surgery.reports import envelope
from ckpt_surgery.startup.lazy_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class SignReport:
    """The signature of `model` in the file `output`; with a `record`, its statement as well.

    `key` is SHA-256 of the public key in PEM, which the signature names, too.
    """

    model: str
    output: str
    key: str
    record: str | None = None
    statement: str | None = None

    @property
    def exit_code(self) -> int:
        return 0

    def to_dict(self) -> dict[str, Any]:
        inputs = [self.model] if self.record is None else [self.model, self.record]
        document = envelope("sign", exit_code=0, inputs=inputs, output=self.output)
        return document | {"key": self.key, "statement": self.statement}
