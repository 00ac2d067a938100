"""The table of verbs and kinds of loss: what an edit loses is refused, or named in its report."""

from __future__ import annotations

import json
import re
import shutil
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import losses
import pytest
import torch
from click.testing import CliRunner, Result
from losses import KINDS, opened
from torch_checks import quiet

from ckpt_surgery.cli.main import COMMANDS, cli

# Every verb that writes a checkpoint, and every format; IN stands for the file of a kind.
VERBS = {
    "strip": "strip IN gone.weight",
    "strip --training-state": "strip IN --training-state",
    "strip --state-dict-only": "strip IN --state-dict-only",
    "strip --entry": "strip IN --keep --entry state_dict --allow-unmatched",
    "strip --compact": "strip IN --compact",
    "strip --plain": "strip IN --plain --state-dict-only",
    "strip --device": "strip IN --device cpu --state-dict-only",
    "rename": "rename IN --add-prefix m",
    "convert to torch-zip": "convert IN --format torch-zip",
    "convert to torch-legacy": "convert IN --format torch-legacy",
    "convert to safetensors": "convert IN --format safetensors",
    "convert to safetensors alone": "convert IN --format safetensors --state-dict-only",
    "convert to safetensors-index": "convert IN --format safetensors-index",
    "convert to torch-index": "convert IN --format torch-index",
    "convert to dcp": "convert IN --format dcp",
    "convert --tensors-only": "convert IN --tensors-only",
    "convert --dtype": "convert IN --dtype float64 --no-keep-norms",
    "edit": "edit IN --scale **=1",
    "set": "set IN note=5",
    "set to safetensors": "set IN note=5 --format safetensors",
    "edit to safetensors": "edit IN --scale **=1 --format safetensors",
    "rename to dcp": "rename IN --add-prefix m --format dcp",
    "merge": "merge IN patch.pth --name gone.weight",
    "merge -m average": "merge IN IN -m average",
    "merge --state-dict-only": "merge IN IN -m average --state-dict-only",
    "merge to safetensors": "merge IN IN -m average --format safetensors",
    "fit": "fit IN --like like.pth",
    "apply a recipe": "apply recipe.toml --input base=IN",
    "apply a report": "apply REPORT IN",
    "consolidate": "consolidate IN",
    "lora extract": "lora extract patch.pth IN --rank 1",
    "verify --salvage": "verify IN --salvage OUT",
}
# What of a document lists losses, and not what is kept or was asked for.
LISTING = (
    *("warnings", "removed", "dropped_others", "dropped", "casts", "optimizers", "left_out"),
    *("reasons", "skipped", "outputs", "steps", "error"),
)
ASKED_FOR = {
    "convert --dtype": ("cast float",),  # the text has sums, and only the document names
    "set": ("the weights",),  # which are no place for values
    "set to safetensors": ("the weights",),
    "strip --device": ("device",),
}
# Lines about what stays, or was asked for: a name in these says of no loss.
_STAYS = re.compile(r"  \S+ -> \S+$|carried over|kept |note:|\S+: written to|--|written to")
RECIPE = """\
[inputs]
base = "base.pth"
[[steps]]
strip = { name = "gone.weight" }
[[outputs]]
file = "out.pth"
"""


def run(*line: str) -> Result:
    return CliRunner(env={"COLUMNS": "1000"}).invoke(cli, line)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of every kind, one that sets may change, and what the verbs need."""
    folder = tmp_path_factory.mktemp("kinds")
    plain = losses.state()
    torch.save({n: t for n, t in plain.items() if "gone" not in n}, folder / "like.pth")
    torch.save(OrderedDict((n, t * 2) for n, t in plain.items()), folder / "patch.pth")
    (folder / "recipe.toml").write_text(RECIPE)
    for number, kind in enumerate(KINDS.values()):
        (folder / str(number)).mkdir()
        losses.save(kind, folder / str(number))
        value = kind.make(folder / str(number) / "own.pth")
        if value is not None:
            if not isinstance(value, dict) or "state_dict" not in value:
                value = {"state_dict": value, "epoch": 0}
            with quiet():
                torch.save(value, folder / str(number) / "set.pth")
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", VERBS)
def test_no_loss_is_silent(
    verb: str, kind: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(inputs)
    own = inputs / str(list(KINDS).index(kind))
    source = own / f"in{KINDS[kind].suffix}"
    if verb.startswith("set") and (own / "set.pth").exists():
        source = own / "set.pth"
    line = VERBS[verb]
    if verb.startswith("set") and KINDS[kind].suffix == ".safetensors":
        line = line.replace("note=5", "__metadata__/note=1")
    own_format = source.suffix == ".safetensors" and not re.search("--format|lora", line)
    suffix = source.suffix if own_format else ""
    out = tmp_path / f"out{suffix}"
    words = [w.replace("IN", str(source)).replace("OUT", str(out)) for w in line.split()]
    words += [] if "OUT" in line else ["-o", str(out)]
    before = _found(kind, source)
    if "REPORT" in words:
        report, other = str(tmp_path / "report.json"), str(tmp_path / f"r{suffix}")
        strip = VERBS["strip"].replace("IN", str(source)).split()
        if run(*strip, "-o", other, "--record", report).exit_code:
            return  # as the row of strip has it
        words[words.index("REPORT")] = report

    told = run(*words, "--json")
    if told.exit_code == 2:
        _require_named(verb, kind, told, run(*words))
        assert not out.exists()
        if "--salvage" in words:
            return
        words.append("--allow-loss")
        told = run(*words, "--json")
        if told.exit_code == 2:
            _require_named(verb, kind, told, run(*words))
            assert not out.exists()
            return
    assert told.exit_code == 0 or (told.exit_code == 1 and "salvage" in line), told.output
    if _found(kind, out) != before:
        shutil.rmtree(out) if out.is_dir() else out.unlink()
        _require_named(verb, kind, told, run(*words))


def _found(kind: str, path: Path) -> Any:
    if kind == "compression" and path.suffix == ".gz":
        return True
    return KINDS[kind].of(opened(path))


def _require_named(verb: str, kind: str, document: Result, text: Result) -> None:
    """The document and the text for people both say what is lost, or why it is refused."""
    assert document.exit_code == text.exit_code
    words = KINDS[kind].said + ASKED_FOR.get(verb, ())
    listed = _listed(document)
    assert any(word in listed for word in words), listed
    told = _told(text)
    assert any(word in told for word in words), text.output


def _told(text: Result) -> str:
    """Return what the text for people says, without lists of what stays."""
    lines = text.output.splitlines()
    return "\n".join(each for each in lines if not _STAYS.match(each))


def _listed(document: Result) -> str:
    """Return what a document lists as lost, without the names of its fields."""
    found = json.loads(document.stdout)
    losses_of = {field: found[field] for field in LISTING if field in found}
    if "salvaged" in found:
        losses_of |= {"lost": found["salvaged"]["lost"], "notes": found["salvaged"]["warnings"]}
        losses_of["findings"] = found["files"][0]["findings"]
    losses_of["edits"] = [e for e in found.get("plan", ()) if e["edit"] == "set-device"]
    return json.dumps(list(_leaves(losses_of)), ensure_ascii=False)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _leaves(each)
    else:
        yield value


# What a format has for no file, so that a report says it of every one.
ALWAYS = ("wrong checksum", "order of names")


@pytest.mark.parametrize("verb", [verb for verb, line in VERBS.items() if "REPORT" not in line])
def test_no_word_is_said_of_a_file_without_the_loss(
    verb: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a cell could pass whatever its report says."""
    monkeypatch.chdir(inputs)
    source, out = str(tmp_path / "in.pth"), str(tmp_path / "out")
    value = losses.beside(number=1) if verb.startswith("set") else losses.state()
    torch.save(value, source)
    line = VERBS[verb]
    words = [w.replace("IN", source).replace("OUT", out) for w in line.split()]
    done = run(*words, *([] if "OUT" in line else ["-o", out]), "--json")
    listed = _listed(done)
    said = {name for name, kind in KINDS.items() if any(word in listed for word in kind.said)}
    assert said <= set(ALWAYS)


def test_every_verb_that_writes_is_in_the_table() -> None:
    reading = {"inspect", "get", "match", "diff", "hash", "sign", "bom", "completion"}
    plans = {"freeze-plan"}  # which writes a plan, and no checkpoint
    assert {line.split()[0] for line in VERBS.values()} == set(COMMANDS) - reading - plans


def test_the_kinds_are_those_of_the_documentation() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "safety.md").read_text("utf-8")
    _, _, rows = page.partition("## What an edit may lose\n")
    said = re.findall(r"^\| ([^|]+?) +\|", rows.partition("\n## ")[0], re.MULTILINE)
    assert said[1:] == list(KINDS)


def test_a_loss_that_nobody_names_is_noticed(tmp_path: Path) -> None:
    """The table can fail: a report without a word of what went is not enough."""
    torch.save(losses.beside(epoch=1), tmp_path / "in.pth")
    done = run(
        "strip", str(tmp_path / "in.pth"), "gone.weight", "-o", str(tmp_path / "o"), "--json"
    )
    with pytest.raises(AssertionError):
        _require_named("strip", "foreign records", done, done)
