"""The numbers of adapted tensors, against independent references."""

from __future__ import annotations

import math
from math import prod, sqrt

import pytest
import torch
from torch import Tensor, nn

from ckpt_surgery.fit.adaptations import (
    CHANNEL_METHODS,
    KINDS,
    Adaptation,
    AdaptRule,
    ChannelMethod,
    Classes,
    adaptation,
)
from ckpt_surgery.fit.fills import _FILL_KINDS, Fill, _FillKind
from ckpt_surgery.fit.grids import Grids
from ckpt_surgery.fit.values import _adapt, _adapt_channels, _filled

SHAPE = tuple[int, ...]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def adapted(
    name: str, source: Tensor, shape: SHAPE, initial: Tensor | None = None, **options: Classes
) -> Tensor:
    how = adaptation(
        name, tuple(source.shape), shape, [AdaptRule(kind) for kind in KINDS], **options
    )
    assert how is not None
    return _adapt(how, source, shape, None if initial is None else lambda: initial)


def timm_adapt_input_conv(in_chans: int, conv_weight: Tensor) -> Tensor:
    """What timm.models._manipulate.adapt_input_conv does to a three-channel stem, written anew."""
    wanted = conv_weight.double()
    if in_chans == 1:
        result = wanted[:, 0:1] + wanted[:, 1:2] + wanted[:, 2:3]
    elif in_chans == 3:
        result = wanted
    else:
        planes = [wanted[:, index % 3] * (3 / in_chans) for index in range(in_chans)]
        result = torch.stack(planes, dim=1)
    return result.to(conv_weight.dtype)


@pytest.mark.parametrize("channels", [1, 2, 4, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_repeated_channels_are_those_of_timm(channels: int, dtype: torch.dtype) -> None:
    weight = torch.randn(8, 3, 7, 7).to(dtype)
    found = _adapt_channels(weight, channels, "repeat", scaled=True)
    torch.testing.assert_close(found, timm_adapt_input_conv(channels, weight))
    assert found.dtype == dtype


@pytest.mark.parametrize("channels", [1, 2, 4, 10])
@pytest.mark.parametrize("method", ["repeat", "mean"])
def test_scaling_keeps_the_response_to_equal_channels(channels: int, method: str) -> None:
    # equal channels, so that it does not matter which of them 'repeat' has once more
    weight = torch.rand(4, 3, 3, 3).mean(dim=1, keepdim=True).repeat(1, 3, 1, 1)
    found = _adapt_channels(weight, channels, method, scaled=True)  # type: ignore[arg-type]
    torch.testing.assert_close(found.sum(dim=1), weight.sum(dim=1))


def test_the_mean_of_the_colours_is_in_every_new_channel() -> None:
    weight = torch.randn(4, 3, 5, 5)
    found = _adapt_channels(weight, 10, "mean")
    for channel in range(10):
        torch.testing.assert_close(found[:, channel], weight.sum(dim=1) / 3)


@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 3, 5, 5), (4, 3, 2, 5, 5)])
def test_old_channels_are_kept_beside_zeros_or_copies_of_the_first(shape: SHAPE) -> None:
    weight = torch.randn(shape)
    zero, first = _adapt_channels(weight, 5, "zero"), _adapt_channels(weight, 5, "first")
    assert torch.equal(zero[:, :3], weight)
    assert torch.equal(first[:, :3], weight)
    assert not zero[:, 3:].any()
    assert torch.equal(first[:, 3], weight[:, 0])
    assert torch.equal(first[:, 4], weight[:, 0])
    assert torch.equal(_adapt_channels(weight, 2, "zero"), weight[:, :2])
    assert torch.equal(_adapt_channels(weight, 2, "first"), weight[:, :2])
    halves = _adapt_channels(weight, 6, "zero", scaled=True)
    torch.testing.assert_close(halves[:, :3], weight / 2)


def test_channels_are_adapted_through_their_rule() -> None:
    weight = torch.randn(4, 3, 5, 5)
    how = Adaptation("channels", "mean")
    assert torch.equal(_adapt(how, weight, (4, 7, 5, 5)), _adapt_channels(weight, 7, "mean"))


def test_squeezing_keeps_the_numbers() -> None:
    weight = torch.randn(10, 512)
    found = adapted("c.weight", weight, (10, 512, 1, 1))
    assert torch.equal(found[:, :, 0, 0], weight)
    assert torch.equal(adapted("c.weight", found, (10, 512)), weight)


@pytest.mark.parametrize("size", [(7,), (7, 7), (2, 3, 4)])
def test_a_convolution_over_everything_is_the_linear_layer_after_flatten(size: SHAPE) -> None:
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(size)]
    convolution = kind(8, 12, size).double()
    linear = nn.Linear(8 * prod(size), 12).double()
    weight = adapted("fc6.weight", convolution.weight.detach(), tuple(linear.weight.shape))
    linear.load_state_dict({"weight": weight, "bias": convolution.bias})
    images = torch.randn(2, 8, *size, dtype=torch.float64)
    torch.testing.assert_close(linear(images.flatten(1)), convolution(images).flatten(1))
    back = adapted("fc6.weight", weight, tuple(convolution.weight.shape))
    assert torch.equal(back, convolution.weight)


def test_positions_go_to_a_grid_that_is_no_square() -> None:
    """Each column of a grid of equal rows stays as wide, whatever the number of rows."""
    column = torch.randn(6, 4, dtype=torch.float64)
    square = column.repeat(6, 1)  # six rows of six
    prefix = torch.randn(1, 4, dtype=torch.float64)
    rules = [AdaptRule("interpolate", grids=Grids((4, 6)))]
    how = adaptation("pos_embed", (1, 37, 4), (1, 25, 4), rules)
    found = _adapt(how, torch.cat([prefix, square])[None], (1, 25, 4))
    torch.testing.assert_close(found[0], torch.cat([prefix, column.repeat(4, 1)]))
    table = torch.randn(9, 2, dtype=torch.float64)
    how = adaptation("x.relative_position_bias_table", (9, 2), (3 * 5, 2),
                     [AdaptRule("interpolate", grids=Grids((2, 3)))])  # fmt: skip
    image = nn.functional.interpolate(table.T.reshape(1, 2, 3, 3), size=(3, 5), mode="bicubic")
    torch.testing.assert_close(_adapt(how, table, (15, 2)), image[0].flatten(1).T)


def test_rows_follow_their_class_and_new_ones_are_initial() -> None:
    source, initial = torch.randn(3, 8), torch.randn(4, 8)
    classes = Classes(("cat", "dog", "eel"), ("eel", "fox", "cat", "gnu"))
    found = adapted("fc.weight", source, (4, 8), initial, classes=classes)
    assert torch.equal(found[0], source[2])
    assert torch.equal(found[2], source[0])
    assert torch.equal(found[1], initial[1])
    assert torch.equal(found[3], initial[3])


def test_an_initial_value_is_not_written_into() -> None:
    source, initial = torch.ones(2, 2), torch.zeros(3, 2)
    adapted("wte.weight", source, (3, 2), initial)
    assert not initial.any()


def test_overlap_is_the_common_leading_block() -> None:
    source, initial = torch.randn(6, 4, 3, 3), torch.randn(5, 7, 3, 1)
    found = adapted("c.weight", source, (5, 7, 3, 1), initial)
    expected = initial.clone()
    for i in range(5):
        for j in range(4):
            expected[i, j, :, 0] = source[i, j, :, 0]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["rows", "overlap"])
def test_partial_adaptations_ask_for_an_initial_value(kind: str) -> None:
    with pytest.raises(ValueError, match="needs an initial value"):
        _adapt(Adaptation(kind, rows=((0, 0),)), torch.zeros(2), (3,))  # type: ignore[arg-type]


def cubic(x: float, a: float) -> float:
    """Keys' convolution kernel (1981)."""
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resampling(old: int, new: int, *, antialias: bool) -> Tensor:
    """The matrix (new, old) of cubic resampling with half-pixel centres, from the definition.

    With antialiasing the kernel has a = -0.5, is widened when shrinking, and is cut and normalised
    at the border (as in Pillow); without, it has a = -0.75 and repeats the border.
    """
    scale = old / new
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for row in range(new):
        centre = (row + 0.5) * scale - 0.5
        width = max(scale, 1.0) if antialias else 1.0
        reach = math.ceil(2 * width) + 1
        for place in range(math.floor(centre) - reach, math.floor(centre) + reach + 1):
            weight = cubic((place - centre) / width, -0.5 if antialias else -0.75)
            if 0 <= place < old or not antialias:
                matrix[row, min(max(place, 0), old - 1)] += weight
        if antialias:
            matrix[row] /= matrix[row].sum()
    return matrix


def resampled_grid(grid: Tensor, new: int, *, antialias: bool) -> Tensor:
    """(old, old, dim) to (new, new, dim)."""
    matrix = resampling(len(grid), new, antialias=antialias)
    return torch.einsum("ih,jw,hwd->ijd", matrix, matrix, grid.double()).float()


@pytest.mark.parametrize(("old", "new"), [(14, 24), (14, 7), (7, 16)])
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_position_embeddings_are_resampled_around_their_prefix(
    old: int, new: int, prefix: int
) -> None:
    source = torch.randn(1, prefix + old * old, 6)
    found = adapted("encoder.pos_embedding", source, (1, prefix + new * new, 6))
    assert torch.equal(found[:, :prefix], source[:, :prefix])
    expected = resampled_grid(source[0, prefix:].reshape(old, old, 6), new, antialias=True)
    torch.testing.assert_close(
        found[0, prefix:].reshape(new, new, 6), expected, atol=1e-5, rtol=1e-4
    )


def test_position_embeddings_without_a_batch_axis_are_the_same() -> None:
    source = torch.randn(1 + 49, 6)
    flat = adapted("positional_embedding", source, (1 + 64, 6))
    assert torch.equal(flat, adapted("pos_embed", source[None], (1, 1 + 64, 6))[0])


def test_a_map_of_positions_is_resampled() -> None:
    source = torch.randn(1, 6, 8, 8)
    found = adapted("pos_embed", source, (1, 6, 12, 12))
    expected = resampled_grid(source[0].permute(1, 2, 0), 12, antialias=True)
    torch.testing.assert_close(found[0].permute(1, 2, 0), expected, atol=1e-5, rtol=1e-4)


def test_a_map_whose_positions_come_first_is_resampled() -> None:
    """As Segment Anything keeps it: (1, h, w, dim)."""
    source = torch.randn(1, 8, 8, 6)
    found = adapted("pos_embed", source, (1, 12, 12, 6))
    expected = resampled_grid(source[0], 12, antialias=True)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("old", "new"), [(7, 12), (8, 7)])
@pytest.mark.parametrize("extra", [0, 3])
def test_relative_position_tables_are_resampled(old: int, new: int, extra: int) -> None:
    side, wanted = 2 * old - 1, 2 * new - 1
    source = torch.randn(side * side + extra, 4)
    found = adapted("a.relative_position_bias_table", source, (wanted * wanted + extra, 4))
    expected = resampled_grid(source[: side * side].reshape(side, side, 4), wanted, antialias=False)
    torch.testing.assert_close(
        found[: wanted * wanted].reshape(wanted, wanted, 4), expected, atol=1e-5, rtol=1e-4
    )
    assert torch.equal(found[wanted * wanted :], source[side * side :])


def test_relative_axes_are_resampled_linearly() -> None:
    ramp = torch.arange(9.0)[:, None].repeat(1, 2)
    found = adapted("attn.rel_pos_h", ramp, (5, 2))
    centres = (torch.arange(5.0) + 0.5) * 9 / 5 - 0.5
    torch.testing.assert_close(found[:, 0], centres)


def test_interpolation_keeps_the_element_type_and_a_constant() -> None:
    source = torch.full((1, 1 + 196, 4), 0.25, dtype=torch.float16)
    found = adapted("pos_embed", source, (1, 1 + 576, 4))
    assert found.dtype == torch.float16
    assert found.is_contiguous()
    torch.testing.assert_close(found, torch.full((1, 577, 4), 0.25, dtype=torch.float16))


@pytest.mark.parametrize(
    ("fill", "mean", "spread"),
    [
        (Fill("zeros"), 0.0, 0.0),
        (Fill("ones"), 1.0, 0.0),
        (Fill("constant", -2.5), -2.5, 0.0),
        (Fill("normal", 0.1), 0.0, 0.1),
        (Fill("uniform", 0.3), 0.0, 0.3 / sqrt(3)),
        (Fill("kaiming"), 0.0, sqrt(2 / (64 * 9))),
        (Fill("xavier"), 0.0, sqrt(2 / (64 * 9 + 128 * 9))),
    ],
)
def test_fills_have_their_distribution(fill: Fill, mean: float, spread: float) -> None:
    values = _filled(fill, "c.weight", (64, 128, 3, 3), torch.float32, seed=1)
    assert values.shape == (64, 128, 3, 3)
    assert values.mean().item() == pytest.approx(mean, abs=0.01 * (spread + 1e-9))
    assert values.std().item() == pytest.approx(spread, rel=0.02, abs=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in _FILL_KINDS if kind != "init"])
def test_fills_depend_on_seed_and_name_alone(kind: str) -> None:
    fill = Fill(kind, 0.5)  # type: ignore[arg-type]
    one = _filled(fill, "a", (9, 9), torch.float32, seed=1)
    torch.manual_seed(77)
    assert torch.equal(_filled(fill, "a", (9, 9), torch.float32, seed=1), one)
    drawn = kind in ("normal", "uniform", "kaiming", "xavier")
    for name, seed in (("b", 1), ("a", 2)):
        other = _filled(fill, name, (9, 9), torch.float32, seed=seed)
        assert torch.equal(other, one) != drawn


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64])
def test_fills_have_the_element_type_asked_for(dtype: torch.dtype) -> None:
    assert _filled(Fill("ones"), "a", (3,), dtype, seed=0).dtype == dtype


def test_a_constant_is_exact_where_floats_are_not() -> None:
    big = 2.0**53 - 1
    assert (
        _filled(Fill("constant", big), "a", (2,), torch.int64, seed=0).tolist() == [2**53 - 1] * 2
    )
    assert _filled(Fill("ones"), "a", (2,), torch.bool, seed=0).tolist() == [True, True]


@pytest.mark.parametrize("kind", ["normal", "kaiming"])
def test_complex_fills_have_an_imaginary_part_of_the_same_spread(kind: _FillKind) -> None:
    values = _filled(Fill(kind, 0.1), "a", (300, 300), torch.complex64, seed=0)
    spreads = values.real.std().item(), values.imag.std().item()
    assert spreads[0] > 0
    assert spreads[1] == pytest.approx(spreads[0], rel=0.02)


@pytest.mark.parametrize("kind", ["kaiming", "xavier"])
@pytest.mark.parametrize("shape", [(0, 0), (0, 3)])
def test_an_empty_tensor_is_filled(kind: _FillKind, shape: tuple[int, ...]) -> None:
    assert _filled(Fill(kind), "a", shape, torch.float32, seed=0).shape == shape


@pytest.mark.parametrize("method", CHANNEL_METHODS)
def test_complex_channels_are_adapted_as_their_parts_are(method: ChannelMethod) -> None:
    weight = torch.randn(2, 3, 1, 1, dtype=torch.complex64)
    found = _adapt_channels(weight, 5, method, scaled=True)
    assert found.dtype == torch.complex64
    parts = [_adapt_channels(part, 5, method, scaled=True) for part in (weight.real, weight.imag)]
    torch.testing.assert_close(found, torch.complex(*parts))


def test_the_models_own_initialisation_is_not_a_fill() -> None:
    with pytest.raises(ValueError, match="own initialisation"):
        _filled(Fill("init"), "a", (3,), torch.float32, seed=0)
