"""Our results are mergekit's, where both have the method. Runs where mergekit 0.1.5 is installed.

Where the two differ (what is a fault has a test below):

- batch norm's counter: mergekit refuses checkpoints whose ``num_batches_tracked`` differ
- della of a scalar, or of rows of one element: mergekit fails (no such dimension, 0/0)
- della of four dimensions: mergekit ranks along dimension 1, for each place in the kernel; the
  paper ranks the weights of an output unit
- sce, model-stock and karcher of tiny tensors: mergekit has absolute thresholds (1e-6, 1e-6, 1e-5)
  below which it weighs alike, shrinks cosines, and gives zeros
- dare and della rescale by the sum of magnitudes in mergekit, by 1/chance in the papers; our
  default is the papers', and what is read from mergekit's YAML is mergekit's
"""

from __future__ import annotations

import pytest
import torch

from ckpt_surgery.merge import draws
from ckpt_surgery.merge.integers import merge_integers
from ckpt_surgery.merge.method import catalogue, find
from ckpt_surgery.merge.pieces import merge_tensor

mergekit = pytest.importorskip("mergekit.merge_methods")

SHAPES = [(8,), (1,), (6, 9), (40, 30)]
CASES = [
    ("linear", {}, [1.0, 0.5, 2.0]),
    ("linear", {"normalize": False}, [1.0, -0.5, 0.0]),
    ("slerp", {"t": 0.3}, None),
    ("slerp", {"t": 0.0}, None),
    ("nearswap", {"t": 0.2}, None),
    ("model_stock", {}, None),
    ("karcher", {}, None),
    ("karcher", {"max_iter": 3, "tol": 1e-3}, None),
    ("passthrough", {}, None),
    ("task_arithmetic", {"lambda": 0.6}, [1.0, 0.5, -0.2]),
    ("task_arithmetic", {"normalize": True}, [1.0, 0.5, 2.0]),
    ("ties", {"density": 0.4}, [1.0, 0.5, 2.0]),
    ("ties", {"density": 0.4, "rescale": True}, [1.0, 0.5, -2.0]),
    ("ties", {"density": 1.0, "normalize": False, "lambda": 2.0}, [1.0, 1.0, 1.0]),
    ("dare_linear", {"density": 0.5}, [1.0, 0.5, 2.0]),
    ("dare_ties", {"density": 0.7, "rescale": False}, [1.0, 0.5, 2.0]),
    ("della", {"density": 0.5}, [1.0, 0.5, 2.0]),
    ("della_linear", {"density": 0.6, "epsilon": 0.1}, [1.0, 0.5, 2.0]),
    ("breadcrumbs", {"density": 0.8, "gamma": 0.1}, [1.0, 0.5, 2.0]),
    ("breadcrumbs_ties", {"density": 0.5}, [1.0, 0.5, 2.0]),
    ("nuslerp", {}, [1.0, 3.0]),
    ("nuslerp", {"nuslerp_flatten": False}, [1.0, 0.5]),
    ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}, [1.0, -1.0]),
    ("multislerp", {}, [1.0, 0.5, 2.0]),
    ("multislerp", {"normalize_weights": False, "eps": 1e-6}, [0.3, 0.5, 0.4]),
    ("nuslerp-delta", {}, [1.0, 3.0]),
    ("nuslerp-delta", {"nuslerp_flatten": False}, [1.0, 0.5]),
    ("multislerp-delta", {}, [1.0, 0.5, 2.0]),
    ("arcee_fusion", {}, None),
    ("ram", {"epsilon": 0.5}, None),
    ("ramplus_tl", {"epsilon": 0.5, "r": 0.4, "alpha": 3.0}, None),
    ("sce", {"select_topk": 0.5}, None),
    ("sce", {}, None),
]


def made(shape, count, dtype, scale=1.0):
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)
        for _ in range(count)
    ]


def method_of(name):
    """Return our method for a name of mergekit's, or of ours where it has one with and without."""
    return catalogue().get(name) or next(m for m in catalogue().values() if m.mergekit == name)


def ours(name, values, weights, inputs, base):
    method = method_of(name)
    words = {True: "l1", False: "none"}
    spelled = {
        key.removeprefix("nuslerp_"): words.get(value, value) if key == "rescale" else value
        for key, value in {**method.mergekit_defaults, **values}.items()
    }
    bound = method.bind(len(inputs), has_base=base is not None, weights=weights, values=spelled)
    return merge_tensor(method, bound, "w", inputs, base, seed=9)


def theirs(name, values, weights, inputs, base, monkeypatch):
    calls = []

    def bernoulli(chances):
        drawn = draws.uniform("9:w", len(calls), 0, chances.numel()).view(chances.shape)
        calls.append(chances)
        return (drawn < chances).to(chances.dtype)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    parameters = dict(values)
    if weights is not None:
        parameters["weight"] = weights if base is None else [*weights, 0.0]
    everything = inputs if base is None else [*inputs, base]
    base_index = None if base is None else len(inputs)
    if name == "slerp":
        base_index = 0
    name = name.removesuffix("-delta")
    if weights is not None and base is not None:
        parameters["weight"] = dict(enumerate(weights))
    return mergekit.merge_tensors(everything, name, parameters=parameters, base_index=base_index)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("name", "values", "weights", "shape"),
    # mergekit's della fails for one element: see below
    [
        (*case, shape)
        for case in CASES
        for shape in SHAPES
        if shape != (1,) or not case[0].startswith("della")
    ],
)
def test_result_is_mergekits(name, values, weights, shape, dtype, monkeypatch):
    method = method_of(name)
    *inputs, base = made(shape, (method.max_inputs or 3) + 1, dtype)
    base = base if method.needs_base else None
    expected = theirs(name, values, weights, inputs, base, monkeypatch)
    # mergekit masks at random, and weighs by counts, in float32, whatever the inputs
    loose = dtype == torch.float32 or method.random or name == "ramplus_tl"
    torch.testing.assert_close(
        ours(name, values, weights, inputs, base),
        expected,
        rtol=2e-5 if loose else 1e-9,
        atol=2e-6 if loose else 1e-10,
    )


def test_every_method_of_mergekit_that_we_name_exists_there():
    names = {method.spec.name for method in mergekit.registered_methods()}
    assert {m.mergekit for m in catalogue().values() if m.mergekit} <= names


def test_fault_batch_norms_counter_must_agree_in_mergekit():
    name = "bn.num_batches_tracked"
    dicts = [{name: torch.tensor(n)} for n in (10, 20)]
    with pytest.raises(ValueError, match="differs between inputs"):
        mergekit.merge_state_dicts(dicts, "linear", parameters={"weight": 1.0})
    assert merge_integers(name, [d[name] for d in dicts]) == 10


def test_fault_della_of_a_scalar_fails_in_mergekit():
    base, model = torch.tensor(0.0), torch.tensor(1.0)
    with pytest.raises((RuntimeError, IndexError)):
        mergekit.merge_tensors(
            [base, model],
            "della",
            parameters={"density": 0.5, "weight": {1: 1.0}},
            base_index=0,
        )
    method = find("della")
    bound = method.bind(1, has_base=True, values={"density": 0.5})
    assert float(merge_tensor(method, bound, "w", [model], base)) in {0.0, 2.0}


def test_fault_della_ranks_a_kernel_place_by_place_in_mergekit(monkeypatch):
    """It ranks three weights at each place, not the 48 of an output unit."""
    model, base = made((2, 3, 4, 4), 2, torch.float64)
    expected = theirs("della_linear", {"density": 0.5}, [1.0], [model], base, monkeypatch)
    result = ours("della_linear", {"density": 0.5}, [1.0], [model], base)
    assert not torch.allclose(result, expected, rtol=1e-3)
    flat = [tensor.reshape(2, -1) for tensor in (model, base)]
    monkeypatch.undo()
    expected = theirs("della_linear", {"density": 0.5}, [1.0], flat[:1], flat[1], monkeypatch)
    torch.testing.assert_close(result.reshape(2, -1), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "scale"), [("sce", 1e-5), ("model_stock", 1e-5), ("karcher", 1e-7)]
)
def test_fault_absolute_thresholds_change_tiny_tensors_in_mergekit(name, scale, monkeypatch):
    method = next(m for m in catalogue().values() if m.mergekit == name)
    inputs = made((20,), 3, torch.float64)
    inputs[1] *= 5
    base = torch.zeros(20, dtype=torch.float64) if method.needs_base else None
    small = [tensor * scale for tensor in inputs]
    large = ours(name, {}, None, inputs, base)
    # without a base that fixes a scale, scaling the inputs scales the result
    torch.testing.assert_close(ours(name, {}, None, small, base) / scale, large)
    expected = theirs(name, {}, None, small, base, monkeypatch) / scale
    assert not torch.allclose(expected, large, rtol=1e-3)
