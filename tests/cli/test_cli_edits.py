"""Laws of ``ckpt strip``, ``rename`` and ``convert`` as commands: where what goes, and when."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import click
import pytest
import torch

from ckpt_surgery import __version__
from ckpt_surgery.cli.commands.strip import strip
from ckpt_surgery.cli.failing import report_stream
from ckpt_surgery.cli.main import COMMANDS, cli
from ckpt_surgery.cli.options import output_of
from ckpt_surgery.formats.registry import _WRITABLE, FORMATS, get, writable

EDITS = (
    ["strip", "--prefix", "fc"],
    ["rename", "--add-prefix", "m"],
    ["convert"],
)


def snapshot(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def load(path):
    return torch.load(path, weights_only=True)


def test_strip_removes_what_is_selected(folder, invoke, net):
    result = invoke("strip", "net.pth", "--pattern", "fc", "-o", "out.pth")
    assert result.exit_code == 0, result.stderr
    left = load("out.pth")
    assert list(left) == [name for name in net.state_dict() if "fc" not in name]
    assert left._metadata[""] == {"version": 1}
    assert "--pattern fc: matched 2 names" in result.stdout
    assert "removed 2 of 15 entries:" in result.stdout
    assert "written to out.pth" in result.stdout


def test_strip_keep_inverts(folder, invoke, net):
    invoke("strip", "net.pth", "--keep", "--prefix", "blocks.0", "-o", "out.pth")
    assert list(load("out.pth")) == [k for k in net.state_dict() if k.startswith("blocks.0.")]


def test_strip_drops_training_state_and_carries_the_rest(folder, invoke):
    result = invoke("strip", "train.pth.tar", "--training-state", "--compact", "-o", "out.pth")
    assert result.exit_code == 0, result.stderr
    assert "removed beside them: state_dict_ema, optimizer" in result.stdout
    assert "carried over: epoch, arch, args, loss" in result.stdout
    assert "compacted:" in result.stdout
    out = torch.load("out.pth", weights_only=False)
    assert set(out) == {"epoch", "arch", "state_dict", "args", "loss"}


def test_strip_publishes_the_average_under_its_hash(folder, invoke):
    line = ("strip", "train.pth.tar", "--training-state", "--ema", "--hash-name", "-o", "net.pth")
    result = invoke(*line)
    assert result.exit_code == 0, result.stderr
    assert "weights of state_dict_ema put into state_dict" in result.stdout
    (written,) = folder.glob("net-*.pth")
    assert hashlib.sha256(written.read_bytes()).hexdigest()[:8] == written.stem[-8:]
    assert invoke("strip", "net.pth", "--prefix", "fc", "--hash-name", "-i").exit_code == 2


@pytest.mark.parametrize("choice", ["auto", "keep", "drop"])
def test_optimizer_follows_or_is_kept_or_dropped(folder, invoke, choice):
    line = ("strip", "train.pth.tar", "--prefix", "module.blocks.1", "--optimizer", choice)
    result = invoke(*line, "-o", "out.pth")
    assert result.exit_code == 0, result.stderr
    out = torch.load("out.pth", weights_only=False)
    counts = {"auto": 5, "keep": 8, "drop": None}
    optimizer = out.get("optimizer")
    assert (None if optimizer is None else len(optimizer["state"])) == counts[choice]
    said = {
        "auto": "optimizer in 'optimizer' kept in step: 3 parameters removed",
        "keep": "warning: the optimizer in 'optimizer' stays as it is, out of step with its model",
        "drop": "removed beside them: optimizer",
    }
    assert said[choice] in result.stdout
    document = json.loads(invoke(*line, "--dry-run", "--json").stdout)
    actions = {"auto": "updated", "keep": "kept", "drop": "dropped"}
    assert [o["action"] for o in document["optimizers"]] == [actions[choice]]


def test_strip_keeps_ema_in_step_and_at_narrows(folder, invoke):
    invoke("strip", "train.pth.tar", "--prefix", "module.fc", "-o", "both.pth")
    invoke("strip", "train.pth.tar", "--prefix", "module.fc", "--at", "state_dict", "-o", "one.pth")
    both = torch.load("both.pth", weights_only=False)
    one = torch.load("one.pth", weights_only=False)
    assert "module.fc.bias" not in {**both["state_dict"], **both["state_dict_ema"]}
    assert "module.fc.bias" not in one["state_dict"]
    assert "module.fc.bias" in one["state_dict_ema"]


def test_rename_applies_rules_in_the_order_given(folder, invoke):
    # the same rules give other names, or fail, in any other order
    rules = ["--replace", "fc", "tmp", "--add-prefix", "x", "--sub", r"^x\.(tmp)", r"y.\1"]
    rules += ["--replace", "tmp", "last", "--strip-prefix", "y"]
    result = invoke("rename", "net.pth", *rules, "-o", "out.pth")
    assert result.exit_code == 0, result.stderr
    names = list(load("out.pth"))
    assert names[-3:] == ["last.weight", "last.bias", "x.head.weight"]
    said = [line.split(":")[0] for line in result.stdout.splitlines()[:5]]
    assert said == [
        "--replace fc tmp",
        "--add-prefix x.",
        r"--sub ^x\.(tmp) y.\1",
        "--replace tmp last",
        "--strip-prefix y.",
    ]


def test_rename_takes_a_map_in_toml_or_json(folder, invoke):
    (folder / "m.toml").write_text('fc.bias = "head.bias"\n')
    (folder / "m.json").write_text('{"fc.bias": "head.bias"}')
    for source in ("m.toml", "m.json"):
        assert invoke("rename", "net.pth", "--map", source, "-o", f"{source}.pth").exit_code == 0
        assert "head.bias" in load(f"{source}.pth")


def test_rename_strip_prefix_loads_into_the_bare_model(folder, invoke, net):
    invoke("convert", "train.pth.tar", "--state-dict-only", "-o", "wrapped.pth")
    result = invoke("rename", "wrapped.pth", "--strip-prefix", "module", "-i")
    assert result.exit_code == 0, result.stderr
    state = load("wrapped.pth")
    net.load_state_dict(state, strict=True)
    assert dict(state._metadata) == dict(net.state_dict()._metadata)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([], "no rule says what to rename"),
        (["--strip-prefix", "nope"], "'--strip-prefix nope.' changes no name"),
        (["--sub", "(", ""], "'--sub ( ''' is no valid pattern"),
        (["--sub", r"^.*\.", "x."], "would both be called"),
        (["--sub", ".*", ""], "empty name"),
        (["--map", "nope.toml"], "nope.toml"),
    ],
)
def test_rename_that_cannot_be_is_refused_before_writing(folder, invoke, rules, said):
    before = snapshot(folder)
    result = invoke("rename", "net.pth", *rules, "-o", "out.pth")
    assert result.exit_code == 2
    assert said in result.stderr
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    ("rules", "gaps"),
    [
        (["--add-prefix", "a.."], 15),
        (["--sub", "^blocks", ""], 12),
        (["--replace", "fc", ""], 2),
        (["--add-prefix", "a."], 0),
    ],
)
def test_names_with_an_empty_segment_are_warned_about(folder, invoke, net, rules, gaps):
    result = invoke("rename", "net.pth", *rules, "-o", "out.pth", "--json")
    assert result.exit_code == 0, result.stderr
    made = [name for name in load("out.pth") if "" in name.split(".")]
    assert len(made) == gaps or "blocks" in rules[1]
    said = [w for w in json.loads(result.stdout)["warnings"] if "empty segment" in w]
    assert bool(made) == bool(said)
    assert all(made[0] in warning for warning in said)
    # such names may stay as they are
    again = invoke("rename", "out.pth", "--strip-prefix", "fc", "-o", "b.pth", "--json")
    assert not any("empty segment" in w for w in json.loads(again.stdout)["warnings"])


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["state_dict_ema"], "'--entry state_dict_ema' takes it, '--at state_dict_ema' what is"),
        (["--prefix", "args"], "'args' is beside the weights: '--entry args' takes it"),
        (["--prefix", "args/lr"], "'--entry args/lr' takes it"),
        (["training_state"], "'--training-state' takes optimizers"),
        (["ema"], "--ema publishes one"),
        (["module.fc.bais"], "near it: 'module.fc.bias'"),
    ],
)
def test_what_is_no_weight_is_named_by_the_option_that_takes_it(folder, invoke, words, hint):
    result = invoke("strip", "train.pth.tar", *words, "-o", "out.pth")
    assert result.exit_code == 2
    assert "matches nothing" in result.stderr
    assert hint in result.stderr


def test_convert_writes_one_state_dict_alone(folder, invoke):
    result = invoke("convert", "train.pth.tar", "--state-dict-only", "-o", "model.pth")
    assert result.exit_code == 0, result.stderr
    assert "args, loss, state_dict_ema" in result.stdout
    result = invoke(
        "convert", "train.pth.tar", "--at", "state_dict_ema", "--state-dict-only", "-o", "out.pth"
    )
    assert result.exit_code == 0, result.stderr
    assert "module.fc.bias" in load("out.pth")


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit[0])
def test_dry_run_touches_nothing_and_says_the_same(folder, invoke, edit):
    before = snapshot(folder)
    dry = invoke(*edit, "net.pth", "-o", "out.pth", "--dry-run")
    assert dry.exit_code == 0, dry.stderr
    assert snapshot(folder) == before
    real = invoke(*edit, "net.pth", "-o", "out.pth")
    assert dry.stdout.splitlines()[:-1] == real.stdout.splitlines()[:-1]
    assert "nothing was written" in dry.stdout.splitlines()[-1]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit[0])
def test_json_is_one_document_of_the_edit(folder, invoke, edit):
    result = invoke(*edit, "net.pth", "-o", "out.pth", "--json")
    document = json.loads(result.stdout)
    assert (document["schema"], document["command"]) == (1, edit[0])
    assert (document["inputs"], document["output"]) == (["net.pth"], "out.pth")
    assert document["plan"]
    dry = json.loads(invoke(*edit, "net.pth", "--dry-run", "--json").stdout)
    assert dry == document | {"output": None}


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit[0])
def test_report_leaves_standard_output_to_the_checkpoint(folder, ckpt, edit):
    invoked = ckpt(*edit, "net.pth", "--json")
    to_file = ckpt(*edit, "net.pth", "-o", "out.pth", "--json")
    assert invoked.stdout == (folder / "out.pth").read_bytes()
    assert json.loads(invoked.stderr) == json.loads(to_file.stdout) | {"output": "<stdout>"}
    assert to_file.stderr == b""


def test_standard_output_is_written_by_its_descriptor(folder, invoke, monkeypatch):
    context = click.Context(strip, info_name="strip")
    parsed = {p.name: p.get_default(context) for p in strip.params}
    context.params = parsed | {
        "output": None, "in_place": False, "dry_run": False, "record": None, "metadata": (),
        "max_shard_size": None,
    }  # fmt: skip
    with (folder / "out.pth").open("w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        assert output_of(context).stream == stream.fileno()
        assert report_stream(context.params) is not stream


def test_list_of_names_may_not_be_huge(folder, invoke, monkeypatch):
    monkeypatch.setattr("ckpt_surgery.cli.options._MOST_TEXT", 3)
    (folder / "keys.txt").write_text("fc.bias")
    result = invoke("strip", "net.pth", "--keys-from", "keys.txt", "--dry-run")
    assert result.exit_code == 2
    assert "too large" in result.stderr


def test_commands_pipe_into_each_other(folder, ckpt, invoke):
    invoke("strip", "net.pth", "--prefix", "fc", "-o", "a.pth")
    invoke("rename", "a.pth", "--add-prefix", "m", "-o", "b.pth")
    data = (folder / "net.pth").read_bytes()
    stripped = ckpt("strip", "--prefix", "fc", "-q", stdin=data)
    renamed = ckpt("rename", "-", "--add-prefix", "m", "-q", "-o", "-", stdin=stripped.stdout)
    assert (stripped.stderr, renamed.stderr) == (b"", b"")
    assert renamed.stdout == (folder / "b.pth").read_bytes()


def test_in_place_replaces_the_input(folder, invoke):
    (folder / "net.pth").chmod(0o640)
    assert invoke("strip", "net.pth", "--prefix", "fc", "-i").exit_code == 0
    assert "fc.bias" not in load("net.pth")
    assert (folder / "net.pth").stat().st_mode & 0o777 == 0o640


def test_existing_output_needs_force(folder, invoke):
    (folder / "out.pth").write_bytes(b"mine")
    refused = invoke("strip", "net.pth", "--prefix", "fc", "-o", "out.pth")
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert (folder / "out.pth").read_bytes() == b"mine"
    assert invoke("strip", "net.pth", "--prefix", "fc", "-o", "out.pth", "--force").exit_code == 0
    assert load("out.pth")


@pytest.mark.parametrize("alias", ["net.pth", "./net.pth", "link.pth"])
def test_output_equal_to_input_is_refused(folder, invoke, alias):
    Path("link.pth").symlink_to("net.pth")
    before = snapshot(folder)
    result = invoke("strip", "net.pth", "--prefix", "fc", "-o", alias, "--force")
    assert result.exit_code == 2
    assert "--in-place" in result.stderr
    assert snapshot(folder) == before


def test_record_holds_the_edits(folder, invoke):
    options = ["--prefix", "fc", "-o", "out.pth", "--record", "log.json"]
    result = invoke("strip", "net.pth", *options, "--json")
    record = json.loads((folder / "log.json").read_text())
    assert record["version"] == __version__
    digests = record.pop("digests")
    assert record == json.loads(result.stdout)
    for which, name in (("inputs", "net.pth"), ("outputs", "out.pth")):
        expected = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert digests[which] == {name: expected}
    again = invoke("strip", "net.pth", "--prefix", "fc", "-o", "two.pth", "--record", "log.json")
    assert again.exit_code == 2
    assert not (folder / "two.pth").exists()
    assert invoke("strip", "net.pth", *options, "--force", "-q").exit_code == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_record_that_fails_says_that_the_checkpoint_was_written(folder, invoke):
    options = ["--prefix", "fc", "-o", "out.pth", "--record", "/dev/full", "--force"]
    result = invoke("strip", "net.pth", *options)
    assert result.exit_code == 2
    assert "no space left" in result.stderr
    assert "the checkpoint itself was written" in result.stderr
    assert (folder / "out.pth").exists()


def test_output_need_not_be_readable():
    """Click would refuse an existing one that is not; whatever opens a file says what is wrong."""
    commands = [cli.get_command(click.Context(cli), name) for name in COMMANDS]
    types = [parameter.type for command in commands for parameter in command.params]
    paths = [each for each in types if isinstance(each, click.Path)]
    assert len(paths) > 10
    assert not any(path.readable for path in paths)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-o", "out.pth", "-i"], "--in-place"),
        (["-o", "-", "-i"], "'-o -' and '--in-place'"),
        (["-o", "out.onnx"], ".onnx"),
        (["-o", "out.pth", "--metadata", "a=b"], "--metadata"),
        (["-o", "out.safetensors", "--metadata", "a"], "KEY=VALUE"),
        (["-o", "out.safetensors", "--metadata", "a=", "--metadata", "a=b"], "'a' twice"),
        (["-o", "out.pth", "--sidecar", "s.json"], "--sidecar"),
        (["-o", "nowhere/out.pth"], "nowhere"),
        (["-o", "out.pth", "--format", "onnx"], "--format"),
        (["-o", "out.pth", "--record", "net.pth", "--force"], "--record"),
        (["-o", "out.pth", "--record", "out.pth"], "--record"),
        (["-o", "out.pth", "--record", "-"], "--record"),
        (["-o", "out.pth", "--record", "no/log.json"], "--record"),
        (["--dry-run", "--record", "log.json"], "--dry-run"),
    ],
)
def test_output_without_sense_is_refused_and_nothing_written(folder, invoke, options, said):
    before = snapshot(folder)
    result = invoke("strip", "net.pth", "--prefix", "fc", *options)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert snapshot(folder) == before


def test_standard_input_cannot_be_replaced(folder, invoke):
    data = (folder / "net.pth").read_bytes()
    assert invoke("strip", "-", "--prefix", "fc", "-i", stdin=data).exit_code == 2


def test_quiet_edit_prints_nothing(folder, invoke):
    result = invoke("strip", "net.pth", "--prefix", "fc", "-o", "out.pth", "-q")
    assert (result.exit_code, result.output) == (0, "")


def test_format_option_offers_what_can_be_written(folder, invoke):
    offered = " ".join(invoke("convert", "--help").stdout.split()).replace("- ", "-")
    for name in FORMATS:
        assert (name in writable()) is get(name).is_writable
        assert not get(name).is_writable or name in offered
    assert list(_WRITABLE) == [name for name in FORMATS if get(name).is_writable]
    refused = invoke("convert", "net.pth", "--format", "torch-tar", "-o", "x")
    assert refused.exit_code == 2
    assert "can only be read" in refused.stderr
    refused = invoke("convert", "net.pth", "--format", "torch-zop", "-o", "x")
    assert "'--format torch-zop': there is no such format" in refused.stderr
    assert "hint: there are: torch-zip" in refused.stderr


def test_nothing_is_cut_in_a_pipe(folder, invoke):
    output = invoke("rename", "many.pth", "--strip-prefix", "layers", "-o", "out.pth").stdout
    assert "renamed 3,000 of 3,000 entries:" in output
    assert "layers.2999.attention.weight -> 2999.attention.weight" in output
    assert "more" not in output


def test_rename_brings_in_no_bytes_that_are_no_text(folder, invoke):
    """What Python makes of an argument in another encoding; a file's own odd names are kept."""
    result = invoke("rename", "net.pth", "--add-prefix", "b\udce4ck", "-o", "out.pth")
    assert result.exit_code == 2
    assert "makes names that are no text" in result.stderr
    torch.save({"b\udce4ck": torch.ones(1)}, "odd.pth")
    assert invoke("rename", "odd.pth", "--add-prefix", "a", "-o", "out.pth").exit_code == 0
    assert list(torch.load("out.pth")) == ["a.b\udce4ck"]


def test_entries_beside_the_weights_are_dropped_and_called_otherwise(folder, invoke):
    done = invoke("strip", "train.pth.tar", "--entry", "args", "--entry", "l*", "-o", "lean.pth")
    assert done.exit_code == 0, done.stderr
    assert "--entry args: matched 1 entry\n--entry l*: matched 1 entry\n" in done.stdout
    assert "removed beside them: args, loss\n" in done.stdout
    done = invoke("strip", "lean.pth", "--keep", "--entry", "epoch", "-o", "epoch.pth")
    assert list(load("epoch.pth")) == ["epoch", "state_dict", "state_dict_ema"]
    done = invoke("rename", "epoch.pth", "--entry", "state_dict=model", "--wrap", "all", "-i")
    assert (
        "called otherwise: state_dict -> model\nwrapped: everything is under 'all'" in done.stdout
    )
    assert list(load("epoch.pth")["all"]) == ["epoch", "model", "state_dict_ema"]
    done = invoke("strip", "epoch.pth", "--unwrap", "--name", "module.fc.bias", "-i")
    assert done.exit_code == 0, done.stderr
    assert "unwrapped: what was under 'all' is the whole file" in done.stdout
    assert "module.fc.bias" not in load("epoch.pth")["model"]


def test_an_entry_needs_its_new_key(folder, invoke):
    done = invoke("rename", "train.pth.tar", "--entry", "args", "-i")
    assert done.exit_code == 2
    assert "'--entry args' says no new key\nhint: write PATH=KEY" in done.stderr


def test_keep_with_entries_and_names_inverts_both(folder, invoke):
    line = ["strip", "train.pth.tar", "--keep", "--entry", "epoch", "--prefix", "module.fc"]
    assert invoke(*line, "-o", "out.pth").exit_code == 0
    found = load("out.pth")
    assert list(found) == ["epoch", "state_dict", "state_dict_ema"]
    assert list(found["state_dict"]) == ["module.fc.weight", "module.fc.bias"]


def test_plain_values_and_devices_need_no_rule(folder, invoke):
    for verb in ("strip", "rename", "edit", "set", "convert"):
        done = invoke(verb, "train.pth.tar", "--plain", "--device", "cpu", "-o", f"{verb}.pth")
        assert done.exit_code == 0, done.stderr
        assert "made plain: args (argparse.Namespace)\n" in done.stdout
        assert torch.load(f"{verb}.pth", weights_only=True)["args"] == {"lr": 0.1}
    for verb in ("strip", "rename", "edit", "set"):
        assert invoke(verb, "train.pth.tar", "-o", "none.pth").exit_code == 2
