"""``ckpt match`` on the command line; torch's own ``load_state_dict`` is the oracle."""

from __future__ import annotations

import copy
import json
import re
from collections import OrderedDict
from pathlib import Path

import factories_for_cli as factories
import pytest
import torch
from torch import nn

from ckpt_surgery.models.torchvision_import import import_torchvision

NET = "factories_for_cli:net"
_HERE = Path(__file__).resolve().parents[1] / "support"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current directory, with a checkpoint of `net` and one of a training run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(_HERE))
    torch.manual_seed(0)
    weights = factories.net().state_dict()
    torch.save(weights, "net.pth")
    torch.save({"state_dict": weights, "state_dict_ema": weights, "epoch": 3}, "train.pth")
    return tmp_path


def torch_says(model, weights):
    """What torch reports as missing, unexpected and mismatched."""
    model = copy.deepcopy(model)
    state = dict(weights)
    wrong = []
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        wrong = re.findall(r"size mismatch for (\S+):", str(error))
    keys = model.load_state_dict({k: v for k, v in state.items() if k not in wrong}, strict=False)
    missing = [name for name in keys.missing_keys if name not in wrong]
    return missing, keys.unexpected_keys, wrong


def _changed(layer, **arguments):
    model = factories.net()
    setattr(model, layer, arguments.pop("kind")(**arguments))
    return model


def _without_bias():
    return _changed("conv", kind=nn.Conv2d, in_channels=3, out_channels=8, kernel_size=3,
                    bias=False)  # fmt: skip


def _grouped():
    return _changed("conv", kind=nn.Conv2d, in_channels=4, out_channels=8, kernel_size=3, groups=2)


def _wide_kernel():
    return _changed("conv", kind=nn.Conv2d, in_channels=3, out_channels=8, kernel_size=5)


def test_what_loads_strictly_ends_with_0(place, invoke):
    result = invoke("match", "net.pth", "--model", NET)
    assert result.exit_code == 0, result.output
    assert "net.pth for factories_for_cli:net (Sequential): 9 of 9 keys match" in result.stdout
    assert "<All keys matched successfully>" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("options", "model"),
    [
        (["--set", "fc.out_features=7"], lambda: factories.net(classes=7)),
        (["--model-arg", "classes=7"], lambda: factories.net(classes=7)),
        (["--set", "conv.bias=false"], _without_bias),
        (["--set", "conv.in_channels=4", "--set", "conv.groups=2"], _grouped),
        (["--set", "conv.kernel_size=5"], _wide_kernel),
        (["--model-arg", "width=6", "--model-arg", "channels=1"], lambda: factories.net(1, 6)),
    ],
)
def test_the_answer_is_torchs(place, invoke, options, model):
    result = invoke("match", "net.pth", "--model", NET, *options, "--json")
    document = json.loads(result.stdout)
    missing, unexpected, mismatched = torch_says(model(), torch.load("net.pth"))
    assert document["missing_keys"] == missing
    assert document["unexpected_keys"] == unexpected
    assert [name for name, *_ in document["mismatched_keys"]] == mismatched
    assert result.exit_code == document["exit_code"] == int(bool(missing + unexpected + mismatched))
    wanted = model().state_dict()
    for name, ours, theirs in document["mismatched_keys"]:
        assert ours == list(torch.load("net.pth")[name].shape)
        assert theirs == list(wanted[name].shape)


def test_the_text_is_torchs_own_words(place, invoke):
    result = invoke("match", "net.pth", "--model", NET, "--set", "fc.out_features=7")
    assert result.exit_code == 1
    with pytest.raises(RuntimeError) as raised:
        factories.net(classes=7).load_state_dict(torch.load("net.pth"))
    said = [line.strip() for line in str(raised.value).splitlines()[1:]]
    assert said
    for line in said:
        assert line in result.stdout


def test_json_is_the_contract(place, invoke):
    result = invoke("match", "net.pth", "--model", NET, "--json")
    document = json.loads(result.stdout)
    assert document["schema"] == 1
    assert document["command"] == "match"
    assert document["inputs"] == ["net.pth"]
    assert document["output"] is None
    assert {"missing_keys", "unexpected_keys", "mismatched_keys", "dtype_differences", "tied"} <= (
        document.keys()
    )


def test_quiet_says_it_by_the_exit_code_alone(place, invoke):
    for options, code in (([], 0), (["--set", "fc.out_features=7"], 1), (["--set", "x.y=7"], 2)):
        result = invoke("match", "net.pth", "--model", NET, *options, "-q")
        assert (result.exit_code, result.stdout) == (code, "")
        assert bool(result.stderr) == (code == 2)


def test_arguments_of_a_model_are_typed(place, invoke):
    torch.save(nn.Linear(1, 6, bias=False).state_dict(), "six.pth")
    values = {
        "number": "-3", "part": "0.5", "on": "true", "word": "relu",
        "several": "[2, [3.5, 'x'], false]", "nothing": "none",
    }  # fmt: skip
    line = [word for k, v in values.items() for word in ("--model-arg", f"{k}={v}")]
    result = invoke("match", "six.pth", "--model", "factories_for_cli:typed", *line)
    assert result.exit_code == 0, result.output


def test_another_checkpoint_is_a_target_in_any_format(place, invoke):
    from safetensors.torch import save_file

    weights = torch.load("net.pth")
    save_file(weights, "like.safetensors")
    torch.save(weights, "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(factories.net(), "module.pkl")
    for like in ("like.safetensors", "legacy.pth", "module.pkl", "net.pth"):
        assert invoke("match", "net.pth", "--like", like).exit_code == 0, like
    result = invoke("match", "net.pth", "--like", "train.pth")
    assert result.exit_code == 0, result.output
    torch.save({k: v.half() for k, v in weights.items()}, "half.pth")
    result = invoke("match", "net.pth", "--like", "half.pth", "--json")
    assert result.exit_code == 0
    differences = json.loads(result.stdout)["dtype_differences"]
    assert ["fc.weight", "float32", "float16"] in differences


def test_at_chooses_and_without_it_all_are_compared(place, invoke):
    broken = {"state_dict": torch.load("net.pth"), "state_dict_ema": {"x": torch.zeros(1)}}
    torch.save(broken, "run.pth")
    assert invoke("match", "run.pth", "--at", "state_dict", "--model", NET).exit_code == 0
    result = invoke("match", "run.pth", "--model", NET, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["unexpected_keys"] == ["state_dict_ema/x"]
    result = invoke("match", "run.pth", "--at", "state_dct", "--model", NET)
    assert result.exit_code == 2
    assert "state_dct" in result.stderr


def test_a_pipe_is_read(place, invoke):
    data = (place / "net.pth").read_bytes()
    for line in (["match", "-"], ["match"]):
        assert invoke(*line, "--model", NET, stdin=data).exit_code == 0
    assert invoke("match", "net.pth", "--like", "-", stdin=data).exit_code == 2  # FILE alone is '-'


def test_tied_names_are_not_missing(place, invoke):
    torch.save({"encoder.weight": torch.zeros(6, 4)}, "one.pth")
    result = invoke("match", "one.pth", "--model", "factories_for_cli:tied")
    assert result.exit_code == 0
    assert "not in the file, but tied to what is:\n  decoder.weight = encoder.weight" in (
        result.stdout
    )


def test_counters_are_handled_as_torch_does(place, invoke):
    """An old file (no version of its batch norms) may lack them, a new one may not."""
    weights = torch.load("net.pth")
    del weights["bn.num_batches_tracked"]
    torch.save(weights, "new.pth")
    torch.save(dict(weights), "old.pth")
    result = invoke("match", "new.pth", "--model", NET)
    assert result.exit_code == 1
    assert "bn.num_batches_tracked" in result.stdout
    assert invoke("match", "old.pth", "--model", NET).exit_code == 0


def test_the_symmetric_difference_of_names_is_reported(place, invoke):
    """R20: as a loop over both sets of keys finds it, counters that torch forgives included."""
    weights = {k.replace("bn.", "bn.net."): v for k, v in torch.load("net.pth").items()}
    torch.save(weights, "infixed.pth")
    result = invoke("match", "infixed.pth", "--model", NET, "--json")
    document = json.loads(result.stdout)
    wanted = factories.net().state_dict().keys()
    assert {*document["missing_keys"], *document["defaulted"]} == wanted - weights.keys()
    assert document["defaulted"] == ["bn.num_batches_tracked"]
    assert set(document["unexpected_keys"]) == weights.keys() - wanted
    told = invoke("match", "infixed.pth", "--model", NET).stdout
    assert "not in the file, and load_state_dict does without: 1" in told


@pytest.mark.parametrize(
    ("prefix", "how"), [("module.", "wrapper"), ("net.0.", "prefix 'net.0.' removed")]
)
def test_names_that_fit_would_pair_are_pointed_out(place, invoke, prefix, how):
    torch.save({prefix + k: v for k, v in torch.load("net.pth").items()}, "wrapped.pth")
    result = invoke("match", "wrapped.pth", "--model", NET)
    assert result.exit_code == 1
    assert f"8 of these names are only spelled otherwise ({how}): 'ckpt fit' pairs" in result.stdout
    two = {"a": torch.load("wrapped.pth"), "b": torch.load("net.pth")}
    torch.save(two, "two.pth")
    assert "warning: 'a': 8 of these" in invoke("match", "two.pth", "--model", NET).stdout


def test_names_that_nothing_pairs_get_no_advice(place, invoke):
    torch.save({"x.weight": torch.zeros(2), "y.weight": torch.zeros(2)}, "x.pth")
    assert "spelled otherwise" not in invoke("match", "x.pth", "--model", NET).stdout
    one = {"a.fc.weight": torch.zeros(2), "b.fc.weight": torch.zeros(2)}
    torch.save(one, "one.pth")
    torch.save({"fc.weight": torch.zeros(2)}, "like.pth")  # a's or b's: ambiguous
    result = invoke("match", "one.pth", "--like", "like.pth")
    assert result.exit_code == 1
    assert "spelled otherwise" not in result.stdout


def test_many_names_are_folded(place, invoke):
    torch.save({"x": torch.zeros(1)}, "x.pth")
    result = invoke("match", "x.pth", "--model", "factories_for_cli:deeper", "--model-arg",
                    "layers=3")  # fmt: skip
    assert result.exit_code == 1
    assert "Missing key(s) in state_dict: 24" in result.stdout
    torch.save({f"layer3.{i}.conv2.weight": torch.zeros(1) for i in range(6)}, "six.pth")
    result = invoke("match", "six.pth", "--like", "x.pth")
    assert "  layer3.{0..5}.conv2.weight (6)\n" in result.stdout


def test_the_models_own_printing_stays_off_standard_output(place, ckpt):
    source = (_HERE / "factories_for_cli.py").read_text()
    (place / "my_models.py").write_text(source)  # found in the current directory
    done = ckpt("match", "net.pth", "--model", "my_models:talks", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["exit_code"] == 0
    assert b"building" in done.stderr


@pytest.mark.parametrize("late", [False, True], ids=["module", "callable"])
def test_a_users_code_may_import_torchvision_too(place, ckpt, late):
    """Beside a CPU-only torch its wheel cannot be imported without help."""
    line = "from torchvision.models import squeezenet1_1"
    source = f"def net():\n    {line}\n    return squeezenet1_1()\n"
    (place / "uses_it.py").write_text(source if late else f"{line} as net\n")
    torch.save({"classifier.1.bias": torch.zeros(1000)}, "some.pth")
    done = ckpt("match", "some.pth", "--model", "uses_it:net")
    assert done.returncode == 1, done.stderr
    assert b"1 of 52 keys match" in done.stdout


def test_a_stripped_head_is_what_r25_says(place, invoke):
    models = import_torchvision().models
    torch.save(models.resnet18().state_dict(), "r.pth")
    assert invoke("strip", "r.pth", "--pattern", "fc", "-o", "b.pth").exit_code == 0
    result = invoke("match", "b.pth", "--model", "torchvision:resnet18", "--set",
                    "fc.out_features=5", "--json")  # fmt: skip
    document = json.loads(result.stdout)
    assert result.exit_code == 1
    assert document["missing_keys"] == ["fc.weight", "fc.bias"]
    assert document["unexpected_keys"] == []


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (["--model", "torchvision:resnet43"], "no model 'resnet43'", "'resnet34'"),
        (["--model", "torchvision:fasterrcnn_resnet50_fp"], "no model", "fasterrcnn_resnet50_fpn"),
        (["--model", "net"], "does not name a model", "torchvision:net"),
        (["--model", "no_such:net"], "no module 'no_such'", "PYTHONPATH"),
        (["--model", "factories_for_cli:nett"], "has no 'nett'", "'net'"),
        (["--model", "factories_for_cli:not_callable"], "cannot be called", ""),
        (["--model", "factories_for_cli:raises"], "raised ZeroDivisionError: no", ""),
        (["--model", "factories_for_cli:no_module"], "returned a 'str', not a torch", ""),
        (["--model", "factories_for_cli:reads_values"], "raised RuntimeError", "--like"),
        (["--model", "factories_for_cli:lazy"], "gets its shape only when", "--like"),
        (["--model", NET, "--set", "fcc.out_features=5"], "no module 'fcc'", "'fc'"),
        (["--model", NET, "--set", "head.bias=no"], "no module 'head'", "'conv', 'bn', 'fc'"),
        (["--model", NET, "--set", "conv1.bias=no"], "no module 'conv1'", "'conv'"),
        (["--model", NET, "--set", "fc.out_feature=5"], "no attribute 'out_feature'",
         "'out_features'"),
        (["--model", NET, "--set", "fc.out_features=many"], "Linear refuses", ""),
        (["--model", NET, "--set", "fc"], "does not set an attribute", "MODULE.ATTRIBUTE=VALUE"),
        (["--model", NET, "--set", "fc.bias=1", "--set", "fc.bias=0"], "is set twice", ""),
        (["--model", NET, "--model-arg", "clases=5"], "does not take these", "'classes'"),
        (["--model", NET, "--model-arg", "classes"], "is not an argument", "name=value"),
        (["--model", NET, "--model-arg", "classes=[1,"], "is not a list", ""),
        (["--model", "torchvision:resnet18", "--model-arg", "num_clases=5"], "num_clases",
         "'num_classes'"),
        (["--model", "torchvision:resnet18", "--model-arg", "weights=DEFAULT"],
         "would download a file", "FILE"),
        ([], "there is no target", "--model torchvision:NAME"),
        (["--model", NET, "--like", "net.pth"], "contradict each other", "or --like FILE"),
        (["--like", "net.pth", "--set", "fc.bias=no"], "'--like' names a file", "--model"),
        (["--like", "none.pth"], "'none.pth': cannot be read", ""),
        (["--like", "notes.txt"], "'notes.txt'", ""),
        (["--model", NET, "--modl-arg", "x=1"], "no such option", "'--model-arg'"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_what_may_have_been_meant(place, invoke, args, message, hint):
    (place / "notes.txt").write_text("no checkpoint\n")
    result = invoke("match", "net.pth", *args)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    error, _, advice = result.stderr.partition("\nhint: ")
    assert message in error
    assert hint in advice
    assert "Traceback" not in result.stderr


def test_bad_files_are_refused(place, invoke):
    (place / "cut.pth").write_bytes((place / "net.pth").read_bytes()[:900])
    for file in ("cut.pth", "none.pth"):
        result = invoke("match", file, "--model", NET)
        assert result.exit_code == 2
        assert f"'{file}'" in result.stderr


ABSURD = {
    "long": ["x" * 50_000, "1" * 5000 + ".weight"],
    "deep": ["a." * 20_000 + "w", "0." * 20_000 + "w"],
    "rude": ["\x1b[31mred\x07.weight", "two\nlines", "a\u202eb.weight", "\ud800.w", "[bold]x[/]"],
    "bare": ["", ".", "..", "a..b", "'", "%s{0}"],
}


@pytest.mark.parametrize("kind", ABSURD)
@pytest.mark.parametrize("target", [["--like", "net.pth"], ["--model", NET]])
def test_absurd_names_are_answered_briefly(place, invoke, kind, target):
    torch.save(OrderedDict((name, torch.zeros(2)) for name in ABSURD[kind]), "absurd.pth")
    result = invoke("match", "absurd.pth", *target)
    assert result.exit_code == 1, result.output
    assert f"Unexpected key(s) in state_dict: {len(ABSURD[kind])}" in result.stdout
    lines = result.stdout.split("\n")
    assert max(map(len, lines)) < 300
    assert len(lines) < 40
    assert all(line.isprintable() for line in lines)
    assert invoke("match", "net.pth", "--like", "absurd.pth").exit_code == 1
    assert invoke("match", "absurd.pth", "--like", "absurd.pth").exit_code == 0


@pytest.mark.parametrize("target", [["--model", NET], ["--like", "net.pth"]])
def test_arrays_are_refused_as_torch_refuses_them(place, invoke, target):
    weights = {name: value.numpy() for name, value in torch.load("net.pth").items()}
    torch.save(weights, "arrays.pth")
    with pytest.raises(RuntimeError, match=r"expected torch.Tensor.*numpy.ndarray"):
        factories.net().load_state_dict(torch.load("arrays.pth", weights_only=False))
    result = invoke("match", "arrays.pth", *target, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert [each[:2] for each in found["uncopyable_keys"]] == [
        [n, "numpy.ndarray"] for n in weights
    ]
    assert any("'ckpt convert' writes them as tensors" in w for w in found["warnings"])
    invoke("convert", "arrays.pth", "-o", "tensors.pth")
    assert invoke("match", "tensors.pth", *target).exit_code == 0
