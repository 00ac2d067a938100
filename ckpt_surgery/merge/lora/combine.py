"""Several adapters as one: their factors put together, or the best of a rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ckpt_surgery.checkpoint.description import Tensor
from ckpt_surgery.errors import MismatchError, UsageError
from ckpt_surgery.fileio.parallel import shown
from ckpt_surgery.merge.lora.layers import Layer
from ckpt_surgery.merge.lora.parts import PEFT_PREFIX, Module
from ckpt_surgery.merge.lora.plan import Adapter

if TYPE_CHECKING:
    import torch

    from ckpt_surgery.writing.output import ProgressBar


def combine(
    adapters: Sequence[Adapter], rank: int | None, progress: ProgressBar | None = None
) -> list[Layer]:
    """Return the layers whose products are the sums of all adapters' products, scales included.

    Without `rank` factors stand side by side, and nothing is lost; with it each layer is cut to
    that rank by its singular values. A layer that only some adapters have comes from those. Bytes
    of factors that are done are shown.

    Raises `UsageError` for what is no plain product of two factors, and `MismatchError` for
    layers of different shapes.
    """
    modules: dict[str, list[tuple[Adapter, Module]]] = {}
    for adapter in adapters:
        _require_plain(adapter)
        for name, module in adapter.parts.modules.items():
            modules.setdefault(name.removeprefix(PEFT_PREFIX), []).append((adapter, module))
    sizes = {name: sum(map(_nbytes, found)) for name, found in modules.items()}
    layers = []
    with shown(progress, sum(sizes.values())) as tally:
        for name, found in modules.items():
            layers.append(_combined(name, found, rank))
            tally(sizes[name])
    return layers


def _nbytes(part: tuple[Adapter, Module]) -> int:
    return sum(entry.tensor.nbytes for entry in part[1].entries.values() if entry.tensor)


def _require_plain(adapter: Adapter) -> None:
    label = adapter.file.label
    for module in adapter.parts.modules.values():
        for part, entry in module.entries.items():
            if part not in {"up", "down", "alpha"}:
                raise UsageError(
                    f"'{entry.name}' is more than a product of two factors",
                    path=label,
                    hint="fold such adapters into a model: ckpt merge -m lora",
                )
    for entry in adapter.parts.whole:
        raise UsageError(
            f"'{entry.name}' is a whole weight, which is no sum of products", path=label
        )


def _combined(name: str, found: Sequence[tuple[Adapter, Module]], rank: int | None) -> Layer:
    from ckpt_surgery.merge.lora.factors import concatenated, recompressed

    ups, downs, scales = [], [], []
    for adapter, module in found:
        right, left = module.tensor("down"), module.tensor("up")
        if right is None or left is None:
            raise UsageError(f"'{name}' has no factors", path=adapter.file.label)
        scales.append(adapter.product_scale(module, right))
        ups.append(_matrix(left))
        downs.append(_matrix(right))
    first = found[0][1]
    kinds = {(m.embedding, _inner(m, "up")[:1], _inner(m, "down")[1:]) for _, m in found}
    if len(kinds) > 1:
        raise MismatchError(f"the adapters are for other shapes of '{name}'", entry=name)
    up, down = concatenated(ups, downs, scales)
    error = 0.0
    if rank is not None and rank < down.shape[0]:
        up, down, error = recompressed(up, down, rank)
    return Layer(
        name,
        up.reshape(up.shape[0], up.shape[1], *_inner(first, "up")[2:]),
        down.reshape(down.shape[0], *_inner(first, "down")[1:]),
        error,
        first.embedding,
    )


def _inner(module: Module, part: str) -> tuple[int, ...]:
    tensor = module.tensor(part)
    return () if tensor is None else tensor.shape


def _matrix(tensor: Tensor) -> torch.Tensor:
    import torch

    from ckpt_surgery.compute.elements import load_elements

    loaded = load_elements(tensor)
    if loaded is None:
        raise TypeError(tensor.dtype)
    return loaded.to(torch.float64).reshape(tensor.shape[0], -1)
