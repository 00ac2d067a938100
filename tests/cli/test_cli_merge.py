"""``ckpt merge`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpt_surgery.cli.main import cli


@pytest.fixture
def files(folder):
    for number, name in enumerate("abc"):
        w = torch.arange(6.0) * (number + 1)
        state = {"layer.weight": w, "head.weight": w + 1}
        torch.save({"state_dict": state, "acc": number % 2, "n": number}, f"{name}{number}.pth")
    return folder


def weights(name="o.pth"):
    return torch.load(name)["state_dict"]


def test_overlay_is_the_default(files, invoke):
    result = invoke("merge", "a0.pth", "b1.pth", "--prefix", "head", "-o", "o.pth")
    assert result.exit_code == 0, result.output
    assert "prefix head: 1 name" in result.output
    assert "state_dict/head.weight <- b1.pth" in result.output
    assert "carried over from a0.pth: acc, n" in result.output
    assert weights()["head.weight"].tolist() == [1, 3, 5, 7, 9, 11]
    assert weights()["layer.weight"].tolist() == [0, 1, 2, 3, 4, 5]


def test_average_says_what_it_did_and_json_is_the_contract(files, invoke):
    result = invoke("merge", "a0.pth", "b1.pth", "c2.pth", "-m", "average", "-o", "o.pth")
    assert result.exit_code == 0, result.output
    assert "average: merged 2 tensors" in result.output
    assert "written to o.pth" in result.output
    assert weights()["layer.weight"].tolist() == [0, 2, 4, 6, 8, 10]
    result = invoke("merge", "a0.pth", "b1.pth", "-m", "linear", "--weight", "1", "--weight", "3",
                    "--dry-run", "--json")  # fmt: skip
    document = json.loads(result.output)
    assert document["schema"] == 1
    assert document["exit_code"] == 0
    assert document["output"] is None
    assert [each["weight"] for each in document["files"]] == [1, 3]
    assert document["merged"] == ["state_dict/layer.weight", "state_dict/head.weight"]
    assert document["policies"]["int"] == "auto"
    assert document["peak_bytes"] > 0
    assert {"method", "copied", "skipped", "plan", "carried"} <= document.keys()


@pytest.mark.parametrize("method", ["passthrough", "average"])
def test_numbers_that_become_infinite_are_refused(files, invoke, method):
    """A warning stood beside a file full of infinities."""
    torch.save({"w": torch.tensor([1e6, 1.0, -3e38, 1e-20]), "h": torch.ones(2)}, "big.pth")
    inputs = ["big.pth"] if method == "passthrough" else ["big.pth", "big.pth"]
    line = ("merge", *inputs, "-m", method, "--dtype", "float16", "-o", "o.pth")
    refused = invoke(*line)
    assert refused.exit_code == 2
    assert "2 become infinite, 1 becomes zero" in refused.stderr
    assert not Path("o.pth").exists()
    found = json.loads(invoke(*line, "--allow-loss", "--json").stdout)
    assert [cast["name"] for cast in found["casts"]] == ["w", "h"]
    w = found["casts"][0]
    assert (w["from"], w["to"], w["elements"]) == ("float32", "float16", 4)
    assert (w["infinite"], w["zero"], w["wrapped"]) == (2, 1, 0)
    assert not any("rounded" in warning for warning in found["warnings"])
    shown = invoke(*line, "--allow-loss", "--force").stdout
    assert "cast float32 -> float16: 2 tensors, 6 elements" in shown
    assert "  w: of 4 elements 2 become infinite, 1 becomes zero" in shown
    dry = json.loads(invoke(*line, "--dry-run", "--json").stdout)
    assert dry["casts"][0]["infinite"] is None


def test_arithmetic_that_overflows_its_own_type_is_refused_too(files, invoke):
    torch.save({"w": torch.full((3,), 6e4, dtype=torch.float16)}, "h.pth")
    line = ("merge", "h.pth", "h.pth", "-m", "linear", "--weight", "1", "--weight", "1",
            "--set", "normalize=false", "-o", "o.pth")  # fmt: skip
    assert "3 become infinite" in invoke(*line).stderr
    found = json.loads(invoke(*line, "--allow-loss", "--json").stdout)
    assert found["casts"] == []
    assert "of numbers rounded to their type 3 become infinite" in found["warnings"]


def test_what_an_overlap_leaves_is_cast_and_counted(files, invoke):
    torch.save({"w": torch.tensor([1.0, 2.0, 1e6])}, "long.pth")
    torch.save({"w": torch.tensor([3.0, 4.0])}, "short.pth")
    line = ("merge", "long.pth", "short.pth", "-m", "average", "--on-shape", "overlap",
            "--dtype", "float16", "-o", "o.pth")  # fmt: skip
    assert "1 becomes infinite" in invoke(*line).stderr
    found = json.loads(invoke(*line, "--allow-loss", "--json").stdout)
    assert found["casts"][0]["infinite"] == 1
    assert torch.load("o.pth")["w"].tolist() == [2.0, 3.0, float("inf")]


def test_record_and_in_place(files, invoke):
    result = invoke("merge", "a0.pth", "b1.pth", "-m", "average", "-i", "--record", "log.json")
    assert result.exit_code == 0, result.output
    assert json.loads((files / "log.json").read_text())["output"] == "a0.pth"
    assert weights("a0.pth")["layer.weight"].tolist() == [0, 1.5, 3, 4.5, 6, 7.5]
    result = invoke("merge", "a0.pth", "b1.pth", "-o", "o.pth", "--record", "b1.pth")
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("options", "chosen", "base"),
    [
        (["--last", "2"], ["x1.pth", "x2.pth"], "x2.pth"),
        (["--best", "2", "--metric", "n", "--lower-better"], ["x0.pth", "x1.pth"], "x0.pth"),
        (["--best", "2", "--metric", "n", "--higher-better"], ["x2.pth", "x1.pth"], "x2.pth"),
    ],
)
def test_choosing_files(files, invoke, options, chosen, base):
    for number, name in enumerate("abc"):
        (files / f"{name}{number}.pth").rename(files / f"x{number}.pth")
    args = ("x*.pth", *options, "-m", "average", "--dry-run", "--json")
    document = json.loads(invoke("merge", *args).stdout)
    assert [each["file"] for each in document["files"]] == chosen
    assert document["base"] == base


def test_prefix_b_puts_the_second_file_below_it(files, invoke):
    args = ("merge", "a0.pth", "b1.pth", "--prefix-b", "second", "--strip-prefix", "1:layer")
    result = invoke(*args, "-o", "o.pth")
    assert result.exit_code == 0, result.output
    assert list(weights()) == [
        "weight", "head.weight", "second.layer.weight", "second.head.weight",
    ]  # fmt: skip


def test_parameters_of_every_spelling(files, invoke):
    for given in (
        ["--density", "0.5,1", "--lambda", "2"],
        ["--set", "density=0.5,1", "--set", "lambda=2"],
    ):
        result = invoke("merge", "a0.pth", "b1.pth", "c2.pth", "-m", "ties", "--no-normalize",
                        *given, "--dry-run", "--json")  # fmt: skip
        parameters = json.loads(result.output)["policies"]["parameters"]
        assert parameters["density"] == [0.5, 1]
        assert (parameters["lambda"], parameters["normalize"]) == (2, False)
    result = invoke("merge", "a0.pth", "b1.pth", "-m", "linear", "--weight-for",
                    "prefix:head=0,1", "--weight", "1", "--weight", "0", "-o", "o.pth")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert weights()["head.weight"].tolist() == [1, 3, 5, 7, 9, 11]
    assert weights()["layer.weight"].tolist() == [0, 1, 2, 3, 4, 5]


def test_one_input_may_come_from_a_pipe(files, invoke):
    piped = (files / "b1.pth").read_bytes()
    result = invoke("merge", "a0.pth", "-", "-m", "average", "-o", "o.pth", stdin=piped)
    assert result.exit_code == 0, result.output
    assert weights()["layer.weight"].tolist() == [0, 1.5, 3, 4.5, 6, 7.5]


def test_methods_lists_each_with_its_definition(invoke):
    from ckpt_surgery.merge.request import methods

    result = invoke("merge", "--methods")
    assert result.exit_code == 0
    for name in methods():
        assert f"\n{name} " in result.output
    assert "arXiv:2306.01708" in result.output


def test_help_has_its_options_in_groups(invoke):
    lines = invoke("merge", "--help").output.splitlines()
    for title in ("What to do:", "Choosing files:", "Numbers:", "Where files differ:", "Names:"):
        assert title in lines


def test_methods_complete(invoke):
    command = cli.get_command(None, "merge")
    option = next(p for p in command.params if p.name == "method")
    assert [item.value for item in option.type.shell_complete(None, option, "dare")] == [
        "dare-linear", "dare-ties",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["a0.pth"], "one file is nothing to merge"),
        ([], "no file is nothing to merge"),
        (["a0.pth", "b1.pth", "-m", "avrage"], "unknown method 'avrage'\nhint: did you mean"),
        (["a0.pth", "b1.pth", "-m", "linear", "--weight", "1"], "1 weight for 2 inputs"),
        (["a0.pth", "b1.pth", "--base", "no.pth"], "'no.pth': cannot be read"),
        (["a0.pth", "b1.pth", "--keys", "union"], "'--keys' has no meaning with method 'overlay'"),
        (["a0.pth", "b1.pth", "--last", "1", "--best", "1"], "contradict each other"),
        (["a0.pth", "b1.pth", "--best", "1"], "needs to know what is best"),
        (["a0.pth", "b1.pth", "--metric", "acc"], "go with '--best N'"),
        (["a0.pth", "b1.pth", "--best", "2", "--metric", "acc", "--lower-better", "-m", "ties"],
         "needs '--base'"),
        (["a0.pth", "b1.pth", "--add-prefix", "9:x."], "there is no file 9"),
        (["a0.pth", "b1.pth", "-m", "average", "--memory", "much"], "'--memory much' is no size"),
        (["a0.pth", "b1.pth", "-m", "average", "--memory", "0M"], "is no size"),
        (["a0.pth", "b1.pth", "-m", "ties", "--set", "density"], "has no value"),
        (["a0.pth", "b1.pth", "-m", "ties", "--density", "1", "--set", "density=1"], "twice"),
        (["a0.pth", "b1.pth", "--recipe", "r.toml"], "files contradict each other"),
        (["--recipe", "r.toml", "--t", "1"], "'--t' contradict each other"),
        (["--recipe", "r.toml", "--int", "max"], "'--int' contradict each other"),
        (["--recipe", "r.toml"], "'r.toml': cannot be read"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(files, invoke, args, message):
    before = sorted(p.name for p in files.iterdir())
    result = invoke("merge", *args, "-o", "o.pth")
    assert result.exit_code == 2
    assert message in result.stderr
    assert sorted(p.name for p in files.iterdir()) == before


def test_a_damaged_input_is_an_error(files, invoke):
    whole = (files / "b1.pth").read_bytes()
    (files / "cut.pth").write_bytes(whole[: len(whole) // 2])
    for method in ("overlay", "average"):
        result = invoke("merge", "a0.pth", "cut.pth", "-m", method, "-o", "o.pth")
        assert result.exit_code == 2
        assert "'cut.pth'" in result.stderr
        assert not (files / "o.pth").exists()


def test_memory_takes_units(files, invoke):
    for size in ("100", "2k", "1G"):
        result = invoke("merge", "a0.pth", "b1.pth", "-m", "average", "--memory", size, "--dry-run")
        assert result.exit_code == 0, result.output


def test_overlay_imports_no_torch(files, ckpt):
    code = "import sys; sys.modules['torch'] = None"
    (files / "sitecustomize.py").write_text(code)
    result = ckpt("merge", "a0.pth", "b1.pth", "-o", "o.pth", PYTHONPATH=f"{files}:{_root()}")
    assert result.returncode == 0, result.stderr
    assert weights()["layer.weight"].tolist() == [0, 2, 4, 6, 8, 10]


def _root():
    return Path(__file__).resolve().parents[2]


def test_one_file_passed_through_has_no_merged_statistics(folder, invoke):
    done = invoke("merge", "net.pth", "-m", "passthrough", "-o", "out.pth")
    assert done.exit_code == 0, done.stderr
    assert "statistics" not in done.output
    done = invoke("merge", "net.pth", "out.pth", "-m", "average", "-o", "two.pth")
    assert "running statistics of batch norm were merged like weights" in done.output


def test_adapters_are_folded_in_from_a_directory(folder, invoke):
    torch.save({"a.weight": torch.ones(2, 2)}, folder / "base.pth")
    (folder / "adapter").mkdir()
    names = ("base_model.model.a.lora_A.weight", "base_model.model.a.lora_B.weight")
    factors = {names[0]: torch.ones(1, 2), names[1]: torch.ones(2, 1)}
    save_file(factors, folder / "adapter" / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 1, "lora_alpha": 2}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(said))
    files = [str(folder / "base.pth"), str(folder / "adapter")]
    result = invoke("merge", "-m", "lora", *files, "--scale=-0.5", "-o", str(folder / "out.pth"))
    assert result.exit_code == 0, result.output
    assert torch.equal(torch.load(folder / "out.pth")["a.weight"], torch.zeros(2, 2))
    result = invoke("merge", "-m", "lora", *files, "--scale", "much", "--dry-run")
    assert result.exit_code == 2
    assert "'--scale much' is no number" in result.output
    result = invoke("merge", "-m", "lora", *files, "--check-rounding", "-o", str(folder / "b.pth"))
    assert "rounding is 0.00% of what was added; 0 of 4 elements" in result.output
    result = invoke("merge", "-m", "lora", *files, "--verify", "-o", str(folder / "c.pth"))
    assert "rounding is 0.00% of what was added; 0 of 4 elements" in result.output
