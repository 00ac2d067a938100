"""Each method equals its paper's definition, written again in float64 in `merge_reference`."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from ckpt_surgery.compute.casts import CastCount, CastTally
from ckpt_surgery.compute.spans import PIECE
from ckpt_surgery.errors import LossyEditError, MismatchError, NonFiniteError, UsageError
from ckpt_surgery.merge import pieces
from ckpt_surgery.merge.inputs import of_tensors
from ckpt_surgery.merge.method import Scope, catalogue, find
from ckpt_surgery.merge.pieces import merge_tensor

sys.path.insert(0, str(Path(__file__).parent))
import merge_reference

HALF = [0.5, 0.3, 0.8]
CASES = {
    "average": [{}],
    "linear": [{"weights": [1, 2, 0.5]}, {"weights": [1, -2, 0], "normalize": False}],
    "ema": [{"decay": 0.9}, {"decay": 0.0}, {"decay": 1.0}],
    "median": [{}],
    "passthrough": [{"scale": [0.5]}, {}],
    "lerp": [{"t": 0.25}, {"t": 1.0}],
    "slerp": [{"t": 0.25}, {"t": 0.0}, {"t": 0.9}],
    "nearswap": [{"t": 0.4}, {"t": 0.0}, {"t": 100.0}],
    "model-stock": [{}],
    "karcher": [{}, {"weights": [1, 2, 3], "max_iter": 40, "tol": 1e-9}],
    "geometric-median": [{}, {"weights": [1, 2, 1.5]}, {"weights": [1, 1, 9]}],
    "task-arithmetic": [{"lambda": 0.4}, {"weights": [1, 0.5, -0.2], "normalize": True}],
    "ties": [
        {"density": 0.4},
        {"density": HALF, "weights": [1, 2, -0.5], "lambda": 0.7},
        {"density": 1.0, "normalize": False},
        {"density": [0.0, 0.5, 1.0], "rescale": "l1"},
    ],
    "dare-linear": [
        {"density": 0.5},
        {"density": HALF, "rescale": "l1", "weights": [1, 2, 0.1]},
        {"density": [0.0, 1.0, 0.3], "rescale": "none", "normalize": True},
    ],
    "dare-ties": [{"density": 0.5}, {"density": HALF, "normalize": False, "rescale": "l1"}],
    "della": [{"density": 0.5}, {"density": [0.0, 1.0, 0.5], "rescale": "l1"}],
    "della-linear": [
        {"density": 0.4, "epsilon": [0.1, 0.2, 0.0]},
        {"density": 0.5, "rescale": "none", "lambda": 1.3},
    ],
    "breadcrumbs": [{"density": 0.6}, {"density": [0.9, 0.5, 1.0], "gamma": [0.2, 0.0, 0.1]}],
    "breadcrumbs-ties": [{"density": 0.6, "gamma": 0.1}, {"density": 0.5, "rescale": "l1"}],
    "sce": [{}, {"select_topk": 0.5}, {"select_topk": 0.0}],
    "nuslerp": [
        {"weights": [1, 3]},
        {"weights": [1, -1], "flatten": False},
        {"weights": [2, 1], "flatten": False, "row_wise": True},
    ],
    "nuslerp-delta": [{"weights": [1, 3]}, {"weights": [3, 1], "flatten": False}],
    "multislerp": [{"weights": [1, 2, 0.5]}, {"normalize_weights": False, "eps": 1e-6}],
    "multislerp-delta": [{"weights": [1, 2, 0.5]}],
    "arcee-fusion": [{}],
    "ram": [{"epsilon": 0.5}, {}],
    "ramplus-tl": [{"epsilon": 0.7, "r": 0.5, "alpha": 2.0}, {}],
}
SHAPES = [(), (1,), (7,), (5, 8), (4, 3, 2, 2), (6, 1), (0, 3)]
TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 3e-7,
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}


def split(case):
    values = dict(case)
    return values.pop("weights", None), values


def tensors_for(method, shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    count = method.max_inputs or 3
    made = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for _ in range(count + 1)
    ]
    return made[:count], made[count] if method.needs_base else None


def expected(name, method, case, tensors, base, seed, tensor_name):
    count = len(tensors)
    weights, values = split(case)
    settings = method.bind(count, has_base=base is not None, weights=weights, values=values)
    arrays = [tensor.double().numpy() for tensor in tensors]
    keywords = dict(settings.values)
    if "scale" in keywords:
        keywords["scale"] = keywords["scale"][0]
    if base is not None:
        keywords["base"] = base.double().numpy()
    function = getattr(merge_reference, name.replace("-", "_"))
    with np.errstate(invalid="raise"):
        return settings, function(
            arrays, weights=settings.weights, seed=seed, name=tensor_name, **keywords
        )


def test_every_method_has_a_reference():
    assert set(CASES) == set(catalogue())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_method_equals_its_definition(name, dtype):
    method = find(name)
    for shape in SHAPES:
        for case in CASES[name]:
            tensors, base = tensors_for(method, shape, dtype)
            if 0 in shape:
                weights, values = split(case)
                settings = method.bind(
                    len(tensors), has_base=base is not None, weights=weights, values=values
                )
                merged = merge_tensor(method, settings, "w", tensors, base, seed=3)
                assert merged.shape == shape
                continue
            settings, reference = expected(name, method, case, tensors, base, 3, "w")
            merged = merge_tensor(method, settings, "w", tensors, base, seed=3)
            assert merged.dtype == dtype
            assert merged.shape == shape
            scale = max(1.0, float(np.abs(reference).max(initial=0)))
            np.testing.assert_allclose(
                merged.double().numpy(),
                reference,
                rtol=TOLERANCE[dtype],
                atol=TOLERANCE[dtype] * scale * 1e-1 + (1e-7 if name == "geometric-median" else 0),
                err_msg=f"{name} {shape} {case}",
            )


@pytest.mark.parametrize("name", CASES)
def test_result_does_not_depend_on_pieces_or_threads(name, monkeypatch):
    """For every method: what is not elementwise was measured before."""
    method = find(name)
    weights, values = split(CASES[name][-1])
    tensors, base = tensors_for(method, (37, 29), torch.float32)
    settings = method.bind(len(tensors), has_base=base is not None, weights=weights, values=values)
    inputs = of_tensors("w", tensors, base, work=torch.float64, settings=settings, seed=1)
    measured = method.measure(inputs)
    whole = method.combine(inputs.piece(0, inputs.numel, measured))
    cuts = [0, 1, 2, 5, 13, 64, 129, 500, 1001, inputs.numel]
    parts = [method.combine(inputs.piece(a, b, measured)) for a, b in itertools.pairwise(cuts)]
    assert torch.equal(torch.cat(parts).view(torch.int64), whole.view(torch.int64))


def test_threads_do_not_change_a_bit():
    tensors = [torch.randn(1500, 1000) for _ in range(3)]
    for name, values in {
        "average": {},
        "slerp": {"t": 0.3},
        "dare-ties": {"density": 0.5, "rescale": "l1"},
    }.items():
        method = find(name)
        count = method.max_inputs or 2
        base = tensors[2] if method.needs_base else None
        settings = method.bind(count, has_base=method.needs_base, values=values)
        one, three = (
            merge_tensor(method, settings, "w", tensors[:count], base, threads=threads)
            for threads in (1, 3)
        )
        assert torch.equal(one, three)


def test_an_error_in_a_thread_is_raised_and_ends_the_run():
    tensors = [torch.randn(3_000_000) for _ in range(2)]
    tensors[1][2_500_000] = float("nan")
    method = find("average")
    settings = method.bind(2, has_base=False)
    with pytest.raises(NonFiniteError, match="the first at element 2500000"):
        merge_tensor(method, settings, "w", tensors, threads=2)


def test_stopping_early_ends_the_threads():
    method = find("average")
    settings = method.bind(2, has_base=False)
    tensors = [torch.ones(6 * pieces.RUN)] * 2
    reads = []

    def read(which, start, stop):
        reads.append(start)
        return tensors[which][start:stop]

    inputs = dataclasses.replace(
        of_tensors("w", tensors, None, work=torch.float64, settings=settings), read=read
    )
    runs = pieces._merged_runs(method, inputs, torch.float32, threads=2)
    assert next(runs).numel() == pieces.RUN
    runs.close()
    assert max(reads) < 5 * pieces.RUN
    assert not [t for t in threading.enumerate() if t.name.startswith("merge")]


def test_torchs_own_threads_are_as_before():
    before = torch.get_num_threads()
    method = find("average")
    settings = method.bind(2, has_base=False)
    merge_tensor(method, settings, "w", [torch.ones(2 * pieces.RUN)] * 2, threads=2)
    assert torch.get_num_threads() == before


def test_random_masks_depend_on_seed_name_and_input_only():
    method = find("dare-linear")
    settings = method.bind(2, has_base=True, values={"density": 0.5})
    base, ones = torch.zeros(4000), torch.ones(4000)

    def merged(name, seed, tensors=(ones, ones * 4)):
        return merge_tensor(method, settings, name, tensors, base, seed=seed)

    assert torch.equal(merged("a", 1), merged("a", 1))
    assert not torch.equal(merged("a", 1), merged("b", 1))
    assert not torch.equal(merged("a", 1), merged("a", 2))
    result = merged("a", 1)
    # 2 for the first, 8 for the second: all four combinations appear, so masks are independent
    counts = [int((result == value).sum()) for value in (0, 2, 8, 10)]
    assert sum(counts) == 4000
    assert all(850 < count < 1150 for count in counts)


def test_splitmix_is_the_published_one():
    """The first outputs for seed 1234567, as in the reference implementation's test vectors."""
    from ckpt_surgery.merge import draws

    class Digest:
        def digest(self):
            return (1234567).to_bytes(8, "little")

    expected_words = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    original = draws.hashlib.blake2b
    try:
        draws.hashlib.blake2b = lambda *_args, **_kwargs: Digest()
        drawn = draws.uniform("", 0, 0, 3)
    finally:
        draws.hashlib.blake2b = original
    assert drawn.tolist() == [(word >> 11) / 2**53 for word in expected_words]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nonfinite_input_is_refused_and_named(name, bad):
    method = find(name)
    weights, values = split(CASES[name][-1])
    tensors, base = tensors_for(method, (40, 10), torch.float32)
    tensors[-1][3, 7] = bad
    settings = method.bind(len(tensors), has_base=base is not None, weights=weights, values=values)
    labels = [f"{n}.pth" for n in range(len(tensors))] + (["base.pth"] if base is not None else [])
    with pytest.raises(NonFiniteError) as caught:
        merge_tensor(method, settings, "fc.weight", tensors, base, labels=labels)
    assert str(caught.value.path) == f"{len(tensors) - 1}.pth"
    assert caught.value.entry == "fc.weight"
    assert "the first at element 37" in caught.value.message
    assert "1 NaN" in caught.value.message if bad != bad else "1 infinite" in caught.value.message


def test_nonfinite_base_is_named():
    method = find("task-arithmetic")
    settings = method.bind(1, has_base=True)
    with pytest.raises(NonFiniteError) as caught:
        merge_tensor(
            method,
            settings,
            "w",
            [torch.ones(3)],
            torch.tensor([1.0, float("inf"), 2.0]),
            labels=["a.pth", "base.pth"],
        )
    assert str(caught.value.path) == "base.pth"


def test_allowed_nonfinite_values_go_through():
    method = find("average")
    settings = method.bind(2, has_base=False)
    a = torch.tensor([1.0, float("nan"), float("inf"), float("inf")])
    b = torch.tensor([3.0, 1.0, 1.0, float("-inf")])
    merged = merge_tensor(method, settings, "w", [a, b], allow_nonfinite=True)
    assert merged[0] == 2
    assert merged[1].isnan()
    assert merged[2] == float("inf")
    assert merged[3].isnan()


def test_a_nonfinite_norm_is_an_error():
    method = find("slerp")
    settings = method.bind(2, has_base=False, values={"t": 0.5})
    huge = torch.full((4,), 1e200, dtype=torch.float64)
    with pytest.raises(LossyEditError, match="no finite number"):
        merge_tensor(method, settings, "w", [huge, huge + 1e199])


def test_a_sum_that_overflows_is_no_infinity():
    """Adding the elements up to look for NaN must not refuse large finite ones."""
    method = find("lerp")
    settings = method.bind(2, has_base=False, values={"t": 0.5})
    huge = torch.full((4,), 3e38)
    assert torch.equal(merge_tensor(method, settings, "w", [huge, huge]), huge)


def test_shapes_and_kinds_that_differ_are_refused():
    method = find("average")
    settings = method.bind(2, has_base=False)
    with pytest.raises(MismatchError, match=r"shapes \(2,\) and \(3,\)"):
        merge_tensor(method, settings, "w", [torch.ones(2), torch.ones(3)])
    with pytest.raises(MismatchError, match="float32 and int64"):
        merge_tensor(method, settings, "w", [torch.ones(2), torch.ones(2, dtype=torch.int64)])
    with pytest.raises(MismatchError, match="complex64 and float32"):
        merge_tensor(method, settings, "w", [torch.ones(2).cfloat(), torch.ones(2)])


def test_complex_tensors_are_merged_as_real_and_imaginary_parts():
    method = find("linear")
    settings = method.bind(2, has_base=False, weights=[1, 3])
    a, b = torch.randn(3, 2, dtype=torch.complex64), torch.randn(3, 2, dtype=torch.complex64)
    merged = merge_tensor(method, settings, "w", [a, b.conj()])
    assert merged.dtype == torch.complex64
    torch.testing.assert_close(merged, (a + 3 * b.conj()) / 4)


def test_inputs_of_different_types_work_in_the_widest():
    method = find("average")
    settings = method.bind(3, has_base=False)
    tensors = [
        torch.tensor([1.0, 2.0], dtype=torch.float16),
        torch.tensor([1.5, 1e30], dtype=torch.bfloat16),
        torch.tensor([0.0, 1e30]),
    ]
    merged = merge_tensor(method, settings, "w", tensors, dtype=torch.float32)
    reference = sum(tensor.double() for tensor in tensors) / 3
    assert torch.equal(merged, reference.float())


def test_float8_is_merged_in_float32():
    method = find("average")
    settings = method.bind(3, has_base=False)
    tensors = [torch.tensor([1.0, -2.0, v]).to(torch.float8_e4m3fn) for v in (0.5, 1.0, 3.0)]
    merged = merge_tensor(method, settings, "w", tensors)
    assert merged.dtype == torch.float8_e4m3fn
    assert merged.float().tolist() == [1.0, -2.0, 1.5]


def test_noncontiguous_inputs_are_read_in_order():
    method = find("lerp")
    settings = method.bind(2, has_base=False, values={"t": 0.5})
    a, b = torch.randn(5, 4).t(), torch.randn(4, 5)
    merged = merge_tensor(method, settings, "w", [a, b])
    assert merged.is_contiguous()
    torch.testing.assert_close(merged, (a + b) / 2)


def test_what_rounding_loses_is_counted_and_refused():
    method = find("passthrough")
    settings = method.bind(1, has_base=False)
    values = torch.tensor([1.0, 1e6, -1e7, 1e-20, 0.0])

    def merged(dtype, tally):
        return merge_tensor(method, settings, "w", [values], dtype=dtype, tally=tally)

    infinity = float("inf")
    for dtype in (torch.float16, torch.float8_e5m2):
        tally = CastTally("w", "float32", str(dtype), 5)
        tally.allow_loss = True
        assert merged(dtype, tally).tolist() == [1.0, infinity, -infinity, 0.0, 0.0]
        assert tally.cast.count == CastCount(infinite=2, zero=1)
    with pytest.raises(LossyEditError, match="2 become infinite, 1 becomes zero"):
        merged(torch.float16, CastTally("w", "float32", "float16", 5))


def test_scope_says_how_much_must_be_seen():
    scopes = {
        ("average", ()): Scope.ELEMENT,
        ("slerp", (("t", 0.5),)): Scope.SUMS,
        ("ties", (("density", 1.0),)): Scope.ELEMENT,
        ("ties", (("density", 0.5),)): Scope.TENSOR,
        ("dare-linear", (("density", 0.5),)): Scope.ELEMENT,
        ("dare-linear", (("density", 0.5), ("rescale", "l1"))): Scope.SUMS,
        ("sce", ()): Scope.SUMS,
        ("sce", (("select_topk", 0.5),)): Scope.TENSOR,
    }
    for (name, values), scope in scopes.items():
        method = find(name)
        settings = method.bind(
            method.max_inputs or 2, has_base=method.needs_base, values=dict(values)
        )
        assert method.scope(settings) is scope, name


def test_only_tensor_scope_reads_more_than_a_piece_at_once(monkeypatch):
    """ELEMENT and SUMS keep their promise about memory, whatever the tensor's size."""
    for name, cases in CASES.items():
        method = find(name)
        weights, values = split(cases[0])
        tensors, base = tensors_for(method, (3, 50_000), torch.float32)
        settings = method.bind(
            len(tensors), has_base=base is not None, weights=weights, values=values
        )
        inputs = of_tensors("w", tensors, base, work=torch.float64, settings=settings)
        reads = []
        original = inputs.read

        def counted(which, start, stop, original=original, reads=reads):
            reads.append((which, stop - start))
            return original(which, start, stop)

        object.__setattr__(inputs, "read", counted)
        measured = method.measure(inputs)
        assert max((size for _, size in reads), default=0) <= PIECE
        passes = sum(size for which, size in reads if which == 0) / inputs.numel
        if method.scope(settings) is Scope.ELEMENT:
            assert passes == 0, name
        if method.scope(settings) is Scope.SUMS:
            assert passes <= 2, name
            assert not holds_tensor(measured, inputs.numel), name


def holds_tensor(value, numel):
    if isinstance(value, torch.Tensor):
        return value.numel() >= numel
    if isinstance(value, list | tuple):
        return any(holds_tensor(item, numel) for item in value)
    return any(holds_tensor(item, numel) for item in getattr(value, "__dict__", {}).values())


def test_geometric_median_gives_an_optimal_input_bit_for_bit():
    method = find("geometric-median")
    a, b = torch.randn(20), torch.randn(20)
    majority = merge_tensor(method, method.bind(3, has_base=False), "w", [a, b, a])
    assert torch.equal(majority, a)
    heavy = method.bind(3, has_base=False, weights=[1, 9, 1])
    assert torch.equal(merge_tensor(method, heavy, "w", [a, b, torch.randn(20)]), b)


def test_geometric_median_scales_with_its_inputs():
    method = find("geometric-median")
    settings = method.bind(3, has_base=False)
    tensors = [torch.randn(50, dtype=torch.float64) for _ in range(3)]
    small = merge_tensor(method, settings, "w", [t * 2.0**-40 for t in tensors])
    large = merge_tensor(method, settings, "w", tensors)
    torch.testing.assert_close(small * 2.0**40, large, rtol=1e-12, atol=1e-12)


def test_model_stock_keeps_the_base_between_opposites():
    method = find("model-stock")
    settings = method.bind(2, has_base=True)
    base, step = torch.randn(6), torch.tensor([1.0, 2, 3, 0, 0, 1])
    merged = merge_tensor(method, settings, "w", [base + step, base - step], base)
    torch.testing.assert_close(merged, base)
    same = merge_tensor(method, settings, "w", [base, base], base)
    assert torch.equal(same, base)


def test_karcher_of_zeros_opposites_and_one():
    method = find("karcher")
    zeros = torch.zeros(4)
    settings = method.bind(2, has_base=False)
    assert torch.equal(merge_tensor(method, settings, "w", [zeros, zeros]), zeros)
    a = torch.tensor([3.0, 4.0, 0.0, 0.0])
    # opposite directions leave no mean: the first direction is taken, as in mergekit
    torch.testing.assert_close(merge_tensor(method, settings, "w", [a, -a]), a)
    half = merge_tensor(method, settings, "w", [a, zeros])
    torch.testing.assert_close(half, a / 2)
    one = method.bind(1, has_base=False)
    assert torch.equal(merge_tensor(method, one, "w", [a]), a)


def test_slerp_of_collinear_and_zero_vectors():
    method = find("slerp")
    settings = method.bind(2, has_base=False, values={"t": 0.25})
    a = torch.tensor([1.0, 2.0])
    assert merge_tensor(method, settings, "w", [a, 3 * a]).tolist() == [1.5, 3.0]
    assert merge_tensor(method, settings, "w", [a, -a]).tolist() == [0.5, 1.0]
    zero = torch.zeros(2)
    merged = merge_tensor(method, settings, "w", [zero, a])
    torch.testing.assert_close(merged, a * float(np.sin(np.pi / 8)))


def test_infinities_that_are_dropped_leave_the_base():
    """The base shows where nothing was merged, though 0 times infinity is NaN."""
    method = find("dare-linear")
    settings = method.bind(1, has_base=True, values={"density": 0.0})
    base = torch.tensor([1.0, -0.0])
    infinite = torch.tensor([float("inf"), float("nan")])
    merged = merge_tensor(method, settings, "w", [infinite], base, allow_nonfinite=True)
    assert merged.tolist() == [1.0, 0.0]
    assert merged.signbit().tolist() == [False, True]


@pytest.mark.parametrize("name", CASES)
def test_methods_are_described(name):
    method = find(name)
    assert method.name == name
    assert method.summary[0].islower()
    assert not method.summary.endswith(".")
    assert "arXiv" in method.citation or "http" in method.citation or "19" in method.citation
    documentation = type(method).__doc__ or ""
    assert "arXiv" in documentation or "SIGGRAPH" in documentation or "alchemonaut" in documentation
    assert all(parameter.help for parameter in method.parameters)


def test_remarks_warn_of_a_density_that_drops_nothing():
    method = find("ties")
    assert method.remarks(method.bind(2, has_base=True)) == ("'ties' with density 1 drops nothing",)
    assert method.remarks(method.bind(2, has_base=True, values={"density": 0.5})) == ()
    average = find("average")
    assert average.remarks(average.bind(2, has_base=False)) == ()


@pytest.mark.parametrize(
    ("name", "inputs", "base", "weights", "values", "message"),
    [
        ("ties", 2, False, None, {}, "needs a base"),
        ("average", 2, True, None, {}, "has no base"),
        ("slerp", 3, False, None, {"t": 0.5}, "takes exactly 2 inputs: 3"),
        ("slerp", 1, False, None, {"t": 0.5}, "takes exactly 2 inputs: 1"),
        ("model-stock", 1, True, None, {}, "at least 2 inputs beside the base: 1"),
        ("passthrough", 2, False, None, {}, "takes exactly 1 input: 2"),
        ("average", 2, False, [1, 2], {}, "takes no weights"),
        ("median", 2, False, [1, 2], {}, "takes no weights"),
        ("linear", 3, False, [1, 2], {}, "2 weights for 3 inputs"),
        ("linear", 2, False, [1, float("nan")], {}, "finite number, got nan"),
        ("linear", 2, False, [1, "x"], {}, "finite number, got 'x'"),
        ("linear", 2, False, [1, True], {}, "finite number, got True"),
        ("linear", 2, False, [1, -1], {}, "sum to 0"),
        ("karcher", 2, False, [2, -1], {}, "no negative weight"),
        ("geometric-median", 2, False, [0, 0], {}, "sum to 0"),
        ("task-arithmetic", 2, True, [1, -1], {"normalize": True}, "sum to 0"),
        ("slerp", 2, False, None, {}, "needs 't'"),
        ("slerp", 2, False, None, {"t": 1.5}, "'t' must be a number from 0 to 1, got 1.5"),
        ("slerp", 2, False, None, {"t": [0.1, 0.2]}, "takes one value, got 2"),
        ("nearswap", 1, True, None, {"t": -1}, "a number at least 0"),
        ("karcher", 2, False, None, {"max_iter": 0}, "a whole number at least 1"),
        ("karcher", 2, False, None, {"max_iter": 2.5}, "a whole number"),
        ("karcher", 2, False, None, {"max_iter": 10**400}, "a whole number"),
        ("ties", 2, True, None, {"density": [0.5]}, "has 1 values for 2 inputs"),
        ("ties", 2, True, None, {"densty": 0.5}, "no parameter 'densty'"),
        ("ties", 2, True, None, {"normalize": 3}, "true or false"),
        ("ties", 2, True, None, {"rescale": "l2"}, "one of l1, none"),
        ("ties", 2, True, None, {"rescale": 1}, "one of l1, none"),
        ("ties", 2, True, None, {"lambda": "much"}, "'lambda' must be a number, got 'much'"),
        ("della", 2, True, None, {"density": 0.9}, "leave the range"),
    ],
)
def test_wrong_choices_are_refused(name, inputs, base, weights, values, message):
    with pytest.raises(UsageError) as caught:
        find(name).bind(inputs, has_base=base, weights=weights, values=values)
    assert message in str(caught.value)


def test_texts_are_read_as_what_they_spell():
    settings = find("karcher").bind(
        2, has_base=False, weights=["0.5", "1e-1"], values={"tol": "1e-3", "max_iter": "7"}
    )
    assert settings.weights == (0.5, 0.1)
    assert settings.number("tol") == 1e-3
    assert settings.number("max_iter") == 7
    assert find("linear").bind(2, has_base=False, values={"normalize": "no"}).flag("normalize") is (
        False
    )


def test_unknown_method_names_near_ones():
    with pytest.raises(UsageError) as caught:
        find("dare_tie")
    assert caught.value.hint == "did you mean 'dare-ties'?" or "'dare-ties'" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        find("zzzz")
    assert "average" in caught.value.hint
    assert find("task_arithmetic") is find("task-arithmetic")


def test_directions_that_cancel_each_other_out_have_no_middle():
    method = find("multislerp")
    with pytest.raises(UsageError, match="sum up to 0"):
        method.bind(2, has_base=False, weights=[1, -1])
    x = torch.tensor([1.0, 2.0, 2.0])
    settings = method.bind(2, has_base=False)
    assert torch.equal(merge_tensor(method, settings, "w", [x, -x]), torch.zeros(3))
    turned = [
        torch.tensor([1.0, 0]),
        torch.tensor([-0.5, 0.75**0.5]),
        torch.tensor([-0.5, -(0.75**0.5)]),
    ]
    settings = method.bind(3, has_base=False, values={"eps": 1e-6})
    with pytest.raises(UsageError, match="cancel each other out"):
        merge_tensor(method, settings, "w", turned)
    settings = method.bind(1, has_base=False)
    assert torch.equal(merge_tensor(method, settings, "w", [x]), x)
