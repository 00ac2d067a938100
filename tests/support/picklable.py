"""Random objects to pickle, and the classes of some of them."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import functools
import pathlib

from hypothesis import strategies as st


class Plain:
    """Pickled by NEWOBJ and BUILD."""

    def __init__(self, **state: object) -> None:
        self.__dict__.update(state)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment] (mutable)

    class Nested:
        """Named with a dot."""

        class Deeper:
            """Named with two."""


class Slots:
    """Pickled with a state of two parts, as any protocol can."""

    __slots__ = ("a", "b")

    def __getstate__(self) -> tuple[None, dict[str, object]]:
        return None, {"a": getattr(self, "a", None)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slots) and getattr(self, "a", 0) == getattr(other, "a", 0)

    __hash__ = None  # type: ignore[assignment] (mutable)


class Items(list[object]):
    """A list with a state of its own."""


class Keywords:
    """Pickled by NEWOBJ_EX from protocol 4 on."""

    def __new__(cls, *, key: object = None) -> Keywords:
        made = super().__new__(cls)
        made.key = key  # type: ignore[attr-defined]
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, object]]:
        return (), {"key": self.key}  # type: ignore[attr-defined]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keywords) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment] (mutable)


class Colour(enum.Enum):
    """Pickled by a call of its class."""

    RED = 1


def _items(values: list[object], **state: object) -> Items:
    made = Items(values)
    made.__dict__.update(state)
    return made


def _slots(value: object) -> Slots:
    made = Slots()
    made.a = value
    return made


ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.integers(-(2**2100), 2**2100),
    st.sampled_from(
        [0, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, -(2**39)]
    ),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.text(st.characters(codec=None), max_size=4),
    st.binary(max_size=20),
    st.binary(max_size=20).map(bytearray),
    st.complex_numbers(allow_nan=False),
    st.sampled_from(
        [
            Plain,
            Plain.Nested,
            Plain.Nested.Deeper,
            Colour.RED,
            len,
            str.join,
            type(None),
            datetime.date(2020, 1, 2),
            pathlib.PurePosixPath("a/b"),
            slice(1, None, 2),
            ...,
        ]
    ),
)
_HASHABLE = st.one_of(st.integers(), st.text(max_size=5), st.binary(max_size=5), st.none())


def _extend(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    lists = st.lists(inner, max_size=5)
    dicts = st.dictionaries(_HASHABLE, inner, max_size=5)
    return st.one_of(
        lists,
        lists.map(tuple),
        dicts,
        dicts.map(collections.OrderedDict),
        dicts.map(lambda items: collections.defaultdict(list, items)),
        st.sets(_HASHABLE, max_size=4),
        st.frozensets(_HASHABLE, max_size=4),
        inner.map(lambda value: [value, value]),
        inner.map(lambda value: ((value, value), value)),
        inner.map(lambda value: Plain(value=value, again=value)),
        inner.map(lambda value: Plain.Nested() and Plain(nested=value)),
        inner.map(_slots),
        inner.map(lambda value: Keywords(key=value)),
        inner.map(lambda value: argparse.Namespace(value=value)),
        inner.map(lambda value: functools.partial(print, value, end=value).args),
        lists.map(lambda values: _items(values, note=values)),
        lists.map(collections.deque),
    )


OBJECTS = st.recursive(ATOMS, _extend, max_leaves=12)
