"""Archives of torch.save of every generation: read, written unchanged, edited, refused."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from archives import (
    GENERATIONS,
    ID,
    archive,
    generation,
    names_in,
    read_records,
    reference,
    rewrite,
    state_dict,
    tensor,
    write_records,
)
from legacy_files import THROWN_AWAY, Reference, dumps
from torch.serialization import set_crc32_options, skip_data
from torch.utils.serialization import config
from torch_checks import assert_same, assert_torch_reads, load, save

from ckpt_surgery import AddPrefix, Output, convert, inspect, read, rename, selection, strip
from ckpt_surgery.errors import (
    DamagedFileError,
    LimitExceededError,
    LossyEditError,
    UnknownFormatError,
)
from ckpt_surgery.fileio import FileSource, read_zip
from ckpt_surgery.formats.torch_zip import read_torch_zip
from ckpt_surgery.pickles import DEFAULT_LIMITS, Limits


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A file of the same name elsewhere: the name is part of an archive."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "w.pth"


VALUES: dict[str, Any] = {
    "a state dict": state_dict,
    "a training checkpoint": lambda: {
        "model": state_dict(),
        "epoch": 3,
        "optimizer": {"state": {}},
    },
    "a bare tensor": lambda: torch.ones(3),
    "nothing": lambda: None,
    "empty tensors": lambda: {"a": torch.empty(0), "b": torch.empty(0, 3), "c": torch.ones(1)},
    "many": lambda: {f"w{i}": torch.full((i % 7,), i) for i in range(500)},
}


@pytest.mark.parametrize("name", VALUES)
def test_write_of_read_is_identity(name: str, tmp_path: Path, out: Path) -> None:
    path = save(VALUES[name](), tmp_path / "w.pth")
    report = convert(path, out)
    assert out.read_bytes() == path.read_bytes()
    assert report.nbytes_before == report.nbytes_after == path.stat().st_size


@pytest.mark.parametrize("alignment", [1, 8, 100, 4096])
def test_alignment_is_kept(alignment: int, tmp_path: Path, out: Path) -> None:
    before = config.save.storage_alignment
    config.save.storage_alignment = alignment
    try:
        path = save(state_dict(), tmp_path / "w.pth")
        convert(path, out)
        assert out.read_bytes() == path.read_bytes()
        strip(path, Output(out, force=True), selection(pattern=r"layer\.3"))
        edited = {name: value for name, value in state_dict().items() if name != "layer.3"}
        assert out.read_bytes() == save(edited, path).read_bytes()
        assert_torch_reads(out, load(path))
    finally:
        config.save.storage_alignment = before


def test_file_without_checksums_is_written_the_same(tmp_path: Path, out: Path) -> None:
    set_crc32_options(compute_crc32=False)
    try:
        path = save(state_dict(), tmp_path / "w.pth")
    finally:
        set_crc32_options(compute_crc32=True)
    convert(path, out)
    assert out.read_bytes() == path.read_bytes()


def test_file_without_data_is_written_the_same(tmp_path: Path, out: Path) -> None:
    path = tmp_path / "w.pth"
    with skip_data():
        torch.save(state_dict(), path)
    convert(path, out)
    assert out.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", GENERATIONS)
def test_file_of_every_generation_is_written_the_same(name: str, tmp_path: Path, out: Path) -> None:
    path = generation(name, tmp_path / "w.pth")
    assert_same(load(path), state_dict())
    convert(path, out)
    assert out.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", GENERATIONS)
def test_edit_keeps_the_generation(name: str, tmp_path: Path, out: Path) -> None:
    path = generation(name, tmp_path / "w.pth")
    before = names_in(path)
    rename(path, out, [AddPrefix("net")])
    expected: dict[str, torch.Tensor] = {f"net.{key}": item for key, item in state_dict().items()}
    assert names_in(out) == before
    meta = name != "big endian"  # torch 2.13 crashes there
    assert_torch_reads(out, expected, meta=meta)

    strip(path, Output(out, force=True), selection(keys=["layer.3", "layer.1", "empty"]))
    expected = {k: v for k, v in state_dict().items() if k not in ("layer.3", "layer.1", "empty")}
    assert_torch_reads(out, expected, meta=meta)
    after = names_in(out)
    keys = [str(i) for i in range(10)]  # two of the twelve are gone: a tie remains
    if ".format_version" not in after:
        keys.sort()
    assert [n for n in after if n.startswith("data/")] == [f"data/{key}" for key in keys]
    assert [n for n in after if n[:5] != "data/"] == [n for n in before if n[:5] != "data/"]


def test_big_endian_storages_are_said_to_be(tmp_path: Path) -> None:
    with read(generation("big endian", tmp_path / "w.pth")) as checkpoint:
        assert all(tensor.storage.big_endian for _, tensor in checkpoint.tensors)
    with read(generation("torch 2.1", tmp_path / "w.pth")) as checkpoint:
        assert not any(tensor.storage.big_endian for _, tensor in checkpoint.tensors)


@pytest.mark.parametrize(
    "name",
    [
        "chemprop/example_model_v1_mve_regression.pt",
        "picklescan/tests_data_new_pytorch_model.bin",
        "taesd/taef2_decoder.pth",
    ],
)
def test_published_file_is_written_the_same(name: str, shared_dir: Path, tmp_path: Path) -> None:
    path = shared_dir / "real" / name
    convert(path, tmp_path / path.name)
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_storages_are_renumbered_if_they_are_visited_in_another_order(
    tmp_path: Path, out: Path
) -> None:
    """All storages stay, but torch computes their places from the order of visiting."""
    a, b = torch.ones(3), torch.zeros(5)
    path = save({"first": a, "second": b, "tie": a}, tmp_path / "w.pth")
    strip(path, out, selection(keys=["first"]))
    expected = {"second": b, "tie": a}
    assert out.read_bytes() == save(expected, path).read_bytes()
    assert_torch_reads(out, expected)


def test_storages_without_promise_keep_their_names(tmp_path: Path, out: Path) -> None:
    a, b = torch.ones(3), torch.zeros(5)
    path = save({"first": a, "second": b, "tie": a}, tmp_path / "w.pth")
    rewrite(path, GENERATIONS["torch 1.6 with pointers"])
    strip(path, out, selection(keys=["first"]))
    assert names_in(out) == names_in(path)
    assert_torch_reads(out, {"second": b, "tie": a})


def test_serialization_id_follows_the_content(tmp_path: Path, out: Path) -> None:
    path = save(state_dict(), tmp_path / "w.pth")
    rename(path, out, [AddPrefix("net")])
    assert dict(read_records(out))[ID] != dict(read_records(path))[ID]


def test_checkpoint_of_another_container_becomes_what_torch_writes(
    tmp_path: Path, out: Path
) -> None:
    path = tmp_path / "old.pth"
    torch.save(state_dict(), path, _use_new_zipfile_serialization=False)
    convert(path, out)
    archive_path = save(state_dict(), tmp_path / "archive.pth")
    assert out.read_bytes() == archive_path.read_bytes()
    assert_torch_reads(out, state_dict())


def test_idle_storages_are_noted_and_stay_only_if_nothing_moves(tmp_path: Path, out: Path) -> None:
    path = save(state_dict(), tmp_path / "w.pth")
    rewrite(path, lambda records: records | {"data/99": b"idle", "data/x/y": b""})
    with read(path) as checkpoint:
        assert checkpoint.notes == ("2 storage records of 4 bytes are used by nothing",)
    assert inspect(path).notes == ("2 storage records of 4 bytes are used by nothing",)
    convert(path, out)
    assert out.read_bytes() == path.read_bytes()
    report = strip(path, Output(out, force=True), selection(keys=["layer.1", "tie"]))
    assert report.warnings == ("2 storage records of 4 bytes are used by nothing",)
    assert "data/99" not in names_in(out)
    assert len(load(out)) == 11


def test_in_place_edit_reads_from_the_file_that_it_replaces(tmp_path: Path) -> None:
    path = save(state_dict(), tmp_path / "w.pth")
    strip(path, Output(in_place=True), selection(pattern="layer.3"))
    assert_torch_reads(path, {k: v for k, v in state_dict().items() if k != "layer.3"})


def test_file_with_python_2_strings_is_read(tmp_path: Path) -> None:
    data = dumps({"w": tensor(reference()), "v": tensor(reference())})
    data = data.replace(b"X\x07\x00\x00\x00storage", b"U\x07storage", 1)
    path = archive(tmp_path / "w.pth", data)
    with read(path) as checkpoint:
        assert [name for name, _ in checkpoint.tensors] == ["w", "v"]


# --- what is refused

GOOD: dict[str, Any] = {"w": tensor(reference()), "v": tensor(reference())}
INT = torch.IntStorage


@pytest.mark.parametrize(
    ("root", "records", "message"),
    [
        (GOOD, {"version": None}, "the record is missing"),
        (GOOD, {"version": b"0"}, "unknown version"),
        (GOOD, {"version": b"11"}, "unknown version"),
        (GOOD, {"version": b"three"}, "unknown version"),
        (GOOD, {"version": b""}, "unknown version"),
        (GOOD, {"byteorder": b"BIG"}, "neither 'little' nor 'big'"),
        (GOOD, {"byteorder": b"little\n"}, "neither 'little' nor 'big'"),
        (GOOD, {".storage_alignment": b"0"}, "no alignment"),
        (GOOD, {".storage_alignment": b"-64"}, "no alignment"),
        (GOOD, {".storage_alignment": b"9" * 9}, "no alignment"),
        (GOOD, {".storage_alignment": b"9" * 5000}, "no alignment"),
        (GOOD, {"data/0": None}, "'data/0' is missing"),
        (GOOD, {"data/0": bytes(15)}, "15 bytes where the pickle says 16"),
        (GOOD, {"data/0": bytes(17)}, "17 bytes where the pickle says 16"),
        ([tensor(reference()), tensor(reference(numel=3))], {}, "16 bytes where"),
        ([tensor(reference()), tensor(reference(kind=INT))], {}, "different element types"),
        (
            [tensor(reference()), tensor(reference(numel=16, kind=torch.UntypedStorage))],
            {},
            "different element types",
        ),
        (Reference("module", 3), {}, "names no storage"),
        (Reference(), {}, "names no storage"),
        (Reference("storage", torch.FloatStorage, "0"), {}, "3 parts instead of 5"),
        (reference(numel=-1), {}, "not a number"),
        (reference(numel=True), {}, "not a number"),
        (reference(key=0), {}, "not text"),
        (reference(kind=OrderedDict), {}, "'collections.OrderedDict'"),
        (reference(kind="FloatStorage"), {}, "'something else'"),
        (tensor(reference(), size=(5,)), {}, "reaches to byte 20 of a storage of 16"),
        (tensor(reference(), offset=-1), {}, "offset is not a number"),
        (tensor(reference(), stride=(-1,)), {}, "negative"),
    ],
)
def test_damaged_archive_is_refused(
    root: Any, records: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = archive(tmp_path / "w.pth", root, records)
    with pytest.raises(DamagedFileError, match=message) as caught:
        read(path)
    assert caught.value.path == path


def test_archive_that_the_damaged_ones_differ_from_is_read(tmp_path: Path) -> None:
    with read(archive(tmp_path / "w.pth", GOOD)) as checkpoint:
        assert [tensor.shape for _, tensor in checkpoint.tensors] == [(4,), (4,)]


def test_empty_storage_may_have_two_types(tmp_path: Path) -> None:
    """As `torch.save` writes two empty tensors of one storage."""
    root = [tensor(reference(numel=0), size=(0,)), tensor(reference(numel=0, kind=INT), size=(0,))]
    with read(archive(tmp_path / "w.pth", root, {"data/0": b""})) as checkpoint:
        assert [t.dtype.name for t in checkpoint.all_tensors] == ["float32", "int32"]


def test_truncated_pickle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError):
        read(archive(tmp_path / "w.pth", dumps(GOOD)[:-1]))


def test_archive_without_a_pickle_is_no_checkpoint(tmp_path: Path) -> None:
    path = write_records(tmp_path / "w.pth", [("version", b"3\n")])
    with pytest.raises(UnknownFormatError, match=r"without 'data\.pkl'"):
        read(path)
    with FileSource.open(path) as file, pytest.raises(UnknownFormatError, match=r"no 'data\.pkl'"):
        read_torch_zip(file, read_zip(file), DEFAULT_LIMITS)


def test_pickle_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "w.pth", GOOD)
    nbytes = len(dumps(GOOD))
    read(path, limits=Limits(pickle_bytes=nbytes)).close()
    with pytest.raises((LimitExceededError, DamagedFileError)):
        read(path, limits=Limits(pickle_bytes=nbytes - 1))


def test_bytes_behind_the_pickle_are_not_thrown_away(tmp_path: Path, out: Path) -> None:
    path = archive(tmp_path / "w.pth", dumps(GOOD) + b"hidden")
    with read(path) as checkpoint:
        assert checkpoint.unwritable == "6 bytes follow the end of its pickle"
    with pytest.raises(LossyEditError, match="6 bytes follow"):
        strip(path, out, selection(keys=["w"]))
    assert not out.exists()
    convert(path, out, state_dict_only=True)
    assert list(load(out)) == ["w", "v"]


def test_calls_without_result_are_not_thrown_away(tmp_path: Path, out: Path) -> None:
    path = archive(tmp_path / "w.pth", THROWN_AWAY + dumps(GOOD)[2:])
    with read(path) as checkpoint:
        assert checkpoint.globals[0] == "posix.system"
        assert checkpoint.unwritable == "its pickle calls 'posix.system' and throws the result away"
    with pytest.raises(LossyEditError, match=r"'posix\.system'"):
        convert(path, out)
    convert(path, out, state_dict_only=True)
    assert b"posix" not in out.read_bytes()


def test_reading_never_reads_tensor_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save({"w": torch.ones(5000), "v": torch.ones(5000)}, tmp_path / "w.pth")
    with FileSource.open(path) as file:
        records = read_zip(file).records
    spans = [(r.data.offset, r.data.offset + r.nbytes) for r in records if "data/" in r.name]
    ranges: list[tuple[int, int]] = []
    original = FileSource.read_at

    def read_at(self: FileSource, offset: int, nbytes: int) -> bytes:
        ranges.append((offset, offset + nbytes))
        return original(self, offset, nbytes)

    monkeypatch.setattr(FileSource, "read_at", read_at)
    inspect(path)
    assert ranges
    assert not any(start < b and a < end for start, end in ranges for a, b in spans)
