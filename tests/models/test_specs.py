"""What the user writes for a model, its arguments and its changed layers."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_surgery.errors import UsageError
from ckpt_surgery.models.specs import (
    ModelSpec,
    Setting,
    _parse_value,
    parse_arguments,
    parse_settings,
)
from ckpt_surgery.names.suggest import near_hint


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-1_000", -1000),
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        (".5", 0.5),
        ("true", True),
        ("False", False),
        ("none", None),
        ("null", None),
        ("[3, 4, 6, 3]", [3, 4, 6, 3]),
        ("[true, null, 'x']", [True, None, "x"]),
        ("(1, 2)", (1, 2)),
        ('{"a": [1]}', {"a": [1]}),
        ('"5"', "5"),
        ("'true'", "true"),
        ("['true story']", ["true story"]),
        ("relu", "relu"),
        ("3x3", "3x3"),
        ("nan", "nan"),
        ("", ""),
    ],
)
def test_a_value_has_the_type_it_looks_like(text: str, value: Any) -> None:
    parsed = _parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["[1, 2", "(", "{'a'}}", "'", "[print(1)]", "[" * 100_000])
def test_a_malformed_literal_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="is not a list"):
        _parse_value(text)


@given(st.text(max_size=40))
def test_any_text_is_a_value_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        _parse_value(text)


@given(st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False))
def test_what_python_prints_is_read_back(value: Any) -> None:
    assert _parse_value(repr(value)) == value


def test_arguments_are_named_and_typed() -> None:
    assert parse_arguments(["a=1", "b = x=y"]) == {"a": 1, "b": " x=y"}


@pytest.mark.parametrize("text", ["a", "=1", "1a=2", "a-b=1"])
def test_a_malformed_argument_is_an_error(text: str) -> None:
    with pytest.raises(UsageError, match="is not an argument"):
        parse_arguments([text])


def test_an_argument_given_twice_is_an_error() -> None:
    with pytest.raises(UsageError, match="'a' is given twice"):
        parse_arguments(["a=1", "a=2"])


def test_settings_name_module_attribute_and_value() -> None:
    found = parse_settings(["classifier.1.out_channels=20", "fc.bias=false"])
    assert found == (Setting("classifier.1", "out_channels", 20), Setting("fc", "bias", False))
    assert str(found[0]) == "classifier.1.out_channels=20"


@pytest.mark.parametrize("text", ["fc=5", "fc.out_features", ".x=1", "fc.=1", "fc.a-b=1", "=1"])
def test_a_malformed_setting_is_an_error(text: str) -> None:
    with pytest.raises(UsageError, match="does not set an attribute"):
        parse_settings([text])


def test_an_attribute_set_twice_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"'fc\.bias' is set twice"):
        parse_settings(["fc.bias=true", "fc.bias=false"])


def test_a_spec_has_a_source_and_a_name() -> None:
    spec = ModelSpec("torchvision:resnet18")
    assert (spec.source, spec.name, spec.is_torchvision, str(spec)) == (
        "torchvision",
        "resnet18",
        True,
        "torchvision:resnet18",
    )
    assert not ModelSpec("package.module:make").is_torchvision


@pytest.mark.parametrize("text", ["resnet18", "torchvision:", ":make", "", ":"])
def test_a_spec_without_both_is_an_error(text: str) -> None:
    with pytest.raises(UsageError, match="does not name a model"):
        ModelSpec(text)


def test_a_hint_names_the_near_ones_only() -> None:
    assert near_hint("resnet5", ["resnet50", "vgg"]) == "did you mean 'resnet50'?"
    assert near_hint("resnet5", ["resnet50", "resnet152"]) is not None
    assert near_hint("x", ["resnet50"]) is None
