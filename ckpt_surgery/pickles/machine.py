"""What the opcodes of a pickle work on, and what they have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ckpt_surgery.errors import DamagedFileError, LimitExceededError
from ckpt_surgery.pickles.limits import Limits
from ckpt_surgery.pickles.nodes import NO_STATE, Dict, Global, List, Node, Object, children
from ckpt_surgery.pickles.tensor_items import is_of_tensors
from ckpt_surgery.pickles.walk import SCALARS

_MAX_DOTS: Final = 100  # each is a call in protocol 2, so that there must not be a million


class TruncatedPickleError(DamagedFileError):
    """The data ended before STOP; with more of it the pickle may be whole."""


class Machine:
    """The state of a pickle being read.

    `stack` holds what was pushed since the last mark and `below` the stacks under each mark.
    `discarded` are nodes that were popped or left over, though something may still refer to them.
    `rare` are opcodes that a state dict's pickle has few of, or none. `changed_tensors` are results
    of calls that make tensors, and that items or elements are given to.
    """

    __slots__ = (
        "below",
        "builtins",
        "changed_tensors",
        "data",
        "discarded",
        "duplicates",
        "framed",
        "globals",
        "limits",
        "memo",
        "persistent_load",
        "pos",
        "protocol",
        "rare",
        "stack",
    )

    def __init__(
        self, data: bytes, pos: int, limits: Limits, persistent_load: Callable[[Node], Node]
    ) -> None:
        self.data = data
        self.pos = pos
        self.limits = limits
        self.persistent_load = persistent_load
        self.stack: list[Node] = []
        self.below: list[list[Node]] = []
        self.memo: dict[int, Node] = {}
        self.globals: list[Global] = []
        self.builtins: dict[str, Global] = {}
        self.discarded: list[Node] = []
        self.duplicates = 0
        self.framed = False
        self.protocol = 0
        self.rare: set[int] = set()
        self.changed_tensors: list[Object] = []

    def take(self, nbytes: int) -> bytes:
        """Return the next `nbytes` bytes. Raises `TruncatedPickleError`."""
        end = self.pos + nbytes
        if end > len(self.data):
            raise TruncatedPickleError("the pickle is truncated")
        taken = self.data[self.pos : end]
        self.pos = end
        return taken

    def uint(self, nbytes: int) -> int:
        return int.from_bytes(self.take(nbytes), "little")

    def line(self) -> bytes:
        """Return the bytes up to the next line feed, which is skipped.
        Raises `TruncatedPickleError`.
        """
        end = self.data.find(b"\n", self.pos)
        if end < 0:
            raise TruncatedPickleError("the pickle is truncated")
        line = self.data[self.pos : end]
        self.pos = end + 1
        return line

    def to_mark(self) -> list[Node]:
        """Take everything down to the last mark, and the mark. Raises `IndexError`."""
        taken = self.stack
        self.stack = self.below.pop()
        return taken

    def put(self, index: int) -> None:
        """File the top of the stack in the memo. Raises `LimitExceededError`."""
        if index >= self.limits.memo:
            raise too_many_memos(index)
        self.memo[index] = self.stack[-1]

    def name(self, module: str, name: str) -> Global:
        """Return a new `Global`. Raises `DamagedFileError` if no GLOBAL opcode could spell it."""
        for part in (module, name):
            if "\n" in part or part.count(".") > _MAX_DOTS or not _is_encodable(part):
                raise DamagedFileError(f"no class or function can be named {part[:80]!a}")
        made = Global(module, name)
        self.globals.append(made)
        return made

    def add_elements(self, target: Node, elements: list[Node], at: int) -> None:
        """Do what APPEND and APPENDS at `at` do to `target`. Raises `DamagedFileError`."""
        if isinstance(target, List):
            target += elements
            target.began = target.began or at
        elif isinstance(target, Object):
            if target.items is not None or target.state is not NO_STATE:
                raise DamagedFileError("an object is given elements after its items or its state")
            if target.elements is None:
                target.elements = elements
                self._give(target)
            else:
                target.elements += elements
        else:
            raise DamagedFileError("a value is appended to something that is no list")
        target.changed = at

    def add_items(self, target: Node, items: list[Node], at: int) -> None:
        """Do what SETITEM and SETITEMS at `at` do to `target`. Raises `DamagedFileError`."""
        if len(items) % 2:
            raise DamagedFileError("a key without a value is set on a dictionary")
        if isinstance(target, Dict):
            target.items += items
            target.began = target.began or at
        elif isinstance(target, Object):
            if target.state is not NO_STATE:
                raise DamagedFileError("an object is given items after its state")
            if target.items is None:
                target.items = items
                self._give(target)
            else:
                target.items += items
        else:
            raise DamagedFileError("an item is set on something that is no dictionary")
        target.changed = at

    def _give(self, target: Object) -> None:
        if is_of_tensors(target.callee):
            self.changed_tensors.append(target)

    def builtin(self, name: str) -> Global:
        """Return the one `Global` for a built-in type that an opcode implies rather than names."""
        made = self.builtins.get(name)
        if made is None:
            made = self.builtins[name] = self.name("__builtin__", name)
        return made


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def too_many_marks(limits: Limits) -> LimitExceededError:
    return LimitExceededError(f"the pickle begins more than {limits.depth} containers at once")


def too_many_memos(index: int) -> LimitExceededError:
    return LimitExceededError(f"memo index {index} is larger than any honest pickle needs")


def decode_text(data: bytes) -> str:
    """UTF-8 as pickle writes it, surrogates included. Raises `UnicodeDecodeError`."""
    text = data.decode("utf-8", "surrogatepass")
    return own_character(text) if len(text) == 1 else text


def own_character(text: str) -> str:
    """Return the one character of `text` as an object of its own, if it is ASCII.

    CPython shares the one-character strings that it decodes, but not all others: ``str(5)``, as
    torch names its storages, and interned names are different objects, which a pickler writes
    again. Sharing them here would join them when they are written. Changing the case to what it
    is makes a new string.
    """
    if not text.isascii():
        return text
    return text.upper() if text.isupper() else text.lower()


def give_state(target: Node, state: Node, at: int) -> None:
    """Do what BUILD at `at` does to `target`. Raises `DamagedFileError`."""
    if not isinstance(target, Object):
        raise DamagedFileError("a state is given to something that is no object")
    if target.state is not NO_STATE:
        raise DamagedFileError("an object is given a state twice")
    target.state = state
    target.changed = at


def lost_calls(root: Node, discarded: list[Node]) -> tuple[Object, ...]:
    """Return the calls below `discarded` that are not below `root`."""
    calls = [node for node in _reachable(discarded) if isinstance(node, Object)]
    if not calls:
        return ()
    kept = {id(node) for node in _reachable([root])}
    return tuple(call for call in calls if id(call) not in kept)


def _reachable(roots: list[Node]) -> list[Node]:
    seen: set[int] = set()
    found: list[Node] = []
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if type(node) not in SCALARS and id(node) not in seen:
            seen.add(id(node))
            found.append(node)
            waiting.extend(children(node))
    return found
