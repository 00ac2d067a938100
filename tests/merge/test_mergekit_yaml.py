"""mergekit's configurations: the same numbers, or a refusal."""

from __future__ import annotations

import importlib
import json
import re

import pytest
import torch

from ckpt_surgery.edits.inputs import Inputs
from ckpt_surgery.edits.plan import Plan
from ckpt_surgery.errors import MissingDependencyError, ReadError, UsageError
from ckpt_surgery.formats import read
from ckpt_surgery.merge import mergekit_yaml
from ckpt_surgery.merge.layered import _evaluate
from ckpt_surgery.merge.mergekit_yaml import _from_config
from ckpt_surgery.merge.recipe_file import read_recipe
from ckpt_surgery.ops.merge import merge_recipe
from ckpt_surgery.writing.output import Output
from ckpt_surgery.writing.write import write


def model(path, **parameters):
    return {"model": path, "parameters": parameters} if parameters else {"model": path}


def ties(**more):
    return {
        "merge_method": "ties",
        "base_model": "base",
        "models": [
            model("base"),
            model("a", weight=0.5, density=0.4),
            model("b", weight=[{"filter": "mlp", "value": 0.3}, {"value": 0.9}]),
        ],
        "parameters": {"normalize": False, "lambda": 0.7, "density": 0.6},
        **more,
    }


def matching(recipe, name):
    """What the caller will do: the overrides whose selector takes the name."""
    return [
        override
        for override in recipe.overrides
        if override.kind == "all" or re.search(override.text, name)
    ]


def settings(recipe, name):
    return recipe.settings(matching(recipe, name))


def test_models_parameters_and_filters():
    recipe = _from_config(ties(dtype="bfloat16"))
    assert recipe.base == "base"
    assert [entry.file for entry in recipe.inputs] == ["a", "b"]
    assert recipe.dtype == "bfloat16"
    mlp, rest = settings(recipe, "layers.0.mlp.weight"), settings(recipe, "norm.weight")
    assert (mlp.weights, rest.weights) == ((0.5, 0.3), (0.5, 0.9))
    assert rest.each("density") == (0.4, 0.6)
    assert (rest.flag("normalize"), rest.number("lambda")) == (False, 0.7)
    assert _from_config(ties(dtype="float16", out_dtype="float32")).dtype == "float32"


def test_a_models_own_value_goes_before_a_common_filter():
    config = ties()
    config["parameters"]["density"] = [{"filter": "mlp", "value": 0.1}, {"value": 0.2}]
    recipe = _from_config(config)
    assert settings(recipe, "mlp").each("density") == (0.4, 0.1)
    assert settings(recipe, "norm").each("density") == (0.4, 0.2)


def test_a_filter_is_a_part_of_the_name_and_no_expression():
    config = ties()
    config["parameters"]["lambda"] = [{"filter": "0.w", "value": 0.1}, {"filter": "*", "value": 2}]
    recipe = _from_config(config)
    assert settings(recipe, "layers.0.w").number("lambda") == 0.1
    assert settings(recipe, "layers.0xw").number("lambda") == 2


def test_a_single_condition_needs_no_list():
    config = ties()
    config["parameters"]["lambda"] = {"filter": "mlp", "value": "1e-1"}
    recipe = _from_config(config)
    assert settings(recipe, "mlp").number("lambda") == 0.1
    assert settings(recipe, "norm").number("lambda") == 1.0


def test_defaults_are_mergekits():
    config = {
        "merge_method": "dare_ties",
        "base_model": "base",
        "models": [model("a", weight=1.0)],
    }
    plain = _from_config(config).settings()
    assert (plain.text("rescale"), plain.flag("normalize")) == ("none", False) or (
        plain.text("rescale"),
        plain.flag("normalize"),
    ) == ("l1", False)
    assert plain.text("rescale") == "l1"
    config["parameters"] = {"rescale": False}
    assert _from_config(config).settings().text("rescale") == "none"
    config["parameters"] = {"rescale": True, "int8_mask": True}
    recipe = _from_config(config)
    assert recipe.settings().text("rescale") == "l1"
    assert recipe.notes == ("'int8_mask' has no effect on 'dare-ties'",)


def test_what_is_not_used_is_said():
    recipe = _from_config(
        {
            "merge_method": "task_arithmetic",
            "base_model": "base",
            "chat_template": "auto",
            "models": [model("a", weight=1.0, density=0.5)],
        }
    )
    assert recipe.notes == (
        "'chat_template' concerns no tensor and is not used",
        "'density' has no effect on 'task-arithmetic'",
    )


def test_the_base_comes_first_of_two():
    for models in ([model("b"), model("a")], [model("a"), model("b")], [model("b")]):
        recipe = _from_config(
            {
                "merge_method": "slerp",
                "base_model": "a",
                "models": models,
                "parameters": {"t": 0.25},
            }
        )
        assert [entry.file for entry in recipe.inputs] == ["a", "b"]
        assert recipe.settings().number("t") == 0.25


def test_a_path_may_be_written_as_mergekit_writes_it():
    recipe = _from_config(
        {
            "merge_method": "passthrough",
            "models": [{"model": {"model": {"path": "a"}}, "parameters": {"scale": 0.5}}],
        }
    )
    assert recipe.inputs[0].file == "a"
    assert settings(recipe, "w").each("scale") == (0.5,)


def test_methods_without_weights_need_none():
    for name in ("karcher", "model_stock", "sce"):
        recipe = _from_config(
            {
                "merge_method": name,
                "base_model": "a",
                "models": [model("a"), model("b"), model("c")],
                "parameters": {"filter_wise": False} if name == "model_stock" else {},
            }
        )
        assert recipe.notes == ()


def sliced(slices):
    """What makes of a configuration one of slices."""
    return {"models": None, "slices": slices}


def of_layers(name, found):
    return sliced([{"sources": [{"model": name, "layer_range": found}]}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slices": []}, "'models' and 'slices' contradict"),
        ({"modules": {}}, "'modules' puts a model together from parts"),
        ({"merge_method": "tis"}, "unknown method 'tis'"),
        ({"merge_method": "median"}, "mergekit has no method 'median'"),
        ({"merge_method": None}, "'merge_method' must be a text"),
        ({"models": None}, "needs 'models'"),
        (sliced([]), "'slices' is an empty list"),
        (sliced([{"sources": []}]), "a slice has no sources"),
        (
            sliced([{"sources": [{"model": "base", "layer_range": 3}]}]),
            "must be two numbers, got 3",
        ),
        (
            sliced([{"sources": [{"model": "base", "layer_range": [0, True]}]}]),
            "must be two numbers",
        ),
        (sliced([{"sources": [{"model": "base"}]}]), "must be two numbers, got None"),
        (sliced([{"source": []}]), "a slice has no 'source'"),
        (
            sliced([{"sources": [{"model": "a", "layer_range": [0, 1]}]}]),
            "is not among the sources",
        ),
        ({"models": [{"model": 3}]}, "must be the path of a file, got 3"),
        ({"models": [{"model": "a", "weight": 1}]}, "a model has no 'weight'"),
        ({"models": [model("a")]}, "model 'a' has no weight"),
        ({"models": [model("a", weight=[{"filter": "x", "value": 1}])]}, "has no weight"),
        ({"models": [model("a", weight=[])]}, "'weight' is an empty list"),
        ({"models": [model("a", weight={"value": 1, "filtr": "x"})]}, "has no 'filtr'"),
        ({"models": [model("a", weight=1, rank=3)]}, "no parameter 'rank'"),
        ({"parameters": [1]}, "'parameters' must be a table"),
        ({"merge_mthod": "ties"}, "has no 'merge_mthod'"),
        ({"base_model": None}, "needs a base"),
        (
            {"merge_method": "linear", "base_model": "c", "models": [model("a", weight=1)]},
            "'base_model' 'c' is not among the models",
        ),
    ],
)
def test_what_we_do_not_do_is_refused(change, message):
    with pytest.raises(UsageError) as caught:
        _from_config(ties(**change))
    assert message in str(caught.value)


def test_a_base_among_the_models_stays_an_input_of_linear():
    recipe = _from_config(
        {
            "merge_method": "linear",
            "base_model": "b",
            "models": [model("a", weight=1), model("b", weight=3)],
        }
    )
    assert (recipe.base, recipe.settings(recipe.overrides).weights) == ("b", (1.0, 3.0))


def test_yaml_without_the_package_says_what_to_install(monkeypatch, tmp_path):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(mergekit_yaml.importlib, "import_module", missing)
    path = tmp_path / "merge.yml"
    path.write_text("merge_method: linear")
    with pytest.raises(MissingDependencyError) as caught:
        read_recipe(path)
    assert "pyyaml" in caught.value.hint


@pytest.fixture
def yaml():
    return pytest.importorskip("yaml")


@pytest.mark.usefixtures("yaml")
def test_yaml_is_read(tmp_path):
    path = tmp_path / "merge.yaml"
    path.write_text(
        "merge_method: linear\nmodels:\n- {model: a.pth, parameters: {weight: 1}}\n"
        "- {model: b.pth, parameters: {weight: 0}}\nparameters: {normalize: true}\n"
    )
    recipe = read_recipe(path)
    assert recipe.settings(recipe.overrides).weights == (1.0, 0.0)


@pytest.mark.usefixtures("yaml")
@pytest.mark.parametrize("text", ["a: [", "!!python/object:os.x {}", "[" * 5000, "a: \x01"])
def test_what_is_no_yaml_is_refused(text):
    with pytest.raises(ReadError, match="is no YAML"):
        mergekit_yaml.parse(text)


def test_a_parser_error_is_one_line(monkeypatch):
    class Broken:
        class YAMLError(Exception):
            pass

        @staticmethod
        def safe_load(_text):
            raise RecursionError

    monkeypatch.setattr(importlib, "import_module", lambda _name: Broken)
    with pytest.raises(ReadError, match="is no YAML"):
        mergekit_yaml.parse("x")


def layers(tmp_path, name, count, start=0.0, **more):
    weights = {f"model.layers.{i}.mlp.weight": torch.full((2,), start + i) for i in range(count)}
    weights |= {"model.embed_tokens.weight": torch.full((2,), start - 1), **more}
    weights["lm_head.weight"] = torch.full((2,), start + 9)
    torch.save(weights, tmp_path / name)
    return str(tmp_path / name)


def carried_out(config, tmp_path):
    (tmp_path / "merge.yaml").write_text(json.dumps(config))
    merge_recipe(tmp_path / "merge.yaml", Output(tmp_path / "out.pth", force=True))
    return torch.load(tmp_path / "out.pth")


def test_layers_are_put_together_and_what_is_around_them_is_of_the_ends(tmp_path):
    one, two = layers(tmp_path, "a.pth", 3), layers(tmp_path, "b.pth", 4, 100.0)
    config = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": one, "layer_range": [0, 2]}]},
            {"sources": [{"model": two, "layer_range": [1, 3]}]},
            {"sources": [{"model": two, "layer_range": [1, 2]}]},
        ],
    }
    found = carried_out(config, tmp_path)
    assert {name: float(value[0]) for name, value in found.items()} == {
        "model.embed_tokens.weight": -1,
        **{f"model.layers.{i}.mlp.weight": v for i, v in enumerate([0, 1, 101, 102, 101])},
        "lm_head.weight": 109,
    }
    third, last = (found[f"model.layers.{i}.mlp.weight"] for i in (2, 4))
    assert third.data_ptr() != last.data_ptr()


def test_a_plan_of_layers_is_carried_out_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layers(tmp_path, "a.pth", 3)
    layers(tmp_path, "b.pth", 3, 50.0)
    both = [{"model": "a.pth", "layer_range": [0, 3]}, {"model": "b.pth", "layer_range": [0, 3]}]
    both[0]["parameters"] = {"weight": [0.0, 1.0]}
    settings = {"weight": 0.5}
    config = {"merge_method": "linear", "slices": [{"sources": both, "parameters": settings}]}
    (tmp_path / "merge.yaml").write_text(json.dumps(config))
    report = merge_recipe("merge.yaml", "out.pth")
    plan = Plan.from_dict(json.loads(json.dumps(report.to_dict()))["plan"])
    (tmp_path / "again").mkdir()
    with read("a.pth") as base, Inputs(read=read) as inputs:
        write(plan.apply(base, inputs), Output("again/out.pth"), inputs=inputs.sources)
    assert (tmp_path / "again" / "out.pth").read_bytes() == (tmp_path / "out.pth").read_bytes()


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        (([0, 3], [0, 2]), "different numbers of layers: 2, 3"),
        (([0, 5], [0, 5]), "no layers 0 to 5: it has 3"),
        (([2, 1], [0, 1]), "no layers 2 to 1"),
    ],
)
def test_layers_that_are_not_there_are_refused(ranges, words, tmp_path):
    files = [layers(tmp_path, f"{name}.pth", 3) for name in "ab"]
    pairs = zip(files, ranges, strict=True)
    sources = [{"model": file, "layer_range": found} for file, found in pairs]
    config = {"merge_method": "linear", "slices": [{"sources": sources}]}
    with pytest.raises(UsageError, match=words):
        carried_out({**config, "parameters": {"weight": 1}}, tmp_path)
    sources[1]["layer_range"] = sources[0]["layer_range"] = [0, 1]
    with pytest.raises(UsageError, match="has no weight for"):
        carried_out(config, tmp_path)


def test_two_lists_of_layers_have_no_gradient(tmp_path):
    more = {f"decoder.block.{i}.w": torch.ones(2) for i in range(3)}
    one, two = layers(tmp_path, "a.pth", 3, **more), layers(tmp_path, "b.pth", 3, **more)
    models = [{"model": one, "parameters": {"weight": [0, 1]}}]
    models += [{"model": two, "parameters": {"weight": 1}}]
    with pytest.raises(UsageError, match="several lists of layers"):
        carried_out({"merge_method": "linear", "models": models}, tmp_path)
    torch.save({"a.w": torch.ones(2)}, tmp_path / "a.pth")
    with pytest.raises(UsageError, match="there are no layers"):
        carried_out({"merge_method": "linear", "models": models}, tmp_path)


@pytest.mark.parametrize(
    ("setting", "t", "value"),
    [
        (3, 0.5, 3),
        ([0, 10], 0.25, 2.5),
        ([1, 5, 2], 1.0, 2),
        ([7], 0.4, 7),
        (["a", "b"], 0.5, "a"),
        ([True, False], 1.0, False),
        ([{"filter": "mlp", "value": [0, 1]}, {"filter": "*", "value": 4}], 0.5, 0.5),
        ([{"filter": "attn", "value": 1}], 0.5, None),
        ({"filter": "mlp", "value": 2}, 0.5, 2),
        ([], 0.5, None),
    ],
)
def test_a_setting_has_a_value_at_every_layer(setting, t, value):
    assert _evaluate(setting, "layers.0.mlp.weight", t) == value
