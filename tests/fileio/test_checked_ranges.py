"""Bytes that are read whole are compared with their checksum, whoever reads them and however."""

from __future__ import annotations

import json
import random
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch_checks import save
from zip_builder import Part, build, deflated

from ckpt_surgery import Output, Replace, convert, inspect, merge, read, rename, strip
from ckpt_surgery.cli.main import cli
from ckpt_surgery.errors import CkptError, DamagedFileError
from ckpt_surgery.fileio import ByteRange, FileSource, MemorySource, read_zip
from ckpt_surgery.fileio.checksum import PieceSums, combine
from ckpt_surgery.fileio.digest_sink import DigestSink
from ckpt_surgery.fileio.sink import copy_with_crc32
from ckpt_surgery.ops.hash import digest

DATA = random.Random(0).randbytes(10_000)
CRC = zlib.crc32(DATA)


def stated(crc32: int | None, data: bytes = DATA) -> ByteRange:
    return ByteRange(MemorySource(b"xx" + data + b"xx", name="m"), 2, len(data), crc32)


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (1, 1), (4096, 17), (3, 100_000)])
def test_checksums_of_runs_are_put_together(sizes: tuple[int, int]) -> None:
    first, second = (random.Random(size).randbytes(size) for size in sizes)
    expected = zlib.crc32(first + second)
    assert combine(zlib.crc32(first), zlib.crc32(second), len(second)) == expected


def test_range_that_is_right_is_read() -> None:
    for crc32 in (CRC, 0, None):  # 0: none was computed
        assert stated(crc32).read() == DATA
        assert b"".join(stated(crc32).chunks(999)) == DATA


def test_range_that_is_wrong_is_damage() -> None:
    with pytest.raises(DamagedFileError, match="the file says 00000001"):
        stated(1).read()
    with pytest.raises(DamagedFileError, match=f"is {CRC:08x}"):
        list(stated(1).chunks(999))


def test_part_knows_what_it_is_from() -> None:
    whole = stated(1)
    part = whole.slice(10, 100)
    assert part.whole == whole
    assert part.slice(1, 2).whole == whole
    assert whole.slice(0, len(DATA)) is whole
    assert stated(0).slice(10, 100).whole is None
    assert part.read() == DATA[10:110]


@pytest.mark.parametrize("crc32", [CRC, 1, 0])
def test_pieces_are_compared_when_all_have_come(crc32: int) -> None:
    sums = PieceSums(stated(crc32))
    starts = list(range(0, len(DATA), 999))
    random.Random(1).shuffle(starts)
    for start in (*starts[:-1], starts[0]):
        sums.add(start, memoryview(DATA)[start : start + 999])
    last = memoryview(DATA)[starts[-1] : starts[-1] + 999]
    if crc32 == 1:
        with pytest.raises(DamagedFileError):
            sums.add(starts[-1], last)
    else:
        sums.add(starts[-1], last)
    sums.add(0, memoryview(b"other"))  # once is enough


def test_pieces_that_overlap_say_nothing() -> None:
    sums = PieceSums(stated(1))
    sums.add(0, memoryview(DATA)[:6000])
    sums.add(5000, memoryview(DATA)[5000:9000])


def test_pieces_may_come_from_several_threads() -> None:
    for _ in range(20):
        sums, errors = PieceSums(stated(1)), []

        def add(part: int, sums: PieceSums = sums, errors: list[object] = errors) -> None:
            for start in range(part * 1000, len(DATA), 4000):
                try:
                    sums.add(start, memoryview(DATA)[start : start + 1000])
                except DamagedFileError as error:
                    errors.append(error)

        threads = [threading.Thread(target=add, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(errors) == 1


def test_digest_of_a_file_to_be_compares_what_it_reads() -> None:
    right: set[ByteRange] = set()
    assert copy_with_crc32(stated(CRC), DigestSink(), right) == CRC
    assert copy_with_crc32(stated(0), DigestSink(), right) == 0  # stays absent
    with pytest.raises(DamagedFileError):
        copy_with_crc32(stated(1), DigestSink(), right)


def test_part_gets_a_checksum_of_its_own_if_the_whole_is_right() -> None:
    right: set[ByteRange] = set()
    for part in (stated(CRC).slice(1, 5), stated(0).slice(1, 5), stated(None).slice(1, 5)):
        assert copy_with_crc32(part, DigestSink(), right) == zlib.crc32(DATA[1:6])
    assert len(right) == 1
    with pytest.raises(DamagedFileError):
        copy_with_crc32(stated(1).slice(1, 5), DigestSink(), right)


@pytest.mark.parametrize("crc32", [zlib.crc32(DATA) ^ 1, 0])
def test_compressed_record_is_compared(crc32: int, tmp_path: Path) -> None:
    code = Part(
        b"a/code/x.py", DATA, deflated(DATA), method=8, central={"crc": crc32}, descriptor=b"",
        flags=0x0800, local={"crc": crc32},
    )  # fmt: skip
    source = MemorySource(build(Part(), Part(b"a/constants.pkl"), code), name="m")
    record = read_zip(source).get("code/x.py")
    assert record is not None
    if crc32:
        with pytest.raises(DamagedFileError, match="the bytes of its checksum"):
            record.read(1 << 20)
    else:
        assert record.read(1 << 20) == DATA


# --- Commands


def damaged(path: Path, *, pickle: bool = False) -> Path:
    """A file of two large tensors, a byte of the first (or of the pickle) flipped."""
    value = {"a": torch.arange(3000.0), "b": torch.ones(3000).half()}
    data = bytearray(save(value, path).read_bytes())
    at = data.index(b"X\1\0\0\0a") + 5 if pickle else data.index(value["a"].numpy().tobytes())
    data[at] ^= 2
    path.write_bytes(data)
    return path


def test_flipped_byte_of_the_pickle_is_damage(tmp_path: Path) -> None:
    path = damaged(tmp_path / "w.pth", pickle=True)
    assert list(torch.load(path)) == ["c", "b"]  # torch looks at no checksum
    with pytest.raises(DamagedFileError, match="the file says") as caught:
        read(path)
    assert caught.value.entry == "data.pkl"


USES: dict[str, Callable[[Path, Path], object]] = {
    "statistics": lambda path, _: inspect(path, stats=True),
    "merge": lambda path, out: merge([path, path], out, method="linear"),
    "merge of two types": lambda path, out: merge(
        [path, path], out, method="linear", dtype="float64"
    ),
    "hash in the name": lambda path, out: convert(path, Output(out, hash_name=True)),
}


COMMANDS = {
    "cast": ("convert", "FILE", "--dtype", "float64", "-o", "out.pth"),
    "cast to safetensors": ("convert", "FILE", "--dtype", "float64", "-o", "out.safetensors"),
    "numbers": ("edit", "FILE", "--scale", "a=2", "-o", "out.pth"),
    "places of elements": ("edit", "FILE", "--flip", "a=0", "-o", "out.pth"),
    "a target of another type": (
        "fit",
        "FILE",
        "--like",
        "FILE",
        "--dtype",
        "f64",
        "-o",
        "out.pth",
    ),
    "numbers and their distances": ("diff", "FILE", "GOOD", "--values"),
    "statistics": ("inspect", "FILE", "--stats"),
    "while it is copied": ("convert", "FILE", "--verify", "-o", "out.safetensors"),
}


@pytest.mark.parametrize("use", COMMANDS)
def test_commands_name_the_damaged_record(use: str, tmp_path: Path) -> None:
    path, good = damaged(tmp_path / "w.pth"), tmp_path / "good.pth"
    save({"a": torch.zeros(3000), "b": torch.ones(3000).half()}, good)
    names = {"FILE": path, "GOOD": good}
    words = [
        str(names.get(word, tmp_path / word if word.startswith("out.") else word))
        for word in COMMANDS[use]
    ]
    done = CliRunner().invoke(cli, [*words, "--json"])
    assert done.exit_code == 2
    error = json.loads(done.stdout)["error"]
    assert (error["kind"], error["entry"]) == ("DamagedFileError", "data/0")
    assert sorted(tmp_path.iterdir()) == [good, path]


@pytest.mark.parametrize("use", USES)
def test_flipped_byte_of_a_tensor_is_damage_where_all_are_read(use: str, tmp_path: Path) -> None:
    path, out = damaged(tmp_path / "w.pth"), tmp_path / "out.pth"
    with pytest.raises(CkptError, match="the checksum of the bytes is") as caught:
        USES[use](path, out)
    assert caught.value.entry == "data/0"
    assert list(tmp_path.iterdir()) == [path]


def test_flipped_byte_gets_no_digest(tmp_path: Path) -> None:
    report = digest([damaged(tmp_path / "w.pth")])
    assert report.models == ()
    assert "the checksum of the bytes is" in report.failures[0].message
    assert report.failures[0].entry == "a"


def test_rewriting_keeps_a_wrong_checksum_wrong(tmp_path: Path) -> None:
    path, out = damaged(tmp_path / "w.pth"), tmp_path / "out.pth"
    rename(path, out, [Replace("a", "c")])
    before, after = (
        {record.name: record.crc32 for record in read_zip(FileSource.open(each)).records}
        for each in (path, out)
    )
    assert before["data/0"] == after["data/0"]
    with pytest.raises(DamagedFileError):
        inspect(out, stats=True)


def test_part_of_a_wrong_record_gets_no_new_checksum(tmp_path: Path) -> None:
    whole = torch.arange(3000.0)
    path, out = tmp_path / "w.pth", tmp_path / "out.pth"
    for view in (whole[1000:], whole[10:2000].reshape(10, -1)[:, ::2]):
        data = bytearray(save({"a": view}, path).read_bytes())
        data[data.index(whole.numpy().tobytes()) + 2] ^= 1  # a byte that no tensor uses
        path.write_bytes(data)
        with pytest.raises(DamagedFileError, match="the checksum of the bytes is"):
            strip(path, out, compact=True)
        assert not out.exists()


def test_command_says_where_the_damage_is(tmp_path: Path) -> None:
    path = damaged(tmp_path / "w.pth", pickle=True)
    done = CliRunner().invoke(cli, ["inspect", str(path)])
    assert done.exit_code == 2
    assert "(data.pkl): the checksum of the bytes is" in done.stderr
    assert "hint: some of its bytes were changed" in done.stderr
