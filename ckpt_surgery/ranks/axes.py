"""Along which axis the ranks' parts of a tensor are joined, where their files do not say it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Final, Literal, TypeAlias

from ckpt_surgery.errors import UsageError
from ckpt_surgery.names import Rule
from ckpt_surgery.startup.lazy_dataclass import dataclass

How: TypeAlias = "int | Literal['copies', 'first']"
"""An axis; or every rank has all of it, which is checked; or only the first rank's counts."""

_FORM: Final = "'GLOB=1' names an axis; 'GLOB=copies' says that every rank has all of it"
_MOST_AXES: Final = 64
_WORDS: Final[dict[str, How]] = {"copies": "copies", "first": "first"}


@dataclass(frozen=True)
class AxisRule:
    """How the tensors are joined whose names match `glob`."""

    glob: str
    how: How

    @classmethod
    def parse(cls, text: str) -> AxisRule:
        """Return what ``GLOB=AXIS`` says. Raises `UsageError` if it is not of that form."""
        glob, sign, how = text.rpartition("=")
        if not sign or not glob or not how:
            raise UsageError(f"'--axis {text}' is not of the form GLOB=AXIS", hint=_FORM)
        if how in _WORDS:
            return cls(glob, _WORDS[how])
        try:
            axis = int(how)
        except ValueError:
            axis = _MOST_AXES
        if not -_MOST_AXES <= axis < _MOST_AXES:
            raise UsageError(f"'--axis {text}': '{how}' is no axis", hint=_FORM)
        return cls(glob, axis)

    @property
    def option(self) -> str:
        """The rule as it was asked for."""
        return f"--axis {self.glob}={self.how}"

    def matches(self, names: Iterable[str]) -> bool:
        """Return whether one of the names that a tensor goes by matches."""
        return any(map(self._rule.matches, names))

    @cached_property
    def _rule(self) -> Rule:
        return Rule("glob", self.glob)


def published_llama(embedding: How) -> Sequence[AxisRule]:
    """Return how Meta splits its LLaMA models, by the names of their tensors.

    Columns of attention and feed-forward are split along 0, rows along 1
    (``ColumnParallelLinear``, ``RowParallelLinear`` of fairscale in ``llama/model.py``); the
    `embedding` along 1 in LLaMA 1 and 2 (``ParallelEmbedding``), along 0 in LLaMA 3
    (``VocabParallelEmbedding``).
    """
    columns = (
        *("**attention.wq", "**attention.wk", "**attention.wv"),
        *("**feed_forward.w1", "**feed_forward.w3", "output"),
    )
    rows = ("**attention.wo", "**feed_forward.w2")
    return (
        AxisRule("tok_embeddings.weight", embedding),
        *(AxisRule(f"{name}.weight", 0) for name in columns),
        *(AxisRule(f"{name}.weight", 1) for name in rows),
        AxisRule("**norm.weight", "copies"),
        AxisRule("rope.freqs", "copies"),
    )
