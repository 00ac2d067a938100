"""Arguments to exact plans, what a plan refuses, and the laws of applying one."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch_checks import assert_same, load, save

from ckpt_surgery import (
    AddPrefix,
    MapNames,
    Output,
    Plan,
    Replace,
    Selection,
    StripPrefix,
    Substitute,
    apply,
    read,
    rename,
    selection,
    strip,
)
from ckpt_surgery.checkpoint.description import Checkpoint, Entry, StateDict
from ckpt_surgery.edits.base import Edit
from ckpt_surgery.edits.compact import Compact
from ckpt_surgery.edits.drop import Drop, DropOther
from ckpt_surgery.edits.rename import Rename, RenameModule
from ckpt_surgery.edits.rename_plan import plan_rename
from ckpt_surgery.edits.strip_plan import plan_strip
from ckpt_surgery.errors import NameCollisionError, PlanError, UsageError
from ckpt_surgery.names.rewrite import RewriteRule
from ckpt_surgery.torch_objects.training_state import _is_training_state


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.BatchNorm1d(2, affine=False))


NAMES = [
    "0.weight", "0.bias", "2.running_mean", "2.running_var", "2.num_batches_tracked",
]  # fmt: skip


def training() -> dict[str, Any]:
    """A model, its moving average, and what training keeps beside them."""
    return {
        "model": net().state_dict(),
        "ema": {name: value for name, value in net().state_dict().items() if name[0] == "0"},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "lr_scheduler": {"last_epoch": 3, "_step_count": 4},
        "epoch": 3,
        "args": {"lr": 0.1},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("plans")
    save(net().state_dict(), made / "plain.pth")
    save(training(), made / "training.pth")
    return made


@pytest.fixture
def plain(folder: Path) -> Checkpoint:
    with read(folder / "plain.pth") as checkpoint:
        return checkpoint


@pytest.fixture
def trained(folder: Path) -> Checkpoint:
    with read(folder / "training.pth") as checkpoint:
        return checkpoint


def test_empty_plan_is_the_identity(plain: Checkpoint) -> None:
    assert apply(Plan(), plain) == plain


# --- strip

STRIPS: dict[str, tuple[Selection, list[Edit]]] = {
    "matches nothing, which is allowed": (selection(pattern="x", allow_unmatched=True), []),
    "an entry": (selection(keys=["0.bias"]), [Drop("", "0.bias")]),
    "a module with its metadata": (
        selection(prefix="0"),
        [Drop("", "0.weight"), Drop("", "0.bias"), RenameModule("", "0", None)],
    ),
    "two rules": (
        selection(pattern="running", glob="0.b*"),
        [Drop("", "0.bias"), Drop("", "2.running_mean"), Drop("", "2.running_var")],
    ),
    "all but": (
        selection(pattern="^0|num|var", keep=True),
        [Drop("", "2.running_mean")],
    ),
}


@pytest.mark.parametrize("name", STRIPS)
def test_strip_is_planned_exactly(name: str, plain: Checkpoint) -> None:
    choice, edits = STRIPS[name]
    planned = plan_strip(plain, choice)
    assert list(planned.plan.edits) == edits
    assert planned.warnings == ()


def test_strip_says_how_many_names_each_rule_matched(trained: Checkpoint) -> None:
    choice = selection(pattern=["weight", "running"], keys=["2.running_var"])
    counts = [(each.rule.kind, each.matched) for each in plan_strip(trained, choice).rules]
    assert counts == [("pattern", 2), ("pattern", 2), ("keys", 1)]


def test_average_is_stripped_with_the_model(trained: Checkpoint) -> None:
    planned = plan_strip(trained, selection(pattern="bias"))
    assert planned.plan.edits == (Drop("model", "0.bias"), Drop("ema", "0.bias"))
    assert planned.warnings == ()


def test_at_narrows_to_a_path(trained: Checkpoint) -> None:
    planned = plan_strip(trained, selection(pattern="bias"), at=["ema"])
    assert planned.plan.edits == (Drop("ema", "0.bias"),)
    twice = plan_strip(trained, selection(pattern="bias"), at=["ema", "ema"])
    assert twice.plan == planned.plan


def test_state_dict_left_whole_is_named(trained: Checkpoint) -> None:
    planned = plan_strip(trained, selection(pattern="running"))
    assert planned.warnings == (
        "nothing in 'ema' is selected, so it is out of step with the others",
    )


def test_training_state_goes_and_the_rest_stays(trained: Checkpoint) -> None:
    planned = plan_strip(trained, Selection(), training_state=_is_training_state)
    assert planned.plan.edits == (DropOther("optimizer"), DropOther("lr_scheduler"))
    after = apply(planned.plan, trained)
    assert [other.path for other in after.others] == ["epoch", "args"]
    assert [other.path for other in after.dropped] == ["optimizer", "lr_scheduler"]


def test_no_training_state_is_said(plain: Checkpoint) -> None:
    planned = plan_strip(plain, Selection(), training_state=_is_training_state)
    assert planned.plan == Plan()
    assert planned.warnings == ("there is no training state to remove",)


def test_whole_file_of_training_state_is_refused(tmp_path: Path) -> None:
    """An optimizer saved alone has nothing above it to be removed from."""
    state = torch.optim.SGD(net().parameters()).state_dict()
    with read(save([state, 3], tmp_path / "w.pth")) as checkpoint:
        assert [other.path for other in checkpoint.others] == [""]
        with pytest.raises(UsageError, match="nothing would remain"):
            plan_strip(checkpoint, Selection(), training_state=lambda *_: True)


def test_compaction_counts_unused_bytes(tmp_path: Path) -> None:
    value = {"a": torch.ones(100)[:10], "b": torch.ones(5)}
    with read(save(value, tmp_path / "w.pth")) as checkpoint:
        assert plan_strip(checkpoint, Selection(), compact=True).plan.edits == (Compact(360),)


@pytest.mark.parametrize(
    ("choice", "options", "message"),
    [
        (Selection(), {}, "nothing is selected"),
        (selection(pattern="."), {}, "every entry of 'model' would be removed"),
        (selection(prefix="0"), {}, "every entry of 'ema' would be removed"),
        (selection(pattern="fc"), {}, "matches nothing"),
        (selection(pattern="bias"), {"at": ["modle"]}, "'at modle'"),
    ],
)
def test_senseless_strip_is_refused(
    choice: Selection, options: dict[str, Any], message: str, trained: Checkpoint
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        plan_strip(trained, choice, **options)
    assert caught.value.hint


def test_removing_everything_names_the_file(plain: Checkpoint) -> None:
    with pytest.raises(UsageError, match="every entry would be removed") as caught:
        plan_strip(plain, selection(pattern="."))
    assert str(caught.value.path) == plain.file.name


def test_file_without_a_state_dict_cannot_be_stripped(tmp_path: Path) -> None:
    with (
        read(save({"epoch": 3}, tmp_path / "w.pth")) as checkpoint,
        pytest.raises(UsageError, match="there is no state dict"),
    ):
        plan_strip(checkpoint, selection(pattern="."))


# --- rename

ALL = [Rename("", name, f"net.{name}") for name in NAMES]
RENAMES: dict[str, tuple[list[RewriteRule], list[Edit]]] = {
    "nothing": ([AddPrefix("a"), StripPrefix("a")], []),
    "a prefix": (
        [AddPrefix("net")],
        [*ALL, *(RenameModule("", m, f"net.{m}" if m else "net") for m in ("", "0", "1", "2"))],
    ),
    "one name": ([MapNames({"0.bias": "b"})], [Rename("", "0.bias", "b")]),
    "a module": (
        [Substitute(r"^0\.", "fc.")],
        [
            Rename("", "0.weight", "fc.weight"),
            Rename("", "0.bias", "fc.bias"),
            RenameModule("", "0", "fc"),
        ],
    ),
    "an exchange": (
        [MapNames({"0.bias": "0.weight", "0.weight": "0.bias"})],
        [Rename("", "0.weight", "0.bias"), Rename("", "0.bias", "0.weight")],
    ),
    "one rule after the other": (
        [Replace("bias", "b"), Replace("0.b", "0.c")],
        [Rename("", "0.bias", "0.c")],
    ),
}


@pytest.mark.parametrize("name", RENAMES)
def test_rename_is_planned_exactly(name: str, plain: Checkpoint) -> None:
    rules, edits = RENAMES[name]
    planned = plan_rename(plain, rules)
    assert list(planned.plan.edits) == edits or name == "nothing"
    assert [count.rule for count in planned.rules] == rules
    assert apply(planned.plan, plain).state_dicts[0].metadata is not None


def test_rename_counts_what_each_rule_changed(trained: Checkpoint) -> None:
    planned = plan_rename(trained, [Replace("0.", "fc."), Replace("running", "moving")])
    assert [count.matched for count in planned.rules] == [4, 2]
    assert planned.warnings == ()


def test_rename_leaves_other_state_dicts_out_of_step(trained: Checkpoint) -> None:
    planned = plan_rename(trained, [Replace("running", "moving")])
    assert planned.warnings == ("no name in 'ema' changes, so it is out of step with the others",)
    assert plan_rename(trained, [Replace("running", "moving")], at=["model"]).warnings == ()


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ([], UsageError, "no rule says what to rename"),
        ([StripPrefix("module")], UsageError, "changes no name"),
        ([AddPrefix("a"), Replace("zzz", "y")], UsageError, "changes no name"),
        ([MapNames({"0.bias": ""})], UsageError, "'0.bias' would get an empty name"),
        ([MapNames({"0.bias": "0.weight"})], NameCollisionError, "'0.weight' and '0.bias'"),
        ([Substitute(r"^\d\.", "")], None, ""),
        ([Substitute(r"^.*", "x")], NameCollisionError, "both be called 'x'"),
        ([Substitute(r"\..*", ".x")], NameCollisionError, "and 1 more such names"),
    ],
)
def test_senseless_rename_is_refused(
    rules: list[RewriteRule], error: type[Exception] | None, message: str, plain: Checkpoint
) -> None:
    if error is None:
        assert len(plan_rename(plain, rules).plan.edits) > len(NAMES) - 1
        return
    with pytest.raises(error, match=message):
        plan_rename(plain, rules)


# --- apply


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([Drop("modle", "0.bias")], "'modle', which is not there"),
        ([Rename("modle", "0.bias", "x")], "'modle', which is not there"),
        ([RenameModule("modle", "0", "x")], "'modle', which is not there"),
        ([DropOther("optimiser")], "'optimiser', which is not there"),
        ([Drop("model", "0.bis")], "'model/0.bis', which is not there"),
        ([Rename("model", "0.bis", "x")], "'model/0.bis', which is not there"),
        ([RenameModule("model", "9", "x")], "'model/_metadata/9', which is not there"),
        ([RenameModule("ema", "0", "x")], "'ema/_metadata/0', which is not there"),
    ],
)
def test_plan_of_what_is_not_there_is_refused(
    edits: list[Edit], message: str, trained: Checkpoint
) -> None:
    with pytest.raises(PlanError, match=message):
        apply(Plan(tuple(edits)), trained)


def test_misspelt_name_is_suggested(trained: Checkpoint) -> None:
    with pytest.raises(PlanError) as caught:
        apply(Plan((Drop("model", "2.runing_mean"),)), trained)
    assert caught.value.hint is not None
    assert "'2.running_mean'" in caught.value.hint


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([Rename("", "0.bias", "0.weight")], "2 entries the name '0.weight'"),
        ([Rename("", name, "x") for name in NAMES[:3]], "3 entries the name 'x'"),
        ([RenameModule("", "0", "2")], "2 entries the name '2'"),
    ],
)
def test_plan_that_would_lose_an_entry_is_refused(
    edits: list[Edit], message: str, plain: Checkpoint
) -> None:
    with pytest.raises(NameCollisionError, match=message):
        apply(Plan(tuple(edits)), plain)


def test_name_that_a_dropped_entry_leaves_can_be_taken(plain: Checkpoint) -> None:
    edits = (Drop("", "0.weight"), Rename("", "0.bias", "0.weight"))
    after = apply(Plan(edits), plain)
    assert after.state_dicts[0].names == ["0.weight", *NAMES[2:]]


def test_applying_leaves_the_description_as_it_was(trained: Checkpoint) -> None:
    before = [(s.path, s.names, list(s.metadata or ())) for s in trained.state_dicts]
    plan = plan_rename(trained, [AddPrefix("x")]).plan
    assert apply(plan, trained) != trained
    assert [(s.path, s.names, list(s.metadata or ())) for s in trained.state_dicts] == before


# --- order

on_files = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

ORDERS: dict[str, tuple[list[Edit], list[str]]] = {
    "renamed, then dropped": ([Rename("", "a", "x"), Drop("", "x")], ["b", "c"]),
    "renamed twice": ([Rename("", "a", "x"), Rename("", "x", "y")], ["y", "b", "c"]),
    "its name is taken": ([Rename("", "a", "x"), Rename("", "b", "a")], ["x", "a", "c"]),
    "the name of what was dropped": ([Drop("", "a"), Rename("", "b", "a")], ["a", "c"]),
    "an exchange": ([Rename("", "a", "b"), Rename("", "b", "a")], ["b", "a", "c"]),
    "names move up": (
        [Rename("", "b", "a"), Rename("", "c", "b"), Rename("", "a", "c")],
        ["c", "a", "b"],
    ),
    "and back": ([Rename("", "a", "b"), Rename("", "b", "a"), Rename("", "b", "x")],
                 ["x", "a", "c"]),
    "dropped under the new name of another": (
        [Rename("", "a", "x"), Rename("", "b", "a"), Drop("", "a")], ["x", "c"],
    ),
}  # fmt: skip


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Checkpoint]:
    with read(save({name: torch.zeros(2) for name in "abc"}, tmp_path / "w.pth")) as checkpoint:
        yield checkpoint


@pytest.mark.parametrize("case", ORDERS)
def test_edits_are_applied_in_their_order(case: str, three: Checkpoint) -> None:
    edits, names = ORDERS[case]
    assert apply(Plan(tuple(edits)), three).state_dicts[0].names == names


@pytest.mark.parametrize(
    ("edits", "error"),
    [
        ([Rename("", "b", "a"), Drop("", "a")], NameCollisionError),
        ([Rename("", "b", "a"), RenameModule("", "a", "b"), Drop("", "a")], NameCollisionError),
        ([Drop("", "a"), Drop("", "a")], PlanError),
        ([Drop("", "a"), Rename("", "a", "x")], PlanError),
        ([Rename("", "a", "x"), Rename("", "a", "y")], PlanError),
        ([Rename("", "a", "x"), Drop("", "a")], PlanError),
    ],
)
def test_what_is_wrong_in_this_order_is_refused(
    edits: list[Edit], error: type[Exception], three: Checkpoint
) -> None:
    with pytest.raises(error):
        apply(Plan(tuple(edits)), three)


some_names = st.sampled_from("abcdx")
some_edits = st.lists(
    st.builds(Rename, st.just(""), some_names, some_names)
    | st.builds(Drop, st.just(""), some_names),
    max_size=7,
)


def outcome(edits: Sequence[Edit], checkpoint: Checkpoint) -> Checkpoint | None:
    """The checkpoint after the edits; None if they are refused."""
    try:
        return apply(Plan(tuple(edits)), checkpoint)
    except PlanError:
        return None


@on_files
@given(some_edits, st.integers(0, 7))
def test_a_plan_is_its_halves_one_after_the_other(
    three: Checkpoint, edits: list[Edit], at: int
) -> None:
    """As far as the first half can stand alone: an exchange of names cannot be cut in two."""
    between = outcome(edits[:at], three)
    if between is not None:
        whole, parts = outcome(edits, three), outcome(edits[at:], between)
        assert (whole is None) == (parts is None)
        if whole is not None and parts is not None:
            assert whole.state_dicts == parts.state_dicts
            assert [e.tensor for e in whole.state_dicts[0].entries] == [
                e.tensor for e in parts.state_dicts[0].entries
            ]


@on_files
@given(st.permutations("abcde"))
def test_names_renamed_and_renamed_back_are_what_they_were(
    three: Checkpoint, names: list[str]
) -> None:
    there = [Rename("", old, new) for old, new in zip("abc", names, strict=False)]
    back = [Rename("", edit.new, edit.old) for edit in there]
    after = apply(Plan(tuple(there)), three)
    assert after.state_dicts[0].names == names[:3]
    assert apply(Plan(tuple(back)), after).state_dicts == three.state_dicts


def test_thousands_of_edits_take_linear_time() -> None:
    """Judged together: one by one they would take the square, a hundred million steps."""
    count = 15_000
    entries = tuple(Entry(str(n), None) for n in range(count))
    checkpoint = Checkpoint("torch-zip", (), None, (StateDict("", "model", entries),))
    shift = [Rename("", str(n), str(n + 1)) for n in range(count)]
    modules = Plan(tuple(shift))
    start = time.process_time()
    after = apply(modules, checkpoint)
    assert after.state_dicts[0].names == [str(n + 1) for n in range(count)]
    assert apply(Plan(tuple(Drop("", str(n)) for n in range(1, count))), after).state_dicts[0].names
    assert time.process_time() - start < 5


# --- as data

texts = st.text(max_size=5)
edits = st.one_of(
    st.builds(Drop, texts, texts),
    st.builds(Rename, texts, texts, texts),
    st.builds(RenameModule, texts, texts, st.none() | texts),
    st.builds(DropOther, texts),
    st.builds(Compact, st.integers(0, 2**40), st.integers(0, 9), st.booleans()),
)


@given(st.lists(edits, max_size=8).map(lambda found: Plan(tuple(found))))
def test_plan_goes_through_json(plan: Plan) -> None:
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_edit_is_plain_data() -> None:
    plan = Plan((Rename("model", "a", "b"), RenameModule("", "a", None), Compact(7)))
    assert plan.to_dict() == [
        {"edit": "rename", "state_dict": "model", "from": "a", "to": "b"},
        {"edit": "rename-module", "state_dict": "", "from": "a", "to": None},
        {"edit": "compact", "unused_nbytes": 7},
    ]


@pytest.mark.parametrize(
    "found",
    [
        None, 3, {"edit": "drop"}, "drop", [None], ["drop"], [3], [[]],
        [{}], [{"edit": "explode"}], [{"edit": "drop"}], [{"edit": []}],
        [{"edit": "drop", "state_dict": "", "name": "x", "more": 1}],
        [{"edit": "drop", "state_dict": [], "name": "x"}],
        [{"edit": "drop-entry", "path": {}}],
    ],
)  # fmt: skip
def test_what_is_no_plan_is_refused(found: Any) -> None:
    with pytest.raises(PlanError, match="not a list of edits"):
        Plan.from_dict(found)


# --- laws, on files

# Of two letters at least: strings of one are one object in CPython, so that pickles refer back
segments = st.sampled_from(["aa", "bb", "net", "10", "weight"])
dotted = st.lists(segments, min_size=1, max_size=4).map(".".join)
name_lists = st.lists(dotted, min_size=2, max_size=8, unique=True)


def modules_of(names: list[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in names}


def written(names: list[str], path: Path) -> Path:
    """A file in which every entry is different, the first and the last are tied, and a view."""
    value: OrderedDict[str, Any] = OrderedDict()
    for index, name in enumerate(names):
        value[name] = torch.full((index + 1,), float(index))
    value[names[-1]] = value[names[0]]
    modules = sorted(modules_of(names))
    value._metadata = OrderedDict((m, {"version": i}) for i, m in enumerate(modules))  # type: ignore[attr-defined]
    return save({"model": value, "epoch": 1}, path)


@on_files
@given(name_lists, st.sets(st.integers(0, 7), min_size=1))
def test_strip_twice_is_strip(tmp_path: Path, names: list[str], chosen: set[int]) -> None:
    keys = [name for index, name in enumerate(names) if index in chosen]
    if not keys or len(keys) == len(names):
        return
    path, once, twice = (tmp_path / part / "w.pth" for part in ("0", "1", "2"))
    for each in (path, once, twice):
        each.parent.mkdir(exist_ok=True)
    written(names, path)
    choice = Selection(selection(keys=keys).rules, allow_unmatched=True)
    strip(path, Output(once, force=True), choice)
    strip(once, Output(twice, force=True), choice)
    assert twice.read_bytes() == once.read_bytes()
    expected = load(path)
    for key in keys:
        del expected["model"][key]
    found = load(once)
    assert list(found["model"]) == list(expected["model"])
    assert dict(found["model"]).keys() == {name for name in names if name not in keys}
    assert_same(dict(found["model"]), dict(expected["model"]))


@on_files
@given(name_lists)
def test_rename_then_inverse_is_identity(tmp_path: Path, names: list[str]) -> None:
    path, there = tmp_path / "w.pth", tmp_path / "there" / "w.pth"
    there.parent.mkdir(exist_ok=True)
    before = written(names, path).read_bytes()
    rename(path, Output(there, force=True), [AddPrefix("module")])
    assert there.read_bytes() != before
    rename(there, Output(path, force=True), [StripPrefix("module")])
    assert path.read_bytes() == before
    new = {name: f"x{index}" for index, name in enumerate(names)}
    rename(path, Output(there, force=True), [MapNames(new)])
    rename(there, Output(path, force=True), [MapNames({v: k for k, v in new.items()})])
    assert dict(load(path)["model"]).keys() == dict.fromkeys(names).keys()
    written(names, there)
    assert_same(dict(load(path)["model"]), dict(load(there)["model"]))


@on_files
@given(name_lists, segments, segments)
def test_rename_loses_no_tensor_or_is_refused(
    tmp_path: Path, names: list[str], old: str, new: str
) -> None:
    path, out = written(names, tmp_path / "w.pth"), tmp_path / "out.pth"
    out.unlink(missing_ok=True)
    renamed = [name.replace(old, new) for name in names]
    try:
        report = rename(path, out, [Replace(old, new)])
    except (UsageError, NameCollisionError):
        assert renamed == names or len(set(renamed)) < len(names)
        assert not out.exists()
        return
    assert len(report.kept) + len(report.renamed) == len(names)
    found = load(out)["model"]
    assert list(found) == renamed
    assert_same(list(found.values()), list(load(path)["model"].values()))
    if len(modules_of(renamed)) == len(modules_of(names)):  # otherwise two became one
        versions = {m["version"] for m in found._metadata.values()}
        assert versions == {m["version"] for m in load(path)["model"]._metadata.values()}


@on_files
@given(name_lists, segments)
def test_dry_run_touches_nothing_and_says_the_same(
    tmp_path: Path, names: list[str], old: str
) -> None:
    path, out = written(names, tmp_path / "w.pth"), tmp_path / "out.pth"
    before = path.read_bytes(), path.stat().st_mtime_ns, sorted(tmp_path.iterdir())
    try:
        report = rename(path, Output(out, dry_run=True, force=True), [Replace(old, "zzz")])
    except UsageError:
        return
    assert (path.read_bytes(), path.stat().st_mtime_ns, sorted(tmp_path.iterdir())) == before
    real = rename(path, Output(out, force=True), [Replace(old, "zzz")])
    assert out.stat().st_size == report.nbytes_after
    assert report.to_dict() | {"output": str(out)} == real.to_dict()
    out.unlink()
