"""Recipes as files: what they say, what they refuse, and every option that verbs have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from argparse import Namespace
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from torch_checks import load

import ckpt_surgery as ckpt
from ckpt_surgery.cli.main import COMMANDS, cli
from ckpt_surgery.cli.recipe_file import read_recipe
from ckpt_surgery.cli.steps import ELSEWHERE, VERBS, action_of
from ckpt_surgery.errors import UsageError
from ckpt_surgery.recipes.actions import Fit, Merge


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tensors = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.zeros(2)}
    torch.save(tensors, "a.pth")
    torch.save({"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)}, "b.pth")
    torch.save({"m": dict(tensors), "n": {"x": torch.zeros(1)}}, "two.pth")
    bad = torch.tensor([1.0, float("nan")])
    torch.save({"w": bad, "h": bad.half(), "i": torch.arange(2)}, "nan.pth")
    return tmp_path


def run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli, list(words))
    assert result.exit_code == code, result.stdout + result.stderr
    return result.stdout if code == 0 else result.stderr


def recipe(text: str, start: str = "a.pth") -> str:
    Path("r.toml").write_text(f'[inputs]\nbase = "{start}"\n{text}')
    return "r.toml"


OUT = '\n[[outputs]]\nfile = "out.pth"\n'


def test_several_checkpoints_and_outputs(folder: Path) -> None:
    text = """
        other = "b.pth"
        [[steps]]
        on = "other"
        as = "renamed"
        rename = { add-prefix = "net" }
        [[steps]]
        on = "base"
        rename = { add-prefix = "net" }
        [[steps]]
        merge = { with = "renamed", method = "average" }
        [[outputs]]
        file = "mean.pth"
        [[outputs]]
        file = "other.pth"
        from = "other"
        [[outputs]]
        file = "renamed.pth"
        from = "renamed"
    """
    said = run("apply", recipe(text))
    assert "2. rename base: " in said
    assert "1. rename other as renamed: " in said
    assert "'renamed': written to renamed.pth" in said
    mean = (load(folder / "a.pth")["fc.weight"] + 1) / 2
    assert torch.equal(load(folder / "mean.pth")["net.fc.weight"], mean)
    assert list(load(folder / "other.pth")) == ["fc.weight", "fc.bias"]
    assert list(load(folder / "renamed.pth")) == ["net.fc.weight", "net.fc.bias"]


def test_a_merge_may_rename_by_number(folder: Path) -> None:
    step = '[[steps]]\nmerge = { with = "b.pth", add-prefix = ["1:x", "2:x"], method = "average" }'
    run("apply", recipe(step + OUT))
    assert list(load(folder / "out.pth")) == ["x.fc.weight", "x.fc.bias"]
    wrong = step.replace('"2:x"', '"3:x"')
    assert "there is no file 3" in run("apply", recipe(wrong + OUT), "--force", code=2)


def test_a_method_with_a_base_measures_from_it(folder: Path) -> None:
    step = '[[steps]]\nmerge = { with = "b.pth", method = "task-arithmetic", weight = [0.5] }'
    run("apply", recipe(step + OUT))
    a = load(folder / "a.pth")["fc.weight"]
    assert torch.equal(load(folder / "out.pth")["fc.weight"], a + 0.5 * (1 - a))


def test_a_fit_may_be_like_a_checkpoint_of_the_recipe(folder: Path) -> None:
    text = """
        other = "b.pth"
        [[steps]]
        on = "other"
        rename = { add-prefix = "net" }
        [[steps]]
        on = "base"
        fit = { like = "other", match = "suffix" }
        [[steps]]
        fit = { model = "model_factories:stack", model-arg = "widths=[3, 2]", match = "suffix" }
        [[steps]]
        expect = { matches = { model = "model_factories:stack", model-arg = "widths=[3, 2]" } }
    """
    run("apply", recipe(text + OUT))
    assert list(load(folder / "out.pth")) == ["0.weight", "0.bias"]


def test_edits_are_steps(folder: Path) -> None:
    text = (
        '[[steps]]\nedits = [{ edit = "rename", state_dict = "", from = "fc.bias", to = "b" }, '
        '{ edit = "drop", state_dict = "", name = "fc.weight" }]' + OUT
    )
    run("apply", recipe(text))
    assert list(load(folder / "out.pth")) == ["b"]
    Path("out.pth").unlink()
    wrong = text.replace('"drop"', '"dorp"')
    said = run("apply", recipe(wrong), code=2)
    assert (
        "'r.toml': step 1 (edits): not a list of edits: number 2: there is no edit 'dorp'" in said
    )


def test_options_apply_in_the_order_of_the_table(folder: Path) -> None:
    several = (
        '{ replace = ["fc", "a"] }, { sub = [["^a", "b"], ["s$", "z"]], replace = ["z", "x"] }'
    )
    run("apply", recipe(f"[[steps]]\nrename = [{several}]{OUT}"))
    assert list(load(folder / "out.pth")) == ["b.weight", "b.biax"]


def test_variables_stand_for_values(folder: Path) -> None:
    text = """
        [variables]
        name = "net"
        count = 2
        dollar = "x"
        [[steps]]
        rename = { add-prefix = "${name}.$${name}" }
        [[steps]]
        expect = { count = "${count}" }
    """
    run("apply", recipe(text + OUT))
    assert "net.${name}.fc.weight" in load(folder / "out.pth")
    said = run("apply", "r.toml", "--var", "count=3", "--force", code=2)
    assert "step 2 (expect): 3 entries are expected, and there are 2" in said
    said = run("apply", "r.toml", "--var", "count=three", "--force", code=2)
    assert "'count' is a number of entries, not 'three'" in said


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (["--var", "nam=x"], "'--var': the recipe has no 'nam'", "did you mean 'name'?"),
        (["--var", "name"], "'--var name' is not of the form NAME=VALUE", None),
        (["--var", "name=x", "--var", "name=y"], "'--var' gives 'name' twice", None),
        (["--input", "bose=b.pth"], "'--input': the recipe has no 'bose'", "did you mean 'base'?"),
        (["b.pth", "b.pth"], "2 files are given for 1 inputs", "the inputs are: base"),
        (["missing.pth"], "'missing.pth': cannot be read", None),
    ],
)
def test_a_line_that_does_not_fit_the_recipe_is_refused(
    options: list[str], message: str, hint: str | None, folder: Path
) -> None:
    text = '[variables]\nname = "x"\n[[steps]]\nrename = { add-prefix = "${name}" }' + OUT
    said = run("apply", recipe(text), *options, code=2)
    assert message in said
    assert hint is None or hint in said
    assert not Path("out.pth").exists()


def test_the_line_names_other_files(folder: Path) -> None:
    text = '[[steps]]\nexpect = { shape = { "fc.weight" = [2, 3] } }' + OUT
    run("apply", recipe(text), "b.pth", "-o", "one.pth")
    run("apply", "r.toml", "--input", "base=b.pth", "-o", "two-.pth")
    assert Path("one.pth").read_bytes() == Path("two-.pth").read_bytes().replace(b"two-", b"one-")
    assert torch.equal(load(folder / "one.pth")["fc.weight"], torch.ones(2, 3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[steps]", "neither TOML nor a report"),
        ("[step]", "the recipe has no 'step'"),
        ("steps = 3", "input 'steps' is a text, not 3"),
        ("[steps]\na = 3", "'steps' is a list of tables"),
        ("[[steps]]\non = 'base'", "step 1: it says nothing to do, not one thing"),
        ("[[steps]]\nstrip = {}\nrename = {}", "it says strip and rename, not one thing"),
        ("[[steps]]\nstripp = {}", "a step has no 'stripp'"),
        ("[[steps]]\non = 3\nstrip = {}", "'on' is a text, not 3"),
        ("[[steps]]\non = 'bsae'\nstrip = { prefix = 'fc' }", "step 1: there is no 'bsae'"),
        ("[[steps]]\nstrip = 3", "'strip' is a table of options"),
        ("[[steps]]\nstrip = { prefx = 'fc' }", "'strip' has no 'prefx' in a recipe"),
        ("[[steps]]\nstrip = { output = 'x' }", "'strip' has no 'output' in a recipe"),
        ("[[steps]]\nstrip = { keep = 'yes' }", "'keep' is true or false, not 'yes'"),
        ("[[steps]]\nstrip = { prefix = true }", "'prefix' is a text or a number, not True"),
        ("[[steps]]\nstrip = { ema = true }", "'--ema' says what '--training-state' leaves"),
        ("[[steps]]\nrename = { replace = ['a'] }", "'replace' takes 2 texts, not 1"),
        (
            "[[steps]]\nstrip = { optimizer = ['keep', 'drop'] }",
            "takes one value, not 2",
        ),
        ("[[steps]]\nmerge = { method = 'average' }", "one file is nothing to merge"),
        ("[[steps]]\nmerge = { with = 'b.pth', int = 'all' }", "invalid value for '--int'"),
        ("[[steps]]\nfit = { like = 'b.pth', emit-map = 'x' }", "'fit' has no 'emit-map'"),
        ("[[steps]]\nfit = {}", "there is no target"),
        ("[[steps]]\nstrip = { prefix = '${x}' }", "'${x}' is no variable of the recipe"),
        ("[[steps]]\nexpect = 3", "it is a table of what is expected"),
        ("[[steps]]\nexpect = { kyes = 'a' }", "'expect' has no 'kyes'"),
        ("[[steps]]\nexpect = { finite = 1 }", "'finite' is true or false"),
        ("[[steps]]\nexpect = { shape = { a = 3 } }", "the shape of 'a' is a list of sizes"),
        ("[[steps]]\nexpect = { shape = 3 }", "'shape' is a table"),
        ("[[steps]]\nexpect = { dtype = 'float31' }", "there is no element type 'float31'"),
        ("[[steps]]\nexpect = { matches = 'resnet34' }", "does not name a model"),
        ("[[outputs]]\nfrom = 'base'", "'file' of an output is a text"),
        ("[[outputs]]\nfile = 'o.pth'\nfrom = 'x'", "output 'o.pth': there is no 'x'"),
        ("[[outputs]]\nfile = 'o.pth'\nhash-name = 1", "'hash-name' of an output is true or false"),
        ("[[outputs]]\nfile = 'o.pth'\nfrm = 'x'", "an output has no 'frm'"),
        ("[[outputs]]\nfile = 'o.pth'\n[[outputs]]\nfile = 'o.pth'", "another output"),
        ("[[outputs]]\nfile = 'a.pth'", "the output is the input"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_said(text: str, message: str, folder: Path) -> None:
    said = run("apply", recipe(text), *([] if "outputs" in text else ["-o", "o.pth"]), code=2)
    assert message in said
    assert not Path("o.pth").exists()


def test_a_recipe_needs_an_input(folder: Path) -> None:
    Path("r.toml").write_text("[[steps]]\nstrip = { prefix = 'a' }")
    assert "the recipe has no input" in run("apply", "r.toml", "-o", "o.pth", code=2)


@pytest.mark.parametrize(
    ("start", "expected", "message"),
    [
        ("a.pth", "count = 3", "3 entries are expected, and there are 2"),
        ("a.pth", 'keys = ["fc.*", "conv.*"]', "'conv.*' is expected, and no name is like it"),
        ("a.pth", 'no-keys = "*.bias"', "'*.bias' is not expected, and there is 'fc.bias'"),
        ("a.pth", 'shape = { "fc.weight" = [2, 4] }', "is expected to be [2, 4], and is [2, 3]"),
        ("a.pth", 'shape = { "fc.weight" = [2] }', "is expected to be [2], and is [2, 3]"),
        ("a.pth", 'shape = { "x" = [2] }', "'x' is expected, and no tensor is called so"),
        ("a.pth", 'dtype = "float16"', "'fc.weight' is expected to be float16, and is float32"),
        ("nan.pth", 'dtype = { i = "int32" }', "'i' is expected to be int32, and is int64"),
        ("a.pth", 'dtype = { x = "float32" }', "'x' is expected, and no tensor is called so"),
        ("a.pth", 'at = "", count = 3', "3 entries are expected, and there are 2"),
        ("nan.pth", "finite = true", "'w' holds NaN or infinity; 'h' holds NaN or infinity"),
        ("two.pth", "count = 2", "'n': 2 entries are expected, and there are 1"),
        ("two.pth", 'at = "x"', "no state dict there"),
        ("a.pth", 'matches = { like = "nan.pth" }', "3 missing ('w'), 2 unexpected ('fc.weight')"),
        ("a.pth", 'matches = "model_factories:tied"', "does not load into 'model_factories:tied'"),
        ("a.pth", 'keys = ["a", "b", "c", "d", "e", "f", "g"]', "and 2 more"),
    ],
)
def test_what_is_otherwise_is_said_and_nothing_is_written(
    start: str, expected: str, message: str, folder: Path
) -> None:
    said = run("apply", recipe(f"[[steps]]\nexpect = {{ {expected} }}{OUT}", start), code=2)
    assert f"'{start}': step 1 (expect): " in said
    assert message in said
    assert not Path("out.pth").exists()


def test_what_holds_is_said(folder: Path) -> None:
    holds = 'at = "m", count = 2, dtype = { "fc.*" = "float32" }, finite = true, '
    holds += 'shape = { "fc.weight" = [-1, 3] }, no-keys = "conv.*"'
    said = run("apply", recipe(f"[[steps]]\nexpect = {{ {holds} }}{OUT}", "two.pth"))
    assert "1. expect base: holds" in said
    assert load(folder / "out.pth").keys() == {"m", "n"}


# --- every option


def options_of(verb: str) -> list[click.Option]:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    return [p for p in command.params if isinstance(p, click.Option)]


def test_what_is_said_elsewhere_are_options() -> None:
    """All others are a step's: a new option of a verb works in recipes at once."""
    known = {str(p.name) for verb in (*VERBS, "match", "apply") for p in options_of(verb)}
    assert known >= ELSEWHERE - {"help"}
    of_steps = {str(p.name) for verb in VERBS for p in options_of(verb)} - ELSEWHERE - {"traceback"}
    assert not of_steps & {str(p.name) for p in options_of("apply")}


def test_every_verb_that_writes_a_checkpoint_is_a_step() -> None:
    writing = {name for name in COMMANDS if any(p.name == "in_place" for p in options_of(name))}
    assert writing == set(VERBS)


def test_a_step_is_what_the_line_says(folder: Path) -> None:
    asked = action_of("strip", {"prefix": ["a", "b"], "keep": True, "at": "m"})
    assert asked.request == ckpt.StripRequest(  # type: ignore[attr-defined]
        ckpt.selection(prefix=["a", "b"], keep=True), at=("m",)
    )
    with pytest.raises(UsageError, match="'base' is the checkpoint"):
        Merge(ckpt.MergeRequest(base="a.pth"), ["b"])
    with pytest.raises(UsageError, match="'emit_map' is for review"):
        Fit(ckpt.FitRequest(like="a.pth", emit_map="m.toml"))


# --- reports


def test_a_recipe_may_be_a_pipe(folder: Path) -> None:
    os.mkfifo("pipe")
    text = '[inputs]\na = "a.pth"\n[[steps]]\nrename = { add-prefix = "x" }\n'
    writer = threading.Thread(target=Path("pipe").write_text, args=(text,))
    writer.start()
    try:
        run("apply", "pipe", "-o", "piped.pth")
    finally:
        writer.join()
    assert list(load(folder / "piped.pth")) == ["x.fc.weight", "x.fc.bias"]


def test_a_report_is_applied_to_other_files_where_names_agree(folder: Path) -> None:
    run("rename", "a.pth", "--add-prefix", "x", "-o", "first.pth", "--record", "r.json")
    run("apply", "r.json", "b.pth", "-o", "second.pth")
    assert list(load(folder / "second.pth")) == ["x.fc.weight", "x.fc.bias"]
    said = run("apply", "r.json", "nan.pth", "-o", "third.pth", code=2)
    assert "step 1 (rename): the plan edits 'fc.weight', which is not there" in said


def test_a_record_knows_its_inputs(folder: Path) -> None:
    run("rename", "a.pth", "--add-prefix", "x", "-i", "--record", "r.json")
    record = json.loads(Path("r.json").read_text())
    assert record["version"] == ckpt.__version__
    (before,), (after,) = (record["digests"][k].values() for k in ("inputs", "outputs"))
    assert before != after
    assert run("hash", "--files", "a.pth").startswith(after)
    said = run("apply", "r.json", "-o", "again.pth", code=2)
    assert "is not the file that it was when this was recorded" in said
    assert "--input input=FILE" in said


def test_a_merge_is_replayed_with_its_other_files(folder: Path) -> None:
    run("merge", "a.pth", "b.pth", "-m", "average", "-o", "m.pth", "--record", "r.json")
    Path("again").mkdir()
    run("apply", "r.json", "-o", "again/m.pth")
    assert Path("again/m.pth").read_bytes() == Path("m.pth").read_bytes()
    run("apply", "r.json", "b.pth", "a.pth", "-o", "turned.pth")
    run("merge", "b.pth", "a.pth", "-m", "average", "-o", "wanted.pth")
    assert Path("turned.pth").read_bytes() == Path("wanted.pth").read_bytes()
    run("apply", "r.json", "--input", "b.pth=a.pth", "-o", "alone.pth")
    assert torch.equal(load("alone.pth")["fc.bias"], load("a.pth")["fc.bias"])
    Path("b.pth").unlink()
    assert "is not the file that it was" in run("apply", "r.json", "-o", "x.pth", code=2)


@pytest.mark.parametrize("line", [
    ["merge", "a.pth", "b.pth", "-m", "average"],
    ["merge", "b.pth", "--base", "a.pth", "-m", "task-arithmetic"],
    ["fit", "a.pth", "--like", "b.pth"],
    ["apply", "recipe.toml"],
])  # fmt: skip
def test_no_other_file_of_a_record_changes_unsaid(line: list[str], folder: Path) -> None:
    step = '[[steps]]\nmerge = { with = ["b.pth"], method = "average" }'
    Path("recipe.toml").write_text(f'[inputs]\na = "a.pth"\n{step}')
    run(*line, "-o", "first.pth", "--record", "r.json")
    record = json.loads(Path("r.json").read_text())
    assert set(record["digests"]["inputs"]) == {"a.pth", "b.pth"}
    run("apply", "r.json", "-o", "second.pth")
    assert load("second.pth").keys() == load("first.pth").keys()
    Path("b.pth").write_bytes(Path("a.pth").read_bytes())
    said = run("apply", "r.json", "-o", "third.pth", code=2)
    assert "'b.pth': is not the file that it was when this was recorded" in said
    assert "--input b.pth=FILE" in said
    run("apply", "r.json", "--input", "b.pth=b.pth", "-o", "third.pth")


def test_a_file_may_be_called_as_the_report_s_input(folder: Path) -> None:
    Path("input").write_bytes(Path("b.pth").read_bytes())
    run("merge", "a.pth", "input", "-m", "average", "-o", "m.pth", "--record", "r.json")
    run("apply", "r.json", "-o", "again.pth")
    assert torch.equal(load("again.pth")["fc.bias"], load("m.pth")["fc.bias"])


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "is no JSON"),
        ('{"a": 1}', "it does not say of which command"),
        ('{"command": "inspect", "inputs": ["a.pth"]}', "a report of 'inspect' has no plan"),
        ('{"command": "strip", "plan": []}', "the report's input is a text, not None"),
        ('{"command": "strip", "inputs": ["a.pth"], "plan": [3]}', "number 1: it is no table"),
        ('{"command": "apply", "named": {"a": 3}}', "input 'a' is a text, not 3"),
        ('{"command": "apply", "named": {"a": "a.pth"}, "steps": 3}', "'steps' is a list"),
    ],
)
def test_what_is_no_report_is_refused(document: str, message: str, folder: Path) -> None:
    Path("r.json").write_text(document)
    assert message in run("apply", "r.json", "-o", "x.pth", code=2)


def test_an_output_that_is_there_already_is_as_it_was(folder: Path) -> None:
    run("rename", "a.pth", "--add-prefix", "x", "-o", "o.pth", "--record", "r.json")
    assert "'input': o.pth is as it was, torch-zip" in run("apply", "r.json", "-o", "o.pth")


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no names for open files here")
def test_a_recipe_is_read_once_since_it_may_be_a_pipe(folder: Path) -> None:
    """As ``ckpt apply <(…)`` gives it."""
    document = run("rename", "a.pth", "--add-prefix", "x", "-o", "o.pth", "--json")
    reading, writing = os.pipe()
    os.write(writing, document.encode())
    os.close(writing)
    run("apply", f"/dev/fd/{reading}", "-o", "piped.pth")
    os.close(reading)
    assert Path("piped.pth").read_bytes() == Path("o.pth").read_bytes()


def test_a_report_has_no_variables(folder: Path) -> None:
    run("rename", "a.pth", "--add-prefix", "x", "-o", "o.pth", "--record", "r.json")
    assert "a report has no variables" in run("apply", "r.json", "--var", "a=1", code=2)
    with pytest.raises(UsageError, match="the report has no 'x'"):
        read_recipe("r.json", {}, {"x": "b.pth"})


def test_a_dry_report_has_no_output_of_its_own(folder: Path) -> None:
    document = run("apply", recipe(OUT), "--dry-run", "--json")
    Path("r.json").write_text(document)
    run("apply", "r.json", "-o", "x.pth")
    assert load(folder / "x.pth").keys() == load(folder / "a.pth").keys()


def test_an_output_goes_to_standard_output(folder: Path) -> None:
    command = [sys.executable, "-m", "ckpt_surgery", "apply", recipe(OUT), "-o", "-"]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"'base': written to <stdout>" in done.stderr
    (folder / "x.pth").write_bytes(done.stdout)
    assert load(folder / "x.pth").keys() == load(folder / "a.pth").keys()
    assert not Path("out.pth").exists()


def test_one_output_of_the_line_stands_for_one_of_the_recipe(folder: Path) -> None:
    two = OUT + OUT.replace("out.pth", "other.pth")
    assert "the recipe has 2 outputs" in run("apply", recipe(two), "-o", "x.pth", code=2)
    run("apply", recipe(OUT), "-o", "x.pth")
    assert not Path("out.pth").exists()


def test_an_output_may_be_shards(folder: Path) -> None:
    text = '\n[[outputs]]\nfile = "shards"\nformat = "safetensors-index"\nmax-shard-size = "24"\n'
    assert "max-shard-size lots' is no size" in run(
        "apply", recipe(text.replace("24", "lots")), code=2
    )
    run("apply", recipe(text))
    with ckpt.read("shards") as checkpoint:
        assert len(list(Path("shards").glob("*.safetensors"))) == 2
        assert sorted(checkpoint.state_dicts[0].names) == ["fc.bias", "fc.weight"]


def on_gpu(path: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
        torch.save(value, path)


@pytest.mark.parametrize("where", ["recipe", "line", "line -o"])
def test_an_output_is_for_the_cpu_and_plain(
    folder: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu("gpu.pth", {"w": torch.ones(2), "args": Namespace(lr=0.1)}, monkeypatch)
    said = 'device = "cpu"\nplain = true\n' if where == "recipe" else ""
    more = [] if where == "recipe" else ["--device", "cpu", "--plain"]
    more += ["-o", "out.pth"] if where == "line -o" else []
    report = json.loads(run("apply", recipe(OUT + said, "gpu.pth"), *more, "--json"))
    found = torch.load("out.pth", weights_only=True)
    assert torch.equal(found["w"], torch.ones(2))
    assert found["args"] == {"lr": 0.1}
    plan = report["outputs"][0]["plan"]
    assert {"edit": "set-device", "from": "cuda:0", "to": "cpu"} in plan
    assert {"edit": "plain", "path": "args", "from": "argparse.Namespace"} in plan


def test_a_device_that_cannot_be_said_is_refused(folder: Path) -> None:
    told = run("apply", recipe(OUT + 'device = "cuda"\n'), code=2)
    assert "only 'cpu' can be said" in told
    assert not Path("out.pth").exists()


def test_options_of_the_line_are_for_the_outputs_of_the_recipe(folder: Path) -> None:
    """None is parsed and ignored, with ``-o`` or without."""
    run("apply", recipe(OUT.replace("out.pth", "out.bin")), "--format", "safetensors")
    assert Path("out.bin").read_bytes()[8:9] == b"{"
    two = OUT + OUT.replace("out.pth", "other.pth")
    assert "2 outputs" in run("apply", recipe(two), "--sidecar", "s.json", code=2)
