"""A recipe is its steps run one after the other, byte for byte; a replay is the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch_checks import assert_torch_reads, load

from ckpt_surgery.cli.main import cli

Ckpt = Callable[..., str]


def net(seed: int, classes: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, classes)
    )


def training(seed: int) -> dict[str, Any]:
    model = net(seed)
    optimizer = torch.optim.Adam(model.named_parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    average = {name: value * 0.5 for name, value in model.state_dict().items()}
    return {
        "model": model.state_dict(),
        "state_dict_ema": average,
        "optimizer": optimizer.state_dict(),
        "epoch": seed,
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.save(training(1), "a.pth")
    torch.save(training(2), "b.pth")
    torch.save(training(3), "old.pth", _use_new_zipfile_serialization=False)
    torch.save(net(4, 5).state_dict(), "like.pth")
    return tmp_path


def ckpt(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == code, result.output + result.stderr
    return result.stdout if code == 0 else result.stderr


Line = tuple[str, ...]
# Each step as a line of the shell (without files) and as a step of a recipe.
STEPS: dict[str, tuple[Line, str]] = {
    "strip": (("strip", "--prefix", "3"), 'strip = { prefix = "3" }'),
    "buffers": (
        ("strip", "--glob", "**.num_batches_tracked"),
        'strip = { glob = "**.num_batches_tracked" }',
    ),
    "publish": (
        ("strip", "--training-state", "--ema"),
        "strip = { training-state = true, ema = true }",
    ),
    "rename": (("rename", "--add-prefix", "net"), 'rename = { add-prefix = "net" }'),
    "rules": (
        ("rename", "--add-prefix", "x.y", "--replace", "x.", "", "--sub", "^y", "z"),
        'rename = { add-prefix = "x.y", replace = ["x.", ""], sub = ["^y", "z"] }',
    ),
    "model": (
        ("convert", "--at", "model", "--state-dict-only"),
        'convert = { at = "model", state-dict-only = true }',
    ),
    "compact": (("strip", "--compact"), "strip = { compact = true }"),
    "average": (
        ("merge", "b.pth", "-m", "average"),
        'merge = { with = "b.pth", method = "average" }',
    ),
    "half": (
        ("merge", "b.pth", "-m", "linear", "--weight", "0.5", "--weight", "0.5",
         "--dtype", "float16"),
        'merge = { with = "b.pth", method = "linear", weight = [0.5, 0.5], dtype = "float16" }',
    ),
    "overlay": (
        ("merge", "b.pth", "--prefix", "3"),
        'merge = { with = "b.pth", prefix = "3" }',
    ),
    "fit": (
        ("fit", "--like", "like.pth", "--adapt", "rows", "--match", "suffix", "--seed", "3"),
        'fit = { like = "like.pth", adapt = ["rows"], match = "suffix", seed = 3 }',
    ),
    "transpose": (("edit", "--transpose", "3.weight"), 'edit = { transpose = "3.weight" }'),
    "scale": (
        ("edit", "--scale", "**.bias=2", "--optimizer", "reset"),
        'edit = { scale = "**.bias=2", optimizer = "reset" }',
    ),
}  # fmt: skip


def one_by_one(names: list[str], start: str, folder: Path) -> Path:
    """Run the steps with files between them."""
    current = Path(start)
    for number, name in enumerate(names):
        verb, *options = STEPS[name][0]
        out = folder / "steps" / str(number) / "out.pth"
        out.parent.mkdir(parents=True, exist_ok=True)
        files = [options.pop(0)] if verb == "merge" else []
        ckpt(verb, current, *files, *options, "-o", out, "--force")
        current = out
    return current


def recipe(names: list[str], start: str) -> str:
    steps = "\n".join(f"[[steps]]\n{STEPS[name][1]}" for name in names)
    return f'[inputs]\nbase = "{start}"\n{steps}\n[[outputs]]\nfile = "all/out.pth"\n'


def at_once(names: list[str], start: str, folder: Path) -> Path:
    (folder / "all").mkdir(exist_ok=True)
    (folder / "recipe.toml").write_text(recipe(names, start))
    ckpt("apply", "recipe.toml", "--force", "--record", "record.json")
    return folder / "all" / "out.pth"


CHAINS = [
    ["strip", "rename"],
    ["buffers", "rename", "rules"],
    ["publish", "compact", "rename"],
    ["model", "transpose", "rename"],
    ["average", "rename", "buffers"],
    ["half", "average", "rename"],
    ["overlay", "average", "model"],
    ["average", "fit", "transpose", "rename"],
    ["average", "half", "scale", "strip"],
    ["average", "average", "fit"],
    ["rename", "fit", "scale", "compact"],
    ["scale", "transpose", "transpose", "model", "compact"],
]
REFUSED = [["rename", "strip"], ["fit", "average"], ["publish", "publish"], ["rename", "average"]]


@pytest.mark.parametrize("names", CHAINS, ids="-".join)
@pytest.mark.parametrize("start", ["a.pth", "old.pth"])
def test_a_recipe_is_its_steps_one_after_the_other(
    names: list[str], start: str, folder: Path
) -> None:
    expected = one_by_one(names, start, folder)
    found = at_once(names, start, folder)
    assert found.read_bytes() == expected.read_bytes()
    assert_torch_reads(found, load(expected))
    found.unlink()
    ckpt("apply", "record.json")
    assert found.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("names", REFUSED, ids="-".join)
def test_a_recipe_is_refused_where_its_steps_are(names: list[str], folder: Path) -> None:
    with pytest.raises(AssertionError) as caught:
        one_by_one(names, "a.pth", folder)
    (folder / "recipe.toml").write_text(recipe(names, "a.pth"))
    said = ckpt("apply", "recipe.toml", code=2)
    assert f"step 2 ({STEPS[names[1]][0][0]}): " in said
    assert f"hint: {str(caught.value).partition('hint: ')[2].partition(chr(10))[0]}" in said
    assert not (folder / "all").exists()


def bare() -> dict[str, Any]:
    """Weights alone: ties, views, names of one letter, and metadata of torch's modules."""
    weights: Any = net(5).state_dict()
    base = torch.arange(12.0)
    weights["tied"] = weights["0.weight"]
    weights |= {"a": base[2:6], "b": base.view(3, 4).t(), "w": torch.empty(0), "x": base.half()}
    return weights  # type: ignore[no-any-return]


STEPS |= {
    "there": (("rename", "--add-prefix", "m"), 'rename = { add-prefix = "m" }'),
    "back": (("rename", "--strip-prefix", "m"), 'rename = { strip-prefix = "m" }'),
    "letters": (("rename", "--sub", "^(.)$", "q\\1"), "rename = { sub = ['^(.)$', 'q\\1'] }"),
    "words": (("rename", "--sub", "^q(.)$", "\\1"), "rename = { sub = ['^q(.)$', '\\1'] }"),
}
NAMES = ["there", "back", "letters", "words", "rules", "buffers", "compact"]
BARE: dict[str, Callable[[Path], object]] = {
    "zip": lambda path: torch.save(bare(), path),
    "plain": lambda path: torch.save({"a": torch.ones(2), "bb": torch.zeros(3)}, path),
    "shared": lambda path: torch.save(dict.fromkeys(["k", "kk", "kkk"], torch.ones(2)), path),
}


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.sampled_from(NAMES), min_size=2, max_size=5),
    st.sampled_from(["zip", "plain", "shared"]),
)
def test_any_recipe_of_names_is_its_steps(folder: Path, names: list[str], kind: str) -> None:
    BARE[kind](folder / "bare.pth")
    try:
        expected = one_by_one(names, "bare.pth", folder)
    except AssertionError:
        (folder / "recipe.toml").write_text(recipe(names, "bare.pth"))
        ckpt("apply", "recipe.toml", code=2)
        return
    assert at_once(names, "bare.pth", folder).read_bytes() == expected.read_bytes()


# What can follow anything, on any checkpoint of these.
ANYWHERE = ["rename", "rules", "compact", "buffers", "transpose", "publish", "model", "scale"]


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.sampled_from(ANYWHERE), min_size=2, max_size=4))
def test_any_recipe_is_its_steps(folder: Path, names: list[str]) -> None:
    try:
        expected = one_by_one(names, "a.pth", folder)
    except AssertionError:
        (folder / "recipe.toml").write_text(recipe(names, "a.pth"))
        ckpt("apply", "recipe.toml", code=2)
        return
    assert at_once(names, "a.pth", folder).read_bytes() == expected.read_bytes()


def test_bytes_of_tensors_are_copied_once(folder: Path) -> None:
    """Ten steps on a file write its bytes once, and read what no step computes with once."""
    import ckpt_surgery.recipes.run as engine
    from ckpt_surgery.fileio import FileSource

    torch.save({f"{n}.weight": torch.full((256, 256), float(n)) for n in range(8)}, "big.pth")
    names = ["rename", "compact"] * 5
    read = 0
    real = FileSource.read_into

    def counted(self: FileSource, offset: int, buffer: memoryview) -> None:
        nonlocal read
        read += buffer.nbytes
        real(self, offset, buffer)

    size = Path("big.pth").stat().st_size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileSource, "read_into", counted)
        patch.setattr(FileSource, "descriptor_at", lambda self, offset: None)
        at_once(names, "big.pth", folder)
    assert engine
    # the record's digest of the input reads it once more
    assert read < 2.1 * size + Path("all/out.pth").stat().st_size
    assert list(load(folder / "all" / "out.pth")) == [f"{'net.' * 5}{n}.weight" for n in range(8)]


def test_a_dry_run_says_what_the_run_says_and_writes_nothing(folder: Path) -> None:
    (folder / "recipe.toml").write_text(recipe(["average", "rename"], "a.pth"))
    dry = json.loads(ckpt("apply", "recipe.toml", "--dry-run", "--json"))
    assert not (folder / "all").exists()
    table = ckpt("apply", "recipe.toml", "--dry-run")
    assert "rename  " in table
    assert "to net.0.weight" in table
    (folder / "all").mkdir()
    real = json.loads(ckpt("apply", "recipe.toml", "--json"))
    assert real["steps"] == dry["steps"]
    assert [each["nbytes"] for each in real["outputs"]] == [
        each["nbytes"] for each in dry["outputs"]
    ]
    assert real["output"] == "all/out.pth"
    assert dry["output"] is None
