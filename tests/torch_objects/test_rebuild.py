"""An edited description becomes a graph in which only the edit is different."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from archives import archive, reference
from archives import tensor as pickled_tensor
from legacy_files import Call, dumps
from torch import nn
from torch_checks import assert_same, assert_torch_reads, load, save

from ckpt_surgery import (
    AddPrefix,
    Output,
    Plan,
    Replace,
    apply,
    convert,
    read,
    rename,
    selection,
    strip,
)
from ckpt_surgery.checkpoint.description import Checkpoint, Entry, Other, StateDict, Storage, Tensor
from ckpt_surgery.dtypes import BY_NAME
from ckpt_surgery.edits.drop import Drop, DropOther
from ckpt_surgery.edits.rename import RenameModule
from ckpt_surgery.errors import LossyEditError
from ckpt_surgery.fileio import Bytes, FileSource
from ckpt_surgery.formats.torch_zip_container import MODERN, Container
from ckpt_surgery.pickles import ByteString, Dict, Global, Object, PersistentId, parse
from ckpt_surgery.torch_objects.rebuild import Lowered, lower, lower_state_dict
from ckpt_surgery.writing.write import write


class StateDictSubclass(OrderedDict[str, Any]):
    """Pickled by its own name."""


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.BatchNorm1d(2))


def training() -> dict[str, Any]:
    return {
        "state_dict": net().state_dict(),
        "my/optimizer": {"state": {}, "param_groups": []},
        "epoch": 3,
        1: "one",
        "1": "the other one",
    }


def edited(value: Any, path: Path, *edits: Any) -> Any:
    """`value` saved, edited and loaded again."""
    out = path.with_name("edited.pth")
    with read(save(value, path)) as checkpoint:
        write(apply(Plan(edits), checkpoint), Output(out, force=True))
    assert_torch_reads(out, load(out))
    return load(out)


@pytest.mark.parametrize("kind", [dict, OrderedDict, StateDictSubclass])
def test_class_of_the_mapping_is_kept(kind: type, tmp_path: Path) -> None:
    value = kind(a=torch.ones(2), b=torch.zeros(2))
    path, out = save(value, tmp_path / "w.pth"), tmp_path / "out.pth"
    rename(path, out, [AddPrefix("net")])
    assert_same(load(out), kind({"net.a": torch.ones(2), "net.b": torch.zeros(2)}))


def test_mapping_with_a_factory_is_kept(tmp_path: Path) -> None:
    value = defaultdict(list, a=torch.ones(2), b=torch.zeros(2))
    path, out = save(value, tmp_path / "w.pth"), tmp_path / "out.pth"
    strip(path, out, selection(keys=["b"]))
    found = load(out)
    assert isinstance(found, defaultdict)
    assert found.default_factory is list
    assert list(found) == ["a"]


def test_attributes_beside_the_metadata_are_kept(tmp_path: Path) -> None:
    value = net().state_dict()
    value.note = "kept"  # type: ignore[attr-defined]
    path, out = save(value, tmp_path / "w.pth"), tmp_path / "out.pth"
    rename(path, out, [AddPrefix("net")])
    found = load(out)
    assert found.note == "kept"
    assert list(found._metadata) == ["net", "net.0", "net.1", "net.2"]
    assert found._metadata["net.2"] == {"version": 2}


def test_metadata_of_a_plain_dictionary_class_is_kept(tmp_path: Path) -> None:
    value = net().state_dict()
    value._metadata = dict(value._metadata)
    path, out = save(value, tmp_path / "w.pth"), tmp_path / "out.pth"
    rename(path, out, [AddPrefix("net")])
    assert type(load(out)._metadata) is dict
    assert list(load(out)._metadata) == ["net", "net.0", "net.1", "net.2"]


def test_edit_of_the_metadata_alone_is_written(tmp_path: Path) -> None:
    found = edited(net().state_dict(), tmp_path / "w.pth", RenameModule("", "1", None))
    assert list(found._metadata) == ["", "0", "2"]
    empty = edited(nn.ReLU().state_dict(), tmp_path / "w.pth", RenameModule("", "", "act"))
    assert list(empty._metadata) == ["act"]


@pytest.mark.parametrize(
    ("path", "gone"), [("my/optimizer", "my/optimizer"), ("1", 1), ("1#2", "1"), ("epoch", "epoch")]
)
def test_exactly_the_dropped_entry_goes(path: str, gone: Any, tmp_path: Path) -> None:
    found = edited(training(), tmp_path / "w.pth", DropOther(path))
    expected = training()
    del expected[gone]
    assert_same(found, expected)


def test_several_entries_of_one_mapping_go(tmp_path: Path) -> None:
    drops = [DropOther("my/optimizer"), DropOther("epoch"), Drop("state_dict", "0.bias")]
    found = edited({"checkpoint": training()}, tmp_path / "w.pth", *(
        replace(d, path=f"checkpoint/{d.path}") if isinstance(d, DropOther)
        else replace(d, state_dict=f"checkpoint/{d.state_dict}") for d in drops
    ))  # fmt: skip
    expected = training()
    del expected["my/optimizer"], expected["epoch"], expected["state_dict"]["0.bias"]
    assert_same(found, {"checkpoint": expected})


def test_entry_that_is_the_same_object_as_another_goes_alone(tmp_path: Path) -> None:
    shared = [1, 2]
    found = edited(
        {"m": net().state_dict(), "a": shared, "b": shared}, tmp_path / "w.pth", DropOther("a")
    )
    assert list(found) == ["m", "b"]


def test_entry_of_a_list_cannot_be_dropped(tmp_path: Path) -> None:
    path = save([net().state_dict(), 3], tmp_path / "w.pth")
    with (
        read(path) as checkpoint,
        pytest.raises(LossyEditError, match="entry of a dictionary") as e,
    ):
        lower(apply(Plan((DropOther("1"),)), checkpoint))
    assert e.value.entry == "1"


def test_attribute_of_an_object_is_dropped(tmp_path: Path) -> None:
    value = StateDictSubclass(model=net().state_dict())
    value.epoch = 3  # type: ignore[attr-defined]
    path = save(value, tmp_path / "w.pth")
    with read(path) as checkpoint:
        assert [o.path for o in checkpoint.others] == ["epoch"]
    strip(path, tmp_path / "out.pth", entries=["epoch"])
    found = load(tmp_path / "out.pth")
    assert isinstance(found, StateDictSubclass)
    assert list(found["model"]) == list(value["model"])
    assert vars(found) == {}


def python_2(**items: Any) -> Call:
    """``OrderedDict([[key, value], …])``"""
    return Call(OrderedDict, [[key, value] for key, value in items.items()])


def test_mapping_of_python_2_is_edited(tmp_path: Path) -> None:
    weights = python_2(w=pickled_tensor(reference()), v=pickled_tensor(reference()))
    path = archive(tmp_path / "w.pth", python_2(model=weights, epoch=3, optimizer=None))
    strip(path, tmp_path / "out.pth", selection(keys=["v"]), training_state=True)
    found = load(tmp_path / "out.pth")
    assert list(found) == ["model", "epoch"]
    assert list(found["model"]) == ["w"]
    assert isinstance(found["model"], OrderedDict)


def test_keys_keep_their_form(tmp_path: Path) -> None:
    """A byte string of Python 2 stays one, unless it is renamed."""
    data = dumps({"w1": pickled_tensor(reference()), "v1": pickled_tensor(reference())})
    data = data.replace(b"X\x02\x00\x00\x00w1", b"U\x02w1").replace(
        b"X\x02\x00\x00\x00v1", b"U\x02v1"
    )
    path = archive(tmp_path / "w.pth", data)
    with read(path) as checkpoint:
        (state_dict,) = checkpoint.state_dicts
        entries = (state_dict.entries[0], replace(state_dict.entries[1], name="new"))
        node = lower_state_dict(replace(state_dict, entries=entries))
    assert isinstance(node, Dict)
    assert isinstance(node.items[0], ByteString)
    assert node.items[2] == "new"


def test_value_that_is_no_tensor_stays(tmp_path: Path) -> None:
    value = {"w": torch.ones(1), "v": torch.ones(1), "_extra_state": {"scale": torch.ones(2)}}
    path, out = save(value, tmp_path / "w.pth"), tmp_path / "out.pth"
    rename(path, out, [Replace("v", "x")])
    assert_same(load(out)["_extra_state"], value["_extra_state"])


def test_edited_state_dict_that_is_shared_is_edited_everywhere(tmp_path: Path) -> None:
    shared = net().state_dict()
    path, out = save({"model": shared, "best": [shared]}, tmp_path / "w.pth"), tmp_path / "o.pth"
    report = strip(path, out, selection(prefix="0"))
    found = load(out)
    assert found["model"] is found["best"][0]
    assert "0.weight" not in found["model"]
    assert report.warnings == ("'best/0' is the same object as 'model'",)


def test_edit_of_a_shared_tensor_leaves_the_other_use(tmp_path: Path) -> None:
    shared = torch.ones(3)
    value = {"model": {"w": shared, "v": torch.ones(1)}, "mean": [shared]}
    found = edited(value, tmp_path / "w.pth", Drop("model", "w"))
    assert torch.equal(found["mean"][0], shared)


# --- descriptions that come from no pickle


STORAGE = Storage("0", BY_NAME["float32"], "cpu", Bytes(bytes(16)))
UNTYPED = Storage("1", BY_NAME["uint8"], "cuda:1", Bytes(bytes(8)), untyped=True)


def plain(tmp_path: Path, *entries: Entry, metadata: Any = None, **more: Any) -> Checkpoint:
    file = FileSource.open(save(0, tmp_path / "source"))
    return Checkpoint("x", (file,), None, (StateDict("", "model", entries, metadata),), **more)


def entry(name: str, tensor: Tensor) -> Entry:
    return Entry(name, tensor)


def test_description_without_a_graph_is_written_as_torch_would(tmp_path: Path) -> None:
    f32, u16 = BY_NAME["float32"], BY_NAME["uint16"]
    checkpoint = plain(
        tmp_path,
        entry("a", Tensor((2, 2), f32, (2, 1), 0, STORAGE, requires_grad=True)),
        entry("b", Tensor((4,), f32, (1,), 0, STORAGE)),
        entry("c", Tensor((4,), u16, (1,), 0, UNTYPED)),
        metadata={"": Dict(["version", 1])},
    )
    with checkpoint:
        write(checkpoint, Output(tmp_path / "out.pth"))
    found = load(tmp_path / "out.pth", map_location="cpu")
    assert type(found) is OrderedDict
    assert found._metadata == OrderedDict({"": {"version": 1}})
    assert_same(found["a"], torch.zeros(2, 2).requires_grad_())
    assert_same(found["b"], torch.zeros(4))
    assert_same(found["c"], torch.zeros(4, dtype=torch.uint16))
    assert found["a"].untyped_storage()._cdata == found["b"].untyped_storage()._cdata
    assert found["a"].is_leaf


def test_description_without_anything_is_nothing(tmp_path: Path) -> None:
    path = save(None, tmp_path / "w.pth")
    convert(path, tmp_path / "out.pth")
    assert load(tmp_path / "out.pth") is None


def test_storage_of_another_file_is_given_its_class(tmp_path: Path) -> None:
    pids: list[Any] = []

    def load_pid(pid: Any) -> PersistentId:
        pids.append(pid)
        return PersistentId(pid)

    with plain(tmp_path, entry("c", Tensor((4,), BY_NAME["uint16"], (1,), 0, UNTYPED))) as made:
        pickled = lower(made).emit({UNTYPED: "key"})
    parse(pickled.data, persistent_load=load_pid)
    ((kind, storage_class, key, location, count),) = pids
    assert (kind, key, location, count) == ("storage", "key", "cuda:1", 8)
    assert storage_class.qualified == "torch.storage.UntypedStorage"
    assert pickled.storages == [UNTYPED]


def test_reference_to_something_else_cannot_be_written() -> None:
    with pytest.raises(LossyEditError, match="outside the file"):
        Lowered(PersistentId(("storage",)), {}).emit()


def test_class_with_source_of_a_legacy_file_is_the_class() -> None:
    name = Global("m", "Net")
    quoted = PersistentId(("module", name, "net.py", "class Net: ..."))
    root = [
        quoted,
        PersistentId(("other", name)),
        PersistentId("module"),
        PersistentId(("module",)),
    ]
    lowered = lower(Checkpoint("torch-legacy", None, root, ()))  # type: ignore[arg-type]
    assert lowered.replaced == {id(quoted): name}


def test_modern_archive_has_what_torch_writes(tmp_path: Path) -> None:
    with read(save(torch.ones(1), tmp_path / "w.pth")) as checkpoint:
        container = checkpoint.container
        assert isinstance(container, Container)
        for ours, theirs in ((MODERN.before, container.before), (MODERN.after, container.after)):
            assert [name for name, _ in ours] == [name for name, _ in theirs]
        for name in (".format_version", ".storage_alignment", "byteorder", "version"):
            source, written = MODERN.find(name), container.find(name)
            assert source is not None
            assert written is not None
            assert b"".join(source.chunks()) == b"".join(written.chunks())


def test_moved_tensor_that_nothing_rebuilds_is_left_alone(tmp_path: Path) -> None:
    tensor = Tensor((4,), BY_NAME["float32"], (1,), 0, STORAGE, node="no node")
    with plain(tmp_path, entry("a", replace(tensor, node=None)), moved={1: tensor}) as checkpoint:
        assert isinstance(lower(checkpoint).root, Object)


def test_dropping_needs_a_dictionary() -> None:
    other = Other("x", "int", node=3, parent=Object("REDUCE", Global("a", "b"), ()), key_node="x")
    checkpoint = Checkpoint("x", None, None, (), dropped=(other,), container=1)  # type: ignore[arg-type]
    with pytest.raises(LossyEditError, match="dictionary"):
        lower(checkpoint)
