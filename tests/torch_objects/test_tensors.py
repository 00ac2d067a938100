"""Every kind of value is described as torch sees it, and survives the edit of something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch_checks import assert_same, assert_torch_reads, load, save
from torch_kinds import OTHERS, TENSORS, Kind, build

from ckpt_surgery import Limits, Output, Replace, read, rename, selection, strip
from ckpt_surgery.checkpoint.description import Storage, Tensor
from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.errors import DamagedFileError, LimitExceededError
from ckpt_surgery.fileio import Bytes
from ckpt_surgery.pickles import NO_STATE, ByteString, Dict, Global, Node, Object, PersistentId
from ckpt_surgery.torch_objects import tensors
from ckpt_surgery.torch_objects.math_bits import math_bits
from ckpt_surgery.torch_objects.tensor_calls import relocated
from ckpt_surgery.torch_objects.tensors import TensorReader, sizes

FLOATS = Storage("0", BY_NAME["float32"], "cuda:0", Bytes(bytes(48)))
PLACE = PersistentId(("storage", Global("torch", "FloatStorage"), "0", "cuda:0", 12), FLOATS)


def described(path: Path, name: str = "kind") -> Tensor | None:
    with read(path) as checkpoint:
        return next(e.tensor for e in checkpoint.state_dicts[0].entries if e.name == name)


def around(value: Any) -> dict[str, Any]:
    """`value` in a state dict, beside entries to remove and to rename."""
    return {"gone": torch.ones(2), "kind": value, "old": torch.zeros(3), "more": torch.ones(1)}


@pytest.mark.parametrize("name", TENSORS)
def test_description_is_torchs(name: str, tmp_path: Path) -> None:
    kind = TENSORS[name]
    value = build(kind.make)
    tensor = described(save(around(value), tmp_path / "w.pth"))
    assert tensor is not None
    assert tensor.layout == kind.layout
    assert tensor.device == kind.device
    assert f"torch.{tensor.dtype.name}" == str(value.dtype)
    assert tuple((part.shape, part.dtype.name) for part in tensor.parts) == kind.parts
    assert tensor.requires_grad == value.requires_grad
    assert tensor.is_parameter == isinstance(value, torch.nn.Parameter)
    assert {key: getattr(tensor, key) for key in kind.expected} == kind.expected
    if "shape" not in kind.expected:
        assert tensor.shape == tuple(value.shape)
        assert tensor.numel == value.numel()
    if kind.layout in ("strided", "quantized"):
        assert tensor.stride == value.stride()
        assert tensor.offset == value.storage_offset()
    if tensor.storage is not None:
        assert tensor.storage.nbytes == value.untyped_storage().nbytes()
        assert tensor.nbytes == value.nbytes
    else:
        assert tensor.nbytes == sum(part.nbytes for part in tensor.parts)
    assert math_bits(tensor) == (value.is_conj(), value.is_neg())


@pytest.mark.parametrize("name", [*TENSORS, *OTHERS])
def test_value_survives_edits_beside_it(name: str, tmp_path: Path) -> None:
    kind = (TENSORS | OTHERS)[name]
    edited = around(build(kind.make))
    path, out = save(edited, tmp_path / "w.pth"), tmp_path / "out" / "w.pth"
    out.parent.mkdir()
    strip(path, out, selection(pattern="^gone$"))
    del edited["gone"]
    assert out.read_bytes() == save(edited, path).read_bytes()
    assert_torch_reads(out, load(path), weights_only=kind.weights_only, meta=kind.meta)

    rename(path, Output(out, force=True), [Replace("old", "new")])
    edited = {key.replace("old", "new"): item for key, item in edited.items()}
    assert out.read_bytes() == save(edited, path).read_bytes()
    assert_torch_reads(out, load(path), weights_only=kind.weights_only, meta=kind.meta)


@pytest.mark.parametrize("name", TENSORS)
def test_value_survives_compaction(name: str, tmp_path: Path) -> None:
    value = build(TENSORS[name].make)
    path = save(around(value), tmp_path / "w.pth")
    strip(path, tmp_path / "out.pth", compact=True)
    found, expected = load(tmp_path / "out.pth"), around(value)
    if name == "slice":  # it leaves gaps, and only what it uses remains
        assert found["kind"].stride() == (2, 1)
        assert found["kind"].untyped_storage().nbytes() == 4 * 6
        found["kind"], expected["kind"] = found["kind"].tolist(), value.tolist()
    elif name == "negated":
        assert found["kind"].is_neg()
        found["kind"], expected["kind"] = found["kind"].tolist(), value.tolist()
    assert_same(found, expected)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_tensor_is_an_entry_without_one(name: str, tmp_path: Path) -> None:
    path = save(around(build(OTHERS[name].make)), tmp_path / "w.pth")
    assert described(path) is None


def test_distributed_tensor_is_described_by_its_local_one(tmp_path: Path) -> None:
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        value = distribute_tensor(torch.ones(4, 3), init_device_mesh("cpu", (2,)), [Shard(0)])
        path = save(around(value), tmp_path / "w.pth")
        tensor = described(path)
        assert tensor is not None
        assert (tensor.shape, tensor.layout) == ((4, 3), "dtensor")
        assert tensor.parts[0].shape == (2, 3)  # the others are the mesh's
        strip(path, tmp_path / "out.pth", selection(pattern="gone"))
        found = load(tmp_path / "out.pth")["kind"]
        assert torch.equal(found.to_local(), value.to_local())
        assert found.placements == value.placements
    finally:
        distributed.destroy_process_group()


def test_empty_storage_has_the_type_that_each_tensor_gives_it(tmp_path: Path) -> None:
    empty = torch.empty(0)
    value = {"a": empty, "b": empty.view(torch.int64), "c": torch.ones(1)}
    path = save(value, tmp_path / "w.pth")
    with read(path) as checkpoint:
        dtypes = {name: tensor.dtype.name for name, tensor in checkpoint.tensors}
    assert dtypes == {name: str(t.dtype)[6:] for name, t in load(path).items()}
    assert dtypes["b"] == "int64"


# --- graphs made by hand, of what torch no longer writes or never did


def call(function: str, *args: Node, state: Node = NO_STATE) -> Object:
    module, _, name = function.rpartition(".")
    return Object("REDUCE", Global(module, name), args, state=state)


def describe(node: Node) -> Tensor | None:
    return TensorReader().describe(node)


def strided(*args: Node) -> Object:
    return call("torch._utils._rebuild_tensor", *args)


VIEW = (PLACE, 2, (2, 3), (3, 1))
HOOKS = call("collections.OrderedDict")
INNER = strided(*VIEW)


def v2(*more: Node) -> Object:
    return call("torch._utils._rebuild_tensor_v2", *VIEW, *more)


@pytest.mark.parametrize("module", ["torch", "torch.cuda", "torch.tensor"])
def test_old_tensor_is_given_its_place_as_state(module: str) -> None:
    tensor = describe(call(f"{module}.FloatTensor", state=VIEW))
    assert tensor is not None
    assert (tensor.shape, tensor.stride, tensor.offset) == ((2, 3), (3, 1), 2)
    assert tensor.storage is FLOATS
    assert tensor.device == "cuda:0"
    assert not tensor.requires_grad


@pytest.mark.parametrize("requires_grad", [True, False])
def test_old_variable_wraps_a_tensor(requires_grad: bool) -> None:
    state = (strided(*VIEW), Global("x", "y"), None, requires_grad, None)
    tensor = describe(call("torch.FloatTensor", state=state))
    assert tensor is not None
    assert tensor.requires_grad == requires_grad
    assert tensor.shape == (2, 3)


@pytest.mark.parametrize(
    "node",
    [
        "text",
        call("torch.FloatTensor"),
        call("torch.FloatTensor", state=None),
        call("torch.FloatTensor", state=(1, 2, 3)),
        call("torch.FloatTensor", state=("no tensor", 2, 3, 4, 5)),
        call("torch.FloatTensor", 3, state=VIEW),
        call("other.FloatTensor", state=VIEW),
        call("other._rebuild_tensor_v2", *VIEW),
        Object("NEWOBJ", Global("torch._utils", "_rebuild_tensor_v2"), VIEW),
        Object("REDUCE", "no class", VIEW),
        call("torch._tensor._rebuild_from_type_v2", "no function", None, (), None),
        call("torch._tensor._rebuild_from_type_v2", Global("a", "b"), None, [], None),
        call("torch._tensor._rebuild_from_type_v2", Global("a", "b"), None, (), None),
        call("torch._utils._rebuild_device_tensor_from_numpy", "array", None, "xla:0", False),
        call(
            "torch._tensor._rebuild_from_type_v2",
            Global("torch._utils", "_rebuild_device_tensor_from_numpy"),
            Global("a", "B"),
            ("array", Global("torch", "float32"), "xla:0", False),
            Dict(),
        ),
    ],
)
def test_what_is_not_understood_is_no_tensor(node: Node) -> None:
    assert describe(node) is None


def test_scalar_of_an_empty_storage_was_an_empty_tensor() -> None:
    empty = Storage("0", BY_NAME["float32"], "cpu", Bytes(b""))
    tensor = describe(strided(PersistentId(None, empty), 0, (), ()))
    assert tensor is not None
    assert tensor.shape == (0,)
    place = (PersistentId(None, empty), 0, (), ())
    with pytest.raises(DamagedFileError, match="reaches to byte 4"):
        describe(call("torch._utils._rebuild_tensor_v2", *place, False, HOOKS))


def test_tensor_on_another_device_is_described_by_its_copy() -> None:
    float64 = Global("torch", "float64")
    device = call("torch.device", "xla", 1)
    for name in ("_rebuild_device_tensor_from_cpu_tensor", "_rebuild_xla_tensor"):
        tensor = describe(call(f"torch._utils.{name}", INNER, float64, device, True))
        assert tensor is not None
        assert (tensor.shape, tensor.dtype.name) == ((2, 3), "float64")
        assert (tensor.device, tensor.layout) == ("xla:1", "device")
        assert tensor.requires_grad
        assert [part.storage for part in tensor.parts] == [FLOATS]


@pytest.mark.parametrize(
    ("device", "name"), [("cuda:3", "cuda:3"), (ByteString(b"cpu"), "cpu"), (7, "unknown")]
)
def test_device_is_read_in_every_form(device: Node, name: str) -> None:
    dtype = Global("torch", "float32")
    tensor = describe(call("torch._utils._rebuild_xla_tensor", INNER, dtype, device, False))
    assert tensor is not None
    assert tensor.device == name


def test_older_name_of_the_module_is_known() -> None:
    args = (Global("torch._utils", "_rebuild_tensor"), Global("m", "T"), VIEW, Dict())
    tensor = describe(call("torch.tensor._rebuild_from_type_v2", *args))
    assert tensor is not None
    assert tensor.shape == (2, 3)


def test_each_node_is_described_once() -> None:
    reader, node = TensorReader(), strided(*VIEW)
    assert reader.describe(node) is reader.describe(node)
    assert list(reader.below([node, (node,), Dict(["a", node])])) == [reader.describe(node)]


def test_below_stops_at_what_was_seen() -> None:
    reader, seen = TensorReader(), set()
    node = strided(*VIEW)
    assert len(list(reader.below([node], seen))) == 1
    assert list(reader.below([node], seen)) == []


@pytest.mark.parametrize("size", [(2, 3), [2, 3], call("torch.Size", (2, 3))])
def test_shape_is_read_in_every_form(size: Node) -> None:
    assert sizes(size) == (2, 3)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (3, "not a sequence"),
        (call("torch.Size", 3), "not a sequence"),
        ((1,) * 1001, "not a sequence"),
        ((2, -1), "negative"),
        ((2, 2**63), "too large"),
        ((2, True), "no number"),
        ((2, 1.0), "no number"),
        ((2**32, 2**32), "64 bits"),
    ],
)
def test_impossible_shape_is_refused(size: Node, message: str) -> None:
    with pytest.raises(DamagedFileError, match=message):
        sizes(size)


UNTYPED = PersistentId(None, Storage("0", BY_NAME["uint8"], "cpu", Bytes(bytes(8)), untyped=True))
RECURSIVE = call("torch._utils._rebuild_parameter", None, True, HOOKS)
RECURSIVE.args = (RECURSIVE, True, HOOKS)
SPARSE = "torch._utils._rebuild_sparse_tensor"
COO = call("torch.serialization._get_layout", "torch.sparse_coo")
V3 = "torch._utils._rebuild_tensor_v3"
WRAPPER = "torch._utils._rebuild_wrapper_subclass"


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (strided("no storage", 0, (2,), (1,)), "is not a storage"),
        (strided(PersistentId("x"), 0, (2,), (1,)), "is not a storage"),
        (strided(PLACE, -1, (2,), (1,)), "offset is not a number"),
        (strided(PLACE, True, (2,), (1,)), "offset is not a number"),
        (strided(PLACE, 0, (2, 2), (1,)), "2 sizes but 1 strides"),
        (strided(PLACE, 0, (13,), (1,)), "reaches to byte 52 of a storage of 48"),
        (strided(PLACE, 6, (2, 3), (4, 1)), "reaches to byte 52"),
        (strided(PLACE, 2**62, (2,), (1,)), "reaches to byte"),
        (strided(PLACE, 0), "wrong form"),
        (Object("REDUCE", Global("torch._utils", "_rebuild_tensor_v2"), [*VIEW]), "wrong form"),
        (call(V3, UNTYPED, 0, (2,), (1,), False), "wrong form"),
        (call(V3, UNTYPED, 0, (2,), (1,), False, HOOKS, "uint16"), "'something else'"),
        (call(V3, UNTYPED, 0, (2,), (1,), False, HOOKS, Global("torch", "f1")), "'torch.f1'"),
        (call(V3, UNTYPED, 0, (5,), (1,), False, HOOKS, Global("torch", "uint16")), "byte 10"),
        (call("torch._utils._rebuild_parameter", "x", True, HOOKS), "wraps something"),
        (call("torch._utils._rebuild_parameter"), "wrong form"),
        (RECURSIVE, "made of itself"),
        (call("torch._tensor._rebuild_from_type_v2", 1), "wrong form"),
        (call(SPARSE, COO, [INNER, INNER, (3,)]), "wrong form"),
        (call(SPARSE, COO, ("a", "b", (3,))), "wrong form"),
        (call(SPARSE, COO), "wrong form"),
        (call(SPARSE, 3, (INNER, INNER, (3,))), "names no layout"),
        (call("torch._utils._rebuild_nested_tensor", INNER), "wrong form"),
        (call("torch._utils._rebuild_nested_tensor", INNER, strided(PLACE, 0, (), ())), "form"),
        (call("torch.nested._internal.nested_tensor._rebuild_njt", INNER), "wrong form"),
        (call(WRAPPER, None, Global("torch", "float32"), (2,)), "wrong form"),
    ],
)
def test_impossible_tensor_is_refused(node: Node, message: str) -> None:
    with pytest.raises(DamagedFileError, match=message):
        describe(node)


def test_parameters_in_parameters_end() -> None:
    node: Node = strided(*VIEW)
    for _ in range(99):
        node = call("torch._utils._rebuild_parameter", node, True, HOOKS)
    assert describe(node) is not None
    for _ in range(5):
        node = call("torch._utils._rebuild_parameter", node, True, HOOKS)
    with pytest.raises(DamagedFileError, match="made of itself"):
        describe(node)


def test_empty_view_may_lie_anywhere() -> None:
    tensor = describe(strided(PLACE, 100, (0, 3), (3, 1)))
    assert tensor is not None
    assert tensor.extent == 0


@pytest.mark.parametrize("layout", ["torch.sparse_coo", Global("torch", "sparse_coo")])
def test_layout_is_read_in_every_form(layout: Node) -> None:
    tensor = describe(call(SPARSE, layout, (INNER, INNER, (3,))))
    assert tensor is not None
    assert tensor.layout == "sparse_coo"


@pytest.mark.parametrize(
    ("more", "bits"),
    [
        ((False, HOOKS), (False, False)),
        ((False, HOOKS, Dict(["conj", True])), (True, False)),
        ((False, HOOKS, Dict([ByteString(b"neg"), True])), (False, True)),
        ((False, HOOKS, Dict(["neg", False, "conj", False])), (True, True)),  # as torch does
        ((False, HOOKS, None), (False, False)),
    ],
)
def test_math_bits_are_those_of_the_arguments(more: Any, bits: tuple[bool, bool]) -> None:
    numbers = Storage("0", BY_NAME["complex64"], "cpu", Bytes(bytes(96)))
    view = (PersistentId(PLACE.pid, numbers), *VIEW[1:])
    tensor = describe(call("torch._utils._rebuild_tensor_v2", *view, *more))
    assert tensor is not None
    assert math_bits(tensor) == bits
    args = (Global("torch._utils", "_rebuild_tensor_v2"), Global("m", "T"), (*view, *more), Dict())
    subclass = describe(call("torch._tensor._rebuild_from_type_v2", *args))
    assert subclass is not None
    assert math_bits(subclass) == bits


def test_real_numbers_are_conjugated_neither_here_nor_in_torch() -> None:
    with pytest.raises(DamagedFileError, match=r"real numbers \(float32\) are conjugated"):
        describe(v2(False, HOOKS, Dict(["conj", False])))
    with pytest.raises(RuntimeError, match="isComplexType"):
        torch._utils._rebuild_tensor_v2(
            torch.FloatStorage(12), *VIEW[1:], False, {}, {"conj": False}
        )


@pytest.mark.parametrize(
    "state",
    [
        (Dict(),),
        (Dict(), Dict(), Dict()),
        [],
        1,
        (Dict(), 1),
        call("types.MappingProxyType", Dict()),
    ],
)
def test_attributes_of_a_plain_tensor_are_a_dictionary_or_two(state: Node) -> None:
    args = (Global("torch._utils", "_rebuild_tensor_v2"), (*VIEW, False, HOOKS), state)
    for kind in ("torch.Tensor", "torch._tensor.Tensor"):
        cls = Global(*kind.rsplit(".", 1))
        with pytest.raises(DamagedFileError, match="arguments of the wrong form"):
            describe(call("torch._tensor._rebuild_from_type_v2", args[0], cls, *args[1:]))
    own = call("torch._tensor._rebuild_from_type_v2", args[0], Global("mine", "T"), *args[1:])
    assert describe(own) is not None  # its class may know what to do with it
    with pytest.raises(DamagedFileError, match="arguments of the wrong form"):
        describe(call("torch._utils._rebuild_parameter_with_state", INNER, True, HOOKS, state))


def test_math_bits_need_a_node() -> None:
    assert math_bits(Tensor((2,), BY_NAME["float32"], (1,))) == (False, False)
    old = describe(call("torch.FloatTensor", state=VIEW))
    assert old is not None
    assert math_bits(old) == (False, False)


@pytest.mark.parametrize(
    "node",
    [
        v2(True, HOOKS),
        call("torch.FloatTensor", state=VIEW),
        call(
            "torch._tensor._rebuild_from_type_v2",
            Global("torch._utils", "_rebuild_tensor_v2"),
            Global("m", "T"),
            (*VIEW, True, HOOKS),
            Dict(["a", 1]),
        ),
    ],
)
def test_relocated_tensor_differs_in_its_place_alone(node: Object) -> None:
    tensor = describe(node)
    assert tensor is not None
    other = Storage("9", BY_NAME["float32"], "cpu", Bytes(bytes(24)))
    place = PersistentId(None, other)
    moved = Tensor((2, 3), tensor.dtype, (1, 2), 0, other)
    found = describe(relocated(node, place, moved))
    assert found is not None
    assert (found.storage, found.offset, found.stride) == (other, 0, (1, 2))
    assert (found.shape, found.requires_grad) == (tensor.shape, tensor.requires_grad)
    assert found.parts == tensor.parts


def test_only_what_was_described_can_be_relocated() -> None:
    tensor = Tensor((2,), BY_NAME["float32"], (1,), 0, FLOATS)
    for node in (
        Object("REDUCE", Global("a", "b"), [1]),
        call("torch._tensor._rebuild_from_type_v2", 1, 2, [3], 4),
    ):
        with pytest.raises(TypeError):
            relocated(node, PLACE, tensor)


def test_kinds_are_all_there() -> None:
    """Every element type that a storage or a tensor can name has a value."""
    cannot_be_made = {"quint4x2", "quint2x4", "qint32", "qint8", "quint8"}
    # types of safetensors that torch has none of
    cannot_be_made |= {"float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn"}
    whole = {n for n, d in BY_NAME.items() if d.name == n and not n.strip("u").startswith("int")}
    assert whole - cannot_be_made - set(TENSORS) == set()
    assert isinstance(TENSORS["meta"], Kind)


def sparse(indices: Node, values: Node) -> Object:
    return call(SPARSE, COO, (indices, values, (3,)))


def test_tensors_that_share_parts_are_counted_as_often_as_they_occur() -> None:
    """Thirty that double, one inside the other, would stand for 2**30."""
    node: Node = strided(*VIEW)
    for _ in range(30):
        node = sparse(node, call("torch._utils._rebuild_parameter", node, True, HOOKS))
    with pytest.raises(LimitExceededError, match="too many others"):
        describe(node)


def test_search_for_parts_is_bounded() -> None:
    """Subclasses that share one state, which each of them is searched for tensors."""
    limits = Limits(operations=tensors._SEARCH_SHARE * 50)
    state = Dict([f"{i}" for i in range(30)])

    def subclass() -> Object:
        args = (Global("torch._utils", "_rebuild_tensor"), Global("m", "T"), VIEW, state)
        return call("torch._tensor._rebuild_from_type_v2", *args)

    reader = TensorReader(limits)
    assert reader.describe(subclass()) is not None
    with pytest.raises(LimitExceededError, match="too many"):
        list(map(reader.describe, [subclass() for _ in range(20)]))
