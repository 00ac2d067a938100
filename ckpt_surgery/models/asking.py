"""What a model's own code raises when it is asked about itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ckpt_surgery.errors import CkptError, ConstructionError

_OURS: Final = str(Path(__file__).parents[1])


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Name the model's code as the culprit of whatever it raises: `what` says what cannot be done.

    What is raised in this package itself is its own fault, and stays what it is.
    """
    try:
        yield
    except CkptError:
        raise
    except Exception as error:
        if _is_ours(error):
            raise
        raise ConstructionError(f"{what}: {type(error).__name__}: {error}") from error


def _is_ours(error: BaseException) -> bool:
    """Return whether an error was raised by a line of this package."""
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    return step is not None and step.tb_frame.f_code.co_filename.startswith(_OURS)
