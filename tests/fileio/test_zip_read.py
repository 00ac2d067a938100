"""Each rule that an archive can break, broken alone in an otherwise faultless archive."""

from __future__ import annotations

import contextlib
import io
import struct
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from zip_builder import (
    FULL,
    PICKLE,
    Part,
    build,
    central_header,
    deflated,
    descriptor,
    local_header,
    zip64_extra,
)

from ckpt_surgery.errors import DamagedFileError, LimitExceededError
from ckpt_surgery.fileio import (
    FileSource,
    PartSource,
    ZipArchive,
    looks_like_zip,
    read_zip,
    zip_read,
)


def read(data: bytes, tmp_path: Path) -> ZipArchive:
    path = tmp_path / "archive.pt"
    path.write_bytes(data)
    return read_zip(FileSource.open(path))


SECOND = Part(name=b"a/data/0", data=b"\0" * 12)

VALID = {
    "as torch writes it": build(Part(), SECOND),
    "without zip64 records": build(Part(), SECOND, zip64=False),
    "without descriptors": build(Part(flags=0), SECOND),
    "an empty record": build(Part(), Part(name=b"a/data/0", data=b"", flags=0x0800)),
    "a folder": build(Part(name=b"a/", data=b"", flags=0), Part(), SECOND),
    "dead bytes between records": build(Part(), Part(name=b"a/data/0", gap=b"dead")),
    "descriptor without its magic": build(
        Part(descriptor=struct.pack("<3I", zlib.crc32(PICKLE), len(PICKLE), len(PICKLE)))
    ),
    "descriptor of 64 bits": build(
        Part(
            descriptor=struct.pack(
                "<4sIQQ", b"PK\7\10", zlib.crc32(PICKLE), len(PICKLE), len(PICKLE)
            )
        )
    ),
    "saturated 32-bit end record": build(
        Part(), end={"count": 0xFFFF, "here": 0xFFFF, "nbytes": FULL, "offset": FULL}
    ),
    "64-bit values that 32 bits would hold": build(
        Part(
            flags=0,
            local={
                "stored": FULL,
                "nbytes": FULL,
                "extra": b"FB\1\0Z" + zip64_extra(len(PICKLE), len(PICKLE)),
            },
            central={
                "stored": FULL,
                "nbytes": FULL,
                "offset": FULL,
                "extra": zip64_extra(len(PICKLE), len(PICKLE), 0),
            },
        )
    ),
    "a record's comment": build(Part(central={"comment": b"hello"})),
    "compressed source code": build(
        Part(),
        Part(name=b"a/constants.pkl"),
        Part(name=b"a/code/x.py", data=b"x" * 99, stored=deflated(b"x" * 99), method=8),
    ),
    "no checksums": build(
        Part(central={"crc": 0}, descriptor=struct.pack("<4s3I", b"PK\7\10", 0, 6, 6))
    ),
}


@pytest.mark.parametrize("data", VALID.values(), ids=VALID.keys())
def test_valid_archive_is_read(data: bytes, tmp_path: Path) -> None:
    archive = read(data, tmp_path)
    assert archive.root == "a"
    record = archive.get("data.pkl")
    assert record is not None
    assert record.read(100) == PICKLE
    assert record.data.crc32 == record.crc32
    for other in archive.records:
        assert len(other.read(100)) == other.nbytes
    with pytest.raises(DamagedFileError, match="which has another case"):
        archive.get("DATA.PKL")
    assert archive.get("other") is None


def test_dead_bytes_are_counted(tmp_path: Path) -> None:
    first = Part()
    assert read(build(first, SECOND), tmp_path).unused_nbytes == 0
    assert read(build(first, Part(name=b"a/x", gap=b"dead")), tmp_path).unused_nbytes == 4


# What is broken: the archive, and words of the error that it must raise.
DAMAGED = {
    "leading junk": (b"junk" + build(Part()), "does not start with a record"),
    "no records": (build(zip64=False), "has no records"),
    "nothing but the magic": (b"PK\3\4", "does not start with a record"),
    "trailing junk": (build(Part(), tail=b"junk"), "4 bytes follow the end of the archive"),
    "comment": (
        build(Part(), end={"comment": 5}, tail=b"hello"),
        "the archive has a comment of 5 bytes",
    ),
    "comment cut off": (
        build(Part(), end={"comment": 9}, tail=b"hello"),
        "the comment of the archive is truncated",
    ),
    "comment claimed but absent": (build(Part(), end={"comment": 9}), "comment of the archive"),
    "end cut off": (build(Part())[:-22], "no end record"),
    "end cut in the middle": (build(Part())[:-3], "no end record"),
    "several disks": (build(Part(), zip64=False, end={"disk": 1}), "split over several files"),
    "several disks in zip64": (build(Part(), end64={"disk": 1}), "split over several files"),
    "counts differ": (build(Part(), zip64=False, end={"here": 2}), "split over several files"),
    "zip64 counts differ": (build(Part(), end64={"here": 2}), "split over several files"),
    "locator aims elsewhere": (build(Part(), locator={"offset": 0}), "not where its locator"),
    "locator on another disk": (build(Part(), locator={"disk": 1}), "not where its locator"),
    "locator counts disks": (build(Part(), locator={"disks": 2}), "not where its locator"),
    "locator without room before it": (
        b"PK\3\4" + build(Part())[-42:],
        "not where its locator",
    ),
    "zip64 end without magic": (build(Part(), end64={"magic": b"XXXX"}), "zip64 end record is da"),
    "zip64 end with more data": (build(Part(), end64={"size": 45}), "zip64 end record is damaged"),
    "two counts": (build(Part(), end={"count": 2, "here": 2}), "contradict each other"),
    "two lengths": (build(Part(), end={"nbytes": 1}), "contradict each other"),
    "two offsets": (build(Part(), end={"offset": 1}), "contradict each other"),
    "directory elsewhere": (
        build(Part(), zip64=False, end={"offset": 3}),
        "not where the end of the archive says",
    ),
    "junk after the directory": (
        build(Part(), after_directory=b"junk"),
        "not where the end of the archive says",
    ),
    "2^60 records claimed": (
        build(Part(), end={"count": 0xFFFF, "here": 0xFFFF}, end64={"count": 1 << 60}
              | {"here": 1 << 60}),
        "the directory is too short for them",
    ),
    "65535 records claimed": (
        build(Part(), zip64=False, end={"count": 0xFFFF, "here": 0xFFFF}),
        "the directory is too short for them",
    ),
    "fewer records claimed": (
        build(Part(), SECOND, zip64=False, end={"count": 1, "here": 1}),
        "the directory goes on after its 1 records",
    ),
    "directory entry without magic": (
        build(Part(central={"magic": b"XXXX"})),
        "central directory is damaged at byte 0",
    ),
    "directory entry longer than the directory": (
        build(Part(central={"extra": b"E" * 60}), zip64=False).replace(
            b"\12\0\x3c\0", b"\12\0\xff\0"
        ),
        "central directory is damaged at byte 46",
    ),
    "one entry too many for the bytes": (
        build(Part(central={"comment": b"c" * 99}), zip64=False, end={"count": 2, "here": 2}),
        "central directory is damaged at byte 155",
    ),
    "encrypted": (build(Part(flags=0x0809)), "flags 0x0809"),
    "encrypted says the directory": (build(Part(central={"flags": 0x0809})), "flags 0x0809"),
    "patch data": (build(Part(flags=0x0828)), "flags 0x0828"),
    "strong encryption": (build(Part(flags=0x0040)), "flags 0x0040"),
    "masked headers": (build(Part(flags=0x2000)), "flags 0x2000"),
    "unknown method": (build(Part(method=99)), "unknown method 99"),
    "compressed pickle": (
        build(Part(stored=deflated(PICKLE), method=8)),
        "the record is compressed",
    ),
    "compressed code of no TorchScript": (
        build(Part(), Part(name=b"a/code/x.py", stored=deflated(PICKLE), method=8)),
        "the record is compressed",
    ),
    "compressed constants": (
        build(Part(name=b"a/constants.pkl", stored=deflated(PICKLE), method=8)),
        "the record is compressed",
    ),
    "stored with two lengths": (
        build(Part(central={"nbytes": 2})),
        "stored as 6 bytes but claims 2",
    ),
    "on another disk": (build(Part(central={"disk": 1})), "in another file"),
    "64-bit value missing": (
        build(Part(central={"offset": FULL})),
        "a 64-bit value is missing in the directory",
    ),
    "64-bit value too short": (
        build(Part(central={"offset": FULL, "extra": b"\1\0\4\0abcd"})),
        "a 64-bit value is missing in the directory",
    ),
    "64-bit value missing in the header": (
        build(Part(flags=0, local={"nbytes": FULL})),
        "a 64-bit value is missing in the record's header",
    ),
    "two zip64 fields": (
        build(Part(central={"offset": FULL, "extra": zip64_extra(0) + zip64_extra(9)})),
        "two zip64 fields",
    ),
    "extra field cut off": (
        build(Part(central={"offset": FULL, "extra": b"\1\0\xff\0"})),
        "extra fields in the directory are damaged",
    ),
    "extra field without a length": (
        build(Part(central={"offset": FULL, "extra": b"\1\0\0"})),
        "extra fields in the directory are damaged",
    ),
    "2^60 bytes claimed": (
        build(
            Part(
                central={"stored": FULL, "nbytes": FULL, "extra": zip64_extra(1 << 60, 1 << 60)}
            )
        ),
        "the record lies outside the file",
    ),
    "header beyond the file": (
        build(Part(central={"offset": FULL - 1})),
        "the record lies outside the file",
    ),
    "data beyond the file": (
        build(Part(central={"stored": 9999, "nbytes": 9999})),
        "the record lies outside the file",
    ),
    "no header there": (
        build(Part(), Part(name=b"a/x", central={"offset": 1})),
        "points at something that is not a record",
    ),
    "header without magic": (build(Part(), Part(name=b"a/x", local={"magic": b"XXXX"})), "not a "),
    "another name in the header": (
        build(Part(), Part(name=b"a/benign", local={"name": b"a/danger"})),
        "another name than in the directory",
    ),
    "a longer name in the header": (
        build(Part(local={"name": b"a/data.pklx"})),
        "another name than in the directory",
    ),
    "other flags in the header": (
        build(Part(local={"flags": 0x0800})),
        "other flags or method than in the directory",
    ),
    "other method in the header": (
        build(Part(local={"method": 8})),
        "other flags or method than in the directory",
    ),
    "other checksum in the header": (
        build(Part(flags=0, local={"crc": 1})),
        "the record contradicts the directory",
    ),
    "other length in the header": (
        build(Part(flags=0, local={"nbytes": 5, "stored": 5})),
        "the record contradicts the directory",
    ),
    "other length in a streamed header": (
        build(Part(local={"nbytes": 5, "stored": 5})),
        "the record contradicts the directory",
    ),
    "other checksum in the descriptor": (
        build(Part(descriptor=descriptor(1, 6, 6))),
        "what follows the record contradicts the directory",
    ),
    "other length in the descriptor": (
        build(Part(descriptor=descriptor(zlib.crc32(PICKLE), 6, 7))),
        "what follows the record contradicts the directory",
    ),
    "no descriptor": (build(Part(descriptor=b"")), "what follows the record contradicts"),
    "record in no folder": (build(Part(name=b"data.pkl")), "the record is in no folder"),
    "two folders": (build(Part(), Part(name=b"b/data/0")), "not in the folder 'a' of the others"),
    "a name like the folder's": (build(Part(), Part(name=b"ab/x")), "not in the folder 'a'"),
    "absolute name": (build(Part(name=b"/data.pkl")), "not allowed"),
    "name that climbs": (build(Part(), Part(name=b"a/../x")), "not allowed"),
    "name with NUL": (build(Part(), Part(name=b"a/x\0y")), "not allowed"),
    "name not UTF-8": (build(Part(), Part(name=b"a/\xff")), "is not UTF-8"),
    "folder with bytes": (build(Part(name=b"a/", data=b"x")), "is a folder but has bytes"),
    "one name twice": (build(Part(), Part()), "two records have this name"),
    "one name in two cases": (build(Part(), Part(name=b"A/DATA.PKL")), "not in the folder"),
    "one name in two cases below the folder": (
        build(Part(), Part(name=b"a/DATA.pkl")),
        "two records have this name, case ignored",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_archive_that_breaks_a_rule_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError) as caught:
        read(data, tmp_path)
    assert message in str(caught.value)
    assert "archive.pt" in str(caught.value)


def test_overlapping_records_are_refused(tmp_path: Path) -> None:
    inner = (
        local_header(Part(name=b"a/data/0"), PICKLE) + PICKLE + descriptor(zlib.crc32(PICKLE), 6, 6)
    )
    outer = Part(name=b"a/data.pkl", data=inner)
    offset = len(local_header(outer, inner))
    twice = Part(name=b"a/data/0", central={"offset": offset})
    with pytest.raises(DamagedFileError, match="overlaps another"):
        read(build(outer, twice), tmp_path)


def test_two_entries_for_one_record_are_refused(tmp_path: Path) -> None:
    first, second = Part(), Part(name=b"a/data.pkx", central={"offset": 0})
    with pytest.raises(DamagedFileError, match="another name"):
        read(build(first, second), tmp_path)


def test_record_that_overlaps_the_directory_is_refused(tmp_path: Path) -> None:
    # The record claims the first bytes of the directory as its own last ones.
    part = Part(flags=0)
    directory = central_header(part, PICKLE, 0)
    data = PICKLE + directory[:1]
    claims = {"stored": 7, "nbytes": 7, "crc": zlib.crc32(data)}
    part = Part(flags=0, local=claims, central=claims)
    with pytest.raises(DamagedFileError, match="overlaps the directory"):
        read(build(part), tmp_path)


def test_directory_with_too_many_records_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zip_read, "MAX_RECORDS", 2)
    parts = [Part(name=b"a/%d" % i) for i in range(3)]
    assert len(read(build(*parts[:2]), tmp_path).records) == 2
    with pytest.raises(LimitExceededError, match="3 records"):
        read(build(*parts), tmp_path)


def test_directory_of_too_many_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = len(central_header(Part(), PICKLE, 0))
    monkeypatch.setattr(zip_read, "_MAX_DIRECTORY", directory - 1)
    with pytest.raises(LimitExceededError, match=f"in {directory} bytes"):
        read(build(Part()), tmp_path)


@pytest.mark.parametrize("cut", range(1, len(VALID["as torch writes it"]), 7))
def test_truncated_archive_is_refused(cut: int, tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError):
        read(VALID["as torch writes it"][:-cut], tmp_path)


@settings(max_examples=300)
@given(
    which=st.sampled_from(sorted(VALID)),
    changes=st.lists(st.tuples(st.integers(0, 999), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_any_damage_is_read_or_refused_but_never_crashes(
    which: str, changes: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(VALID[which])
    for at, value in changes:
        data[at % len(data)] = value
    # Any other exception fails the test.
    with contextlib.suppress(DamagedFileError, LimitExceededError):
        archive = read(bytes(data), tmp_path_factory.getbasetemp())
        for record in archive.records:
            assert len(record.read(1 << 20)) == record.nbytes


class _Stream(io.BytesIO):
    """A stream that cannot seek, so that `zipfile` writes descriptors."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: Any) -> int:
        raise io.UnsupportedOperation

    def tell(self) -> int:
        raise io.UnsupportedOperation


@pytest.mark.parametrize("stream", [io.BytesIO, _Stream])
@pytest.mark.parametrize("force_zip64", [False, True])
def test_archives_of_the_standard_library_are_read(
    stream: type[io.BytesIO], force_zip64: bool, tmp_path: Path
) -> None:
    out = stream()
    contents = {"data.pkl": PICKLE, "data/0": b"\1" * 5000, "data/1": b"", "ü": b"x"}
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in contents.items():
            with archive.open(f"top/{name}", "w", force_zip64=force_zip64) as member:
                member.write(data)
    ours = read(out.getvalue(), tmp_path)
    assert ours.root == "top"
    assert {record.name: record.read(5000) for record in ours.records} == contents


def test_what_a_zip_looks_like(tmp_path: Path) -> None:
    def looks(data: bytes) -> bool:
        path = tmp_path / "x"
        path.write_bytes(data)
        return looks_like_zip(FileSource.open(path))

    assert looks(build(Part()))
    assert looks(build(zip64=False))
    assert not looks(b"")
    assert not looks(b"PK\3\4")
    assert not looks(b"\x80\x02" + build(Part()))


@pytest.mark.parametrize("above", [FULL - 1, FULL, FULL + 1, 5 << 30])
def test_sizes_and_offsets_beyond_32_bits_are_read(above: int, tmp_path: Path) -> None:
    path = tmp_path / "sparse.pt"
    with path.open("wb") as out, zipfile.ZipFile(out, "w") as archive:
        big = zipfile.ZipInfo("a/big")
        with archive.open(big, "w", force_zip64=True):
            pass
        archive.writestr("a/after", b"!")
    # Widen the empty record by a hole: its bytes start where the next header lay.
    data = path.read_bytes()
    start = 30 + len("a/big") + 20
    after = data[start : data.index(b"PK\1\2")]
    extra = zip64_extra(above, above)
    head = bytearray(data[:start])
    head[18:26] = b"\xff" * 8
    head[-20:] = extra
    count = {"flags": 0, "method": 0}
    first = central_header(
        Part(b"a/big", b"", central=count | {"stored": FULL, "nbytes": FULL, "extra": extra}),
        b"",
        0,
    )
    place = start + above
    moved = {"offset": min(place, FULL), "extra": zip64_extra(place) if place >= FULL else b""}
    second = central_header(Part(b"a/after", b"!", central=count | moved), b"!", 0)
    directory = first + second
    at = place + len(after)
    with path.open("wb") as out:
        out.write(head)
        out.seek(place)
        out.write(after + directory)
        out.write(struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 0, 45, 0, 0, 2, 2, len(directory), at))
        out.write(struct.pack("<4sIQI", b"PK\6\7", 0, at + len(directory), 1))
        out.write(struct.pack("<4s4HIIH", b"PK\5\6", 0, 0, 2, 2, len(directory), min(at, FULL), 0))
    with zipfile.ZipFile(path) as oracle:
        expected = {info.filename: info.file_size for info in oracle.infolist()}
    archive = read_zip(FileSource.open(path))
    assert {f"a/{r.name}": r.nbytes for r in archive.records} == expected
    assert archive.records[0].data.offset == start
    assert archive.records[1].read(1) == b"!"


@pytest.mark.parametrize(
    "name",
    [
        "benign_password_protected.zip",
        "malicious1_0x1.zip",
        "malicious1_0x40.zip",
        "malicious1_crc.zip",
        "int_arrays_compressed.npz",
        "object_arrays_compressed.npz",
        "malicious1.7z",
        "pytorch_magic_bypass.pt",
        "bad_pytorch.pt",
    ],
)
def test_known_attack_archives_are_refused(name: str, shared_dir: Path) -> None:
    with FileSource.open(shared_dir / "hostile" / name) as file, pytest.raises(DamagedFileError):
        read_zip(file)


def test_torchscript_records_equal_those_of_the_standard_library(shared_dir: Path) -> None:
    path = shared_dir / "real" / "silero-vad" / "silero_vad_2023-04.jit"
    archive = read_zip(FileSource.open(path))
    with zipfile.ZipFile(path) as oracle:
        expected = {name: oracle.read(name) for name in oracle.namelist()}
    assert {f"{archive.root}/{r.name}": r.read(sys.maxsize) for r in archive.records} == expected
    assert any(record.compressed for record in archive.records)


def test_source_is_asked_as_often_whatever_the_number_of_records(tmp_path: Path) -> None:
    class Counting(PartSource):
        asked = 0

        def read_at(self, offset: int, nbytes: int) -> bytes:
            self.asked += 1
            return super().read_at(offset, nbytes)

        def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
            self.asked += 1
            return super().read_ranges(ranges)

    def questions(count: int) -> int:
        path = tmp_path / "a.pth"
        torch.save({str(n): torch.ones(1) for n in range(count)}, path)
        file = FileSource.open(path)
        source = Counting(file, 0, file.size, name="a.pth")
        assert len(read_zip(source).records) > count
        return source.asked

    assert questions(3) == questions(100) <= 8
