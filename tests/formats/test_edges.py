"""Edges of formats that one wrong comparison would move."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from ckpt_surgery import LossyEditError, Output, convert, read
from ckpt_surgery.errors import LimitExceededError, ReadError
from ckpt_surgery.fileio import FileSource
from ckpt_surgery.formats import sharded_index
from ckpt_surgery.formats.base import LayoutOptions
from ckpt_surgery.formats.salvage import read_damaged
from ckpt_surgery.formats.torch_zip_check import check


def test_what_is_of_no_format_is_not_put_together(tmp_path: Path) -> None:
    path = tmp_path / "noise"
    path.write_bytes(b"\x01\x02no checkpoint" * 50)
    with FileSource.open(path) as source, pytest.raises(ReadError, match="cannot be put together"):
        read_damaged(source)


def repacked(path: Path, *, version: bool) -> Path:
    """The records one after the other, without torch's padding."""
    torch.save({"a": torch.ones(40), "b": torch.ones(3)}, path)
    out = path.with_name("repacked.pth")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            if version or not name.endswith(".format_version"):
                new.writestr(zipfile.ZipInfo(name), old.read(name))
    return out


@pytest.mark.parametrize("version", [True, False])
def test_layout_is_remarked_on_where_nothing_is_promised(tmp_path: Path, version: bool) -> None:
    with read(repacked(tmp_path / "net.pth", version=version)) as checkpoint:
        said = [finding.message for finding in check(checkpoint)]
    assert any("was not laid out by torch.save" in each for each in said) != version
    assert any(each.severity != "note" for each in _findings(tmp_path, version)) == version


def _findings(folder: Path, version: bool) -> list:
    with read(repacked(folder / "net.pth", version=version)) as checkpoint:
        return list(check(checkpoint))


@pytest.mark.parametrize("value", [{"a": 1}, {1: "a"}, "text", ["a"], {"a": "b", "c": None}])
def test_metadata_that_is_not_texts_by_texts_is_a_loss(tmp_path: Path, value: object) -> None:
    torch.save({"w": torch.ones(2), "__metadata__": value}, tmp_path / "net.pth")
    with pytest.raises(LossyEditError, match="__metadata__"):
        convert(tmp_path / "net.pth", Output(tmp_path / "net.safetensors"))


def test_an_index_of_exactly_the_most_bytes_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"w": torch.ones(2), "v": torch.ones(2)}, tmp_path / "net.pth")
    convert(
        tmp_path / "net.pth",
        Output(tmp_path / "d", format="safetensors-index", options=LayoutOptions(max_shard_size=8)),
    )
    (index,) = (tmp_path / "d").glob("*.index.json")
    size = index.stat().st_size
    monkeypatch.setattr(sharded_index, "_MAX_INDEX_BYTES", size)
    with read(index) as checkpoint:
        assert [name for name, _ in checkpoint.tensors] == ["w", "v"]
    monkeypatch.setattr(sharded_index, "_MAX_INDEX_BYTES", size - 1)
    with pytest.raises((LimitExceededError, ReadError)):
        read(index)
