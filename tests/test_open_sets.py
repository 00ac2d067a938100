"""What is added by one file and one registration works from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from ckpt_surgery import Output, convert, read
from ckpt_surgery.cli.main import COMMANDS, cli
from ckpt_surgery.edits.registry import KINDS
from ckpt_surgery.errors import CkptError, UsageError
from ckpt_surgery.formats import registry

SUPPORT = Path(__file__).parent / "support"


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    whole = torch.arange(12.0).reshape(3, 4)
    return {
        "a.weight": whole,
        "a.view": whole.t()[1:],
        "count": torch.tensor(3),
        "e": torch.ones(0),
    }


@pytest.fixture
def file(tmp_path: Path, weights: dict[str, torch.Tensor]) -> Path:
    path = tmp_path / "x.pth"
    torch.save(weights, path)
    return path


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.FORMATS, "npy-dir", "npy_directory:NpyDirectory")
    monkeypatch.delitem(registry._loaded, "npy-dir", raising=False)


def ckpt(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def assert_holds(directory: Path, weights: dict[str, torch.Tensor]) -> None:
    assert {path.stem for path in directory.iterdir()} == set(weights)
    for name, tensor in weights.items():
        assert np.array_equal(np.load(directory / f"{name}.npy"), tensor.numpy())


@pytest.mark.usefixtures("registered")
class TestFormat:
    def test_toy_format_is_written_shown_edited_and_converted_back(
        self, file: Path, tmp_path: Path, weights: dict[str, torch.Tensor]
    ) -> None:
        out, back = tmp_path / "dir", tmp_path / "back.pth"
        report = ckpt("convert", file, "--format", "npy-dir", "-o", out, "--json")
        assert report.exit_code == 0, report.output
        document = json.loads(report.stdout)
        assert document["output_format"] == "npy-dir"
        assert document["plan"] == [{"edit": "convert", "from": "torch-zip", "to": "npy-dir"}]
        assert document["nbytes_after"] == sum(p.stat().st_size for p in out.iterdir())
        assert_holds(out, weights)
        shown = json.loads(ckpt("inspect", out, "--json").stdout)
        assert shown["format"] == "npy-dir"
        assert shown["size"] == document["nbytes_after"]
        edited = ckpt("strip", out, "--prefix", "a", "--in-place")
        assert edited.exit_code == 0, edited.output
        assert_holds(out, {"count": weights["count"], "e": weights["e"]})
        assert ckpt("convert", out, "-o", back).exit_code == 0
        assert torch.load(back)["count"] == 3

    def test_what_it_cannot_hold_is_listed_unless_allowed(
        self, tmp_path: Path, weights: dict[str, torch.Tensor]
    ) -> None:
        path, out = tmp_path / "train.pth", tmp_path / "dir"
        odd = {"half": torch.ones(2, dtype=torch.bfloat16), **weights}
        torch.save({"state_dict": odd, "epoch": 3, "args": {"lr": 0.1}}, path)
        command = ("convert", path, "--format", "npy-dir", "-o", out)
        refused = ckpt(*command)
        assert refused.exit_code == 2
        for lost in ("'epoch'", "'args'", "'state_dict/half' (a tensor of bfloat16"):
            assert lost in refused.stderr
        assert "--allow-loss" in refused.stderr
        assert not out.exists()
        allowed = json.loads(ckpt(*command, "--allow-loss", "--json").stdout)
        assert allowed["dropped_others"] == ["epoch", "args"]
        assert allowed["removed"] == ["state_dict/half"]
        assert_holds(out, weights)

    def test_directory_goes_to_no_stream_and_takes_no_hash(
        self, file: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(UsageError, match="the output is a directory"):
            convert(file, Output(stream=1, format="npy-dir"))
        refused = ckpt("convert", file, "--format", "npy-dir", "-o", tmp_path / "d", "--hash-name")
        assert "'--hash-name' is for a single file" in refused.stderr

    def test_verify_says_what_reading_finds(self, file: Path, tmp_path: Path) -> None:
        out = tmp_path / "dir"
        ckpt("convert", file, "--format", "npy-dir", "-o", out)
        with read(out) as checkpoint:
            assert list(registry.get("npy-dir").check(checkpoint)) == []
        whole = ckpt("verify", out)
        assert (whole.exit_code, "no-checksum" in whole.stdout) == (0, True)
        (out / "e.npy").write_bytes(b"no array here")
        damaged = ckpt("verify", out)
        assert (damaged.exit_code, "error: damaged: " in damaged.stdout) == (1, True)


class TestEdit:
    RECIPE = """
[inputs]
net = "x.pth"

[[steps]]
edits = [{ edit = "negate", state_dict = "", name = "a.weight" }]

[[outputs]]
file = "negative.pth"
"""

    @pytest.fixture(autouse=True)
    def added(self, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
        monkeypatch.setitem(KINDS, "negate", "negate_edit:Negate")
        monkeypatch.chdir(file.parent)

    def test_toy_edit_is_a_step_of_a_recipe_and_its_report_replays(
        self, weights: dict[str, torch.Tensor]
    ) -> None:
        Path("negate.toml").write_text(self.RECIPE)
        done = ckpt("apply", "negate.toml", "--json")
        assert done.exit_code == 0, done.output
        written = torch.load("negative.pth")
        assert torch.equal(written["a.weight"], -weights["a.weight"])
        assert torch.equal(written["a.view"], weights["a.view"])
        edit = {"edit": "negate", "state_dict": "", "name": "a.weight"}
        document = json.loads(done.stdout)
        assert document["steps"][0]["plan"] == [edit]
        Path("report.json").write_text(done.stdout)
        again = ckpt("apply", "report.json", "-o", "again.pth")
        assert again.exit_code == 0, again.output
        assert Path("again.pth").read_bytes() == Path("negative.pth").read_bytes()

    def test_without_its_row_the_toy_edit_is_refused_by_name(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delitem(KINDS, "negate")
        Path("negate.toml").write_text(self.RECIPE)
        refused = ckpt("apply", "negate.toml")
        assert refused.exit_code == 2
        assert "there is no edit 'negate'" in refused.stderr
        assert not Path("negative.pth").exists()


class TestVerb:
    @pytest.fixture(autouse=True)
    def added(self, monkeypatch: pytest.MonkeyPatch) -> None:
        row = ("largest_verb:largest", "Name the tensor with the most elements.")
        monkeypatch.setitem(COMMANDS, "largest", row)

    def test_toy_verb_runs_with_the_errors_and_the_help_of_the_others(
        self, file: Path, tmp_path: Path
    ) -> None:
        found = ckpt("largest", file)
        assert (found.exit_code, found.stdout) == (0, "a.weight\n")
        assert "Name the tensor with the most elements." in ckpt("--help").stdout
        assert "Usage: " in ckpt("help", "largest").stdout
        torch.save({}, tmp_path / "empty.pth")
        refused = ckpt("largest", tmp_path / "empty.pth")
        assert refused.exit_code == 2
        assert refused.stderr.startswith("error: there is no tensor\nhint: ")
        assert "did you mean 'largest'" in ckpt("largets", file).stderr


def installed(tmp_path: Path) -> dict[str, str]:
    """An environment in which a package with the toy format is installed."""
    site = tmp_path / "site"
    metadata = site / "npy_directory-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: npy-directory\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        f"[{registry.GROUP}]\nnpy-dir = npy_directory:NpyDirectory\n"
    )
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(SUPPORT)])}


def test_installed_package_adds_a_format(
    file: Path, tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    environment, out = installed(tmp_path), tmp_path / "dir"

    def run(*args: object) -> str:
        command = [sys.executable, "-m", "ckpt_surgery", *map(str, args)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("convert", file, "--format", "npy-dir", "-o", out)
    assert_holds(out, weights)
    assert set(run("inspect", out, "--keys").split()) == set(weights)
    assert "npy-dir" in run("convert", "--help")


def test_directory_of_no_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CkptError, match="is a directory") as refused:
        read(tmp_path)
    assert refused.value.hint == "name the checkpoint file in it"


def test_ordinary_files_wait_for_no_installed_package(file: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from ckpt_surgery.cli.main import main; sys.argv = sys.argv[1:]\n"
        "try: main()\n"
        "finally: print('importlib.metadata' in sys.modules, file=sys.stderr)"
    )
    for command in (["inspect", file], ["convert", file, "-o", tmp_path / "o.pth"]):
        line = [sys.executable, "-c", code, "ckpt", *map(str, command)]
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.stderr == "False\n"


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("no_such_module:X", "No module named"),
        ("npy_directory:Missing", "no attribute"),
        ("npy_directory:DirectorySource.open", "no attribute"),
        ("collections:OrderedDict", "is no format"),
    ],
)
def test_format_that_cannot_be_used_says_why(
    monkeypatch: pytest.MonkeyPatch, where: str, said: str
) -> None:
    monkeypatch.setitem(registry.FORMATS, "toy", where)
    with pytest.raises(CkptError, match=said):
        registry.get("toy")


def test_unknown_format_names_those_there_are() -> None:
    with pytest.raises(UsageError, match="there is no format 'onnx'") as refused:
        registry.get("onnx")
    assert "torch-zip" in str(refused.value.hint)
