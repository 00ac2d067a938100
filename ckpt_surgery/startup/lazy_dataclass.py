"""Dataclasses whose methods are made when they are called, not when their module is imported.

`dataclasses.dataclass` writes source for up to six methods of a class and compiles it: a third of
a millisecond for a frozen one, and a command imports between 40 and 120 of them. Most are never
compared or printed, and many never made. Here the constructor is compiled when the first object is
made, and the other methods are shared by all classes. Processor time of `ckpt` (Python 3.11,
medians over pairs), with this as 1 and with `dataclasses.dataclass`:

| command                              | dataclasses |
|--------------------------------------|-------------|
| ``inspect --keys``, 218 tensors      |        1.17 |
| ``inspect``, 218 tensors, to a pipe  |        1.21 |

What is promised is the same, and so `dataclasses.fields`, `replace`, `asdict` and pattern matching
work. A module imports `dataclass` from here in place of the other; type checkers see the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any

__all__ = ["dataclass"]

if TYPE_CHECKING:
    from dataclasses import dataclass
    from inspect import Signature
else:

    def dataclass(
        cls: type | None = None, /, *, frozen: bool = False, slots: bool = False, eq: bool = True
    ) -> Any:
        """Make a class a dataclass, as `dataclasses.dataclass` does for these options.

        One that is not frozen is left to `dataclasses`: its base classes have to be as well.
        """
        if not frozen:
            return dataclasses.dataclass(cls, slots=slots, eq=eq)

        def decorate(cls: type) -> type:
            return _frozen(cls, slots=slots, eq=eq)

        return decorate if cls is None else decorate(cls)


def _frozen(cls: type, *, slots: bool, eq: bool) -> Any:
    light = dataclasses.dataclass(init=False, repr=False, eq=False, slots=slots)
    with _taken_for_unfrozen(cls.__mro__[1:]):
        made: Any = light(cls)
    made.__dataclass_params__.frozen = True  # so that classes of `dataclasses` may derive from it
    own = vars(made)
    # as in `dataclasses`: what the class defines itself stays
    has_hash = "__hash__" in own and not (own["__hash__"] is None and "__eq__" in own)
    methods: dict[str, Any] = {"__repr__": _repr}
    if "__init__" not in own:
        methods |= {"__init__": _constructor_of(made), "__signature__": _Signature(made)}
    if eq:
        compared = _values_of([f.name for f in dataclasses.fields(made) if f.compare])
        methods["__eq__"] = _equality_of(compared)
        if not has_hash:
            made.__hash__ = _hash_of(compared)
    if slots:
        methods |= {"__getstate__": _state, "__setstate__": _set_state}
    for name, method in methods.items():
        if name not in own:
            setattr(made, name, method)
    made.__setattr__, made.__delattr__ = _refusals_of(made)
    return made


@contextmanager
def _taken_for_unfrozen(bases: Iterable[Any]) -> Iterator[None]:
    """Let what is frozen by other means be derived from `bases`: `dataclasses` looks for a flag."""
    told = [vars(base).get("__dataclass_params__") for base in bases]
    frozen = [params for params in told if params is not None and params.frozen]
    for params in frozen:
        params.frozen = False
    try:
        yield
    finally:
        for params in frozen:
            params.frozen = True


def _constructor_of(cls: Any) -> Callable[..., None]:
    """Return a constructor that makes the real one, puts it in its own place and calls it."""

    def __init__(self: object, *args: object, **named: object) -> None:  # noqa: N807
        _compile_constructor(cls)(self, *args, **named)

    return __init__


def _compile_constructor(cls: Any) -> Callable[..., None]:
    """Compile the constructor of `cls` from its fields, and make it that of the class.

    The fields' names are all of the source that is not written here.
    """
    given: dict[str, Any] = {"_set_": object.__setattr__, "_unset_": _UNSET}
    positional, named = ["self"], list[str]()
    body: list[str] = []
    for field in dataclasses.fields(cls):
        name, default = field.name, f"default_{field.name}"
        if field.default is not dataclasses.MISSING:
            given[default] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            given[default] = field.default_factory
        has_factory = field.default_factory is not dataclasses.MISSING
        if field.init:
            parameter = name if default not in given else f"{name}={default}"
            if has_factory:
                parameter = f"{name}=_unset_"
                body.append(f"if {name} is _unset_: {name} = {default}()")
            (named if field.kw_only else positional).append(parameter)
            body.append(f"_set_(self, {name!r}, {name})")
        elif default in given:
            body.append(f"_set_(self, {name!r}, {default}{'()' if has_factory else ''})")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    parameters = ", ".join([*positional, *(["*", *named] if named else [])])
    lines = "\n    ".join(body or ["pass"])
    exec(f"def __init__({parameters}):\n    {lines}", given)  # noqa: S102 - names of fields only
    made: Callable[..., None] = given["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    made.__annotations__ = {f.name: f.type for f in dataclasses.fields(cls) if f.init}
    cls.__init__ = made
    return made


class _Unset:
    """Stands for an argument that was not given, in signatures as in those of `dataclasses`."""

    def __repr__(self) -> str:
        return "<factory>"


_UNSET = _Unset()


class _Signature:
    """Gives the signature of `owner` to `inspect.signature`, for which it needs the constructor.

    A class that is derived from it has a constructor of its own, or is asked for the one above it.
    """

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def __get__(self, _instance: object, cls: Any) -> Signature:
        from inspect import Parameter, signature

        if cls.__init__ is not self.owner.__init__:
            raise AttributeError("__signature__")  # it is made from the constructor then
        whole = signature(_compile_constructor(self.owner))
        parameters: list[Parameter] = list(whole.parameters.values())[1:]
        return whole.replace(parameters=parameters, return_annotation=None)


def _values_of(names: list[str]) -> Callable[[object], object]:
    return attrgetter(*names) if names else lambda _: ()


def _equality_of(values: Callable[[object], object]) -> Callable[[object, object], bool]:
    def __eq__(self: object, other: object) -> bool:  # noqa: N807
        if other.__class__ is self.__class__:
            return values(self) == values(other)
        return NotImplemented

    return __eq__


def _hash_of(values: Callable[[object], object]) -> Callable[[object], int]:
    def __hash__(self: object) -> int:  # noqa: N807
        return hash(values(self))

    return __hash__


@recursive_repr()
def _repr(self: Any) -> str:
    shown = (f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.repr)
    return f"{self.__class__.__qualname__}({', '.join(shown)})"


def _refusals_of(cls: Any) -> tuple[Callable[..., None], Callable[..., None]]:
    """Return what sets and deletes attributes: none of `cls`, and no field of classes below it."""
    fields = frozenset(cls.__dataclass_fields__)

    def __setattr__(self: object, name: str, value: object) -> None:  # noqa: N807
        if type(self) is cls or name in fields:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        super(cls, self).__setattr__(name, value)

    def __delattr__(self: object, name: str) -> None:  # noqa: N807
        if type(self) is cls or name in fields:
            raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
        super(cls, self).__delattr__(name)

    return __setattr__, __delattr__


def _state(self: Any) -> list[object]:
    return [getattr(self, f.name) for f in dataclasses.fields(self)]


def _set_state(self: Any, state: list[object]) -> None:
    for field, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, field.name, value)
