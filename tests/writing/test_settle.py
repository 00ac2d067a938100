"""What is settled is what would be read again after writing, and nothing is read for it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_checks import assert_same, load, save

import ckpt_surgery as ckpt
from ckpt_surgery.checkpoint.description import Checkpoint
from ckpt_surgery.edits.compact import Compact
from ckpt_surgery.edits.plan import Plan
from ckpt_surgery.fileio.recorded import RecordedSource, Recording
from ckpt_surgery.writing.settle import settle
from ckpt_surgery.writing.write import write


def training() -> dict[str, Any]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.named_parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    shared = torch.arange(10.0)
    return {
        "model": model.state_dict(),
        "views": {"a": shared[2:5], "b": shared[::2], "c": shared[2:5], "empty": torch.empty(0)},
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
    }


PLANS: dict[str, list[dict[str, Any]]] = {
    "nothing": [],
    "a rename": [{"edit": "rename", "state_dict": "model", "from": "0.bias", "to": "fc.bias"}],
    "a removal": [{"edit": "drop", "state_dict": "model", "name": "0.bias"}],
    "one storage of views": [{"edit": "compact", "unused_nbytes": 0}],
    "one state dict": [{"edit": "only-state-dict", "path": "model"}],
    "what is computed": [
        {"edit": "merge", "state_dict": "model", "name": "0.weight", "method": "average",
         "dtype": "float16", "inputs": [{}, {}]},
    ],
}  # fmt: skip


def same(one: Checkpoint, other: Checkpoint) -> None:
    """Two descriptions of one file, whatever their bytes come from."""
    assert [s.path for s in one.state_dicts] == [s.path for s in other.state_dicts]
    for old, new in zip(one.state_dicts, other.state_dicts, strict=True):
        assert (old.names, old.kind) == (new.names, new.kind)
        assert [e.role for e in old.entries] == [e.role for e in new.entries]
        assert list(old.metadata or ()) == list(new.metadata or ())
        for (_, a), (_, b) in zip(old.tensors, new.tensors, strict=True):
            assert (a.shape, a.dtype, a.stride, a.offset) == (b.shape, b.dtype, b.stride, b.offset)
            assert a.storage is not None
            assert b.storage is not None
            assert (a.storage.key, a.storage.nbytes) == (b.storage.key, b.storage.nbytes)
    assert [(o.path, o.type, o.value) for o in one.others] == [
        (o.path, o.type, o.value) for o in other.others
    ]
    assert one.format == other.format


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("legacy", [False, True])
def test_settled_is_written_and_read_again(name: str, legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "in.pth"
    torch.save(training(), path, _use_new_zipfile_serialization=not legacy)
    plan = Plan.from_dict(PLANS[name])
    first, second = tmp_path / "1" / "o.pth", tmp_path / "2" / "o.pth"
    for folder in (first.parent, second.parent):
        folder.mkdir()
    with ckpt.read(path) as checkpoint:
        edited = plan.apply(checkpoint)
        written = write(edited, ckpt.Output(first))
        settled = settle(edited)
        assert settled.sources == checkpoint.sources
        with ckpt.read(first) as again:
            same(settled, again)
        assert write(settled, ckpt.Output(second)).nbytes == written.nbytes
    assert second.read_bytes() == first.read_bytes()
    assert_same(load(second), load(first))


def test_twice_settled_is_settled(tmp_path: Path) -> None:
    path = save(training(), tmp_path / "in.pth")
    with ckpt.read(path) as checkpoint:
        settled = settle(settle(checkpoint))
        for _, tensor in settled.tensors:
            assert tensor.storage is not None
            if tensor.numel:
                assert tensor.storage.data.source is checkpoint.file  # type: ignore[attr-defined]
        write(settled, ckpt.Output(tmp_path / "out.pth"))
    again = tmp_path / "again"
    again.mkdir()
    ckpt.convert(path, again / "out.pth")
    assert (tmp_path / "out.pth").read_bytes() == (again / "out.pth").read_bytes()


@pytest.mark.parametrize("change", ["name", "removal", "entry"])
def test_only_names_of_a_bare_state_dict_settle_without_a_pickle(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: dict[str, Any] = {"a.running_mean": torch.ones(2), "b": torch.zeros(3)}
    path = save(weights | ({"epoch": 3} if change == "entry" else {}), tmp_path / "in.pth")
    edit = (
        {"edit": "drop", "state_dict": "", "name": "b"}
        if change == "removal"
        else {"edit": "rename", "state_dict": "", "from": "b", "to": "b.running_var"}
    )
    written = []
    real = Recording.as_source
    monkeypatch.setattr(Recording, "as_source", lambda *a: written.append(1) or real(*a))
    with ckpt.read(path) as checkpoint:
        edited = Plan.from_dict([edit]).apply(checkpoint)
        settled = settle(edited)
        assert len(written) == (change != "name")
        write(edited, ckpt.Output(tmp_path / "out.pth"))
        with ckpt.read(tmp_path / "out.pth") as again:
            same(settled, again)


def test_settling_reads_no_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = OrderedDict((f"{n}.weight", torch.ones(1000, 100)) for n in range(3))
    path = save(big, tmp_path / "in.pth")
    with ckpt.read(path) as checkpoint:
        edited = Plan((Compact(0),)).apply(checkpoint)
        read: list[int] = []
        source = checkpoint.file
        real: Callable[..., bytes] = type(source).read_at

        def counted(self: Any, offset: int, nbytes: int) -> bytes:
            read.append(nbytes)
            return real(self, offset, nbytes)

        monkeypatch.setattr(type(source), "read_at", counted)
        settle(edited)
        assert sum(read) < 10_000


def test_safetensors_settle_too(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    path = save(tensors, tmp_path / "in.pth")
    ckpt.convert(path, tmp_path / "in.safetensors")
    with ckpt.read(tmp_path / "in.safetensors") as checkpoint:
        plan = Plan.from_dict([{"edit": "rename", "state_dict": "", "from": "a", "to": "z"}])
        for edited in (checkpoint, plan.apply(checkpoint)):
            settled = settle(edited)
            for each, name in ((edited, "1"), (settled, "2")):
                write(each, ckpt.Output(tmp_path / f"{name}.safetensors", force=True))
            one, two = ((tmp_path / f"{n}.safetensors").read_bytes() for n in "12")
            assert one == two


def test_a_recording_reads_like_the_file(tmp_path: Path) -> None:
    from ckpt_surgery.fileio import ByteRange, Bytes, FileSource
    from ckpt_surgery.fileio.sink import copy_with_crc32

    class Counted:
        """Bytes that are made anew on every reading."""

        nbytes, crc32, made = 5, None, 0

        def chunks(self, size: int = 1) -> Any:
            self.made += 1
            yield b"ab"
            yield b"cde"

    (tmp_path / "f").write_bytes(bytes(range(100)))
    with FileSource.open(tmp_path / "f") as file:
        recording, computed = Recording(), Counted()
        recording.reserve(10**15)
        recording.write(b"xy")
        recording.copy(ByteRange(file, 10, 20))
        assert copy_with_crc32(computed, recording) == 0
        recording.write(b"z")
        assert recording.position == 28
        source = recording.as_source(file)
        whole = b"xy" + bytes(range(10, 30)) + b"abcdez"
        assert (source.size, source.name, source.identity) == (28, file.name, file.identity)
        for start in range(28):
            for end in range(start, 29):
                assert source.read_at(start, end - start) == whole[start:end]
        buffer = bytearray(4)
        source.read_into(1, memoryview(buffer))
        assert bytes(buffer) == whole[1:5]
        assert source.read_ranges([(0, 2), (27, 1)]) == [b"xy", b"z"]
        assert source.descriptor_at(0) is None
        assert computed.made == 1
        assert isinstance(source, RecordedSource)
        assert repr(source) == f"RecordedSource({file.name!r}, 28 bytes)"
        assert source.origin(ByteRange(source, 5, 0)).nbytes == 0
        assert source.origin(ByteRange(source, 4, 3)) == ByteRange(file, 12, 3)
        assert source.origin(ByteRange(source, 22, 5)) is computed
        for odd in (ByteRange(source, 1, 3), ByteRange(source, 23, 2)):
            assert source.origin(odd) is odd
        assert isinstance(source.origin(ByteRange(source, 0, 2)), Bytes)
        source.require_unchanged()
        source.close()
