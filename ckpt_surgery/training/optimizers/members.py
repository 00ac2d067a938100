"""Say who is in which group of an optimizer, and what an edit made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Final, Protocol, TypeAlias, runtime_checkable

from ckpt_surgery.checkpoint.description import Tensor
from ckpt_surgery.pickles import Node
from ckpt_surgery.startup.lazy_dataclass import dataclass
from ckpt_surgery.training.optimizers.recognise import Key, OptimizerState

HINT: Final = "'--optimizer drop' leaves the optimizer out, '--optimizer keep' leaves it as it is"


class MomentChange(Protocol):
    """What is done to the moments of a parameter, as it was done to the parameter itself."""

    def apply(self, moment: Tensor, beginning: float) -> Tensor | None:
        """Return the changed moment; None if it cannot be changed, and has to begin anew.

        New elements are what they would be before the first step: `beginning`.
        """


@runtime_checkable
class MomentMaker(Protocol):
    """What makes the moments of a new parameter from those of the old ones that it is made of."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the old parameters, in the order in which their moments are taken."""

    def make(self, moments: Sequence[Tensor], beginning: float) -> Tensor | None:
        """Return the new moment, of one of each old parameter; None if it has to begin anew."""


@dataclass(frozen=True, slots=True)
class Target:
    """A parameter of the model that the optimizer is to fit, in the order of `parameters()`.

    `source` is its name in the checkpoint, None if it is new. Its state is carried over, or with
    `reset` left out (an optimizer begins anew with such a parameter), or has the tensors of
    `moments` put in, by their name (``exp_avg``), which `change` made. `ndim` counts its axes; a
    new one joins the group `home`, if that is said. One that is `made_of` parts of others, by their
    names in the checkpoint, has a state of its own, which `change` makes of theirs.
    """

    name: str
    source: str | None
    reset: bool = False
    moments: Mapping[str, Node] = field(default_factory=dict)
    change: MomentChange | MomentMaker | None = None
    ndim: int = 1
    home: int | None = None
    made_of: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Member:
    """A parameter in its group: its old key (None: new), what name is stored, what state it gets.

    `name` None leaves the name that is stored, if any. With `reset` it begins anew; `moments` are
    tensors to put in, by their name, and `change` is what makes them. A new one that is made of
    others has their keys in `made_of`; its state is that of the first, with all tensors put in.
    """

    key: Key | None
    name: str | None = None
    reset: bool = False
    moments: Mapping[str, Node] = field(default_factory=dict)
    change: MomentChange | MomentMaker | None = None
    made_of: tuple[Key, ...] = ()


Groups: TypeAlias = tuple[tuple[Member, ...], ...]


@dataclass(frozen=True, slots=True)
class Edited:
    """An edited optimizer. `node` is the old one, the same object, if nothing changed.

    `groups`: its parameters by now, group by group, from which `rebuild` makes the node.
    `removed`: names of parameters that left; `added`: names that came, without state, into the
    groups at the positions `homes`; `reset`: names whose state was left out; `emptied`: positions
    of groups that lost their last parameter.
    """

    node: Node
    groups: Groups
    removed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    homes: tuple[int, ...] = ()
    reset: tuple[str, ...] = ()
    emptied: tuple[int, ...] = ()


def stored_names(optimizer: OptimizerState) -> dict[Key, str]:
    """Return the names that the optimizer itself has, as it spells them."""
    names: dict[Key, str] = {key: key for key in optimizer.keys if isinstance(key, str)}
    for group in optimizer.groups:
        names.update(zip(group.keys, group.names or (), strict=False))
    return names


def members_of(optimizer: OptimizerState) -> Groups:
    """Return the groups of an optimizer as they are."""
    return tuple(tuple(Member(key) for key in group.keys) for group in optimizer.groups)
