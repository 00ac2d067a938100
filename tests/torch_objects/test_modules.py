"""A pickled module is read as the state dict that the module itself would give."""

from __future__ import annotations

import contextlib
import copy
import importlib
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from state_dict_oracle import assert_same, to_python
from torch import nn

from ckpt_surgery import formats
from ckpt_surgery.checkpoint.description import Checkpoint, StateDict, Tensor
from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.errors import DamagedFileError, LimitExceededError
from ckpt_surgery.fileio.atomic import atomic_output
from ckpt_surgery.formats.torch_zip_layout import _lay_out_torch_zip
from ckpt_surgery.pickles import (
    ByteString,
    Dict,
    Extension,
    Global,
    Limits,
    Node,
    Object,
    PersistentId,
)
from ckpt_surgery.torch_objects.module_nodes import class_name_of, is_module
from ckpt_surgery.torch_objects.module_versions import saves_itself, version_of
from ckpt_surgery.torch_objects.modules import read_module

containers = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(value: object, path: Path, *, zipped: bool = True) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about sources that cannot be found
        torch.save(value, path, _use_new_zipfile_serialization=zipped)


def read_back(value: object, path: Path, *, zipped: bool = True) -> Checkpoint:
    save(value, path, zipped=zipped)
    return formats.read(path)


def only(checkpoint: Checkpoint) -> StateDict:
    (state_dict,) = checkpoint.state_dicts
    return state_dict


# --- models -------------------------------------------------------------------------------------


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4, affine=False)),
    )


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)))


def old_spectral_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 4)))


def pruned() -> nn.Module:
    from torch.nn.utils import prune

    return nn.Sequential(prune.l1_unstructured(nn.Linear(3, 4), "weight", amount=2))


def tied() -> nn.Module:
    model = nn.ModuleDict({"encoder": nn.Embedding(5, 3), "decoder": nn.Linear(3, 5)})
    model["decoder"].weight = model["encoder"].weight
    return model


def missing_and_transient() -> nn.Module:
    model = nn.Module()
    model.register_parameter("none", None)
    model.register_buffer("nothing", None)
    model.register_buffer("transient", torch.ones(3), persistent=False)
    model.register_buffer("kept", torch.arange(3))
    model.absent = None
    model.register_module("gone", None)
    model.plain = torch.ones(7)
    return model


def shared() -> nn.Module:
    layer = nn.Linear(2, 2)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Sequential(layer))


def parameter_containers() -> nn.Module:
    model = nn.Module()
    model.list = nn.ParameterList([torch.ones(1), torch.ones(2)])
    model.dict = nn.ParameterDict({"a": torch.ones(1), "b": torch.zeros(2)})
    model.modules_list = nn.ModuleList([nn.Linear(1, 1)])
    return model


def views() -> nn.Module:
    model = nn.Module()
    base = torch.arange(24.0).reshape(4, 6)
    model.register_buffer("row", base[1])
    model.register_buffer("columns", base[:, 2:4])
    model.weight = nn.Parameter(base.t())
    model.register_buffer("empty", torch.empty(0, 3))
    model.register_buffer("scalar", torch.tensor(2, dtype=torch.int64))
    model.bfloat16_weight = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    return model


def with_grad() -> nn.Module:
    model = nn.Module()
    model.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    model.register_buffer("learned", torch.ones(3, requires_grad=True))
    model.register_buffer("float8", torch.ones(2).to(torch.float8_e4m3fn))
    return model


def hung_with_attributes() -> nn.Module:
    model = nn.Module()
    model.buffer = nn.Buffer(torch.ones(2))
    model.weight = nn.Parameter(torch.ones(2))
    model.weight.note = "a note"
    other = torch.ones(3, requires_grad=True)
    other.companion = torch.zeros(4)
    model.register_buffer("other", other)
    return model


def averaged() -> nn.Module:
    return torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2), use_buffers=True)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "cnn": cnn,
    "lstm": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2),
    "gru": lambda: nn.GRU(3, 4),
    "attention": lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=3),
    "transformer": lambda: nn.Transformer(4, 2, 1, 1, 8, batch_first=True),
    "embedding": lambda: nn.Embedding(5, 3, padding_idx=0),
    "data parallel": lambda: nn.DataParallel(nn.Linear(2, 2)),
    "weight norm": old_weight_norm,
    "spectral norm": old_spectral_norm,
    "pruned": pruned,
    "tied": tied,
    "missing and transient": missing_and_transient,
    "shared": shared,
    "parameter containers": parameter_containers,
    "sync batch norm": lambda: nn.Sequential(nn.SyncBatchNorm(3)),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d()),
    "views": views,
    "averaged": averaged,
    "no entries": nn.Module,
}


@containers
@pytest.mark.parametrize("name", MODELS)
def test_module_reads_as_its_state_dict(name: str, zipped: bool, tmp_path: Path) -> None:
    model = MODELS[name]()
    checkpoint = read_back(model, tmp_path / "model.pt", zipped=zipped)
    state_dict = only(checkpoint)
    assert_same(state_dict, model.state_dict())
    assert checkpoint.format == "torch-module"
    assert checkpoint.notes == ()
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    assert {e.name for e in state_dict.entries if e.role == "parameter"} == parameters
    assert {e.role for e in state_dict.entries} <= {"parameter", "buffer"}


WRITTEN = {**MODELS, "with grad": with_grad, "hung with attributes": hung_with_attributes}


@pytest.mark.parametrize(
    ("name", "zipped"),
    [*((name, True) for name in WRITTEN), ("cnn", False), ("tied", False), ("no entries", False)],
)
def test_written_state_dict_is_what_torch_would_save(
    name: str, zipped: bool, tmp_path: Path
) -> None:
    """The same bytes as ``torch.save(model.state_dict())``."""
    for folder in ("module", "ours", "torch"):  # the file's name is part of the archive
        (tmp_path / folder).mkdir()
    module_path, ours, by_torch = (
        tmp_path / folder / "archive.pt" for folder in ("module", "ours", "torch")
    )
    model = WRITTEN[name]()
    with (
        read_back(model, module_path, zipped=zipped) as checkpoint,
        atomic_output(ours) as sink,
    ):
        _lay_out_torch_zip(replace(checkpoint, modules={})).write(sink)
    torch.save(model.state_dict(), by_torch)
    assert ours.read_bytes() == by_torch.read_bytes()


@pytest.mark.parametrize("make", [with_grad, hung_with_attributes])
def test_entries_are_detached(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = make()
    checkpoint = read_back(model, tmp_path / "model.pt")
    expected = {name: value.float() for name, value in model.state_dict().items()}
    state_dict = only(checkpoint)
    assert state_dict.names == list(expected)
    for entry in state_dict.entries:
        assert entry.tensor is not None
        assert not entry.tensor.requires_grad
        assert entry.tensor.parts == ()
        node = entry.node
        assert isinstance(node, Object)
        assert node.name in {
            "torch._utils._rebuild_tensor_v2",
            "torch._utils._rebuild_tensor_v3",
        }
        assert isinstance(node.args, tuple)
        assert node.args[4] is False


def test_tied_tensors_share_their_storage(tmp_path: Path) -> None:
    first, second = (e.tensor for e in only(read_back(tied(), tmp_path / "m.pt")).entries[:2])
    assert first is not None
    assert second is not None
    assert first.storage is second.storage


@containers
def test_wrapped_module_keeps_what_is_beside_it(zipped: bool, tmp_path: Path) -> None:
    model = cnn()
    value = {"model": model, "epoch": 3}
    checkpoint = read_back(value, tmp_path / "train.pt", zipped=zipped)
    state_dict = only(checkpoint)
    assert state_dict.path == "model"
    assert_same(state_dict, model.state_dict())
    assert [(other.path, other.value) for other in checkpoint.others] == [("epoch", 3)]


SOURCE = """
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()
        self.norm = nn.BatchNorm1d(3)
"""


@containers
def test_class_is_never_imported(
    zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vanishing_net.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    model = importlib.import_module("vanishing_net").Net()
    expected = model.state_dict()
    save(model, tmp_path / "model.pt", zipped=zipped)
    del sys.modules["vanishing_net"]
    (tmp_path / "vanishing_net.py").write_text("raise SystemExit('imported')")
    checkpoint = formats.read(tmp_path / "model.pt")
    assert_same(only(checkpoint), expected)
    assert "vanishing_net" not in sys.modules
    (note,) = checkpoint.notes
    assert note.startswith("classes outside torch may change their state dict")
    assert "'vanishing_net.Net', 'vanishing_net.Block'" in note


def test_compiled_module_reads_as_its_state_dict(tmp_path: Path) -> None:
    model = torch.compile(nn.Linear(2, 2), backend="eager")
    assert isinstance(model, nn.Module)
    checkpoint = read_back(model, tmp_path / "model.pt")
    assert_same(only(checkpoint), model.state_dict())
    assert only(checkpoint).names == ["_orig_mod.weight", "_orig_mod.bias"]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision_model_reads_as_its_state_dict(name: str, tmp_path: Path) -> None:
    with contextlib.suppress(RuntimeError):  # this torchvision may have been built for another
        for operator in ("nms", "qnms"):  # device, and then lacks two operators
            torch.library.define(
                f"torchvision::{operator}",
                "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            )
    models = pytest.importorskip("torchvision.models")
    model = getattr(models, name)()
    checkpoint = read_back(model, tmp_path / "model.pt")
    assert_same(only(checkpoint), model.state_dict())
    assert checkpoint.notes == ()


# --- where the result may be wrong --------------------------------------------------------------


def test_class_that_saves_itself_is_named(tmp_path: Path) -> None:
    from torch.ao.quantization import FakeQuantize

    model = nn.Sequential(nn.Linear(2, 2), FakeQuantize())
    (note,) = read_back(model, tmp_path / "model.pt").notes
    assert note == (
        "these classes change their state dict: 'torch.ao.quantization.fake_quantize.FakeQuantize'"
    )


def some_hook(*_: object) -> None:
    """Picklable."""


@pytest.mark.parametrize("pre", [True, False])
def test_hook_is_named(pre: bool, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    if pre:
        model[1].register_state_dict_pre_hook(some_hook)
    else:
        model[1]._register_state_dict_hook(some_hook)
    (note,) = read_back(model, tmp_path / "model.pt").notes
    assert note == "hooks that may change the state dict are not run: '1'"


@pytest.mark.parametrize("name", ["state_dict", "_save_to_state_dict", "get_extra_state"])
def test_attribute_that_hides_what_makes_a_state_dict_is_named(name: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    setattr(model[1], name, some_hook)
    checkpoint = read_back(model, tmp_path / "model.pt")
    assert checkpoint.notes == (f"methods that are attributes are not called: '1.{name}'",)
    assert only(checkpoint).missing == (f"1 (by its own {name})",)


def test_module_made_by_code_is_left_out(tmp_path: Path) -> None:
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2)))
    model = nn.Sequential(nn.Linear(2, 2), graph)
    checkpoint = read_back(model, tmp_path / "model.pt")
    assert only(checkpoint).names == ["0.weight", "0.bias"]
    made_by = "torch.fx.graph_module.reduce_graph_module"
    assert checkpoint.notes == (f"modules that only code can make are left out: '1 ({made_by})'",)


def test_many_classes_are_counted_not_listed() -> None:
    children: list[Node] = []
    for index in range(7):
        children += [str(index), module(cls=Global("__main__", f"C{index}"))]
    reading = read(module(modules=Dict(children)))
    (reason,) = reading.approximate
    assert reason == (
        "classes outside torch may change their state dict: "
        "'__main__.C0', '__main__.C1', '__main__.C2', '__main__.C3', '__main__.C4' and 2 more"
    )


def test_versions_are_those_of_torch() -> None:
    checked = 0
    for name in dir(nn):
        cls = getattr(nn, name)
        if isinstance(cls, type) and issubclass(cls, nn.Module):
            assert version_of(f"{cls.__module__}.{cls.__qualname__}") == cls._version, name
            checked += 1
    assert checked > 100


def test_classes_that_save_themselves_are_those_of_torch() -> None:
    from torch.ao.nn.quantized import Conv2d, Linear

    for cls in (Conv2d, Linear):
        assert saves_itself(f"{cls.__module__}.{cls.__qualname__}")
        assert cls._save_to_state_dict is not nn.Module._save_to_state_dict
    assert not saves_itself("torch.nn.modules.linear.Linear")
    assert not saves_itself("torch.nn.modules.linear.LazyLinear")


def test_older_names_of_packages_are_known() -> None:
    assert version_of("torch.nn.quantized.modules.linear.Linear") == 3
    assert version_of("torch.nn.intrinsic.qat.modules.conv_fused.ConvBn2d") == 2
    assert saves_itself("torch.quantization.fake_quantize.FakeQuantize")
    assert version_of("somewhere.else.Net") == 1


# --- graphs made by hand ------------------------------------------------------------------------

LINEAR = Global("torch.nn.modules.linear", "Linear")
TENSOR = Object("REDUCE", Global("torch._utils", "_rebuild_tensor_v2"), ())


def ordered(*items: Node) -> Object:
    """An ``OrderedDict`` as Python 3 pickles it."""
    return Object("REDUCE", Global("collections", "OrderedDict"), (), items=list(items))


def module(
    *,
    parameters: Node = None,
    modules: Node = None,
    cls: Node = LINEAR,
    more: tuple[Node, ...] = (),
) -> Object:
    items = ["_parameters", parameters or Dict(), "_modules", modules or Dict(), *more]
    return Object("NEWOBJ", cls, (), state=Dict(items))


def describe(node: Node) -> Tensor | None:
    return Tensor((), BY_NAME["float32"], (), node=node) if node is TENSOR else None


def read(node: Object, path: str = "", limits: Limits | None = None):  # type: ignore[no-untyped-def]
    return read_module(node, path, "model", describe, limits or Limits())


def test_module_is_known_by_its_state() -> None:
    assert is_module(module())
    assert is_module(module(cls=Extension(3)))
    python2 = Dict([ByteString(b"_parameters"), ordered(), "_modules", Dict()])
    assert is_module(Object("NEWOBJ", LINEAR, (), state=python2))
    for node in (
        Dict(["_parameters", Dict(), "_modules", Dict()]),
        Object("NEWOBJ", LINEAR, ()),
        module(cls=Global("collections", "OrderedDict")),
        Object("NEWOBJ", LINEAR, (), state=(None, Dict())),
        Object("NEWOBJ", LINEAR, (), state=Dict(["_parameters", Dict()])),
        Object("NEWOBJ", LINEAR, (), state=Dict(["_parameters", 3, "_modules", None])),
        Object("REDUCE", Global("torch._dynamo.eval_frame", "OptimizedModule"), ()),
        Object("REDUCE", Global("torch._dynamo.eval_frame", "OptimizedModule"), (3, None)),
        "module",
    ):
        assert not is_module(node)


def test_class_is_found_however_it_is_pickled() -> None:
    stored = PersistentId(("module", LINEAR, "net.py", "class Linear: ..."))
    for node in (
        Object("NEWOBJ", LINEAR, ()),
        Object("NEWOBJ", stored, ()),
        Object("REDUCE", Global("copy_reg", "_reconstructor"), (LINEAR, None, None)),
        Object("REDUCE", Global("copyreg", "__newobj__"), (stored,)),
    ):
        assert class_name_of(node) == "torch.nn.modules.linear.Linear"
    for node in (
        Object("NEWOBJ", Extension(1), ()),
        Object("NEWOBJ", PersistentId("module"), ()),
        Object("NEWOBJ", PersistentId(("storage", LINEAR)), ()),
        Object("REDUCE", Global("copyreg", "__newobj__"), ()),
    ):
        assert class_name_of(node) == ""


def test_python2_names_are_text() -> None:
    pairs = [[ByteString(b"weight"), TENSOR]]
    parameters = Object("REDUCE", Global("collections", "OrderedDict"), (pairs,))
    assert read(module(parameters=parameters)).state_dict.names == ["weight"]


def test_fields_of_old_files_may_be_missing() -> None:
    node = module(parameters=Dict(["weight", TENSOR]))
    assert read(node).state_dict.names == ["weight"]
    assert read(node).approximate == ()


def test_two_equal_names_are_refused() -> None:
    parameters = Dict(["a", None, "b", TENSOR, "a", TENSOR])
    with pytest.raises(DamagedFileError, match="two keys of one dictionary are the same: 'a'"):
        read(module(parameters=parameters))


@pytest.mark.parametrize("part", ["items", "elements"])
def test_module_that_is_given_items_is_refused(part: str) -> None:
    node = module(parameters=Dict(["a", TENSOR]))
    setattr(node, part, ["b", TENSOR])
    with pytest.raises(DamagedFileError, match="a module is given items"):
        read(node)


def test_value_that_is_no_tensor_is_an_entry() -> None:
    lazy = Object("REDUCE", Global("torch.nn.parameter", "UninitializedParameter"), (True,))
    (entry,) = read(module(parameters=Dict(["weight", lazy]))).state_dict.entries
    assert entry.tensor is None
    assert entry.node is lazy
    assert entry.role == "parameter"


def dill_type(name: str, *, module: str = "dill._dill") -> Object:
    return Object("REDUCE", Global(module, "_load_type"), (name,))


def names_of_set(*names: Node, module: str = "__builtin__") -> Object:
    return Object("REDUCE", Global(module, "set"), (list(names),))


@pytest.mark.parametrize(
    ("transient", "kept"),
    [
        (names_of_set(), ["a", "b"]),
        (names_of_set("a"), ["b"]),
        (names_of_set("a", module="builtins"), ["b"]),
        (names_of_set(ByteString(b"b"), 3), ["a"]),
        (Object("REDUCE", Global("builtins", "set"), ()), ["a", "b"]),
        (Object("REDUCE", dill_type("set"), (["a"],)), ["b"]),
        (Object("REDUCE", dill_type("set", module="dill.dill"), ()), ["a", "b"]),
        (None, ["a", "b"]),
    ],
)
def test_only_persistent_buffers_are_entries(transient: Node, kept: list[str]) -> None:
    buffers = ("_buffers", Dict(["a", TENSOR, "b", TENSOR]))
    node = module(more=(*buffers, "_non_persistent_buffers_set", transient))
    assert read(node).state_dict.names == kept


def nested(fields: tuple[Node, ...]) -> Object:
    return module(modules=Dict(["layer", module(more=fields)]))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (module(modules=Dict(["layer", module(parameters=Dict([3, TENSOR]))])), "no mapping"),
        (nested(("_buffers", [TENSOR])), "no mapping"),
        (nested(("_buffers", Object("REDUCE", LINEAR, ()))), "no mapping"),
        (nested(("_non_persistent_buffers_set", "ab")), "is no set"),
        (nested(("_non_persistent_buffers_set", names_of_set("a").args)), "is no set"),
        (
            nested(
                ("_non_persistent_buffers_set", Object("REDUCE", Global("builtins", "set"), ("a",)))
            ),
            "is no set",
        ),
        (module(modules=Dict(["layer", 3])), "is no module"),
    ],
)
def test_malformed_module_is_refused(node: Object, message: str) -> None:
    with pytest.raises(DamagedFileError, match=message) as caught:
        read(node, "net")
    assert caught.value.entry == "net/layer"


def test_error_in_the_top_module_names_the_path() -> None:
    bad = module(more=("_buffers", 3))
    with pytest.raises(DamagedFileError) as caught:
        read(bad)
    assert caught.value.entry is None
    with pytest.raises(DamagedFileError) as caught:
        read(bad, "model")
    assert caught.value.entry == "model"


def test_module_that_contains_itself_is_refused() -> None:
    inner = module()
    outer = module(modules=Dict(["inner", inner]))
    assert isinstance(inner.state, Dict)
    inner.state.items[3] = Dict(["outer", outer])
    with pytest.raises(DamagedFileError, match="contains itself") as caught:
        read(outer)
    assert caught.value.entry == "inner.outer"


def test_doubling_of_shared_modules_is_bounded() -> None:
    node = module(parameters=Dict(["weight", TENSOR]))
    for _ in range(60):
        node = module(modules=Dict(["a", node, "b", node]))
    with pytest.raises(LimitExceededError, match="shared or nested too often"):
        read(node, limits=Limits(operations=100_000))


def test_deep_nesting_is_bounded() -> None:
    node = module()
    for _ in range(10_000):
        node = module(modules=Dict(["a", node]))
    with pytest.raises(LimitExceededError) as caught:
        read(node, limits=Limits(operations=1_000_000))
    assert caught.value.entry is not None
    assert len(caught.value.entry) <= 200
    while isinstance(node.state, Dict) and (items := node.state.items[3].items):  # type: ignore[union-attr]
        node = items[1]


def test_operations_are_allowed_up_to_their_limit() -> None:
    node = module(parameters=Dict(["weight", TENSOR]))
    needed = next(n for n in range(0, 800, 8) if not _exceeds(node, n))
    # 2 fields, and an entry of 20 and the 6 letters of its name, each worth 8 opcodes
    assert needed == 28 * 8


def _exceeds(node: Object, operations: int) -> bool:
    try:
        read(node, limits=Limits(operations=operations))
    except LimitExceededError:
        return True
    return False


def rebuilt(function: str, *args: Node) -> Object:
    return Object("REDUCE", Global("torch._utils", function), args)


def test_each_use_of_a_tied_tensor_is_a_tensor_of_its_own() -> None:
    place = PersistentId(("storage", "0"), "the storage")
    hooks = Object("REDUCE", Global("collections", "OrderedDict"), ())
    args = (place, 0, (1, 2), (2, 1), False, hooks)
    node = rebuilt("_rebuild_tensor_v2", *args)
    tree = module(parameters=Dict(["a", node, "b", node]))
    first, second = (entry.node for entry in read_any(tree).entries)
    assert first is node
    assert isinstance(second, Object)
    assert isinstance(second.args, tuple)
    for old, new in zip(args, second.args, strict=True):
        assert type(new) is type(old)
        assert new is not old or isinstance(old, (int, bool))
    copied_place, *_, copied_hooks = second.args
    assert isinstance(copied_place, PersistentId)
    assert isinstance(copied_hooks, Object)
    assert (copied_place.pid, copied_place.target) == (place.pid, place.target)
    assert copied_place.pid is not place.pid
    assert copied_hooks.name == hooks.name


def test_use_of_a_tied_tensor_that_is_no_plain_one_is_the_same() -> None:
    node = rebuilt("_rebuild_sparse_tensor", None, ())
    tree = module(parameters=Dict(["a", node, "b", node]))
    assert [entry.node for entry in read_any(tree).entries] == [node, node]


def from_type(cls: Global, inner: Object, state: Node) -> Object:
    function = Global("torch._tensor", "_rebuild_from_type_v2")
    return Object("REDUCE", function, (inner.callee, cls, inner.args, state))


def read_any(node: Object) -> StateDict:
    """Read a module whose values all count as tensors."""

    def describe_any(found: Node) -> Tensor | None:
        parts = (Tensor((), BY_NAME["int8"], ()),)
        return Tensor((), BY_NAME["float32"], (), parts=parts, node=found)

    return read_module(node, "", "model", describe_any).state_dict


def detached_node(node: Object) -> Node:
    (entry,) = read_any(module(parameters=Dict(["weight", node]))).entries
    return entry.node


def test_only_what_requires_grad_is_rebuilt() -> None:
    still = rebuilt("_rebuild_tensor_v2", 0, 0, (), (), False, None)
    assert detached_node(still) is still
    for name, index in (("_rebuild_tensor_v3", 4), ("_rebuild_qtensor", 5)):
        args: list[Node] = [None] * 7
        args[index] = True
        node = detached_node(rebuilt(name, *args))
        assert isinstance(node, Object)
        assert node.name == f"torch._utils.{name}"
        assert node.args == (*args[:index], False, *args[index + 1 :])
    old = Object("REDUCE", Global("torch", "FloatTensor"), (), state=(1, 2, 3, 4))
    assert detached_node(old) is old
    odd = Object("REDUCE", Global("torch", "FloatTensor"), [])
    assert detached_node(odd) is odd


def test_attributes_of_plain_tensors_go_and_those_of_subclasses_stay() -> None:
    inner = rebuilt("_rebuild_tensor_v2", 0, 0, (), (), True, None)
    plain = detached_node(from_type(Global("torch", "Tensor"), inner, Dict(["note", "x"])))
    assert isinstance(plain, Object)
    assert plain.name == "torch._utils._rebuild_tensor_v2"
    assert plain.args == (0, 0, (), (), False, None)

    subclass = from_type(Global("mine", "Tensor"), inner, Dict(["note", "x"]))
    kept = detached_node(subclass)
    assert isinstance(kept, Object)
    assert kept.name == subclass.name
    assert isinstance(kept.args, tuple)
    assert kept.args[1:3] == (subclass.args[1], (0, 0, (), (), False, None))  # type: ignore[index]

    still = rebuilt("_rebuild_tensor_v2", 0, 0, (), (), False, None)
    unchanged = from_type(Global("mine", "Tensor"), still, None)
    assert detached_node(unchanged) is unchanged


def spectral_hook(state: Node) -> Object:
    norm = Object("NEWOBJ", Global("torch.nn.utils.spectral_norm", "SpectralNorm"), (), state=state)
    hook = Global("torch.nn.utils.spectral_norm", "SpectralNormStateDictHook")
    return Object("NEWOBJ", hook, (), state=Dict(["fn", norm]))


def test_spectral_norm_leaves_its_version_in_the_metadata() -> None:
    hooks = ordered(
        0, spectral_hook(Dict(["name", "weight"])), 1, spectral_hook(Dict(["name", "u"]))
    )
    reading = read(module(more=("_state_dict_hooks", hooks)))
    assert reading.approximate == ()
    assert reading.state_dict.metadata is not None
    assert to_python(reading.state_dict.metadata[""]) == {
        "version": 1,
        "spectral_norm": {"weight.version": 1, "u.version": 1},
    }


@pytest.mark.parametrize(
    "hook",
    [
        spectral_hook(None),
        spectral_hook(Dict([])),
        Object("NEWOBJ", Global("torch.nn.utils.spectral_norm", "SpectralNormStateDictHook"), ()),
        Global("mine", "hook"),
    ],
)
def test_unknown_hook_is_no_version(hook: Node) -> None:
    reading = read(module(more=("_state_dict_hooks", ordered(0, hook))))
    assert reading.approximate == (
        "hooks that may change the state dict are not run: 'the model itself'",
    )
    assert reading.state_dict.metadata is not None
    assert to_python(reading.state_dict.metadata[""]) == {"version": 1}


def test_reading_changes_nothing_in_the_graph(tmp_path: Path) -> None:
    model = with_grad()
    checkpoint = read_back(model, tmp_path / "model.pt")
    root = checkpoint.root
    assert isinstance(root, Object)
    before = copy.deepcopy(to_plain(root))
    read_module(root, "", "model", lambda _: None)
    assert to_plain(root) == before


def to_plain(node: Node) -> object:
    """A graph as values that can be compared."""
    if isinstance(node, (tuple, list)):
        return [to_plain(child) for child in node]
    if isinstance(node, Dict):
        return {"dict": to_plain(node.items)}
    if isinstance(node, Object):
        return [repr(node), to_plain([node.args, node.items, node.state])]
    return repr(node)
