"""``ckpt fit`` on the command line; what it writes, torch loads strictly."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections import OrderedDict
from pathlib import Path

import factories_for_cli as factories
import pytest
import torch

NET = "factories_for_cli:net"
SEVEN = ("--model", NET, "--set", "fc.out_features=7")
FOUR = ("--model", NET, "--set", "conv.in_channels=4")
_HERE = Path(__file__).resolve().parents[1] / "support"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current directory, with a checkpoint of `net`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(_HERE))
    torch.manual_seed(0)
    torch.save(factories.net().state_dict(), "net.pth")
    return tmp_path


@pytest.fixture
def fit(place, invoke):
    """Run `ckpt fit net.pth`; a refusal writes nothing."""

    def run(*args, code=0, file="net.pth", stdin=None):
        before = listing(place)
        result = invoke("fit", file, *args, stdin=stdin)
        assert result.exit_code == code, result.output
        if code or "--dry-run" in args:
            assert listing(place) == before
        return result

    return run


def listing(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def load(name="o.pth"):
    return torch.load(name, weights_only=True)


def strict(model, name="o.pth"):
    return str(model.load_state_dict(load(name), strict=True))


def document(result):
    return json.loads(result.stdout)


def test_the_result_loads_strictly_and_the_report_names_everything(fit):
    result = fit(*SEVEN, "-o", "o.pth")
    assert strict(factories.net(classes=7)) == "<All keys matched successfully>"
    for name in ("conv.weight", "conv.bias", "bn.running_mean", "bn.num_batches_tracked"):
        assert torch.equal(load()[name], load("net.pth")[name])
    for line in (
        "copied 7 tensors, 257 elements",
        "initial 2 tensors, 63 elements:",
        "  fc.weight: (7, 8), the checkpoint's is (5, 8); it would take --adapt rows or overlap",
        "dropped 2 tensors, 45 elements:",
        "  fc.bias (5,)",
        "written to o.pth",
    ):
        assert line in result.stdout


def test_json_and_record_are_one_document(fit):
    result = fit(*SEVEN, "--adapt", "rows", "--json", "--record", "log.json", "-o", "o.pth")
    found = document(result)
    record = json.loads(Path("log.json").read_text())
    assert set(record.pop("digests")["outputs"]) == {"o.pth"}
    assert record == found
    assert (found["schema"], found["command"], found["exit_code"]) == (1, "fit", 0)
    assert found["output"] == "o.pth"
    assert found["adapted"][0] == {
        "name": "fc.weight", "how": "rows", "from_shape": [5, 8], "to_shape": [7, 8],
    }  # fmt: skip
    assert (len(found["copied"]), found["initial"], found["dropped"]) == (7, [], [])
    assert found["elements"] == {
        "copied": 257,
        "cast": 0,
        "adapted": 63,
        "initial": 0,
        "dropped": 0,
    }


def test_a_dry_run_reports_the_same(fit):
    dry = document(fit(*SEVEN, "--dry-run", "--json"))
    wet = document(fit(*SEVEN, "-o", "o.pth", "--json"))
    assert dry | {"output": "o.pth"} == wet
    assert dry["output"] is None


def test_one_seed_gives_one_file_and_another_another(fit):
    files = {}
    for name, seed in (("a", ["--seed", "1"]), ("b", ["--seed", "1"]), ("c", ["--seed", "2"]),
                       ("d", []), ("e", ["--seed", "0"])):  # fmt: skip
        fit(*SEVEN, *seed, "-o", f"{name}.pth")
        files[name] = Path(f"{name}.pth").read_bytes()
    assert files["a"] == files["b"]
    assert files["d"] == files["e"]
    assert len({files["a"], files["c"], files["d"]}) == 3
    assert torch.equal(load("a.pth")["conv.weight"], load("c.pth")["conv.weight"])
    assert 0 < load("a.pth")["fc.weight"].abs().max() <= 8**-0.5  # what nn.Linear draws from


def test_the_checkpoint_goes_through_pipes(place, ckpt):
    (place / "my_nets.py").write_text((_HERE / "factories_for_cli.py").read_text())
    data = Path("net.pth").read_bytes()
    for line in (("fit", "-"), ("fit",), ("fit", "net.pth", "-o", "-")):
        done = ckpt(*line, "--model", "my_nets:talks", "--dtype", "float16", stdin=data)
        assert done.returncode == 0, done.stderr
        (place / "o.pth").write_bytes(done.stdout)
        assert load()["fc.weight"].dtype == torch.float16
        assert b"copied 1 tensor, 1 element" in done.stderr  # the counter
        assert b"cast float32 -> float16: 8 tensors, 301 elements" in done.stderr
        assert b"building" in done.stderr  # what the model's code prints


def test_in_place_replaces_and_force_is_needed_otherwise(fit):
    fit("--like", "net.pth", "-o", "net.pth", code=2)
    fit(*SEVEN, "-i")
    assert strict(factories.net(classes=7), "net.pth") == "<All keys matched successfully>"
    fit(*SEVEN, "-o", "o.pth")
    Path("o.pth").write_text("mine")
    assert "--force" in fit(*SEVEN, "-o", "o.pth", code=2).stderr
    fit(*SEVEN, "-o", "o.pth", "--force")
    fit(*SEVEN, "-o", "o.pth")
    assert "'--like'" in fit(*SEVEN, "--like", "net.pth", "-o", "p.pth", code=2).stderr


def test_like_gives_names_types_and_initial_values(fit):
    like = OrderedDict(
        (name, torch.full_like(value, 9)) for name, value in factories.net(4, 8, 7).state_dict()
        .items()
    )  # fmt: skip
    like["fc.bias"] = like["fc.bias"].half()
    torch.save({"model": like, "epoch": 1}, "like.pth")
    fit("--like", "like.pth", "--adapt", "rows", "-o", "o.pth")
    old, new = load("net.pth"), load()
    assert list(new) == list(like)
    assert torch.equal(new["conv.weight"], like["conv.weight"])  # nothing adapts channels
    assert torch.equal(new["fc.weight"][:5], old["fc.weight"])
    assert torch.equal(new["fc.weight"][5:], like["fc.weight"][5:])
    assert new["fc.bias"].dtype == torch.float16
    assert new["fc.bias"].tolist() == [*old["fc.bias"].half().tolist(), 9, 9]


def test_at_chooses_the_state_dict(fit):
    weights = load("net.pth")
    torch.save({"a": weights, "b": {k: v + 1 for k, v in weights.items()}, "n": 1}, "run.pth")
    found = document(fit(*SEVEN, "--at", "b", "-o", "o.pth", "--json", file="run.pth"))
    assert found["paths"] == ["b"]
    new = load()
    assert new["b"]["fc.weight"].shape == (7, 8)
    assert new["a"]["fc.weight"].shape == (5, 8)
    assert new["n"] == 1
    assert "'a' is carried over as it was" in found["warnings"][0]
    fit(*SEVEN, "--at", "c", "-o", "p.pth", code=2, file="run.pth")


PLAIN = {"enc.0.weight": (3, 2), "dec.1.weight": (4, 3)}


def _renamed(how):
    rename = {
        "name": lambda name: name,
        "prefix": lambda name: f"module._orig_mod.{name}",
        "suffix": lambda name: name.replace("c.", "c.net."),
        "order": lambda name: f"layer{name.split('.')[1]}.w",
    }[how]
    return {rename(name): torch.randn(shape) for name, shape in PLAIN.items()}


LEVELS = ["name", "prefix", "suffix", "order"]


@pytest.mark.parametrize("needed", LEVELS)
@pytest.mark.parametrize("asked", LEVELS)
def test_names_are_paired_no_more_boldly_than_asked(fit, needed, asked):
    source = {name: torch.randn(shape) for name, shape in PLAIN.items()}
    torch.save(source, "source.pth")
    torch.save(_renamed(needed), "like.pth")
    line = ("--like", "like.pth", "--match", asked)
    if LEVELS.index(asked) < LEVELS.index(needed):
        result = fit(*line, "-o", "o.pth", code=2, file="source.pth")
        assert "no name agrees" in result.stderr
        assert "--match" in result.stderr
    else:
        fit(*line, "-o", "o.pth", file="source.pth")
        for (_, old), (_, new) in zip(source.items(), load().items(), strict=True):
            assert torch.equal(old, new)


def test_prefixes_are_found_without_asking(fit):
    torch.save({f"module.{name}": value for name, value in load("net.pth").items()}, "w.pth")
    result = fit("--model", NET, "-o", "o.pth", file="w.pth")
    assert "names that differ: 9, paired by" in result.stdout
    assert strict(factories.net()) == "<All keys matched successfully>"


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_a_map_goes_round(fit, invoke, suffix):
    """--emit-map, then --rename-map or `rename --map`: the same tensors under the same names."""
    source = {name: torch.randn(shape) for name, shape in PLAIN.items()}
    torch.save(source, "source.pth")
    torch.save(_renamed("order"), "like.pth")
    file, like = f"map.{suffix}", ("--like", "like.pth")
    result = invoke("fit", "source.pth", *like, "--match", "order", "--emit-map", file,
                    "--dry-run")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "enc.0.weight -> layer0.w" in result.stdout
    text = Path(file).read_text()
    pairs = tomllib.loads(text) if suffix == "toml" else json.loads(text)
    assert pairs == {"enc.0.weight": "layer0.w", "dec.1.weight": "layer1.w"}
    line = (*like, "--match", "order", "--emit-map", file, "--dry-run")
    fit(*line, file="source.pth")  # it holds this already
    Path(file).write_text("mine")
    assert "already exists" in fit(*line, code=2, file="source.pth").stderr
    Path(file).write_text(text)
    fit(*like, "--match", "name", "--rename-map", file, "-o", "fitted.pth", file="source.pth")
    assert invoke("rename", "source.pth", "--map", file, "-o", "renamed.pth").exit_code == 0
    for name in ("fitted.pth", "renamed.pth"):
        assert list(load(name)) == list(pairs.values())
        assert all(torch.equal(load(name)[pairs[old]], value) for old, value in source.items())


def test_an_ambiguous_match_lists_its_candidates(fit):
    torch.save({"a.w": torch.zeros(2), "b.w": torch.ones(2)}, "two.pth")
    torch.save({"x.w": torch.zeros(2)}, "one.pth")
    result = fit("--like", "one.pth", "--match", "order", "-o", "o.pth", code=2, file="two.pth")
    assert "'x' could correspond to 'a', 'b'" in result.stderr
    assert "--map" in result.stderr
    torch.save({"w": torch.zeros(2)}, "top.pth")
    result = fit("--like", "top.pth", "--match", "order", "-o", "o.pth", code=2, file="two.pth")
    assert "'w' could correspond to" in result.stderr


@pytest.mark.parametrize(
    ("how", "extra"),
    [
        ("channels", lambda w: w.repeat(1, 2, 1, 1)[:, :4] * 0.75),
        ("channels=repeat", lambda w: w.repeat(1, 2, 1, 1)[:, :4] * 0.75),
        ("channels=mean", lambda w: w.mean(1, keepdim=True).expand(-1, 4, -1, -1)),
        ("channels=mean:scaled", lambda w: w.mean(1, keepdim=True).expand(-1, 4, -1, -1) * 0.75),
        ("channels=zero", lambda w: torch.cat([w, torch.zeros(8, 1, 3, 3)], 1)),
        ("channels=first", lambda w: torch.cat([w, w[:, :1]], 1)),
    ],
)
def test_channels_are_adapted_as_named(fit, how, extra):
    result = fit(*FOUR, "--adapt", how, "--initial", "none", "-o", "o.pth")
    torch.testing.assert_close(load()["conv.weight"], extra(load("net.pth")["conv.weight"]))
    assert "(8, 3, 3, 3) -> (8, 4, 3, 3) by channels" in result.stdout


def test_lost_filters_are_warned_about_and_the_advice_keeps_them(fit):
    dry = fit(*FOUR, "--dry-run")
    advice = "--fill conv=first or zero keeps those of the old ones"
    assert f"instead of 3: {advice}" in " ".join(dry.stdout.split())
    fit(*FOUR, "--fill", "conv=first", "-o", "o.pth")
    old, new = load("net.pth")["conv.weight"], load()["conv.weight"]
    assert torch.equal(new[:, :3], old)
    assert torch.equal(new[:, 3], old[:, 0])


def test_a_convolution_over_everything_becomes_a_linear_layer(fit):
    weights = {"fc6.weight": torch.randn(12, 8, 7, 7), "fc6.bias": torch.randn(12)}
    torch.save(weights, "vgg.pth")
    torch.save({"fc6.weight": torch.zeros(12, 392), "fc6.bias": torch.zeros(12)}, "linear.pth")
    advice = fit("--like", "linear.pth", "--dry-run", file="vgg.pth").stdout
    assert "it would take --adapt reshape" in advice
    found = document(fit("--like", "linear.pth", "--adapt", "reshape", "-o", "o.pth", "--json",
                         file="vgg.pth"))  # fmt: skip
    assert [each["how"] for each in found["adapted"]] == ["reshape"]
    assert torch.equal(load()["fc6.weight"], weights["fc6.weight"].flatten(1))


def test_transposed_weights_are_named_in_the_report(fit):
    source = {"a.weight": torch.randn(4, 6), "b.weight": torch.randn(4, 4)}
    torch.save(source, "conv1d.pth")
    torch.save({name: value.T.contiguous() for name, value in source.items()}, "linear.pth")
    found = document(fit("--like", "linear.pth", "--dry-run", "--json", file="conv1d.pth"))
    assert found["initial_values"][0]["looks_transposed"] is True
    assert found["square_beside_transposed"] == ["b.weight"]
    shown = fit("--like", "linear.pth", "--dry-run", file="conv1d.pth").stdout
    assert "  a.weight: (6, 4), the checkpoint's is (4, 6); it looks transposed" in shown


def test_positions_are_interpolated_to_a_grid_that_is_no_square(fit):
    torch.save({"pos_embed": torch.randn(1, 17, 4), "x": torch.zeros(1)}, "vit.pth")
    torch.save({"pos_embed": torch.zeros(1, 25, 4), "x": torch.zeros(1)}, "wide.pth")
    line = ("--like", "wide.pth", "--adapt", "interpolate")
    refused = fit(*line, "-o", "o.pth", code=2, file="vit.pth").stderr
    assert "'--adapt interpolate' applies to nothing" in refused
    assert "'pos_embed' may lie on a grid that is not square: add --grid" in refused
    refused = fit(*line, "--grid", "5x6", "-o", "o.pth", code=2, file="vit.pth").stderr
    assert "'pos_embed' has 25 positions and the checkpoint's 17" in refused
    fit(*line, "--grid", "4x6", "--initial", "none", "-o", "o.pth", file="vit.pth")
    assert torch.equal(load()["pos_embed"][:, 0], load("vit.pth")["pos_embed"][:, 0])
    refused = fit("--like", "wide.pth", "--grid", "4x6", "-o", "p.pth", code=2, file="vit.pth")
    assert "add --adapt interpolate" in refused.stderr


def test_one_layers_channels_are_adapted_by_a_fill(fit):
    fit(*FOUR, "--fill", "conv=mean", "-o", "o.pth")
    weight = load("net.pth")["conv.weight"]
    torch.testing.assert_close(load()["conv.weight"][:, 3], weight.mean(1))


@pytest.mark.parametrize(
    ("how", "old", "new"),
    [
        ("squeeze", (4, 3, 1, 1), (4, 3)),
        ("squeeze", (4, 3), (4, 1, 3)),
        ("rows", (4, 3), (6, 3)),
        ("overlap", (4, 3), (3, 5)),
    ],
)
def test_other_shapes_are_adapted_as_named_and_only_then(fit, how, old, new):
    source = {"w": torch.randn(old), "b": torch.zeros(1)}
    torch.save(source, "source.pth")
    torch.save({"w": torch.full(new, 9.0), "b": torch.ones(1)}, "like.pth")
    fit("--like", "like.pth", "-o", "plain.pth", file="source.pth")
    assert torch.equal(load("plain.pth")["w"], torch.full(new, 9.0))
    fit("--like", "like.pth", "--adapt", how, "-o", "o.pth", file="source.pth")
    if how == "squeeze":
        assert torch.equal(load()["w"], source["w"].reshape(new))
    else:
        block = tuple(slice(min(a, b)) for a, b in zip(old, new, strict=True))
        assert torch.equal(load()["w"][block], source["w"][block])
        rest = torch.ones(new, dtype=torch.bool)
        rest[block] = False
        assert bool((load()["w"][rest] == 9).all())


def test_position_embeddings_are_interpolated(fit):
    source = {"pos_embed": torch.full((1, 1 + 16, 3), 0.25)}
    source["pos_embed"][:, 0] = 7
    torch.save(source, "source.pth")
    torch.save({"pos_embed": torch.zeros(1, 1 + 36, 3)}, "like.pth")
    fit("--like", "like.pth", "--adapt", "interpolate", "-o", "o.pth", file="source.pth")
    wanted = torch.full((1, 37, 3), 0.25)
    wanted[:, 0] = 7
    torch.testing.assert_close(load()["pos_embed"], wanted)


def test_classes_keep_their_rows_by_name(fit):
    Path("old.txt").write_text("ant\nbee\ncat\ndog\nelk\n")
    Path("new.txt").write_text("\ufeffdog\r\nzebra\r\nant\r\n", newline="")
    line = ("--model", NET, "--set", "fc.out_features=3", "--adapt", "rows")
    fit(*line, "--classes", "old.txt", "new.txt", "--fill", "fc=zeros", "-o", "o.pth")
    old, new = load("net.pth"), load()
    for name in ("fc.weight", "fc.bias"):
        assert torch.equal(new[name][[0, 2]], old[name][[3, 0]])
        assert not new[name][1].any()


@pytest.mark.parametrize(
    ("how", "holds"),
    [
        ("zeros", lambda w, _: not w.any()),
        ("ones", lambda w, _: bool((w == 1).all())),
        ("constant:-2.5", lambda w, _: bool((w == -2.5).all())),
        ("normal:0.5", lambda w, _: 0.3 < w.std() < 0.7),
        ("uniform:0.1", lambda w, _: 0.08 < w.abs().max() <= 0.1),
        ("kaiming", lambda w, _: 0.3 < w.std() < 0.8),
        ("xavier", lambda w, _: 0.5 < w.abs().max() <= (6 / 15) ** 0.5),
        ("init", torch.equal),
    ],
)
def test_fills(fit, how, holds):
    fit(*SEVEN, "-o", "plain.pth")
    result = fit(*SEVEN, "--fill", f"fc.weight={how}", "-o", "o.pth")
    assert holds(load()["fc.weight"], load("plain.pth")["fc.weight"])
    assert torch.equal(load()["fc.bias"], load("plain.pth")["fc.bias"])
    assert ("filled by" in result.stdout) == (how != "init")


def test_initial_values_are_confined_for_ci(fit):
    for permitted in (["fc"], ["fc.weight", "fc.bias"], ["fc.*"], ["*.weight", "fc.bias"]):
        line = [word for name in permitted for word in ("--initial", name)]
        fit(*SEVEN, *line, "-o", "o.pth", "--force")
    for refused in (["none"], ["conv"], ["fc.weight"]):
        line = [word for name in refused for word in ("--initial", name)]
        for where in (("-o", "p.pth"), ("--dry-run",), ("-i",)):
            assert "initial value" in fit(*SEVEN, *line, *where, code=2).stderr
    fit("--model", NET, "--initial", "none", "-o", "q.pth")


def test_an_old_files_counters_are_no_initial_values_to_refuse(fit, invoke):
    """torch loads a file from before 0.4.1 strictly, so `match` says 0 and CI can use it."""
    old = {n: v for n, v in load("net.pth").items() if n != "bn.num_batches_tracked"}
    torch.save(old, "old.pth")
    assert invoke("match", "old.pth", "--model", NET).exit_code == 0
    result = fit("--model", NET, "--initial", "none", "-o", "o.pth", file="old.pth")
    assert "bn.num_batches_tracked: (), not in the checkpoint, like all before torch 0.4.1" in (
        result.stdout
    )
    assert load()["bn.num_batches_tracked"].item() == 0
    new = load("net.pth")
    del new["bn.num_batches_tracked"]  # its _metadata says version 2
    torch.save(new, "new.pth")
    assert invoke("match", "new.pth", "--model", NET).exit_code == 1
    result = fit("--model", NET, "--initial", "none", "-o", "p.pth", code=2, file="new.pth")
    assert "'bn.num_batches_tracked' would take its initial value" in result.stderr


def test_dtype_is_that_of_every_floating_point_tensor(fit):
    fit(*SEVEN, "--dtype", "bfloat16", "-o", "o.pth")
    kinds = {name: value.dtype for name, value in load().items()}
    assert kinds.pop("bn.num_batches_tracked") == torch.int64
    assert set(kinds.values()) == {torch.bfloat16}
    assert torch.equal(load()["conv.weight"], load("net.pth")["conv.weight"].bfloat16())


def test_a_cast_that_loses_numbers_is_refused_and_listed_if_allowed(fit):
    """Half has no 1e6: such a file was written as 'copied', with infinities in it."""
    torch.save({"w": torch.tensor([1e6, 1e-9, 1.0]), "b": torch.tensor([7e4])}, "big.pth")
    half = ("--like", "big.pth", "--dtype", "float16")
    refused = fit(*half, "-o", "o.pth", code=2, file="big.pth")
    assert "'big.pth' (w): not all numbers fit the element type float16" in refused.stderr
    assert "1 becomes infinite, 1 becomes zero" in refused.stderr
    assert "--allow-loss" in refused.stderr
    found = document(fit(*half, "--allow-loss", "-o", "o.pth", "--json", file="big.pth"))
    assert (found["copied"], found["cast"]) == ([], ["w", "b"])
    assert found["casts"][0] == {
        "name": "w", "from": "float32", "to": "float16", "elements": 3,
        "infinite": 1, "zero": 1, "wrapped": 0, "nan": 0, "rounded": 0,
        "error": 0.0,
    }  # fmt: skip
    assert load()["w"].tolist() == [float("inf"), 0.0, 1.0]
    shown = fit(*half, "--allow-loss", "-o", "p.pth", file="big.pth").stdout
    assert "  w: of 3 elements 1 becomes infinite, 1 becomes zero" in shown
    dry = fit(*half, "--dry-run", file="big.pth").stdout
    assert "is counted when they are written" in dry
    fit("--like", "big.pth", "--dtype", "bfloat16", "-o", "q.pth", file="big.pth")


def test_what_the_target_makes_of_other_types_is_counted_too(fit):
    source = {"n": torch.tensor([1.0, 2.5, float("nan"), 300.0]), "x": torch.zeros(1)}
    torch.save(source, "floats.pth")
    torch.save({"n": torch.zeros(4, dtype=torch.int8), "x": torch.zeros(1)}, "ints.pth")
    line = ("--like", "ints.pth", "-o", "o.pth")
    refused = fit(*line, code=2, file="floats.pth").stderr
    assert "1 wraps around, 1 is NaN, 1 is rounded" in refused
    found = document(fit(*line, "--allow-loss", "--json", file="floats.pth"))
    assert found["casts"][0]["wrapped"] == found["casts"][0]["nan"] == 1


def test_an_adapted_tensor_counts_the_loss_of_its_cast(fit):
    torch.save({"fc.weight": torch.full((2, 3), 1e6), "x": torch.zeros(1)}, "big.pth")
    like = {"fc.weight": torch.ones(3, 3, dtype=torch.float16), "x": torch.zeros(1)}
    torch.save(like, "like.pth")
    line = ("--like", "like.pth", "--adapt", "rows", "-o", "o.pth")
    assert "6 become infinite" in fit(*line, code=2, file="big.pth").stderr
    found = document(fit(*line, "--allow-loss", "--json", file="big.pth"))
    assert (found["adapted"][0]["name"], found["cast"]) == ("fc.weight", [])
    assert (found["casts"][0]["elements"], found["casts"][0]["infinite"]) == (9, 6)


def test_a_block_scale_is_no_type_for_weights(fit):
    refused = fit("--like", "net.pth", "--dtype", "float8_e8m0fnu", "-o", "o.pth", code=2)
    assert "is not one number of its own" in refused.stderr


def test_ties_and_metadata_are_the_targets(fit):
    torch.save({"encoder.weight": torch.randn(6, 4)}, "one.pth")
    fit("--model", "factories_for_cli:tied", "-o", "o.pth", file="one.pth")
    found = load()
    assert found["decoder.weight"].data_ptr() == found["encoder.weight"].data_ptr()
    assert found._metadata == factories.tied().state_dict()._metadata


TEXTS = {
    "absent.toml": '"fc.weigth" = "fc.weight"\n',
    "unwanted.toml": '"fc.weight" = "fc.weigth"\n',
    "broken.toml": "fc.weight fc\n",
    "five.txt": "a\nb\nc\nd\ne\n",
    "two.txt": "a\nb\n",
    "seven.txt": "a\nb\nc\nd\ne\nf\ng\n",
    "twice.txt": "a\na\n",
    "gap.txt": "a\n\nb\n",
    "empty.txt": "",
    "others.txt": "1\n2\n3\n4\n5\n6\n7\n",
}
CLASSES = ("--adapt", "rows", "--classes")


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (["--rename-map", "absent.toml"], "'fc.weigth', which the checkpoint does not have",
         "'fc.weight'"),
        (["--rename-map", "unwanted.toml"], "which the target does not have", "'fc.weight'"),
        (["--rename-map", "broken.toml"], "broken.toml' is not TOML", ""),
        (["--rename-map", "none.toml"], "'none.toml': cannot be read", ""),
        ([*CLASSES, "two.txt", "seven.txt"], "old classes has 2 names, but 'fc.weight' has 5 rows",
         "one class for each row"),
        ([*CLASSES, "five.txt", "two.txt"], "new classes has 2 names, but 'fc.weight' has 7 rows",
         "one class for each row"),
        ([*CLASSES, "five.txt", "others.txt"], "no name in common", ""),
        ([*CLASSES, "five.txt", "twice.txt"], "the list of new classes names 'a' twice", ""),
        ([*CLASSES, "empty.txt", "seven.txt"], "the list of old classes is empty", ""),
        ([*CLASSES, "gap.txt", "seven.txt"], "'gap.txt': line 2 of the class list is blank", ""),
        ([*CLASSES, "five.txt", "none.txt"], "'none.txt': cannot be read", ""),
        ([*CLASSES, "five.txt", "net.pth"], "'net.pth': '--classes' needs a text file", ""),
        (["--classes", "five.txt", "seven.txt"], "used by no tensor", "--adapt rows"),
        (["--adapt", "row"], "no adaptation 'row'", "'rows'"),
        (["--adapt", "channels=men"], "cannot be adapted by 'men'", "mean"),
        (["--adapt", "rows=3"], "takes no value", ""),
        (["--fill", "fc=kaimng"], "no way 'kaimng'", "'kaiming'"),
        (["--fill", "fc=kaiming"], "'fc.bias' has one axis", "fc.bias=zeros"),
        (["--fill", "fc=xavier", "--dry-run"], "'fc.bias' has one axis", "fc.bias=zeros"),
        (["--fill", "fd.weight=zeros"], "the target has no 'fd.weight'", "'fc.weight'"),
        (["--fill", "head=zeros"], "the target has no 'head'", "'conv', 'bn', 'fc'"),
        (["--fill", "conv=zeros"], "applies to nothing", "from the checkpoint"),
        (["--fill", "fc=zeros", "--fill", "fc=ones"], "two fills for 'fc'", ""),
        (["--fill", "fc=constant:x"], "has no number", "constant:0.5"),
        (["--initial", "fcc"], "'--initial fcc' matches nothing in the target", "'fc'"),
        (["--initial", "none", "--initial", "fc"], "contradicts every other", ""),
        (["--dtype", "flot16"], "no element type 'flot16'", "'float16'"),
        (["--dtype", "int8"], "no floating-point type", ""),
        (["--match", "guess"], "'guess'", ""),
        (["--at", "state_dict"], "state_dict", ""),
        (["--record", "net.pth"], "'--record' is the input", "name another file"),
        (["--emit-map", "-"], "'--emit-map -' names no file", ""),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_and_nothing_is_written(place, fit, args, message, hint):
    for name, text in TEXTS.items():
        (place / name).write_text(text)
    result = fit(*SEVEN, *args, "-o", "o.pth", code=2)
    assert result.stdout == ""
    error, _, advice = result.stderr.partition("\nhint: ")
    assert message in error
    assert hint in advice
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["raises", "no_module", "reads_values", "lazy"])
def test_models_that_cannot_be_built_are_refused(fit, name):
    result = fit("--model", f"factories_for_cli:{name}", "-o", "o.pth", code=2)
    assert f"factories_for_cli:{name}" in result.stderr
    assert "Traceback" not in result.stderr


def test_nothing_copied_is_an_error(fit):
    torch.save({"a": torch.zeros(2)}, "a.pth")
    assert "no name agrees" in fit("--like", "a.pth", "-o", "o.pth", code=2).stderr
    torch.save({"fc.weight": torch.zeros(2)}, "b.pth")
    assert "no shape" in fit("--like", "b.pth", "-o", "o.pth", code=2).stderr


@pytest.mark.parametrize("match", LEVELS)
@pytest.mark.parametrize("name", ["x" * 50_000, "a." * 20_000 + "w", "\x1b[31m\n\u202ered.w", "."])
def test_absurd_names_are_fitted_and_reported_briefly(fit, name, match):
    torch.save({name: torch.zeros(2), f"{name}b": torch.zeros(3)}, "absurd.pth")
    torch.save({name: torch.ones(2), f"{name}b": torch.ones(4)}, "like.pth")
    result = fit("--like", "like.pth", "--match", match, "-o", "o.pth", file="absurd.pth")
    assert load()[name].tolist() == [0, 0]
    lines = result.stdout.split("\n")
    assert max(map(len, lines)) < 500
    assert all(line.isprintable() for line in lines)
    refused = fit("--like", "like.pth", "--initial", "none", "--dry-run", code=2,
                  file="absurd.pth")  # fmt: skip
    assert len(refused.stderr) < 600
