"""Recipes in TOML: what they say, and what is wrong with them."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_surgery.errors import CkptError, ReadError, UsageError
from ckpt_surgery.merge.method import find
from ckpt_surgery.merge.recipe import (
    MergeInput,
    MergeRecipe,
    Override,
    parse_selector,
    parse_weight_for,
)
from ckpt_surgery.merge.recipe_file import _MAX_BYTES, _parse_toml, read_recipe

FULL = """
method = "ties"
base = "base.pth"
dtype = "float16"
seed = 7
int = "max"

[parameters]
density = 0.5
lambda = 0.9

[[inputs]]
file = "a.pth"
weight = 0.7
density = 0.3

[[inputs]]
file = "b.pth"
weight = 0.3

[[for]]
select = "prefix:layer4"
weight = [0.2, 0.8]

[[for]]
select = "pattern:bias$"
density = 1.0
lambda = 0.1

[[for]]
select = "glob:fc.*"
skip = true
"""


def test_everything_that_a_recipe_can_say():
    recipe = _parse_toml(FULL)
    assert recipe.method is find("ties")
    assert [entry.file for entry in recipe.inputs] == ["a.pth", "b.pth"]
    assert (recipe.base, recipe.dtype, recipe.seed, recipe.integers) == (
        "base.pth",
        "float16",
        7,
        "max",
    )
    plain = recipe.settings()
    assert plain.weights == (0.7, 0.3)
    assert plain.each("density") == (0.3, 0.5)
    assert plain.number("lambda") == 0.9
    layer4, bias, fc = recipe.overrides
    assert (layer4.kind, layer4.text) == ("prefix", "layer4")
    assert recipe.settings([layer4]).weights == (0.2, 0.8)
    assert recipe.settings([layer4]).each("density") == (0.3, 0.5)
    assert recipe.settings([bias]).each("density") == (1.0, 1.0)
    both = recipe.settings([layer4, bias])
    assert (both.weights, both.number("lambda")) == ((0.2, 0.8), 0.1)
    assert fc == Override("glob", "fc.*", {}, skip=True)


def test_the_first_override_wins_value_by_value():
    recipe = _parse_toml(FULL)
    first = Override("all", values={"density": (None, 0.25)})
    second = Override("all", values={"density": 0.75, "lambda": 2.0})
    assert recipe.settings([first, second]).each("density") == (0.75, 0.25)
    assert recipe.settings([first]).each("density") == (0.3, 0.25)
    assert recipe.settings([second, first]).each("density") == (0.75, 0.75)


def test_without_weights_each_is_one():
    recipe = _parse_toml('method = "linear"\n[[inputs]]\nfile = "a"\n[[inputs]]\nfile = "b"\n')
    assert recipe.settings().weights == (1.0, 1.0)
    assert recipe.integers == "auto"


TWO = '[[inputs]]\nfile = "a"\n[[inputs]]\nfile = "b"\n'


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("method = ", "is no TOML", None),
        ("[[inputs]]\n", "'method' is missing", None),
        ("method = 3\n", "'method' must be a text", None),
        ('method = "avarage"\n' + TWO, "unknown method 'avarage'", "'average'"),
        ('method = "average"\n', "needs 'inputs'", None),
        ('method = "average"\ninputs = [1]\n', "'inputs' must be a table", None),
        ('method = "average"\n[[inputs]]\n', "'file' is missing", None),
        ('methd = "average"\n' + TWO, "has no 'methd'", "'method'"),
        ('method = "average"\nzzz = 1\n' + TWO, "has no 'zzz'", "it knows method"),
        ('method = "average"\nseed = "x"\n' + TWO, "'seed' must be a whole number", None),
        ('method = "average"\nseed = true\n' + TWO, "'seed' must be a whole number", None),
        ('method = "average"\nint = "median"\n' + TWO, "'int' must be one of auto", None),
        ('method = "average"\ndtype = "int8"\n' + TWO, "a floating type, got 'int8'", None),
        ('method = "average"\ndtype = "float17"\n' + TWO, "floating type", "'float16'"),
        ('method = "ties"\n' + TWO, "needs a base", None),
        ('method = "slerp"\n' + TWO, "needs 't'", None),
        ('method = "average"\nparameters = 3\n' + TWO, "'parameters' must be a table", None),
        ('method = "linear"\n[parameters]\nweight = [1, 2, 3]\n' + TWO, "3 weights for 2", None),
        ('method = "linear"\n' + TWO + "weight = 2\n", "input 'a' has no weight", "0 is a weight"),
        ('method = "linear"\n' + TWO + "wait = 2\n", "no parameter 'wait'", None),
        ('method = "ties"\nbase = "c"\n' + TWO + "density = 2\n", "from 0 to 1, got 2", None),
        (
            'method = "linear"\n' + TWO + '[[for]]\nselect = "prefix:x"\nweight = [1]\n',
            "1 weight for 2 inputs",
            None,
        ),
        (
            'method = "linear"\n' + TWO + '[[for]]\nselect = "prefix:x"\n',
            "either values or 'skip = true'",
            None,
        ),
        (
            'method = "linear"\n' + TWO + '[[for]]\nselect = "x"\nskip = true\n',
            "'x' selects nothing",
            "prefix:NAME",
        ),
        (
            'method = "linear"\n' + TWO + '[[for]]\nselect = "all"\nskip = 1\n',
            "'skip' must be true or false",
            None,
        ),
        ("x = " + "[" * 5000, "is no TOML", None),
    ],
)
def test_wrong_recipes_are_refused(text, message, hint):
    with pytest.raises((UsageError, ReadError)) as caught:
        _parse_toml(text)
    assert message in str(caught.value)
    if hint:
        assert hint in caught.value.hint


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "merge.toml"
    with pytest.raises(ReadError, match="cannot be read"):
        read_recipe(path)
    path.write_text('method = "nothing"')
    with pytest.raises(UsageError) as caught:
        read_recipe(path)
    assert caught.value.path == path
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ReadError, match="no text in UTF-8"):
        read_recipe(path)
    path.write_bytes(b"#" * (_MAX_BYTES + 1))
    with pytest.raises(ReadError, match="larger than any recipe"):
        read_recipe(path)
    path.write_text(FULL)
    assert read_recipe(path) == _parse_toml(FULL)


def test_weights_for_a_selection_on_the_command_line():
    override = parse_weight_for("prefix:layer4=0.3, 0.7")
    assert override == Override("prefix", "layer4", {"weight": (0.3, 0.7)})
    assert parse_weight_for("pattern:a=b=1").text == "a=b"
    for wrong in ("prefix:layer4", "layer4=1,2", "prefix:=1", "prefix:a=1,x", "prefix:a="):
        with pytest.raises(UsageError):
            parse_weight_for(wrong)
    assert parse_selector("all") == ("all", "")


def test_a_recipe_from_code_is_checked_too():
    inputs = (MergeInput("a"), MergeInput("b"))
    with pytest.raises(UsageError, match="3 weights for 2 inputs"):
        MergeRecipe(find("linear"), inputs, values={"weight": [1, 2, 3]})
    skipped = Override("all", skip=True)
    assert MergeRecipe(find("average"), inputs, overrides=(skipped,)).overrides == (skipped,)


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet='method="averag\n[]inputsfile= 0.{}', max_size=80))
def test_any_text_is_a_recipe_or_an_error_of_ours(text):
    with contextlib.suppress(CkptError):
        _parse_toml(text)


def test_reading_a_recipe_imports_no_torch():
    code = (
        "import sys\n"
        "from ckpt_surgery.merge.recipe_file import _parse_toml\n"
        f"_parse_toml({FULL!r})\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
