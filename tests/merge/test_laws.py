"""Laws of merging, bit for bit, over any finite numbers: subnormal, huge, negative zero."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ckpt_surgery.merge.method import find
from ckpt_surgery.merge.pieces import merge_tensor

BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
law = settings(max_examples=50, deadline=None)
DTYPES = st.sampled_from(list(BITS))


def finite(dtype, numbers):
    """A tensor of the floats with these bits; NaN and infinity become 1."""
    width = 8 * dtype.itemsize
    wrapped = [(n + (1 << (width - 1))) % (1 << width) - (1 << (width - 1)) for n in numbers]
    tensor = torch.tensor(wrapped, dtype=BITS[dtype]).view(dtype)
    return torch.where(tensor.isfinite(), tensor, torch.ones_like(tensor))


@st.composite
def tensors(draw, count=None, dtype=None):
    """Some tensors of one type and length, with any finite bits."""
    dtype = dtype or draw(DTYPES)
    count = count or draw(st.integers(1, 6))
    length = draw(st.integers(1, 20))
    width = 8 * dtype.itemsize
    # small numbers are the patterns of zeros and subnormals, and those of -0.0 stand at the top
    pattern = st.one_of(
        st.integers(0, (1 << width) - 1),
        st.sampled_from([0, 1, 1 << (width - 1), (1 << (width - 1)) + 1]),
        st.sampled_from([1.0, -1.0, 3.0]).map(
            lambda x: int(torch.tensor(x, dtype=dtype).view(BITS[dtype]))
        ),
    )
    row = st.lists(pattern, min_size=length, max_size=length)
    return [finite(dtype, draw(row)) for _ in range(count)]


def bits(tensor):
    return tensor.view(BITS[tensor.dtype])


def same(left, right):
    return torch.equal(bits(left), bits(right))


def merge(name, inputs, base=None, *, weights=None, seed=0, **values):
    method = find(name)
    bound = method.bind(len(inputs), has_base=base is not None, weights=weights, values=values)
    return merge_tensor(method, bound, "w", inputs, base, seed=seed)


@law
@given(tensors(count=1), st.integers(1, 9))
def test_average_of_equal_files_is_the_file(made, count):
    assert same(merge("average", made * count), made[0])


@pytest.mark.parametrize("dtype", BITS, ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_average_of_the_largest_numbers_does_not_overflow(dtype, count):
    top = torch.finfo(dtype).max
    made = torch.tensor([top, -top, top / 2, 1.0], dtype=dtype)
    for name in ("average", "median"):
        assert same(merge(name, [made] * count), made)


@pytest.mark.parametrize(
    ("name", "values"),
    [("median", {}), ("ema", {"decay": 0.3}), ("linear", {}), ("geometric-median", {})],
)
@law
@given(made=tensors(count=1), count=st.integers(1, 7))
def test_other_means_of_equal_files_are_the_file(name, values, made, count):
    # float64 has no wider type to work in, and a third of it three times is not always it
    assume(made[0].dtype != torch.float64 or name == "median")
    assume(name != "geometric-median" or made[0].dtype != torch.float64)
    assert same(merge(name, made * count, **values), made[0])


@law
@given(tensors(), st.randoms(use_true_random=False))
def test_order_does_not_matter_for_average_and_median(made, random):
    shuffled = made[:]
    random.shuffle(shuffled)
    for name in ("average", "median"):
        assert same_up_to_zero_sign(merge(name, made), merge(name, shuffled))


def test_geometric_median_of_two_is_their_middle():
    torch.manual_seed(0)
    made = [torch.randn(1000) for _ in range(2)]
    middle = ((made[0].double() + made[1].double()) / 2).float()
    assert same(merge("geometric-median", made), middle)
    assert same(merge("geometric-median", made[::-1] * 2), middle)
    assert same(merge("geometric-median", made, weights=[1.0, 3.0]), made[1])


def same_up_to_zero_sign(left, right):
    """A median between -0.0 and 0.0 may be either."""
    return same(left + 0.0, right + 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [3, 4, 5])
def test_every_order_of_terms_that_cancel_gives_one_average(count, dtype):
    values = (2.0**100, -(2.0**100), 1.0, 2.0**-100, -3.0)[:count]
    terms = [torch.tensor([value], dtype=dtype) for value in values]
    results = {float(merge("average", list(order))) for order in itertools.permutations(terms)}
    assert len(results) == 1


@law
@given(tensors())
def test_average_stays_in_the_range_of_its_terms(made):
    merged = merge("average", made)
    stacked = torch.stack(made)
    assert bool((merged >= stacked.amin(0)).all())
    assert bool((merged <= stacked.amax(0)).all())


@law
@given(tensors(count=3), st.integers(0, 2), st.booleans())
def test_one_weight_alone_is_that_file(made, which, normalize):
    weights = [float(i == which) for i in range(3)]
    assert same(merge("linear", made, weights=weights, normalize=normalize), made[which])


@law
@given(tensors(count=3))
def test_weight_zero_is_a_weight(made):
    """It takes the file out, which differs from leaving the weight away."""
    merged = merge("linear", made, weights=[1, 0, 2])
    assert same(merged, merge("linear", [made[0], made[2]], weights=[1, 2]))


def test_weight_zero_differs_from_no_weight():
    made = [torch.ones(2), torch.full((2,), 5.0)]
    assert merge("linear", made, weights=[1, 0]).tolist() == [1.0, 1.0]
    assert merge("linear", made).tolist() == [3.0, 3.0]


@pytest.mark.parametrize("name", ["slerp", "lerp"])
@law
@given(made=tensors(count=2))
def test_interpolation_ends_at_its_ends(name, made):
    if made[0].dtype == torch.float64:  # a norm may overflow there, which is refused
        made = [tensor.clamp(-1e100, 1e100) for tensor in made]
    assert same(merge(name, made, t=0), made[0])
    assert same(merge(name, made, t=1), made[1])


@law
@given(tensors(count=2))
def test_slerp_is_symmetric(made):
    if made[0].dtype == torch.float64:
        made = [tensor.clamp(-1e100, 1e100) for tensor in made]
    forth, back = merge("slerp", made, t=0.25), merge("slerp", made[::-1], t=0.75)
    torch.testing.assert_close(forth, back)


@law
@given(tensors(count=2))
def test_ties_of_one_model_with_density_one_is_that_model(made):
    model, base = made
    merged = merge("ties", [model], base, density=1.0)
    assert same_up_to_zero_sign(merged, model)


@pytest.mark.parametrize("name", ["task-arithmetic", "dare-linear", "dare-ties", "della"])
@law
@given(made=tensors(count=2))
def test_one_task_vector_whole_is_its_model(name, made):
    model, base = made
    assert same_up_to_zero_sign(merge(name, [model], base), model)


@pytest.mark.parametrize(
    "name", ["task-arithmetic", "ties", "dare-linear", "dare-ties", "della", "breadcrumbs", "sce"]
)
@law
@given(made=tensors(count=1), count=st.integers(1, 4))
def test_models_that_equal_the_base_leave_it(name, made, count):
    assert same(merge(name, made * count, made[0]), made[0])


@law
@given(tensors(count=3))
def test_lambda_zero_is_the_base(made):
    *models, base = made
    for name in ("task-arithmetic", "ties", "dare-ties", "breadcrumbs"):
        assert same(merge(name, models, base, **{"lambda": 0.0}), base)


@law
@given(tensors(count=3), st.integers(0, 2**63))
def test_density_zero_is_the_base(made, seed):
    *models, base = made
    for name in ("ties", "dare-linear", "dare-ties", "della", "breadcrumbs"):
        assert same(merge(name, models, base, density=0.0, seed=seed), base)


@law
@given(tensors(count=2))
def test_nearswap_within_reach_is_the_other_file(made):
    other, base = made
    if base.dtype == torch.float64:
        other, base = other / 4, base / 4
    assert same_up_to_zero_sign(merge("nearswap", [other], base, t=1e308), other)
    assert same_up_to_zero_sign(merge("nearswap", [other], base, t=0.0), base)


@law
@given(st.integers(0, 2**32), st.floats(0.05, 0.95))
def test_dare_keeps_the_expected_sum(seed, density):
    """Dropping and dividing by the chance leaves the mean: within six standard deviations."""
    ones, zeros = torch.ones(10_000), torch.zeros(10_000)
    mean = float(merge("dare-linear", [ones], zeros, density=density, seed=seed).mean())
    deviation = ((1 - density) / density / 10_000) ** 0.5
    assert abs(mean - 1) < 6 * deviation


@law
@given(st.integers(0, 2**32), st.floats(0.3, 0.7), st.floats(0.0, 0.25))
def test_della_keeps_the_expected_sum(seed, density, epsilon):
    rows = torch.rand(100, 100) + 1
    merged = merge("della-linear", [rows], rows * 0, density=density, epsilon=epsilon, seed=seed)
    worst = density - epsilon
    deviation = ((1 - worst) / worst / 10_000) ** 0.5 * 2
    assert abs(float(merged.mean() - rows.mean())) < 6 * deviation


@law
@given(
    st.integers(1, 60),
    st.floats(0, 1),
    st.lists(st.integers(-3, 3), min_size=60, max_size=60),
)
def test_trimming_keeps_exactly_the_share(length, density, numbers):
    """Also among equal magnitudes, of which the first stay."""
    delta = torch.tensor([float(n or 7) for n in numbers[:length]])
    merged = merge("ties", [delta], torch.zeros(length), density=density)
    kept = int(merged.count_nonzero())
    if density >= 1:
        assert kept == length
    else:
        assert kept == (max(1, int(density * length)) if density > 0 else 0)
        smallest_kept = merged.abs()[merged != 0].min() if kept else float("inf")
        assert bool((delta.abs()[merged == 0] <= smallest_kept).all())
