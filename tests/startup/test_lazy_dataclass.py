"""A lazily made dataclass behaves as one of `dataclasses` with the same declaration."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable
from dataclasses import field
from typing import Any

import pytest

from ckpt_surgery.startup import lazy_dataclass

MAKERS = {"lazy": lazy_dataclass.dataclass, "dataclasses": dataclasses.dataclass}


def _declare(make: Callable[..., Any], **options: Any) -> Any:
    @make(frozen=True, **options)
    class Point:
        """A point."""

        x: int
        y: int = 0
        tags: tuple[str, ...] = field(default=(), compare=False)
        more: dict[str, int] = field(default_factory=dict, compare=False)
        total: int = field(init=False, repr=False)
        kind: str = field(default="plain", kw_only=True)

        def __post_init__(self) -> None:
            object.__setattr__(self, "total", self.x + self.y)

    return Point


@pytest.fixture(params=[True, False], ids=["slots", "dict"])
def both(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return tuple(_declare(make, slots=request.param) for make in MAKERS.values())  # type: ignore[return-value]


def _told(cls: Any, *args: Any, **named: Any) -> tuple[Any, ...]:
    made = cls(*args, **named)
    return (
        repr(made),
        dataclasses.astuple(made),
        repr(dataclasses.replace(made, y=9)),
        hash(made) == hash(cls(*args, **named)),
        made == cls(*args, **named),
        made == cls(made.x + 1),
        made == "another",
        hasattr(made, "__dict__"),
    )


@pytest.mark.parametrize(
    ("args", "named"),
    [((1,), {}), ((1, 2), {}), ((1,), {"tags": ("a",), "more": {"b": 1}}), ((1,), {"kind": "k"})],
)
def test_objects_say_the_same(both: tuple[Any, Any], args: Any, named: Any) -> None:
    lazy, standard = both
    assert _told(lazy, *args, **named) == _told(standard, *args, **named)


@pytest.mark.parametrize(
    ("args", "named"),
    [((), {}), ((1, 2, (), {}, 5), {}), ((1,), {"total": 3}), ((1,), {"x": 1}), ((1,), {"z": 1})],
)
def test_wrong_arguments_are_refused_in_the_same_words(
    both: tuple[Any, Any], args: Any, named: Any
) -> None:
    said = []
    for cls in both:
        with pytest.raises(TypeError) as caught:
            cls(*args, **named)
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_each_object_has_its_own_default_from_a_factory(both: tuple[Any, Any]) -> None:
    lazy, _ = both
    assert lazy(1).more is not lazy(1).more


def test_what_is_not_compared_counts_neither_for_equality_nor_for_the_hash(
    both: tuple[Any, Any],
) -> None:
    for cls in both:
        assert cls(1, tags=("a",)) == cls(1)
        assert hash(cls(1, tags=("a",))) == hash(cls(1))
        assert cls(1, kind="other") != cls(1)


def test_objects_are_frozen(both: tuple[Any, Any]) -> None:
    # with slots, `dataclasses` of Python 3.11 raises TypeError for a name that is no field
    for cls, name in [(both[0], "x"), (both[0], "unknown"), (both[1], "x")]:
        made = cls(1)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, name, 2)
        with pytest.raises(dataclasses.FrozenInstanceError):
            delattr(made, name)


def test_signature_and_fields_are_the_same(both: tuple[Any, Any]) -> None:
    lazy, standard = both
    assert str(inspect.signature(lazy)) == str(inspect.signature(standard))
    assert [f.name for f in dataclasses.fields(lazy)] == [
        f.name for f in dataclasses.fields(standard)
    ]
    assert lazy.__match_args__ == standard.__match_args__
    assert lazy.__doc__ == standard.__doc__


def test_constructor_is_compiled_once_and_then_the_class_has_it() -> None:
    cls = _declare(lazy_dataclass.dataclass, slots=True)
    before = cls.__init__
    cls(1)
    after = cls.__init__
    cls(2)
    assert before is not after
    assert cls.__init__ is after
    assert after.__qualname__ == f"{cls.__qualname__}.__init__"


def test_a_class_keeps_the_methods_that_it_defines() -> None:
    @lazy_dataclass.dataclass(frozen=True, slots=True)
    class Own:
        x: int

        def __init__(self) -> None:
            object.__setattr__(self, "x", 7)

        def __repr__(self) -> str:
            return "own"

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 5

    assert (repr(Own()), Own() == 3, hash(Own()), Own().x) == ("own", True, 5, 7)


def test_an_own_equality_without_a_hash_gets_the_hash_of_the_fields() -> None:
    @lazy_dataclass.dataclass(frozen=True, slots=True)
    class Own:  # noqa: PLW1641 - the decorator gives it one
        x: int

        def __eq__(self, other: object) -> bool:
            return True

    assert hash(Own(3)) == hash(Own(3))


def test_classes_without_equality_are_equal_only_to_themselves() -> None:
    cls = _declare(lazy_dataclass.dataclass, slots=True, eq=False)
    one = cls(1)
    assert one == one
    assert one != cls(1)
    assert len({one, cls(1)}) == 2


def test_derived_classes_take_the_fields_of_their_base() -> None:
    @lazy_dataclass.dataclass(frozen=True, slots=True)
    class Base:
        x: int

    @lazy_dataclass.dataclass(frozen=True, slots=True)
    class Derived(Base):
        y: int = 1

    assert repr(Base(1)).endswith("Base(x=1)")
    assert dataclasses.astuple(Derived(1)) == (1, 1)
    assert Base(1) != Derived(1)

    class Plain(Base):
        """Not a dataclass itself."""

    assert Plain(4).x == 4


def test_frozen_classes_of_both_kinds_derive_from_each_other() -> None:
    @lazy_dataclass.dataclass(frozen=True, slots=True)
    class Base:
        x: int

    @dataclasses.dataclass(frozen=True, slots=True)
    class Standard(Base):
        y: int = 2

    @lazy_dataclass.dataclass(frozen=True, slots=True)
    class Lazy(Standard):
        z: int = 3

    assert dataclasses.astuple(Lazy(1)) == (1, 2, 3)
    assert dataclasses.astuple(Standard(1)) == (1, 2)
    for made in (Base(1), Standard(1), Lazy(1)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            made.x = 4  # type: ignore[misc]
    with pytest.raises(TypeError, match="cannot inherit"):
        dataclasses.dataclass(type("Loose", (Lazy,), {}))


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_plain_class_below_keeps_its_constructor_and_may_have_more(make: Any) -> None:
    @make(frozen=True)
    class Base:
        x: int

    class Own(Base):
        def __init__(self) -> None:
            super().__init__(7)

    class Same(Base):
        """Has the constructor of its base."""

    assert not inspect.signature(Own).parameters
    assert list(inspect.signature(Same).parameters) == ["x"]
    own: Any = Own()
    own.more = 1
    assert (own.x, own.more, Same(2).x) == (7, 1, 2)
    del own.more
    with pytest.raises(dataclasses.FrozenInstanceError):
        own.x = 3


def test_an_empty_class_and_one_that_holds_itself() -> None:
    @lazy_dataclass.dataclass(frozen=True)
    class Empty:
        """Nothing."""

    @lazy_dataclass.dataclass(frozen=True, slots=True)
    class Ring:
        others: list[Any]

    assert Empty() == Empty()
    assert hash(Empty()) == hash(Empty())
    ring = Ring([])
    ring.others.append(ring)
    assert repr(ring).endswith("Ring(others=[...])")


def test_a_factory_fills_what_no_argument_gives() -> None:
    @lazy_dataclass.dataclass(frozen=True, slots=True)
    class Counted:
        seen: list[int] = field(init=False, default_factory=list)
        name: str = field(init=False, default="n")

    assert (Counted().seen, Counted().name) == ([], "n")
    assert Counted().seen is not Counted().seen


@lazy_dataclass.dataclass(frozen=True, slots=True)
class Kept:
    x: int
    y: str = "y"


def test_objects_are_copied_and_pickled() -> None:
    made = Kept(1, "z")
    assert copy.copy(made) == made
    assert copy.deepcopy(made) == made
    assert pickle.loads(pickle.dumps(made)) == made


def test_one_that_is_not_frozen_is_left_to_dataclasses() -> None:
    @lazy_dataclass.dataclass(slots=True)
    class Loose:
        x: int

    @lazy_dataclass.dataclass
    class Bare:
        x: int

    loose, bare = Loose(1), Bare(1)
    loose.x = bare.x = 2
    assert (loose, bare) == (Loose(2), Bare(2))
