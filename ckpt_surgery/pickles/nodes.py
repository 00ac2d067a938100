"""A pickle as an inert graph.

Nothing here can run code: a class or function is only its name, a call is only a record of what
would be called. A node is one of

========================  ===========================================================
``None``, ``bool``,       themselves (a pickle's integers of every width are ``int``)
``int``, ``float``
``str``, ``bytes``        text, and the byte strings of protocols 3 and later
`ByteString`              a Python-2 ``str``: bytes that may or may not be text
``tuple``, ``list``       themselves, holding nodes; identity is kept, cycles are allowed
                          (a list that a pickle may change later is a `List`)
`Dict`                    a dictionary as its items in order; keys are never hashed
`Global`                  the name of a class or function
`Object`                  a call that would make an object, and what would be done to it
`PersistentId`            a reference to something outside the pickle (a storage)
`Extension`               an ``EXT`` opcode's registry code
========================  ===========================================================

Two references to one object of the pickle are two references to one node.

A call takes its arguments as they are when it is made, and a pickle may change a list, dictionary
or object afterwards. Hence nodes that can change say when they did (`changed`), and a call when it
was made (`at`): both are offsets in the pickle, 0 for what was not read from one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Literal, TypeAlias

# A union of everything above would be recursive and would have to be narrowed at each use; the
# `isinstance` checks that readers need anyway narrow `object` just as well.
Node: TypeAlias = object

ObjectOp: TypeAlias = Literal["REDUCE", "NEWOBJ", "OBJ"]


class _NoState:
    """The type of `NO_STATE`; a pickled state may be None, so None cannot say "none"."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NO_STATE"


NO_STATE: Final = _NoState()


class Global:
    """The name of a class or function: ``module`` and (dotted) ``name`` as the file spells them."""

    __slots__ = ("module", "name", "qualified")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name
        # Kept, since a small file can ask for a long one any number of times.
        self.qualified = f"{module}.{name}"

    def __repr__(self) -> str:
        return f"Global({self.qualified!r})"


class ByteString:
    """A byte string written by Python 2 (``STRING``, ``BINSTRING``, ``SHORT_BINSTRING``)."""

    __slots__ = ("_text", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._text: str | None = None

    @property
    def text(self) -> str:
        """The bytes as text: in UTF-8 if they are that, otherwise in Latin-1."""
        if self._text is None:  # kept for the same reason as the name of a `Global`
            try:
                self._text = self.data.decode()
            except UnicodeDecodeError:
                self._text = self.data.decode("latin-1")
        return self._text

    def __repr__(self) -> str:
        return f"ByteString({self.data[:40]!r})"


class List(list[Node]):
    """A list of the pickle; `began` is where elements were first added, `changed` where last."""

    __slots__ = ("began", "changed")

    def __init__(self, nodes: Iterable[Node] = (), changed: int = 0) -> None:
        super().__init__(nodes)
        self.began = self.changed = changed


class Dict:
    """A dictionary: `items` is flat, key, value, key, value, …, in the order of the file.

    `began` is where items were first set, `changed` where last.
    """

    __slots__ = ("began", "changed", "items")

    def __init__(self, items: list[Node] | None = None) -> None:
        self.items: list[Node] = [] if items is None else items
        self.began = self.changed = 0

    def pairs(self) -> Iterator[tuple[Node, Node]]:
        return zip(self.items[::2], self.items[1::2], strict=True)


class Object:
    """A call recorded, never made.

    `op` says how: ``REDUCE`` calls `callee` with `args`, ``NEWOBJ`` is ``callee.__new__(callee,
    *args)``, ``OBJ`` an instance of Python 2. `elements` were appended to the result, `items`
    (flat, as in `Dict`) set on it, `state` given to its ``__setstate__`` or ``__dict__``, always
    in this order. `at` is where the call is made, `changed` where the last of the others is done.
    """

    __slots__ = ("args", "at", "callee", "changed", "elements", "items", "op", "state")

    def __init__(
        self,
        op: ObjectOp,
        callee: Node,
        args: Node,
        at: int = 0,
        *,
        elements: list[Node] | None = None,
        items: list[Node] | None = None,
        state: Node = NO_STATE,
    ) -> None:
        self.op: ObjectOp = op
        self.callee = callee
        self.args = args
        self.elements = elements
        self.items = items
        self.state = state
        self.at = self.changed = at

    @property
    def name(self) -> str:
        """The qualified name of the callee, empty if that is not a `Global`."""
        return self.callee.qualified if isinstance(self.callee, Global) else ""

    def pairs(self) -> Iterator[tuple[Node, Node]]:
        items = self.items or []
        return zip(items[::2], items[1::2], strict=True)

    def __repr__(self) -> str:
        return f"Object({self.op}, {self.name or '?'})"


class PersistentId:
    """A reference to something that the pickle does not hold.

    `pid` is what the pickle says, usually a tuple; `target` is what the reader of the container
    resolved it to (a `Storage`), None until then.
    """

    __slots__ = ("pid", "target")

    def __init__(self, pid: Node, target: object = None) -> None:
        self.pid = pid
        self.target = target


class Extension:
    """An object named by a code of the `copyreg` extension registry."""

    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        self.code = code


def own_text(text: str) -> str:
    """Return an equal text that is another object, which a pickle therefore writes in full.

    So what is written does not depend on which texts of an edit happened to be one object. (Those
    of one letter always are, in CPython as in what it pickles.)
    """
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass")


def children(node: Node) -> list[Node]:
    """Return the nodes that `node` is made of, in the order in which a pickle writes them."""
    if isinstance(node, (tuple, list)):
        return list(node)
    if isinstance(node, Dict):
        return node.items
    if isinstance(node, PersistentId):
        return [node.pid]
    if not isinstance(node, Object):
        return []
    found = [node.callee, node.args, *(node.elements or ()), *(node.items or ())]
    if node.state is not NO_STATE:
        found.append(node.state)
    return found
