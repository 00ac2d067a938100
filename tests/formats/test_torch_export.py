"""Of an archive of torch.export the weights are read: those that ``torch.export.load`` gives."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_checks import assert_same

from ckpt_surgery import (
    DamagedFileError,
    ReadError,
    UsageError,
    convert,
    inspect,
    read,
    selection,
    strip,
)
from ckpt_surgery.writing.output import Output

CONFIG = "data/weights/model_weights_config.json"


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(4, 3)
        self.tied = self.fc.weight
        self.turned = torch.nn.Parameter(torch.arange(12.0).view(3, 4).t())
        self.narrow = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        self.register_buffer("seen", torch.tensor(7))
        self.register_buffer("fp8", torch.ones(4).to(torch.float8_e4m3fn))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) + (x @ self.turned) + self.seen + self.narrow.sum()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "m.pt2"
    with pytest.warns(UserWarning, match="No complete tensor"):  # torch's, of what is transposed
        torch.export.save(torch.export.export(Model().eval(), (torch.ones(2, 4),)), path)
    return path


def rewritten(
    path: Path, to: Path, change: Callable[[dict[str, Any]], Any], name: str = CONFIG
) -> Path:
    """Copy an archive with what `change` makes of one of its JSON members."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w") as new:
        for member in old.infolist():
            data = old.read(member)
            if member.filename.endswith(name):
                said = json.loads(data)
                change(said["config"])
                data = json.dumps(said).encode()
            new.writestr(member.filename, data)
    return to


def test_weights_are_those_that_torch_loads(exported, tmp_path):
    convert(exported, tmp_path / "w.pth")
    ours = torch.load(tmp_path / "w.pth", weights_only=True)
    theirs = torch.export.load(exported).state_dict
    assert list(ours) == list(theirs)
    assert_same(dict(ours), {name: each.detach() for name, each in theirs.items()})
    assert ours["tied"].data_ptr() == ours["fc.weight"].data_ptr()
    report = inspect(exported)
    assert report.format == "torch-export"
    roles = {entry.name: entry.role for entry in read(exported).state_dicts[0].entries}
    assert (roles["fc.bias"], roles["seen"]) == ("parameter", "buffer")


def test_the_program_is_not_replaced_by_its_weights(exported):
    before = exported.read_bytes()
    with pytest.raises(UsageError, match="a part of a file and cannot be edited in place"):
        strip(exported, Output(in_place=True), selection(name="seen"))
    assert exported.read_bytes() == before


def test_several_models_are_several_state_dicts(exported, tmp_path):
    with zipfile.ZipFile(exported) as old, zipfile.ZipFile(tmp_path / "m", "w") as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
            if member.filename.endswith(CONFIG):
                other = member.filename.replace("model_weights", "draft_weights")
                new.writestr(other, old.read(member))
    assert [each.path for each in read(tmp_path / "m").state_dicts] == ["model", "draft"]


def meta(key: str, value: object, of: str = "fc.bias") -> Callable[[dict[str, Any]], None]:
    return lambda config: config[of]["tensor_meta"].__setitem__(key, value)


LIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "type": (meta("dtype", 99), "unknown type or layout"),
    "layout": (meta("layout", 1), "unknown type or layout"),
    "negative size": (meta("sizes", [{"as_int": -1}]), "a size, stride or offset is -1"),
    "symbolic size": (meta("sizes", [{"as_expr": "s0"}]), "no valid 'as_int'"),
    "strides": (meta("strides", []), "not one stride for each dimension"),
    "offset": (meta("storage_offset", {"as_int": 1}), "ends beyond the record"),
    "size": (meta("sizes", [{"as_int": 4}]), "ends beyond the record"),
    "two types": (meta("dtype", 4, "tied"), "another type"),
    "no record": (lambda c: c["fc.bias"].update(path_name="weight_99"), "is missing"),
    "no name": (lambda c: c["fc.bias"].update(path_name=3), "no valid 'path_name'"),
    "no description": (lambda c: c.update({"fc.bias": 3}), "no valid 'use_pickle'"),
}


@pytest.mark.parametrize("lie", LIES)
def test_description_that_contradicts_its_record_is_refused(lie, exported, tmp_path):
    change, said = LIES[lie]
    with pytest.raises(DamagedFileError, match=said):
        read(rewritten(exported, tmp_path / "m", change))


def test_pickled_weight_is_said_and_not_lost(exported, tmp_path):
    path = rewritten(exported, tmp_path / "m", lambda c: c["seen"].update(use_pickle=True))
    assert "1 weights are pickled objects, which are not read" in inspect(path).notes
    with pytest.raises(Exception, match="'seen' is a pickled object"):
        convert(path, tmp_path / "w.pth")
    assert not (tmp_path / "w.pth").exists()


def old_archive(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("name", ["serialized_state_dict.pt", "serialized_state_dict.json"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_archive_of_torch_before_2_8_is_read(name, method, tmp_path):
    state = {"w": torch.arange(6.0)}
    torch.save(state, tmp_path / "state.pt")
    members = {
        "version": b"8.8",
        "serialized_exported_program.json": b"{}",
        name: (tmp_path / "state.pt").read_bytes(),
    }
    path = old_archive(tmp_path / "old.pt2", members, method)
    assert any("exported program" in note for note in inspect(path).notes)
    convert(path, tmp_path / "w.pth")
    assert_same(torch.load(tmp_path / "w.pth", weights_only=True), state)


def test_archive_without_weights_is_named_with_what_opens_it(tmp_path):
    path = old_archive(tmp_path / "m.pt2", {"m/archive_format": b"pt2", "m/version": b"3"})
    with pytest.raises(ReadError, match="holds no weights") as told:
        read(path)
    assert "aoti_load_package" in (told.value.hint or "")
    path = old_archive(tmp_path / "old.pt2", {"serialized_exported_program.json": b"{}"})
    with pytest.raises(ReadError, match="has no member 'serialized_state_dict"):
        read(path)


def test_weights_in_one_file_of_torch_save_are_read(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "state.pt")
    members = {
        "m/archive_format": b"pt2",
        "m/data/weights/model.pt": (tmp_path / "state.pt").read_bytes(),
    }
    path = old_archive(tmp_path / "m.pt2", members)
    assert [name for name, _ in read(path).tensors] == ["w"]
