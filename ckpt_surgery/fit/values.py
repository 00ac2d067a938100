"""The values of adapted tensors, and of filled ones."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional

from ckpt_surgery.compute.casting import work_dtype
from ckpt_surgery.compute.casts import CastCount
from ckpt_surgery.compute.rounding import converted
from ckpt_surgery.fit.adaptations import Adaptation, ChannelMethod
from ckpt_surgery.fit.fills import Fill
from ckpt_surgery.fit.items import FitItem
from ckpt_surgery.models.construction import derive_seed
from ckpt_surgery.models.target import Shape

_Casts = Callable[[CastCount], None]
"""Told what a conversion did to the elements of a tensor."""


def fitted(
    item: FitItem,
    load: Callable[[str], Tensor],
    initial: Callable[[FitItem], Tensor],
    casts: _Casts | None = None,
) -> Tensor:
    """Return the value of one planned tensor, contiguous, of ``item.shape`` and ``item.dtype``.

    `load` reads a tensor of the checkpoint by its name there; `initial` makes an initial value
    and is called only if ``item.needs_initial``. For a tied tensor this is its leader's value.
    `casts` is told what the conversion to ``item.dtype`` did, and may refuse it.
    """
    if item.status == "initial" or item.source is None:
        value = initial(item)
    elif item.adaptation is not None:
        value = _adapt(item.adaptation, load(item.source), item.shape, lambda: initial(item))
    else:
        value = load(item.source).reshape(item.shape)
    result, count = converted(value.reshape(-1), getattr(torch, item.dtype))
    if casts is not None:
        casts(count)
    return result.reshape(value.shape).contiguous()


def initial_value(item: FitItem, seed: int, own: Callable[[str], Tensor]) -> Tensor:
    """Return what `item` starts from: its fill, or else the target's `own` value of that name."""
    if item.fill is None or item.fill.kind == "init":
        return own(item.name)
    return _filled(item.fill, item.name, item.shape, getattr(torch, item.dtype), seed)


def _adapt(
    how: Adaptation, source: Tensor, shape: Shape, initial: Callable[[], Tensor] | None = None
) -> Tensor:
    """`source` carried into `shape`, in `source`'s element type.

    `initial` makes the target's initial value, of `shape`; it is called only if
    ``how.needs_initial``, and what comes out then has a type that has both's numbers.
    """
    if how.kind in ("squeeze", "reshape"):
        return source.reshape(shape)
    if how.kind == "interpolate":
        return _interpolate(how, source, shape)
    if how.kind == "channels":
        return _adapt_channels(source, shape[1], how.method, scaled=how.scaled)
    if initial is None:
        raise ValueError(f"'{how.kind}' needs an initial value")
    beginning = initial()
    result = beginning.to(_common(source.dtype, beginning.dtype), copy=True)
    if how.kind == "rows":
        to, came = (torch.tensor(rows) for rows in zip(*how.rows, strict=True))
        result[to] = source[came].to(result.dtype)
    else:
        block = tuple(slice(min(a, b)) for a, b in zip(source.shape, shape, strict=True))
        result[block] = source[block].to(result.dtype)
    return result


def _common(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """Return a type that has the numbers of both."""
    if one == other:
        return one
    if one.is_complex or other.is_complex:
        return torch.promote_types(one, other)
    return work_dtype([one, other])


def adapt_moment(how: Adaptation, moment: Tensor, shape: Shape, beginning: float = 0.0) -> Tensor:
    """Return a moment that an optimizer keeps of a parameter, carried
    into `shape` as the parameter is.

    What is new has the value `beginning`, as before the first step. A moment without negative
    elements (an average of squares) gets none, which interpolation alone would not see to.
    """
    result = _adapt(how, moment, shape, lambda: torch.full(shape, beginning, dtype=moment.dtype))
    if how.kind == "channels" and how.method == "zero":
        result[:, moment.shape[1] :] = beginning
    return result.clamp_min(0) if bool((moment >= 0).all()) else result


def _adapt_channels(
    weight: Tensor, channels: int, method: ChannelMethod, *, scaled: bool = False
) -> Tensor:
    """Return a convolution's weight (out, in, ...) for another number of input channels.

    ``repeat``  its channels over and over (the practice of timm's ``adapt_input_conv``, with
                `scaled`; there one channel takes their sum, here too)
    ``mean``    their mean in every channel (the practice for optical flow: Wang et al., Temporal
                Segment Networks, 2016, section 3.2)
    ``zero``    its own channels, then zeros
    ``first``   its own channels, then copies of the first

    `scaled` multiplies by old over new channels, which keeps the response to channels of equal
    magnitude. Computed in float32 at least; the element type is kept.
    """
    old = weight.shape[1]
    values = weight.to(_computing(weight.dtype))
    if method == "mean" or (method == "repeat" and channels == 1):
        # one channel: the scaled mean is the sum
        result = _like(values.mean(dim=1, keepdim=True), channels)
    elif method == "repeat":
        copies = [1, ceil(channels / old)] + [1] * (weight.dim() - 2)
        result = values.repeat(copies)[:, :channels]
    else:
        extra = values[:, :1] if method == "first" else torch.zeros_like(values[:, :1])
        result = torch.cat([values, _like(extra, max(channels - old, 0))], dim=1)[:, :channels]
    if scaled:
        result = result * (old / channels)
    return result.to(weight.dtype)


def _like(channel: Tensor, channels: int) -> Tensor:
    return channel.expand(-1, channels, *channel.shape[2:])


def _computing(dtype: torch.dtype) -> torch.dtype:
    if dtype.is_complex:
        return torch.complex128 if dtype == torch.complex128 else torch.complex64
    return torch.float64 if dtype == torch.float64 else torch.float32


def _interpolate(how: Adaptation, source: Tensor, shape: Shape) -> Tensor:
    values = source.to(_computing(source.dtype))
    if how.grid == "axis":
        # as MViT's authors do at run time (Li et al., MViTv2, 2022, get_rel_pos): linear
        rows = values.T[None]
        result = functional.interpolate(rows, size=shape[0], mode="linear")[0].T
    elif how.grid == "map":
        result = _resample(values, shape[2], shape[3])
    elif how.grid == "last":
        image = values.permute(0, 3, 1, 2)
        result = _resample(image, shape[1], shape[2]).permute(0, 2, 3, 1)
    elif how.grid == "table":
        result = _resample_table(values, how)
    else:
        result = _resample_tokens(values, how).reshape(shape)
    return result.to(source.dtype).contiguous()


def _resample(grid: Tensor, height: int, width: int) -> Tensor:
    """(n, c, h, w) bicubic with antialiasing, as timm's ``resample_abs_pos_embed`` does."""
    return functional.interpolate(grid, size=(height, width), mode="bicubic", antialias=True)


def _resample_tokens(values: Tensor, how: Adaptation) -> Tensor:
    """([1,] prefix + h·w, dim) to another grid, as (prefix + h·w, dim); the prefix is kept."""
    tokens = values.reshape(-1, values.shape[-1])
    prefix, grid = tokens[: how.prefix_tokens], tokens[how.prefix_tokens :]
    image = grid.reshape(1, *how.old_size, -1).permute(0, 3, 1, 2)
    resampled = _resample(image, *how.new_size).permute(0, 2, 3, 1)
    return torch.cat([prefix, resampled.reshape(-1, values.shape[-1])])


def _resample_table(values: Tensor, how: Adaptation) -> Tensor:
    """((2h-1)·(2w-1) + extra, heads), bicubic; the extra rows come last (BEiT) and are kept.

    Swin's authors resample so when they load (``load_pretrained`` in their ``utils.py``), without
    antialiasing: a table of distances has no finer detail to alias.
    """
    count = len(values) - how.prefix_tokens
    image = values[:count].T.reshape(1, -1, *how.old_size)
    resampled = functional.interpolate(image, size=how.new_size, mode="bicubic")
    return torch.cat([resampled.flatten(2)[0].T, values[count:]])


def _filled(fill: Fill, name: str, shape: Shape, dtype: torch.dtype, seed: int) -> Tensor:
    """Return a tensor filled as `fill` says, from a stream of `seed` that is `name`'s own.

    ``kaiming`` is normal with fan out and the gain of ReLU (He et al., 2015), ``xavier`` uniform
    (Glorot and Bengio, 2010). Raises ValueError for ``init``, which only the model's own
    constructor can do, and for what `fills.require_fillable` refuses.
    """
    if fill.kind in ("zeros", "ones", "constant") and not (
        dtype.is_floating_point or dtype.is_complex
    ):
        # not by way of floating point, which has not every integer
        number = int({"zeros": 0.0, "ones": 1.0}.get(fill.kind, fill.value))
        return torch.full(shape, number, dtype=dtype)
    values = torch.empty(shape, dtype=_computing(dtype))
    generator = torch.Generator().manual_seed(derive_seed(seed, f"fill {name}"))
    if not values.numel():
        return values.to(dtype)
    if fill.kind == "kaiming":
        nn.init.kaiming_normal_(values, mode="fan_out", nonlinearity="relu", generator=generator)
    elif fill.kind == "xavier":
        nn.init.xavier_uniform_(values, generator=generator)
    elif fill.kind == "normal":
        values.normal_(0.0, fill.value, generator=generator)
    elif fill.kind == "uniform":
        values.uniform_(-fill.value, fill.value, generator=generator)
    elif fill.kind == "init":
        raise ValueError("'init' is the model's own initialisation")
    else:
        values.fill_({"zeros": 0.0, "ones": 1.0}.get(fill.kind, fill.value))
    return values.to(dtype)
