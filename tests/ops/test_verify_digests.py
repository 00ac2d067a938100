"""`verify` against digests that were kept: in a list, or in the name of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from archives import state_dict
from flipping import digest_list
from safetensors.torch import save_file
from torch_checks import save

from ckpt_surgery import verify
from ckpt_surgery.checkpoint.findings import Finding
from ckpt_surgery.fileio import MemorySource
from ckpt_surgery.ops.digest_lists import DigestList
from ckpt_surgery.ops.verify_checks import Checks
from ckpt_surgery.ops.verify_digests import _digest_in_name, is_digest
from ckpt_surgery.reports.verification import Verdict

TENSORS = {"fc.weight": torch.arange(64.0), "fc.bias": torch.ones(4)}


def verdict(data: bytes, name: str, **checks: Any) -> Verdict:
    (found,) = verify([MemorySource(data, name=name)], Checks(**checks)).verdicts
    return found


def findings(data: bytes, name: str, given: DigestList) -> list[Finding]:
    return [f for f in verdict(data, name, lists=[given]).findings if f.rule == "digest"]


@pytest.fixture
def bare(tmp_path: Path) -> bytes:
    """A file without checksums."""
    save_file(TENSORS, tmp_path / "w.safetensors")
    return (tmp_path / "w.safetensors").read_bytes()


def changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_a_list_names_the_tensor_that_changed(bare: bytes) -> None:
    given = digest_list(bare, "w.safetensors")
    assert findings(bare, "w.safetensors", given) == []
    at = bare.index(TENSORS["fc.weight"].numpy().tobytes()) + 9
    tensor, file = findings(changed(bare, at), "w.safetensors", given)
    assert (tensor.severity, tensor.entry) == ("error", "fc.weight")
    assert tensor.message.startswith("its digest is ckpt1:")
    assert (file.severity, file.entry) == ("error", None)
    assert "lies beside them" not in file.message


def test_a_change_beside_the_tensors_is_said_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"model": TENSORS, "epoch": 3}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    given = digest_list(data, "w.pth")
    (file,) = findings(changed(data, data.index(b"epoch") + 2), "w.pth", given)
    assert file.entry is None
    assert file.message.endswith("so that it lies beside them")


def test_damage_that_a_checksum_shows_does_not_hide_the_other_tensors(tmp_path: Path) -> None:
    data = save(state_dict(), tmp_path / "w.pth").read_bytes()
    given = digest_list(data, "w.pth")
    at = data.index(torch.arange(5.0).numpy().tobytes()) + 2
    found = verdict(changed(data, at), "w.pth", lists=[given]).findings
    assert {f.rule for f in found} == {"checksum", "digest"}
    named = {f.entry for f in found if f.rule == "digest"}
    assert named == {"layer.1", "tie", None}
    model = DigestList.parse(f"ckpt1:{'0' * 64}  w.pth", "L")
    (one,) = findings(changed(data, at), "w.pth", model)
    assert one.message.startswith("it has no digest: ")


def test_a_digest_of_a_damaged_model_is_a_finding_and_no_failure(tmp_path: Path) -> None:
    data = save(state_dict(), tmp_path / "w.pth").read_bytes()
    at = data.index(torch.arange(5.0).numpy().tobytes()) + 2
    report = verify(
        [MemorySource(changed(data, at), name="w.pth")], Checks(digests=["ckpt1:" + "0" * 64])
    )
    assert not report.failures
    assert {f.rule for f in report.verdicts[0].findings} == {"checksum", "digest"}


def test_what_a_list_says_of_the_file_is_found_by_path_and_else_sha256(bare: bytes) -> None:
    digest = digest_list(bare, "w.safetensors").lines[0].digest
    for name in ("w.safetensors", "elsewhere/w.safetensors", "lists/w.safetensors"):
        given = DigestList.parse(f"{digest}  w.safetensors\n", "lists/DIGESTS")
        assert findings(bare, name, given) == []
    both = DigestList.parse(f"{digest}  w.pth\n{'0' * 64}  other/w.pth\n", "DIGESTS")
    assert findings(bare, "w.pth", both) == []
    (found,) = findings(bare, "x.pth", both)
    assert found.message == "'DIGESTS' has no digest of it"


def test_a_tensor_that_is_gone_is_named(bare: bytes) -> None:
    given = DigestList.parse(f"ckpt1:{'0' * 64}  w.safetensors#fc.scale\n", "L")
    (found,) = findings(bare, "w.safetensors", given)
    assert (found.entry, found.severity) == ("fc.scale", "error")
    assert "no tensor 'fc.scale' in it" in found.message


def test_the_digest_in_a_name_speaks_for_a_file_without_checksums(bare: bytes) -> None:
    digits = digest_list(bare, "w").lines[0].digest[:8]
    name = f"net-{digits}.safetensors"
    right = verdict(bare, name)
    assert right.findings == ()
    assert right.checksums.sha256 == digits
    assert right.to_dict(strict=True)["ok"]
    (wrong,) = verdict(changed(bare, len(bare) - 1), name).findings[:1]
    assert (wrong.severity, wrong.rule) == ("warning", "digest")
    assert digits in wrong.message


@pytest.mark.parametrize(
    ("name", "digits"),
    [
        ("folder-deadbeef/resnet20-12fca82f.th", "12fca82f"),
        ("a-b-0123abcd.pth.tar", "0123abcd"),
        ("resnet-12FCA82F.pth", "12fca82f"),
        ("a-deadbeef", "deadbeef"),
        ("run-20240131.pth", None),
        ("a-12fca8.pth", None),
        ("a-12fca82f-b.pth", None),
        ("deadbeef.pth", None),
    ],
)
def test_what_counts_as_a_digest_in_a_name(name: str, digits: str | None) -> None:
    assert _digest_in_name(name) == digits


def test_what_counts_as_a_digest() -> None:
    assert all(is_digest(p + "0aF" + "1" * 61) for p in ("", "ckpt1:", "SHA256:", "sha256:"))
    assert not any(is_digest(text) for text in ("DIGESTS", "1" * 63, "g" * 64, "md5:" + "1" * 64))
