"""A target's own initial values, for chosen tensors only.

The model's constructor is run again with the chosen parameters on the CPU and all others on the
meta device, so what comes out is exactly what the model gives itself, and memory holds one group
of chosen tensors at a time. Where that cannot work (a constructor that runs its network, or
computes one parameter from another) the whole model is constructed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from ckpt_surgery.errors import ConstructionError
from ckpt_surgery.models.building import (
    find_factory,
    read_state_dict,
    run_factory,
)
from ckpt_surgery.models.construction import ParametersOnMeta, seeded
from ckpt_surgery.models.specs import ModelSpec

_DEFAULT_BUDGET = 256 * 2**20
"""Bytes of chosen tensors that are held at a time (one tensor may be larger)."""


class InitialValues:
    """The initial values of `names` in the model `spec`, drawn from `seed`.

    A value depends on the seed and the model alone: neither on the other names nor on the order
    in which they are asked for. Asking in the order of `names` builds each group once.
    """

    def __init__(
        self, spec: ModelSpec, names: Iterable[str], seed: int, *, budget: int = _DEFAULT_BUDGET
    ) -> None:
        self.spec = spec
        self.names = tuple(names)
        self.seed = seed
        self.budget = budget
        self._factory = find_factory(spec)
        self._ordinals: dict[str, tuple[int, ...]] | None = None
        self._groups: dict[str, tuple[str, ...]] = {}
        self._held: dict[str, torch.Tensor] = {}
        self._prepare()

    def tensor(self, name: str) -> torch.Tensor:
        """Return the initial value of `name`, on the CPU; raises
        KeyError if it is not one of `names`.
        """
        if name not in self._held:
            group = self._groups[name]
            self._held = {}
            self._held = self._construct(group)
        return self._held[name]

    def _prepare(self) -> None:
        """Learn which registrations make which tensor, and divide the names into groups."""
        recorder = ParametersOnMeta()
        try:
            model = run_factory(self.spec, self._factory, seeded(self.seed, recorder))
        except ConstructionError:
            self._groups = dict.fromkeys(self.names, self.names)
            return
        state = read_state_dict(model, self.spec.text)
        made: dict[int, list[int]] = {}
        for ordinal, parameter in enumerate(recorder.registered):
            made.setdefault(id(parameter), []).append(ordinal)
        self._ordinals = {name: tuple(made.get(id(state[name]), ())) for name in self.names}
        for group in self._divide(state):
            self._groups.update(dict.fromkeys(group, group))

    def _divide(self, state: dict[str, torch.Tensor]) -> list[tuple[str, ...]]:
        groups: list[list[str]] = [[]]
        size = 0
        for name in self.names:
            nbytes = state[name].numel() * state[name].element_size()
            if groups[-1] and size + nbytes > self.budget:
                groups.append([])
                size = 0
            groups[-1].append(name)
            size += nbytes
        return [tuple(group) for group in groups]

    def _construct(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        if self._ordinals is not None:
            keep = {ordinal for name in names for ordinal in self._ordinals[name]}
            try:
                values = self._run(names, ParametersOnMeta(keep))
            except ConstructionError:
                values = {}
            if values and not any(value.is_meta for value in values.values()):
                return values
            self._ordinals = None
        return self._run(names, ParametersOnMeta(keep=None))

    def _run(self, names: Sequence[str], parameters: ParametersOnMeta) -> dict[str, torch.Tensor]:
        model = run_factory(self.spec, self._factory, seeded(self.seed, parameters))
        state = read_state_dict(model, self.spec.text)
        return {name: state[name].detach() for name in names}
