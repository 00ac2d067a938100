"""Salvage of archives whose records are the tensors: numpy's, and those of torch.export."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch_checks import assert_same, load, quiet

from ckpt_surgery import DamagedFileError, Output, salvage, verify
from ckpt_surgery.cli.main import cli
from ckpt_surgery.reports.verification import SalvageReport

np = pytest.importorskip("numpy")

WHOLE = {f"l{n}.w": torch.arange(60.0 + n) * (n + 1) for n in range(4)}


def salvaged(path: Path, tmp_path: Path) -> tuple[SalvageReport, dict[str, torch.Tensor]]:
    report = salvage(path, Output(tmp_path / "out.pth", force=True))
    found = dict(load(tmp_path / "out.pth"))
    assert set(report.tensors) == set(found)
    return report, found


def rules(path: Path) -> set[str]:
    (verdict,) = verify([path]).verdicts
    return {finding.rule for finding in verdict.findings if finding.severity == "error"}


def spans(path: Path) -> dict[str, tuple[int, int]]:
    """Where the local header of each record begins, and where its bytes end."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                member.read(1)
                start = member._orig_compress_start  # type: ignore[attr-defined]
            found[info.filename] = (info.header_offset, start + info.compress_size)
    return found


def arrays(path: Path, *, compressed: bool) -> Path:
    save = np.savez_compressed if compressed else np.savez
    save(path, **{name: tensor.numpy() for name, tensor in WHOLE.items()})
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_of_an_archive_cut_at_every_border(compressed: bool, tmp_path: Path) -> None:
    path = arrays(tmp_path / "a.npz", compressed=compressed)
    ends = {name.removesuffix(".npy"): end for name, (_, end) in spans(path).items()}
    data, counts = path.read_bytes(), set()
    borders = {at for span in spans(path).values() for at in span} - {0}
    for cut in sorted({*borders, *(at + 40 for at in borders), len(data) - 22, len(data) - 1}):
        path.write_bytes(data[:cut])
        assert rules(path) == {"truncated"}
        kept = {name for name, end in ends.items() if end <= cut}
        if not kept:
            with pytest.raises(DamagedFileError, match="none of its tensors is whole"):
                salvaged(path, tmp_path)
            continue
        report, found = salvaged(path, tmp_path)
        assert_same(found, {name: WHOLE[name] for name in WHOLE if name in kept})
        assert {each.path for each in report.lost} <= set(WHOLE) - kept
        assert "there may have been others" in report.warnings[0]  # whose names are gone
        counts.add(len(kept))
    assert counts == {1, 2, 3, 4}


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_array_is_lost_alone_and_named(compressed: bool, tmp_path: Path) -> None:
    path = arrays(tmp_path / "a.npz", compressed=compressed)
    at = spans(path)["l1.w.npy"][1] - 30
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)
    (verdict,) = verify([path]).verdicts
    assert [f.entry for f in verdict.findings if f.severity == "error"] == ["l1.w.npy"]
    report, found = salvaged(path, tmp_path)
    assert_same(found, {name: WHOLE[name] for name in WHOLE if name != "l1.w"})
    assert [each.path for each in report.lost] == ["l1.w"]


def test_of_an_array_of_objects_it_is_said_that_torch_has_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.ones(3), o=np.array([None]), s=np.array(["text"]))
    report, found = salvaged(tmp_path / "a.npz", tmp_path)
    assert list(found) == ["w"]
    assert {each.path: each.why for each in report.lost} == {
        "o": "an array of objects, which torch does not have",
        "s": "an array of <U4, which torch does not have",
    }


def test_a_member_that_is_no_array_is_lost(tmp_path: Path) -> None:
    path = arrays(tmp_path / "a.npz", compressed=False)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more.npy", b"text")
    report, found = salvaged(path, tmp_path)
    assert set(found) == set(WHOLE)
    assert [(each.path, each.why) for each in report.lost] == [("more", "is no array of numpy")]


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(5, 4)
        self.b = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, torch.Tensor]]:
    path, net = tmp_path_factory.mktemp("exported") / "e.pt2", Net()
    with quiet():
        torch.export.save(torch.export.export(net, (torch.ones(2, 5),)), path)
    return path.read_bytes(), {name: each.detach() for name, each in net.state_dict().items()}


def test_weights_of_an_export_cut_at_every_border(exported, tmp_path: Path) -> None:
    data, whole = exported
    path = tmp_path / "e.pt2"
    path.write_bytes(data)
    named = spans(path)["e/data/weights/model_weights_config.json"][1]
    for cut in sorted(at for span in spans(path).values() for at in span if at):
        path.write_bytes(data[:cut])
        assert "truncated" in rules(path)
        if cut < named:  # the weights come before the description that names them
            with pytest.raises(DamagedFileError, match="the description of its weights"):
                salvaged(path, tmp_path)
            continue
        report, found = salvaged(path, tmp_path)
        assert_same(found, whole)
        assert report.lost == ()


def test_a_broken_description_of_weights_leaves_nothing(exported, tmp_path: Path) -> None:
    data = exported[0]
    at = data.index(b'{"config"')
    path = tmp_path / "e.pt2"
    for broken in (data[: at + 50], data.replace(b'{"config"', b'{"konfig"')):
        path.write_bytes(broken)
        with pytest.raises(DamagedFileError, match="the description of its weights"):
            salvaged(path, tmp_path)


def test_a_damaged_weight_of_an_export_is_lost_alone(exported, tmp_path: Path) -> None:
    data, whole = bytearray(exported[0]), exported[1]
    data[data.index(whole["b.weight"].numpy().tobytes()) + 7] ^= 1
    path = tmp_path / "e.pt2"
    path.write_bytes(data)
    report, found = salvaged(path, tmp_path)
    assert_same(found, {name: whole[name] for name in whole if name != "b.weight"})
    assert [each.path for each in report.lost] == ["b.weight"]


def test_a_weight_without_its_record_is_lost(exported, tmp_path: Path) -> None:
    (tmp_path / "e.pt2").write_bytes(exported[0])
    with (
        zipfile.ZipFile(tmp_path / "e.pt2") as old,
        zipfile.ZipFile(tmp_path / "f.pt2", "w") as new,
    ):
        said = json.loads(old.read("e/data/weights/model_weights_config.json"))
        for name in old.namelist():
            if not name.endswith("weight_1"):
                new.writestr(name, old.read(name))
    (gone,) = [n for n, each in said["config"].items() if each["path_name"] == "weight_1"]
    report, found = salvaged(tmp_path / "f.pt2", tmp_path)
    assert [(each.path, each.why) for each in report.lost] == [(gone, "its record is missing")]
    assert set(found) == set(exported[1]) - {gone}


def test_every_byte_of_an_export_is_checked(exported, tmp_path: Path) -> None:
    """The program's records, too, and the structure around them."""
    data = exported[0]
    path = tmp_path / "e.pt2"
    for at in range(20, len(data), 397):
        path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        (verdict,) = verify([path]).verdicts
        assert {f.severity for f in verdict.findings} & {"error", "warning"}, at


def test_the_archive_around_weights_of_an_older_export_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "old.pt2"
    torch.save({"w": torch.ones(3)}, tmp_path / "w.pt")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}" * 50)
        archive.writestr("serialized_state_dict.pt", (tmp_path / "w.pt").read_bytes())
        archive.writestr("version", "8.2")
    around, inside = verify([path]).verdicts
    assert (around.format, around.findings) == ("zip", ())
    assert (inside.file, inside.format) == (f"{path}:serialized_state_dict.pt", "torch-zip")
    data = path.read_bytes()
    at = data.index(b"{}{}") + 7
    path.write_bytes(data[:at] + b"!" + data[at + 1 :])
    assert "checksum" in {f.rule for each in verify([path]).verdicts for f in each.findings}


def test_the_command_salvages_arrays(tmp_path: Path) -> None:
    path = arrays(tmp_path / "a.npz", compressed=False)
    path.write_bytes(path.read_bytes()[:-200])
    line = ["verify", str(path), "--salvage", str(tmp_path / "rest.pth")]
    done = CliRunner().invoke(cli, line)
    assert done.exit_code == 1
    assert "salvaged 4 tensors" in done.stdout
    assert_same(dict(load(tmp_path / "rest.pth")), WHOLE)
