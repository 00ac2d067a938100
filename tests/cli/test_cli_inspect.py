"""Laws of ``ckpt inspect``."""

from __future__ import annotations

import csv
import io
import json

import pytest
import torch


def rows(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines()]


def test_table_lists_every_tensor_in_file_order(folder, invoke, net):
    result = invoke("inspect", "net.pth")
    assert result.exit_code == 0
    table = rows(result.stdout)[1 : 1 + len(net.state_dict())]
    assert [row[:2] for row in table] == [[str(i), k] for i, k in enumerate(net.state_dict())]
    assert table[0][2:] == ["(4,", "4,", "1,", "1)", "float32", "16", "64"]


def test_index_counts_the_state_dict_and_the_parameters(folder, invoke, net):
    result = invoke("inspect", "net.pth", "--index")
    parameters = [id(parameter) for parameter in net.parameters()]
    state = net.state_dict(keep_vars=True)
    expected = [
        [str(i), str(parameters.index(id(t))) if id(t) in parameters else "-", name]
        for i, (name, t) in enumerate(state.items())
    ]
    assert [row[:3] for row in rows(result.stdout)[1 : 1 + len(expected)]] == expected


@pytest.mark.parametrize("narrowing", [["--prefix", "fc"], ["--params-only"]])
@pytest.mark.parametrize("from_pipe", [False, True])
def test_index_is_the_place_in_the_whole_file(folder, invoke, net, narrowing, from_pipe):
    name = "-" if from_pipe else "net.pth"
    data = (folder / "net.pth").read_bytes() if from_pipe else None
    result = invoke("inspect", name, *narrowing, stdin=data)
    assert result.exit_code == 0, result.stderr
    place = list(net.state_dict()).index("fc.weight")
    assert [str(place), "fc.weight"] in [row[:2] for row in rows(result.stdout)]


def test_params_only_is_named_parameters_and_its_aliases(folder, invoke, net):
    result = invoke("inspect", "net.pth", "--params-only", "--keys")
    assert result.stdout.split() == [k for k, _ in net.named_parameters(remove_duplicate=False)]


def test_keys_are_one_a_line_and_feed_keys_from(folder, invoke, net):
    keys = invoke("inspect", "net.pth", "--keys").stdout
    assert keys.splitlines() == list(net.state_dict())
    (folder / "keys.txt").write_text(keys)
    assert invoke("inspect", "net.pth", "--keys-from", "keys.txt", "--keys").stdout == keys
    assert invoke("inspect", "net.pth", "--keys-from", "-", "--keys", stdin=keys).stdout == keys


def test_keys_are_said_once_for_each_state_dict(folder, invoke, net):
    keys = invoke("inspect", "train.pth.tar", "--keys").stdout.splitlines()
    names = [f"module.{name}" for name in net.state_dict()]
    assert keys == [*names, *names]
    one = invoke("inspect", "train.pth.tar", "--keys", "--at", "state_dict_ema").stdout
    assert one.splitlines() == names


def test_json_is_the_report(folder, invoke, net):
    document = json.loads(invoke("inspect", "train.pth.tar", "--json").stdout)
    assert document["schema"] == 1
    assert document["format"] == "torch-zip"
    assert [s["path"] for s in document["state_dicts"]] == ["state_dict", "state_dict_ema"]
    first = document["state_dicts"][0]["tensors"][0]
    assert (first["name"], first["shape"]) == ("module.blocks.0.0.weight", [4, 4, 1, 1])
    other = {entry["path"]: entry for entry in document["other"]}
    assert other["epoch"]["value"] == 3
    assert other["args"]["type"] == "argparse.Namespace"
    assert other["loss"]["value"] == "nan"  # JSON has no NaN


def test_csv_has_one_line_a_tensor(folder, invoke, net):
    table = list(csv.DictReader(io.StringIO(invoke("inspect", "net.pth", "--csv").stdout)))
    state = net.state_dict()
    assert [row["name"] for row in table] == list(state)
    assert [json.loads(row["shape"]) for row in table] == [list(t.shape) for t in state.values()]
    assert [int(row["numel"]) for row in table] == [t.numel() for t in state.values()]


def test_csv_holds_stats(folder, invoke):
    table = list(
        csv.DictReader(io.StringIO(invoke("inspect", "big.pth", "--csv", "--stats").stdout))
    )
    assert (float(table[0]["max"]), int(table[0]["zeros"])) == (0.0, 1 << 19)


def test_stats_are_torchs(folder, invoke, net):
    result = invoke("inspect", "net.pth", "--prefix", "fc.bias", "--stats")
    row = rows(result.stdout)[1]
    bias = net.fc.bias.detach().double()
    expected = [bias.min(), bias.max(), bias.mean(), bias.std(unbiased=False)]
    assert [float(cell) for cell in row[6:10]] == pytest.approx(
        [float(value) for value in expected], rel=1e-3
    )
    assert row[10:13] == ["0", "0", "0"]


@pytest.mark.parametrize(
    ("sort", "key"), [("name", lambda row: row[1]), ("size", lambda row: -int(row[-1]))]
)
def test_sort_orders_the_rows_and_keeps_their_index(folder, invoke, net, sort, key):
    count = len(net.state_dict())
    by_file = rows(invoke("inspect", "net.pth").stdout)[1 : 1 + count]
    ordered = rows(invoke("inspect", "net.pth", "--sort", sort).stdout)[1 : 1 + count]
    assert ordered == sorted(by_file, key=key)


def test_fold_puts_repeated_layers_in_one_row(folder, invoke):
    table = rows(invoke("inspect", "many.pth", "--fold").stdout)
    assert table[1][:2] == ["layers.{0..2999}.attention.weight", "3,000"]


def test_tree_sums_what_lies_below(folder, invoke, net):
    result = invoke("inspect", "net.pth", "--tree", "--depth", "2")
    lines = [line for line in result.stdout.splitlines() if "── " in line]
    table = {row[-4]: row[-3:] for row in rows("\n".join(lines))}
    assert set(table) == {"blocks", "0", "1", "fc", "weight", "bias", "head"}
    numel = sum(p.numel() for p in net.blocks.parameters())
    nbytes = sum(t.numel() * t.element_size() for t in net.blocks.state_dict().values())
    assert table["blocks"] == ["12", str(numel), str(nbytes)]


def test_footer_tells_what_lies_beside(folder, invoke):
    output = invoke("inspect", "train.pth.tar").stdout
    for line in (
        "state_dict (model)",
        "state_dict_ema (ema)",
        "  epoch = 3",
        "  arch = 'net'",
        "  args: lr = 0.1 (argparse.Namespace)",
    ):
        assert line in output.splitlines()
    assert "  optimizer: SGD, 1 group, lr 0.1, 8 states by order and shapes" in output
    assert "state_dict/module.fc.weight = state_dict/module.head.weight" in output


def test_at_narrows_to_one_state_dict(folder, invoke):
    output = invoke("inspect", "train.pth.tar", "--at", "state_dict_ema").stdout
    assert "state_dict (model)" not in output
    assert invoke("inspect", "train.pth.tar", "--at", "nope").exit_code == 2


def test_names_cannot_speak_to_the_terminal(folder, invoke):
    for form in ([], ["--keys"], ["--csv"], ["--json"], ["--tree"], ["--fold"]):
        output = invoke("inspect", "rude.pth", *form).stdout
        assert "\x1b" not in output
        assert "\x07" not in output
        assert "[bold]markup[/bold]" in output
    assert len(invoke("inspect", "rude.pth", "--keys").stdout.splitlines()) == 4


def test_long_names_are_cut_for_people_only(folder, invoke):
    assert "long" * 200 not in invoke("inspect", "rude.pth").stdout
    assert "long" * 200 in invoke("inspect", "rude.pth", "--keys").stdout


def test_quiet_prints_nothing(folder, invoke):
    result = invoke("inspect", "net.pth", "-q")
    assert (result.exit_code, result.output) == (0, "")


def test_standard_input_is_the_default(folder, invoke, net):
    data = (folder / "net.pth").read_bytes()
    assert invoke("inspect", "--keys", stdin=data).stdout.split() == list(net.state_dict())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tree", "--keys"], "'--tree' and '--keys'"),
        (["--json", "--csv"], "'--json' and '--csv'"),
        (["--json", "--fold"], "'--json' and '--fold'"),
        (["--index", "--fold"], "'--index' and '--fold'"),
        (["--fold", "--stats"], "'--fold' and '--stats'"),
        (["--depth", "2"], "'--depth'"),
        (["--keep"], "'--keep'"),
        (["--pattern", "("], "'--pattern ('"),
        (["--prefix", "nope"], "'--prefix nope' matches nothing"),
        (["--keys-from", "nope.txt"], "nope.txt"),
        (["--sort", "age"], "--sort"),
    ],
)
def test_request_without_sense_is_refused(folder, invoke, options, said):
    result = invoke("inspect", "net.pth", *options)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stdout == "" or "--json" in options


def test_standard_input_is_one_thing(folder, invoke):
    for file in ([], ["-"]):
        result = invoke("inspect", *file, "--keys-from", "-", stdin=b"conv.weight\n")
        assert result.exit_code == 2
        assert "'--keys-from -' and FILE are both standard input" in result.stderr


def test_keys_from_must_be_text(folder, invoke):
    result = invoke("inspect", "net.pth", "--keys-from", "net.pth")
    assert result.exit_code == 2
    assert "UTF-8" in result.stderr


def test_entry_that_is_no_tensor_is_listed(folder, invoke):
    state = {"a.weight": torch.zeros(2), "a.bias": torch.zeros(2), "a._extra_state": {"scale": 1}}
    torch.save(state, "extra.pth")
    forms = (([], "(no tensor)"), (["--csv"], "a._extra_state,,,"), (["--fold"], "a._extra_state"))
    for form, said in forms:
        result = invoke("inspect", "extra.pth", *form)
        assert result.exit_code == 0, result.stderr
        assert said in result.stdout
