"""The kinds of edits that a plan is made of, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, get_args


@dataclass(frozen=True, slots=True)
class Drop:
    """Remove an entry of a state dict."""

    edit: ClassVar[str] = "drop"
    state_dict: str
    name: str


@dataclass(frozen=True, slots=True)
class Rename:
    """Give an entry of a state dict another name."""

    edit: ClassVar[str] = "rename"
    state_dict: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class RenameModule:
    """Give a module's record in ``_metadata`` another path; `new` None removes it."""

    edit: ClassVar[str] = "rename-module"
    state_dict: str
    old: str
    new: str | None


@dataclass(frozen=True, slots=True)
class DropOther:
    """Remove an entry beside the state dicts: an optimizer, a scheduler."""

    edit: ClassVar[str] = "drop-entry"
    path: str


@dataclass(frozen=True, slots=True)
class Compact:
    """Give every tensor only the bytes that it uses; true ties and overlaps stay."""

    edit: ClassVar[str] = "compact"
    unused_nbytes: int


@dataclass(frozen=True, slots=True)
class Take:
    """Put an entry of another file in the place of an entry, or after the last one.

    It is called `entry` in the state dict `source` of the file whose name is `file`.
    """

    edit: ClassVar[str] = "take"
    state_dict: str
    name: str
    file: str
    source: str
    entry: str


@dataclass(frozen=True, slots=True)
class TakeModule:
    """Put another file's record of a module in ``_metadata``; the fields are those of `Take`."""

    edit: ClassVar[str] = "take-module"
    state_dict: str
    name: str
    file: str
    source: str
    entry: str


@dataclass(frozen=True, slots=True)
class Merge:
    """Put numbers that are computed from all inputs in the place of a tensor's."""

    edit: ClassVar[str] = "merge"
    state_dict: str
    name: str
    method: str


@dataclass(frozen=True, slots=True)
class DropStateDict:
    """Remove a whole state dict: a moving average."""

    edit: ClassVar[str] = "drop-state-dict"
    path: str


@dataclass(frozen=True, slots=True)
class TakeWeights:
    """Give the state dict `state_dict` the values that the state dict `old` has for its names."""

    edit: ClassVar[str] = "take-weights"
    state_dict: str
    old: str


@dataclass(frozen=True, slots=True)
class UpdateOptimizer:
    """Let the optimizer at `path` follow what the edits do to the model that it trains."""

    edit: ClassVar[str] = "update-optimizer"
    path: str


Edit = (
    Drop
    | Rename
    | RenameModule
    | DropOther
    | DropStateDict
    | TakeWeights
    | UpdateOptimizer
    | Compact
    | Take
    | TakeModule
    | Merge
)
EDITS: Final[dict[str, type[Edit]]] = {kind.edit: kind for kind in get_args(Edit)}
# In JSON an edit says "from" and "to", which Python reserves.
JSON_NAMES: Final = {"old": "from", "new": "to"}
