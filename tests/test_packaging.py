"""Laws of what is installed: built by the usual tools, complete, and at home without torch."""

from __future__ import annotations

import email
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import ckpt_surgery
from ckpt_surgery.cli.main import COMMANDS

pytest.importorskip("build")

_HERE = Path(__file__).resolve().parents[1]
_LIGHT = ("click", "rich", "markdown-it-py", "mdurl", "pygments")
_UNTOUCHED = shutil.ignore_patterns(
    *(".*", "__pycache__", "*.egg-info", "build", "dist", "real", "hostile")
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the source distribution, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(_HERE, folder / "source", ignore=_UNTOUCHED)
    line = [sys.executable, "-m", "build", "--no-isolation", "-o", folder, folder / "source"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    """Run `ckpt` of the wheel in an environment that has it, click and Rich, and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    for name in _LIGHT:
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files if ".." not in file.parts}:
            place = Path(distribution.locate_file(top))
            if place.exists() and not (folder / "light" / top).exists():
                (folder / "light").mkdir(exist_ok=True)
                (folder / "light" / top).symlink_to(place)
    home = folder / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    python = home / "bin" / "python"
    line = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps"]
    done = subprocess.run([*line, "-q", wheel], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot install a local wheel here: {done.stderr[-200:]}")
    (site,) = (home / "lib").glob("python*/site-packages")
    (site / "light.pth").write_text(f"{folder / 'light'}\n")

    def run(*line, cwd):
        command = [str(home / "bin" / "ckpt"), *map(str, line)]
        return subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
        )

    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode
    return run


@pytest.fixture
def files(tmp_path):
    torch.manual_seed(0)
    state = {"fc.weight": torch.randn(4, 4), "fc.bias": torch.zeros(4), "c.w": torch.ones(8)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "a.pth")
    torch.save({"state_dict": state, "epoch": 4}, tmp_path / "b.pth")
    return tmp_path


def test_the_wheel_says_what_it_is_and_carries_what_is_no_code(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (found,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        said = email.message_from_bytes(archive.read(found))
        pages = {Path(n).name: archive.read(n).decode() for n in names if "/share/man/man1/" in n}
    assert said["Version"] == ckpt_surgery.__version__
    assert said["License-Expression"] == "MIT"
    assert {line.split(",")[0] for line in said.get_all("Project-URL")} >= {"Homepage", "Issues"}
    assert set(said.get_all("Provides-Extra")) >= {"yaml", "zstd", "timm", "transformers"}
    assert said["Requires-Python"] == ">=3.11"
    declared = [c for c in said.get_all("Classifier") if re.search(r":: 3\.\d+$", c)]
    assert declared == ["Programming Language :: Python :: 3.11"]
    for part in ("py.typed", "signatures.bin", "fields.schema.json", "licenses/LICENSE"):
        assert any(name.endswith(part) for name in names), part
    assert not any(name.startswith(("tests/", "scripts/")) for name in names)
    assert set(pages) == {"ckpt.1", *(f"ckpt-{name}.1" for name in COMMANDS)}
    assert all(page.startswith(".TH ") and page.isascii() for page in pages.values())
    assert ".SH WHICH NAMES" in pages["ckpt-strip.1"]
    assert "  ckpt strip resnet34.pth" in pages["ckpt-strip.1"].partition(".nf\n")[2]


def test_manual_pages_are_what_groff_takes(wheel, tmp_path):
    if shutil.which("groff") is None:
        pytest.skip("there is no groff")
    with zipfile.ZipFile(wheel) as archive:
        pages = [archive.extract(n, tmp_path) for n in archive.namelist() if n.endswith(".1")]
    done = subprocess.run(["groff", "-man", "-Tutf8", "-ww", *pages], capture_output=True)
    assert done.stderr == b""
    assert rb"'^layer(\d)' 'stage\1'" in done.stdout


def test_the_source_distribution_can_be_tested(built):
    (found,) = built.glob("*.tar.gz")
    with tarfile.open(found) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {
        *("tests/conftest.py", "tests/cli/conftest.py", "docs/cli.md", "scripts/setup", "LICENSE"),
        *("CHANGELOG.md", "CONTRIBUTING.md", "constraints.txt", "frameworks.txt", "setup.py"),
    }


def test_both_are_what_an_index_takes(built):
    pytest.importorskip("twine")
    line = [sys.executable, "-m", "twine", "check", "--strict"]
    done = subprocess.run(
        [*line, *built.glob("*.whl"), *built.glob("*.tar.gz")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


def test_the_version_is_that_of_the_changelog():
    """Or it will be: the topmost heading is the next version while that is not released."""
    headings = re.findall(r"^## (\S+)(.*)$", (_HERE / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [version for version, rest in headings if "unreleased" not in rest]
    assert ckpt_surgery.__version__ == released[0]


@pytest.mark.parametrize(
    "line",
    [
        "inspect a.pth",
        "inspect a.pth b.pth --jsonl",
        "strip a.pth fc.bias -o out.pth",
        "rename a.pth --add-prefix m. -o out.pth",
        "convert a.pth --state-dict-only -o out.safetensors",
        "match a.pth --like b.pth",
        "merge a.pth b.pth -o out.pth",
        "set a.pth epoch=9 -o out.pth",
        "freeze-plan a.pth --train head",
        "verify a.pth",
        "diff a.pth a.pth",
        "hash a.pth",
        "get a.pth epoch",
        "help strip",
    ],
)
def test_the_light_way_does_what_needs_no_numbers(bare, files, line):
    done = bare(*line.split(), cwd=files)
    assert (done.returncode, done.stderr) == (0, "")
    assert "out.pth" not in line or (files / "out.pth").stat().st_size


@pytest.mark.parametrize(
    "line",
    [
        "inspect a.pth --stats",
        "fit a.pth --model torchvision:resnet18 -o out.pth",
        "match a.pth --model torchvision:resnet18",
        "freeze-plan --model torchvision:resnet18",
        "merge a.pth b.pth -m average -o out.pth",
        "edit a.pth --scale fc.weight=2 -o out.pth",
        "convert a.pth --dtype float16 -o out.pth",
        "verify a.pth --values",
        "diff a.pth b.pth --values",
    ],
)
def test_what_needs_torch_says_so_in_one_line(bare, files, line):
    done = bare(*line.split(), cwd=files)
    first, *hint = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert first.startswith("error: ")
    assert "torch" in first
    assert "not installed" in first
    assert hint == ["hint: pip install torch"] or hint[0].startswith("hint: install it with")
    assert not (files / "out.pth").exists()
