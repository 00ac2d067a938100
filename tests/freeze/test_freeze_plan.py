import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from freeze_helpers import NET, plan, prefix

from ckpt_surgery.errors import CkptError, DamagedFileError, LimitExceededError, UsageError
from ckpt_surgery.freeze import plan as plan_module
from ckpt_surgery.freeze.build import FreezeRecipe, FreezeRule, GroupRule, Stage
from ckpt_surgery.freeze.emit import EMITTERS, _to_json, _to_python, _to_toml
from ckpt_surgery.freeze.plan import FreezeSchedule, Group, PlannedParameter
from ckpt_surgery.training.parameters import Inventory, NamedEntry

RECIPE = FreezeRecipe(
    [FreezeRule("freeze", prefix("conv1")), FreezeRule("freeze", prefix("bn1"))],
    [GroupRule(prefix("fc"), {"lr": 1e-05, "betas": (0.9, 0.95), "nesterov": False})],
    [Stage(2, prefix("layer1.1"))],
    lr=1e-3,
    layer_decay=0.75,
    no_decay=("bias",),
)
TIED = Inventory.of(
    [*NET, NamedEntry("fc2.weight", (3, 3), tie=1), NamedEntry('o"d\\\x7f.ä', (3, 3), tie=1)]
)


def made() -> FreezeSchedule:
    return plan(RECIPE, TIED)


def document() -> dict[str, Any]:
    return made().to_dict()


def test_from_dict_of_to_dict_is_identity() -> None:
    assert FreezeSchedule.from_dict(document()) == made()
    assert FreezeSchedule.from_dict(made().at(7).to_dict()) == made().at(7)


def test_from_json_of_to_json_is_identity(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    path.write_text(_to_json(made()), encoding="utf-8")
    assert FreezeSchedule.load(path) == made()
    assert json.loads(_to_json(made())) == document()


def test_from_toml_of_to_toml_is_identity(tmp_path: Path) -> None:
    path = tmp_path / "plan.whatever"
    path.write_text(_to_toml(made()), encoding="utf-8")
    assert FreezeSchedule.load(path) == made()


def test_toml_leaves_out_only_nulls() -> None:
    def without_nulls(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without_nulls(v) for k, v in value.items() if v is not None}
        return [without_nulls(v) for v in value] if isinstance(value, list) else value

    assert tomllib.loads(_to_toml(made())) == without_nulls(document())


def test_the_emitters_are_those_of_the_command_line() -> None:
    assert list(EMITTERS) == ["json", "toml", "python"]


def test_totals_add_up() -> None:
    trainable, frozen = made().totals
    assert trainable.parameters + frozen.parameters == len(made().parameters)
    assert frozen.elements == (4 * 3 * 9 + 8) + (4 * 4 * 9 + 8)
    assert frozen.nbytes == {
        "weights": 4 * frozen.elements,
        "gradients": 4 * frozen.elements,
        "sgd": 0,
        "momentum": 4 * frozen.elements,
        "adam": 8 * frozen.elements + 4 * frozen.parameters,
    }
    share = document()["totals"]["share"]
    assert share == trainable.elements / (trainable.elements + frozen.elements)


def test_totals_are_those_of_the_epoch() -> None:
    assert made().at(2).totals[1].elements == 4 * 3 * 9 + 8
    assert made().at(2).to_dict()["totals"]["frozen"]["parameters"] == 3


def test_a_group_counts_what_trains_now() -> None:
    counts = {g["name"]: g["parameters"] for g in document()["groups"]}
    assert sum(counts.values()) == len(made().trainable)
    later = {g["name"]: g["parameters"] for g in made().at(2).to_dict()["groups"]}
    assert sum(later.values()) == len(made().at(2).trainable)


def test_an_epoch_before_the_first_is_refused() -> None:
    with pytest.raises(UsageError, match="epoch -1"):
        made().at(-1)


def changed(**fields: Any) -> dict[str, Any]:
    return {**document(), **fields}


def with_parameter(**fields: Any) -> dict[str, Any]:
    first, *rest = document()["parameters"]
    return changed(parameters=[{**first, **fields}, *rest])


def with_group(**fields: Any) -> dict[str, Any]:
    first, *rest = document()["groups"]
    return changed(groups=[{**first, **fields}, *rest])


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        changed(kind="other"),
        changed(schema=2),
        changed(epoch=-1),
        changed(epoch=True),
        changed(parameters=None),
        changed(parameters=["x"]),
        changed(groups={}),
        changed(warnings="text"),
        changed(statistics=[1]),
        changed(statistics="bn"),
        changed(warnings=[{"code": 1}]),
        changed(groups=[document()["groups"][0]] * 2),
        with_parameter(index=5),
        with_parameter(index=-1),
        with_parameter(name=3),
        with_parameter(name="fc.bias"),
        with_parameter(aliases=["fc.bias"]),
        with_parameter(shape="64"),
        with_parameter(shape=[1.5]),
        with_parameter(dtype="float33"),
        with_parameter(frozen=None),
        with_parameter(frozen=False),
        with_parameter(frozen=False, group="nowhere"),
        with_parameter(frozen=True, train_from=0, group="fc"),
        with_parameter(frozen=False, train_from=3, group="fc"),
        with_parameter(group=7),
        with_group(name=None),
        with_group(options=[]),
        with_group(options={"lrr": 1}),
        with_group(options={"lr": float("nan")}),
        with_group(options={"lr": [1]}),
        with_group(lr_scale="big"),
        with_group(lr_scale=True),
    ],
)
def test_a_document_that_is_no_valid_plan_is_refused(wrong: object) -> None:
    with pytest.raises(UsageError):
        FreezeSchedule.from_dict(wrong)


def test_a_plan_may_be_edited_by_hand() -> None:
    edited = FreezeSchedule.from_dict(with_parameter(frozen=False, group="fc"))
    assert edited.parameters[0].train_from == 0


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", UsageError),
        (b"{", DamagedFileError),
        (b"= 3", DamagedFileError),
        (b"\xff\xfe", DamagedFileError),
        (b'{"a":' * 100_000, DamagedFileError),
        (b"[[", DamagedFileError),
    ],
)
def test_a_damaged_file_is_an_error_of_ours(
    tmp_path: Path, content: bytes, error: type[CkptError]
) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(error):
        FreezeSchedule.load(path)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the plan"):
        FreezeSchedule.load(tmp_path / "none.json")


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "_MAX_DOCUMENT_BYTES", 10)
    path = tmp_path / "plan.json"
    path.write_bytes(b"x" * 11)
    with pytest.raises(LimitExceededError):
        FreezeSchedule.load(path)


def test_a_trainable_parameter_needs_a_group() -> None:
    with pytest.raises(UsageError, match="in no group"):
        FreezeSchedule((PlannedParameter(0, "w", (1,), "float32", 0, "g"),), ())
    with pytest.raises(UsageError, match="one name"):
        FreezeSchedule((), (Group("g", {}), Group("g", {})))


def test_an_empty_plan_has_no_share() -> None:
    empty = FreezeSchedule((), ())
    assert empty.to_dict()["totals"]["share"] == 0.0
    assert "RULES = {}" in _to_python(empty)
    assert FreezeSchedule.from_dict(tomllib.loads(_to_toml(empty))) == empty


def test_emitted_python_says_a_subtree_with_one_fate_in_one_line() -> None:
    text = _to_python(plan(FreezeRecipe([FreezeRule("freeze", prefix("layer1"))])))
    assert "'layer1': (None, None)," in text
    assert "layer1.0" not in text


def test_emitted_python_imports_nothing() -> None:
    text = _to_python(made())
    assert "import" not in text.replace("needs only the model", "")
    compile(text, "plan.py", "exec")


def test_a_name_that_is_no_unicode_goes_through_json_alone(tmp_path: Path) -> None:
    odd = plan(FreezeRecipe(), Inventory.of([NamedEntry("a.\ud800", (1,))]))
    path = tmp_path / "plan.json"
    path.write_text(_to_json(odd), encoding="utf-8")
    assert FreezeSchedule.load(path) == odd
    with pytest.raises(UsageError, match="not valid Unicode"):
        _to_toml(odd)


def test_a_name_longer_than_any_honest_one_is_refused() -> None:
    with pytest.raises(LimitExceededError):
        plan(FreezeRecipe(), Inventory.of([NamedEntry("a." * 5000, (1,))]))
    with pytest.raises(LimitExceededError):
        FreezeSchedule.from_dict(with_parameter(name="a." * 5000))
    with pytest.raises(UsageError, match="whole number"):
        FreezeSchedule.from_dict(with_parameter(shape=[2**63]))
