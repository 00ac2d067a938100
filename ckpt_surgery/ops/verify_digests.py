"""Compare a file that is being verified with digests of it that were kept."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.checkpoint.findings import Finding
from ckpt_surgery.errors import CkptError, ReadError
from ckpt_surgery.fileio import Source
from ckpt_surgery.formats.recognise import source_is_directory
from ckpt_surgery.ops.digest_lists import DigestLine, DigestList, find_models
from ckpt_surgery.ops.hash import file_digest, model_digests
from ckpt_surgery.torch_objects.digest import PREFIX
from ckpt_surgery.writing.output import ProgressBar

_SHA256: Final = "sha256:"
_DIGEST: Final = re.compile(rf"(?:{PREFIX}|{_SHA256})?[0-9a-f]{{64}}", re.IGNORECASE)
# The first digits of SHA-256, as torch.hub and timm put them into a name before its suffixes.
_IN_NAME: Final = re.compile(r"-([0-9a-f]{8,64})(?:\.[a-z_0-9.]+)?", re.IGNORECASE)


def is_digest(text: str) -> bool:
    """Return whether a text is a digest of ``ckpt hash`` or of ``sha256sum``."""
    return _DIGEST.fullmatch(text) is not None


def _digest_in_name(name: str) -> str | None:
    """Return the digits of SHA-256 in the name of a file, as ``resnet34-b627a593.pth`` has them.

    Decimal digits alone may be a date and count for none.
    """
    base = re.split(r"[\\/]", name)[-1]
    at = base.rfind("-")
    match = _IN_NAME.fullmatch(base, at) if at >= 0 else None
    return None if match is None or match[1].isdigit() else match[1].lower()


@dataclass(slots=True)
class DigestChecks:
    """What to compare one file with.

    `right` becomes the digits of the whole file's SHA-256 that were wanted and found.
    """

    file: Source
    threads: int | None
    progress: ProgressBar | None
    right: str | None = None
    _known: str | None = None

    def of_file(self) -> str:
        """Return SHA-256 of the file, computed once. Raises `ReadError` for a directory."""
        if source_is_directory(self.file):
            raise ReadError("a directory has no SHA-256", hint="'ckpt hash' has its model's")
        if self._known is None:
            self._known = file_digest(self.file, self.progress)
        return self._known

    def in_name(self) -> Iterator[Finding]:
        """Yield what is wrong with the digits in the file's name, if it has any."""
        digits = _digest_in_name(self.file.name)
        if digits is None or source_is_directory(self.file):
            return
        digest = self.of_file()
        if digest.startswith(digits):
            self.right = digits
            return
        yield Finding(
            "warning",
            f"its name says that SHA-256 begins with {digits}, and it begins with "
            f"{digest[: len(digits)]}: bytes are wrong, or the name is another file's",
            hint="torch.hub refuses it with check_hash=True; --hash-name of an edit names it anew",
            rule="digest",
        )

    def wanted(
        self, checkpoint: Checkpoint, digests: Sequence[str]
    ) -> tuple[tuple[str, ...], list[Finding]]:
        """Return the digests that were asked for, and a finding if none of them is wanted."""
        wanted = [digest.lower().removeprefix(_SHA256) for digest in digests]
        if not wanted:
            return (), []
        found: list[str] = []
        if any(not digest.startswith(PREFIX) for digest in wanted):
            found.append(self.of_file())
            self.right = self.of_file() if self.of_file() in wanted else None
        if any(digest.startswith(PREFIX) for digest in wanted):
            try:
                found += model_digests(checkpoint, self.threads, self.progress)
            except CkptError as error:
                return tuple(found), [_no_digest(error)]
        if set(found) & set(wanted):
            return tuple(found), []
        what = f"none of its digests is the one wanted: {', '.join(found)}"
        return tuple(found), [Finding("error", what, rule="digest")]

    def listed(self, checkpoint: Checkpoint, given: DigestList) -> Iterator[Finding]:
        """Yield where the file, its models and its tensors are not what a list says of them."""
        lines = given.about(self.file.name)
        if not lines:
            what = f"'{given.name}' has no digest of it"
            yield Finding("error", what, rule="digest")
            return
        whole = [line for line in lines if line.is_of_whole_file]
        wrong = 0
        inside = [line for line in lines if not line.is_of_whole_file]
        for line, found in find_models(checkpoint, inside, self.threads, self.progress):
            if found != line.digest:
                wrong += 1
                yield (
                    _no_digest(found, line)
                    if isinstance(found, CkptError)
                    else _differs(line, found)
                )
        for line in whole:
            if self.of_file() == line.digest:
                self.right = line.digest
            else:
                beside = bool(inside) and not wrong
                yield _differs(line, self.of_file(), _BESIDE if beside else "")


_BESIDE: Final = "; nothing that is listed of its tensors differs, so that it lies beside them"


def _differs(line: DigestLine, found: str, more: str = "") -> Finding:
    what = "SHA-256 of the file" if line.is_of_whole_file else "its digest"
    return Finding(
        "error",
        f"{what} is {found}, and the list says {line.digest}{more}",
        line.part,
        None,
        "digest",
    )


def _no_digest(error: CkptError, line: DigestLine | None = None) -> Finding:
    entry = error.entry if line is None or line.part is None else line.part
    return Finding("error", f"it has no digest: {error.message}", entry, error.hint, "digest")
