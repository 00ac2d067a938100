"""Laws of the digest, and the definition in docs/hash.md implemented once more, with torch."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_kinds
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch_checks import quiet, save

from ckpt_surgery import LimitExceededError, ReadError, read
from ckpt_surgery.checkpoint.description import Storage, Tensor
from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.fileio import Bytes
from ckpt_surgery.torch_objects.digest import PREFIX, model_digest, tensor_digest

_DOCUMENT = (Path(__file__).parents[2] / "docs" / "hash.md").read_text(encoding="utf-8")


def text(string: str) -> bytes:
    data = string.encode()
    return struct.pack("<Q", len(data)) + data


def head(layout: str, tensor: torch.Tensor) -> bytes:
    dtype = str(tensor.dtype).removeprefix("torch.")
    sizes = struct.pack(f"<{tensor.dim()}Q", *tensor.shape)
    return text(layout) + text(dtype) + struct.pack("<Q", tensor.dim()) + sizes


def elements(tensor: torch.Tensor) -> bytes:
    dense = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1)
    data = bytes(dense.view(torch.uint8).tolist()) if dense.numel() else b""
    return struct.pack("<Q", len(data)) + data


def body(tensor: torch.Tensor) -> bytes:
    """The body of a tensor as the document has it."""
    if tensor.is_quantized:
        return quantized_body(tensor)
    if tensor.layout is torch.strided and not tensor.is_nested:
        return head("strided", tensor) + elements(tensor)
    parts = sparse_parts(tensor)
    layout = str(tensor.layout).removeprefix("torch.")
    return head(layout, tensor) + struct.pack("<Q", len(parts)) + b"".join(map(body, parts))


def sparse_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    by_row = tensor.layout in {torch.sparse_csr, torch.sparse_bsr}
    inner = (
        [tensor.crow_indices(), tensor.col_indices()]
        if by_row
        else [tensor.ccol_indices(), tensor.row_indices()]
    )
    return [*inner, tensor.values()]


def quantized_body(tensor: torch.Tensor) -> bytes:
    scheme = str(tensor.qscheme()).removeprefix("torch.")
    if tensor.qscheme() is torch.per_tensor_affine:
        parts = [
            torch.tensor(tensor.q_scale(), dtype=torch.float64),
            torch.tensor(tensor.q_zero_point()),
        ]
    else:
        parts = [tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()]
        parts += [torch.tensor(tensor.q_per_channel_axis())]
    found = head(f"quantized {scheme}", tensor) + elements(tensor.int_repr())
    return found + struct.pack("<Q", len(parts)) + b"".join(map(body, parts))


def by_definition(state_dict: Mapping[str, torch.Tensor]) -> str:
    tensors = {
        name.encode(): hashlib.sha256(b"ckpt1-tensor\0" + text(name) + body(tensor)).digest()
        for name, tensor in state_dict.items()
    }
    joined = b"".join(digest for _, digest in sorted(tensors.items()))
    head = b"ckpt1-model\0" + struct.pack("<Q", len(tensors))
    return hashlib.sha256(head + joined).hexdigest()


def ours(state_dict: Mapping[str, torch.Tensor], path: Path) -> str:
    with read(save(dict(state_dict), path)) as checkpoint:
        return model_digest(
            {
                name: tensor_digest(name, tensor, lambda _: None)
                for name, tensor in checkpoint.tensors
            }
        )


VECTORS = [
    {"w": torch.tensor(1.0)},
    {"w": torch.tensor([1.0, 2.0])},
    {"w": torch.tensor([[1.0, 2.0]])},
    {"w": torch.tensor([1.0, 2.0], dtype=torch.bfloat16)},
    {"w": torch.zeros(0, 3)},
    {"b": torch.tensor([True, False]), "a.é": torch.arange(3)},
]


def test_vectors_of_the_document(tmp_path: Path) -> None:
    empty, *documented = re.findall(r"\| `ckpt1:([0-9a-f]{64})` \|", _DOCUMENT)
    assert [ours(each, tmp_path / "v.pth") for each in VECTORS] == documented
    assert [by_definition(each) for each in VECTORS] == documented
    assert model_digest({}) == by_definition({}) == empty


def test_bytes_of_the_document() -> None:
    digest, dump = _DOCUMENT.partition("whose digest is\n`")[2].split("`:\n", 1)
    data = b"".join(
        bytes.fromhex(line[4:56].strip()) for line in dump.splitlines() if line.startswith("    ")
    )
    assert hashlib.sha256(data).hexdigest() == digest
    assert data == b"ckpt1-tensor\0" + text("w") + body(VECTORS[1]["w"])


_KINDS = {
    name: kind
    for name, kind in torch_kinds.TENSORS.items()
    if kind.layout in {"strided", "quantized"} or kind.layout.startswith("sparse_")
}


@pytest.mark.parametrize("name", _KINDS)
def test_every_kind_of_tensor_has_the_digest_of_the_definition(name: str, tmp_path: Path) -> None:
    kind = _KINDS[name]
    if kind.device == "meta":
        pytest.skip("has no elements")
    with quiet():
        tensor = kind.make()
        assert ours({"w": tensor}, tmp_path / "w.pth") == by_definition({"w": tensor})


def test_a_nested_tensor_is_its_parts(tmp_path: Path) -> None:
    def make(first: float) -> torch.Tensor:
        return torch.nested.nested_tensor([torch.tensor([[first, 1.0]]), torch.zeros(2, 2)])

    with quiet():
        one, same, other = (ours({"w": make(x)}, tmp_path / "w.pth") for x in (1.0, 1.0, 2.0))
    assert one == same != other


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.ones(2, device="meta"), "on the meta device has no digest"),
        (torch_kinds.jagged, "of layout 'jagged' has no digest"),
    ],
)
def test_a_tensor_without_known_elements_has_no_digest(
    make: Any, message: str, tmp_path: Path
) -> None:
    with quiet(), pytest.raises(ReadError, match=message) as caught:
        ours({"fc.weight": make()}, tmp_path / "w.pth")
    assert caught.value.entry == "fc.weight"


def test_a_view_that_repeats_too_often_has_no_digest() -> None:
    storage = Storage("0", BY_NAME["uint8"], "cpu", Bytes(b"a"))
    with pytest.raises(LimitExceededError):
        tensor_digest("w", Tensor((1 << 40,), storage.dtype, (0,), storage=storage), print)


@pytest.mark.parametrize("quantizer", [None, 3, ("a", "b", "c")])
def test_a_quantizer_of_another_form_is_refused(quantizer: Any, tmp_path: Path) -> None:
    with quiet(), read(save({"w": torch_kinds.quantized()}, tmp_path / "w.pth")) as checkpoint:
        (tensor,) = checkpoint.all_tensors
        args: Any = tensor.node.args  # type: ignore[attr-defined]
        tensor.node.args = (*args[:4], quantizer, *args[5:])  # type: ignore[attr-defined]
        with pytest.raises(ReadError, match="quantized in an unknown way"):
            tensor_digest("w", tensor, lambda _: None)
        tensor.node.args = (*args[:4], (args[4][0], "1.0", 0), *args[5:])  # type: ignore[attr-defined]
        with pytest.raises(ReadError, match="quantized in an unknown way"):
            tensor_digest("w", tensor, lambda _: None)


def test_progress_counts_the_bytes_of_elements(tmp_path: Path) -> None:
    told: list[int] = []
    with read(save({"w": torch.zeros(300, 1000).t()}, tmp_path / "w.pth")) as checkpoint:
        (tensor,) = checkpoint.all_tensors
        tensor_digest("w", tensor, told.append)
    assert sum(told) == 1_200_000
    assert len(told) > 1


# --- no two different models have one digest

NAMES = st.sampled_from(["", "a", "b", "ab", "a.b", "é", "0"])
TYPES = st.sampled_from(
    [
        *(torch.uint8, torch.int8, torch.bool, torch.float16, torch.bfloat16, torch.int16),
        *(torch.float32, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2),
    ]
)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(TYPES)
    sizes = draw(st.lists(st.integers(0, 3), max_size=3))
    count = 1
    for n in sizes:
        count *= n
    ones = draw(st.lists(st.sampled_from([0, 1]), min_size=count, max_size=count))
    return torch.tensor(ones, dtype=torch.uint8).to(dtype).reshape(sizes)


MODELS = st.dictionaries(NAMES, tensors(), max_size=3)


def facts(state_dict: Mapping[str, torch.Tensor]) -> object:
    """What makes a model the one that it is."""
    return {name: (t.dtype, t.shape, elements(t)) for name, t in state_dict.items()}


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(MODELS, MODELS)
def test_digests_are_equal_if_and_only_if_models_are(
    tmp_path: Path, one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]
) -> None:
    same = ours(one, tmp_path / "a.pth") == ours(other, tmp_path / "b.pth")
    assert same is (facts(one) == facts(other))


CHANGES = {
    "another name": lambda n, t: (n + "x", t),
    "a name without its end": lambda n, t: (n[:-1], t),
    "a flat shape": lambda n, t: (n, t.reshape(-1)),
    "one dimension more": lambda n, t: (n, t[None]),
    "turned round": lambda n, t: (n, t.t().contiguous()),
    "dimensions exchanged": lambda n, t: (n, t.reshape(t.shape[::-1])),
    "another type of one size": lambda n, t: (n, t.view(torch.int32)),
    "bytes": lambda n, t: (n, t.contiguous().view(torch.uint8)),
    "a wider type": lambda n, t: (n, t.double()),
    "another sign of zero": lambda n, t: (n, t * -1),
    "another value": lambda n, t: (n, t + 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_changes_the_digest(change: str, tmp_path: Path) -> None:
    model = {"fc.weight": torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]), "n": torch.tensor(1)}
    name, changed = CHANGES[change]("fc.weight", model["fc.weight"])
    other = {name: changed, "n": model["n"]}
    assert ours(model, tmp_path / "a.pth") != ours(other, tmp_path / "b.pth")


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(min_size=2, max_size=8), st.data())
def test_a_moved_boundary_changes_the_digest(
    tmp_path: Path, data: bytes, draw: st.DataObject
) -> None:
    """The same bytes one after another, divided between two tensors at another place."""
    first, second = (draw.draw(st.integers(0, len(data))) for _ in range(2))
    assume(first != second)
    whole = torch.tensor(list(data), dtype=torch.uint8)
    one, other = ({"a": whole[:cut], "b": whole[cut:]} for cut in (first, second))
    assert ours(one, tmp_path / "a.pth") != ours(other, tmp_path / "b.pth")


def test_the_prefix_names_the_version() -> None:
    assert PREFIX == "ckpt1:"
