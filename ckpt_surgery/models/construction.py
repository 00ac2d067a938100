"""Running a model's constructor without its weights, or with those of chosen parameters only."""

from __future__ import annotations

import contextlib
import hashlib
import random
import sys
import weakref
from collections import Counter
from collections.abc import Collection, Iterator
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode


class ParametersOnMeta:
    """Moves parameters to the meta device as modules register them, except `keep` (None: all).

    Unlike ``torch.device("meta")`` it leaves every other tensor that a constructor computes with
    (RegNets compute their widths with tensors) on the CPU. Parameters are known by the ordinal of
    their registration, which is the same in every run of a deterministic constructor. What a
    module allocates before it registers (``torch.empty``) is released at once.
    """

    def __init__(self, keep: Collection[int] | None = ()) -> None:
        self.keep = keep
        self.registered: list[nn.Parameter] = []
        """What each registration resulted in, in order."""
        self._places: dict[int, int] = {}
        self._moved: dict[int, tuple[weakref.ref[nn.Parameter], nn.Parameter]] = {}

    def __enter__(self) -> ParametersOnMeta:
        hook: Any = self._register  # annotated by torch as returning None, documented otherwise
        self._handle = register_module_parameter_registration_hook(hook)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._handle.remove()

    def _register(self, _module: nn.Module, _name: str, parameter: nn.Parameter) -> nn.Parameter:
        result = parameter
        if not (parameter.is_meta or self._is_kept(len(self.registered))):
            result = self._on_meta(parameter)
        if not (result.is_meta or is_lazy(result)):
            self._places.setdefault(result.untyped_storage().data_ptr(), len(self.registered))
        self.registered.append(result)
        return result

    def _is_kept(self, ordinal: int) -> bool:
        return self.keep is None or ordinal in self.keep

    def ordinal_of(self, tensor: torch.Tensor) -> int | None:
        """Return the first registration of the kept parameter that `tensor` is, or is a view of."""
        return self._places.get(tensor.untyped_storage().data_ptr())

    def _on_meta(self, parameter: nn.Parameter) -> nn.Parameter:
        # a parameter that two modules share stays one
        known = self._moved.get(id(parameter))
        if known is not None and known[0]() is parameter:
            return known[1]
        moved = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        self._moved[id(parameter)] = (weakref.ref(parameter), moved)
        return moved


class _SeededOperations(TorchDispatchMode):
    """Gives every random operation a stream of its own, from a seed and from what is being drawn.

    That is a parameter, known by its registration, or a tensor of some size between two
    registrations. So the initial value of a parameter depends on the seed alone, and not on which
    of the others were on the meta device, where nothing is drawn (or not even attempted:
    ``trunc_normal_`` returns at once, and otherwise draws until all values are inside).
    """

    def __init__(self, seed: int, parameters: ParametersOnMeta) -> None:
        super().__init__()
        self.seed = seed
        self.parameters = parameters
        self._drawn: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self._choose_stream(args[0] if args else None)
        return func(*args, **(kwargs or {}))

    def _choose_stream(self, subject: object) -> None:
        """`subject` is the tensor that is filled, or the size of a new one."""
        label = f"{subject} after {len(self.parameters.registered)}"
        if isinstance(subject, torch.Tensor):
            if subject.is_meta:
                return
            ordinal = self.parameters.ordinal_of(subject)
            label = (
                f"{list(subject.shape)} after {len(self.parameters.registered)}"
                if ordinal is None
                else f"parameter {ordinal}"
            )
        stream = f"{label} {self._drawn[label]}"
        self._drawn[label] += 1
        torch.default_generator.manual_seed(derive_seed(self.seed, stream))


def derive_seed(seed: int, label: str) -> int:
    """Return a seed of 63 bits for the stream called `label`, the same on every machine."""
    digest = hashlib.sha256(f"{seed}:{label}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@contextlib.contextmanager
def seeded(seed: int, parameters: ParametersOnMeta) -> Iterator[None]:
    """Draw from `seed` inside, in torch, `random` and numpy (if loaded); restore them after."""
    numpy: Any = sys.modules.get("numpy")
    state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy is not None else None
    try:
        with parameters, torch.random.fork_rng(devices=[]), _SeededOperations(seed, parameters):
            random.seed(derive_seed(seed, "random"))
            if numpy is not None:
                numpy.random.seed(derive_seed(seed, "numpy") % 2**32)
            yield
    finally:
        random.setstate(state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)
