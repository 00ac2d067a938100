"""The operating system's refusals, as our errors."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ckpt_surgery.errors import WriteError

SPACE_HINT: Final = "free some space or write to another disk"
_NO_SPACE: Final = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


@contextmanager
def reported(name: str) -> Iterator[None]:
    """Turn an operating system's error into a WriteError; a closed pipe is not one."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise cannot_write(name, error) from error


def cannot_write(name: str, error: OSError | ValueError) -> WriteError:
    """Return the WriteError for `error`, raised while the output `name` was written."""
    no_space = isinstance(error, OSError) and error.errno in _NO_SPACE
    return WriteError(cannot("be written", error), path=name, hint=SPACE_HINT if no_space else None)


def cannot(what: str, error: Exception) -> str:
    """Return the message for `error`, raised while `what` was tried, in our style."""
    reason = getattr(error, "strerror", None) or str(error)
    return f"cannot {what}: {reason.lower()}"
