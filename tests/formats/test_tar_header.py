"""A file that begins like a tar archive is one for torch, whatever else it may be."""

from __future__ import annotations

import random
import tarfile
from pathlib import Path

import pytest
import torch
from lies import tar_and_legacy

from ckpt_surgery.errors import DamagedFileError
from ckpt_surgery.formats import read
from ckpt_surgery.formats.tar_header import is_tar_header

# torch extracts members without naming a filter
pytestmark = pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")


def accepted(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


@pytest.mark.parametrize("seed", range(200))
def test_header_is_what_tarfile_accepts(seed: int) -> None:
    rng = random.Random(seed)
    info = tarfile.TarInfo("é" * rng.randint(0, 40))
    info.size = rng.choice([0, 5, 1 << 40])
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    assert is_tar_header(bytes(block))
    for _ in range(rng.randint(0, 3)):
        block[rng.randrange(148, 156)] = rng.choice(b"0127 8x\0\x80\xff\t_-")
    # a checksum that is right, with something else that is not, counts as one here
    assert is_tar_header(bytes(block)) >= accepted(bytes(block))


def test_checksums_of_old_programs_are_known() -> None:
    block = bytearray(tarfile.TarInfo("é").tobuf(tarfile.GNU_FORMAT))
    assert sum(byte > 127 for byte in block) == 2
    signed = int(bytes(block[148:154]), 8) - 512
    block[148:156] = b"%06o\0 " % signed
    assert is_tar_header(bytes(block))
    block[148:156] = b"\x80" + signed.to_bytes(7, "big")
    assert is_tar_header(bytes(block))
    block[148:156] = b"\xff" * 8
    assert not is_tar_header(bytes(block))


def test_file_of_two_formats_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(tar_and_legacy())
    loaded = torch.load(path, weights_only=False)
    assert loaded["w"].tolist() == [666, 777]
    with pytest.raises(DamagedFileError, match="a header of a tar archive as well"):
        read(path)
