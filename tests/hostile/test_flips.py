"""Any single flipped bit of an archive is found, or no reader reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flipping import Flips, places
from published import FILES
from torch_checks import quiet, save


def kinds(path: Path, bits: int, seed: int = 0, *, listed: bool = False) -> set[str]:
    flips = Flips(path.read_bytes(), path, listed=listed)
    return {flips.judge(place) for place in places(path.stat().st_size, bits, seed)}


def test_every_kind_of_archive(tmp_path: Path) -> None:
    value = {"model": {"a": torch.ones(3), "b": torch.arange(4)}, "epoch": 3}
    assert kinds(save(value, tmp_path / "w.pth"), 1500) <= {"found", "harmless"}
    with quiet():
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "s.pt"))
    assert kinds(tmp_path / "s.pt", 500) == {"found"}


def test_formats_without_checksums_are_unchecked(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(9)}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert kinds(tmp_path / "w.pth", 300) <= {"found", "unchecked"}
    assert kinds(tmp_path / "w.pth", 100, listed=True) == {"found"}


WITHOUT_CHECKSUMS = [n for n, kind in FILES.items() if kind not in {"torch-zip", "torchscript"}]


@pytest.mark.parametrize("name", WITHOUT_CHECKSUMS)
def test_published_files_of_which_digests_were_kept(name: str, shared_dir: Path) -> None:
    assert kinds(shared_dir / "real" / name, 20, listed=True) == {"found"}


def test_published_files_that_are_named_by_their_digest(shared_dir: Path) -> None:
    folder = shared_dir / "real" / "pytorch_resnet_cifar10"
    assert kinds(folder / "resnet20-12fca82f.th", 20) == {"found"}


@pytest.mark.parametrize("name", [n for n, kind in FILES.items() if kind == "torch-zip"])
def test_published_archives(name: str, shared_dir: Path) -> None:
    assert kinds(shared_dir / "real" / name, 100) == {"found"}


def test_a_flip_that_nobody_reads_is_told_from_one_that_was_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge itself: it says "missed" where `verify` keeps silent about other numbers."""
    path = save({"a": torch.ones(50)}, tmp_path / "w.pth")
    flips = Flips(path.read_bytes(), path)
    monkeypatch.setattr(Flips, "_says_more", lambda *_: False)
    in_numbers = flips.data.index(torch.ones(50).numpy().tobytes()) * 8 + 16
    in_padding = flips.data.index(b"ZZZ") * 8
    assert flips.judge(in_numbers) == "missed"
    assert flips.judge(in_padding) == "harmless"


def test_bits_behind_the_end_of_compressed_code_are_harmless(shared_dir: Path) -> None:
    """The last byte of a deflated record has bits that belong to no code (RFC 1951, 3.2.3)."""
    path = shared_dir / "real" / "affnet" / "torchscript_2019_affnet.pt"
    flips = Flips(path.read_bytes(), path)
    assert flips.judge(8 * 13145 + 3) == "harmless"
    assert flips.judge(8 * 13145 + 0) == "found"


@pytest.mark.parametrize(
    "name", ["allennlp/allennlp_model.tar.gz", "rl-trained-agents/sb3_ars_cartpole.zip"]
)
def test_published_archives_of_checkpoints(name: str, shared_dir: Path) -> None:
    assert "found" in kinds(shared_dir / "real" / name, 60) <= {"found", "harmless"}
