"""What is written is what torch.save writes, byte for byte."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.serialization import set_crc32_options, skip_data
from torch.utils.serialization import config

from ckpt_surgery.errors import DamagedFileError, WriteError
from ckpt_surgery.fileio import (
    ByteRange,
    Bytes,
    ByteSource,
    FileSource,
    ZipArchive,
    read_zip,
    zip_write,
)
from ckpt_surgery.fileio.atomic import atomic_output
from ckpt_surgery.fileio.zip_write import Derived, ZipLayout, lay_out
from ckpt_surgery.formats.serialization_id import serialization_id

ID = ".data/serialization_id"
FULL = 0xFFFFFFFF


def laid_out(archive: ZipArchive, alignment: int = 64, *, identify: bool = False) -> ZipLayout:
    """The layout of the same records; with `identify`, with a new identifier."""
    records: list[tuple[str, ByteSource | Derived]] = [
        (r.name, Derived(40, serialization_id) if identify and r.name == ID else r.data)
        for r in archive.records
    ]
    return lay_out(archive.root, records, alignment=alignment)


def rewritten(path: Path, alignment: int = 64, *, identify: bool = False) -> bytes:
    out = path.with_name("rewritten")
    with FileSource.open(path) as file:
        archive = read_zip(file)
        layout = laid_out(archive, alignment, identify=identify)
        with atomic_output(out, force=True) as sink:
            layout.write(sink)
            assert sink.position == layout.nbytes
    data = out.read_bytes()
    assert len(data) == layout.nbytes
    for record, placed in zip(archive.records, layout.records, strict=True):
        assert (
            data[placed.data_offset : placed.end][:40]
            == path.read_bytes()[record.data.offset : record.data.offset + record.nbytes][:40]
        )
        assert placed.data_offset % alignment == 0
    return data


SAVED: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "a number": lambda: 3,
    "an empty tensor": lambda: torch.zeros(0),
    "empty among others": lambda: [torch.ones(3), torch.zeros(0, 5), torch.ones(3)],
    "a thousand records": lambda: [torch.full((i % 40,), i) for i in range(1000)],
    "one byte each": lambda: [torch.ones(1, dtype=torch.uint8) for _ in range(70)],
    "larger than a chunk": lambda: torch.arange(1_000_000),
    "types": lambda: [torch.ones(3, dtype=t) for t in (torch.bfloat16, torch.bool, torch.int8)],
    "a long pickle": lambda: {f"a.long.name.of.a.layer.{i}": i for i in range(9000)},
}


@pytest.mark.parametrize("make", SAVED.values(), ids=SAVED.keys())
@pytest.mark.parametrize("name", ["w.pth", "model.best.v1.pt", "no_suffix", "x" * 200 + ".pt"])
def test_write_of_read_is_identity(make: Callable[[], object], name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    torch.save(make(), path)
    assert rewritten(path, identify=True) == path.read_bytes()


@contextmanager
def alignment_of(nbytes: int) -> Iterator[None]:
    before = config.save.storage_alignment
    config.save.storage_alignment = nbytes
    try:
        yield
    finally:
        config.save.storage_alignment = before


@pytest.mark.parametrize("alignment", [1, 8, 100, 4096, 1 << 15])
def test_every_alignment_is_torchs(alignment: int, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    with alignment_of(alignment):
        torch.save([torch.ones(n) for n in (5, 0, 70, 1)], path)
    assert rewritten(path, alignment, identify=True) == path.read_bytes()


def test_file_without_checksums_stays_without(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    set_crc32_options(compute_crc32=False)
    try:
        torch.save([torch.ones(5), torch.ones(0), torch.arange(99_999)], path)
    finally:
        set_crc32_options(compute_crc32=True)
    assert {record.crc32 for record in read_zip(FileSource.open(path)).records} == {0}
    assert rewritten(path) == path.read_bytes()


def test_wrong_checksum_is_carried_over_and_not_repaired(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(torch.zeros(8), path)
    with FileSource.open(path) as file:
        offset = read_zip(file).records[4].data.offset
    with path.open("r+b") as out:
        out.seek(offset)
        out.write(b"\1")
    assert rewritten(path) == path.read_bytes()


@pytest.mark.parametrize(
    "name",
    [
        "chemprop/example_model_v1_mve_regression.pt",
        "chemprop/tests_data_example_model_v2_regression_mol.ckpt",
        "chemprop/tests_data_example_model_v2_regression_mol.pt",
        "picklescan/tests_data_new_pytorch_model.bin",
        "taesd/taef2_decoder.pth",
    ],
)
def test_published_files_are_rewritten_to_the_same_bytes(
    name: str, shared_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "copy"
    path.write_bytes((shared_dir / "real" / name).read_bytes())
    assert rewritten(path) == path.read_bytes()


class _SparseSink:
    """Writes like a sink, but leaves a hole for every large record."""

    def __init__(self, out: io.BufferedWriter) -> None:
        self._out = out

    def reserve(self, nbytes: int) -> None:
        pass

    def write(self, data: bytes) -> None:
        self._out.write(data)

    def copy(self, source: ByteSource) -> None:
        if source.nbytes < 1 << 20:
            for chunk in source.chunks():
                self._out.write(chunk)
        else:
            self._out.seek(source.nbytes, os.SEEK_CUR)


def sparse_content(path: Path) -> dict[int, bytes]:
    """The pages of a file that are not all zeros, by their number."""
    pages: dict[int, bytes] = {}
    with path.open("rb") as file:
        at, end = 0, path.stat().st_size
        while at < end:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            page = os.pread(file.fileno(), 4096, at - at % 4096)
            if page.strip(b"\0"):
                pages[at // 4096] = page
            at = at - at % 4096 + 4096
    return pages


@pytest.mark.skipif(not hasattr(os, "SEEK_DATA"), reason="holes cannot be told from data")
@pytest.mark.parametrize(
    "sizes",
    [
        [FULL - 1, 1, 0, 2],
        [FULL, 0],
        [FULL + 1, 5],
        [FULL + 5, 3, 0, FULL, 7, 0],
        [10, FULL - 4097, 100, 0, 100, 0],
    ],
)
def test_fields_of_64_bits_are_torchs(sizes: list[int], tmp_path: Path) -> None:
    check_big_archive(sizes, tmp_path)


@pytest.mark.skipif(not hasattr(os, "SEEK_DATA"), reason="holes cannot be told from data")
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_header_at_the_edge_of_32_bits_is_torchs(beyond: int, tmp_path: Path) -> None:
    path = tmp_path / "big.pth"
    torch.save([torch.zeros(n, dtype=torch.uint8) for n in (10, 99, 1, 0)], path)
    with FileSource.open(path) as file:
        before = read_zip(file).get("data/1")
    assert before is not None
    size = FULL + beyond - before.data.offset - 16  # a descriptor lies between
    archive = check_big_archive([10, size, 1, 0], tmp_path)
    after = archive.get("data/2")
    assert after is not None
    assert after.header_offset == FULL + beyond


def check_big_archive(sizes: list[int], tmp_path: Path) -> ZipArchive:
    """Check that torch and we write the same archive of storages of these sizes."""
    path, out = tmp_path / "big.pth", tmp_path / "out"
    with skip_data():
        torch.save([torch.empty(n, dtype=torch.uint8) for n in sizes], path)
    with FileSource.open(path) as file:
        archive = read_zip(file)
        layout = laid_out(archive)
        with out.open("wb") as written:
            sink: Any = _SparseSink(written)
            layout.write(sink)
    assert out.stat().st_size == path.stat().st_size == layout.nbytes
    assert sparse_content(out) == sparse_content(path)
    assert [r.nbytes for r in archive.records if r.name.startswith("data/")] == sizes
    with zipfile.ZipFile(out) as oracle:
        places = [(info.file_size, info.header_offset) for info in oracle.infolist()]
    assert places == [(r.nbytes, r.header_offset) for r in archive.records]
    with FileSource.open(out) as file:
        again = read_zip(file).records
    assert [(r.name, r.nbytes, r.data.offset) for r in again] == [
        (r.name, r.nbytes, r.data.offset) for r in archive.records
    ]
    return archive


def test_torch_reads_a_file_beyond_4_gib(tmp_path: Path) -> None:
    path = tmp_path / "big.pth"
    with skip_data():
        torch.save({"a": torch.empty(FULL + 9, dtype=torch.uint8), "b": torch.ones(3)}, path)
    out = tmp_path / "out.pth"
    with FileSource.open(path) as file, out.open("wb") as written:
        sink: Any = _SparseSink(written)
        laid_out(read_zip(file)).write(sink)
    loaded = torch.load(out, mmap=True)
    assert loaded["a"].shape == (FULL + 9,)
    assert loaded["b"].shape == (3,)


def test_damaged_descriptor_of_64_bits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "big.pth"
    with skip_data():
        torch.save(torch.empty(FULL + 9, dtype=torch.uint8), path)
    with FileSource.open(path) as file:
        data = read_zip(file).records[4].data
    with path.open("r+b") as out:
        out.seek(data.offset + data.nbytes + 4)
        out.write(b"\1")
    with FileSource.open(path) as file, pytest.raises(DamagedFileError, match="what follows"):
        read_zip(file)


@settings(max_examples=50, deadline=None)
@given(
    contents=st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0/."), min_size=1, max_size=40),
        st.binary(max_size=300),
        min_size=1,
        max_size=20,
    ),
    alignment=st.sampled_from([1, 3, 64, 512]),
)
def test_read_of_write_is_identity(
    contents: dict[str, bytes], alignment: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    by_folded = {name.encode().lower(): (name, data) for name, data in contents.items()}
    records = list(by_folded.values())
    path = tmp_path_factory.getbasetemp() / "any.zip"
    with atomic_output(path, force=True, fsync=False) as sink:
        lay_out("röot", [(n, Bytes(d)) for n, d in records], alignment=alignment).write(sink)
    with FileSource.open(path) as file:
        archive = read_zip(file)
        assert archive.root == "röot"
        assert archive.unused_nbytes == 0
        assert [(r.name, r.data.read()) for r in archive.records] == records
    with zipfile.ZipFile(path) as oracle:
        assert oracle.testzip() is None
        assert [oracle.read(f"röot/{name}") for name, _ in records] == [d for _, d in records]


def test_derived_record_is_given_those_before_it(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    seen: list[tuple[str, int, int]] = []

    def make(written: Any) -> bytes:
        seen.extend(written)
        return b"made"

    source = tmp_path / "source"
    source.write_bytes(b"stored")
    file = FileSource.open(source)
    records: list[tuple[str, ByteSource | Derived]] = [
        ("a", Bytes(b"memory")),
        ("b", ByteRange(file, 0, 6, crc32=77)),
        ("c", ByteRange(file, 0, 6)),
        ("d", Derived(4, make)),
        ("e", Bytes(b"")),
    ]
    with atomic_output(path) as sink:
        lay_out("r", records).write(sink)
    assert seen == [
        ("a", 6, Bytes(b"memory").crc32),
        ("b", 6, 77),
        ("c", 6, Bytes(b"stored").crc32),
    ]
    archive = read_zip(FileSource.open(path))
    assert [
        record.data.source.read_at(record.data.offset, record.nbytes) for record in archive.records
    ] == [*(b"memory", b"stored", b"stored", b"made", b"")]


def test_derived_record_of_another_length_is_refused(tmp_path: Path) -> None:
    layout = lay_out("r", [("a", Derived(4, lambda _: b"five!"))])
    with (
        pytest.raises(WriteError, match="4 bytes were expected, 5 given"),
        atomic_output(tmp_path / "x") as sink,
    ):
        layout.write(sink)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("alignment", [0, -64, (1 << 15) + 1, 1 << 60])
def test_alignment_that_the_format_cannot_express_is_refused(alignment: int) -> None:
    with pytest.raises(WriteError, match="is not between 1 and 32768"):
        lay_out("r", [("a", Bytes(b""))], alignment=alignment)


def test_name_too_long_for_the_format_is_refused() -> None:
    assert lay_out("r", [("a" * 65533, Bytes(b""))]).records
    with pytest.raises(WriteError, match="name is too long"):
        lay_out("r", [("a" * 65534, Bytes(b""))])


def test_more_records_than_can_be_read_are_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_write, "MAX_RECORDS", 2)
    records = [(str(i), Bytes(b"")) for i in range(3)]
    assert len(lay_out("r", records[:2]).records) == 2
    with pytest.raises(WriteError, match="3 records are more than the 2 allowed"):
        lay_out("r", records)


def test_more_than_65535_records_are_counted_in_64_bits(tmp_path: Path) -> None:
    path = tmp_path / "many.zip"
    with atomic_output(path) as sink:
        lay_out("r", [(str(i), Bytes(b"")) for i in range(65_537)]).write(sink)
    assert len(read_zip(FileSource.open(path)).records) == 65_537
