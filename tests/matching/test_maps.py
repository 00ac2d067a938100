"""Proposed maps are read back as they were written."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_surgery.errors import UsageError
from ckpt_surgery.matching.correspondence import correspond
from ckpt_surgery.matching.maps import _format_map, _MapFormat, check_map, format_proposal
from ckpt_surgery.models.target import TensorSpec
from ckpt_surgery.names.rewrite import parse_name_map

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@pytest.mark.parametrize("form", ["toml", "json"])
@given(renames=st.dictionaries(_TEXT, _TEXT, max_size=6), comment=st.text(max_size=10))
def test_a_map_is_read_back(form: _MapFormat, renames: dict[str, str], comment: str) -> None:
    printable = "".join(c for c in comment if c.isprintable())
    text = _format_map(renames, form, comment=printable)
    assert dict(parse_name_map(text, "map").names) == renames


@pytest.mark.parametrize("form", ["toml", "json"])
def test_a_name_that_is_no_text_is_refused(form: _MapFormat) -> None:
    with pytest.raises(UsageError, match=r"'a\\ud800' is no valid Unicode"):
        _format_map({"x": "a\ud800"}, form)


def test_a_proposal_says_how_it_was_found_and_what_is_left() -> None:
    shapes = [("conv.weight", (2, 2)), ("conv.bias", (2,)), ("bn.weight", (3,))]
    source = [TensorSpec(f"module.{name}", shape) for name, shape in shapes]
    target = [TensorSpec(name, shape) for name, shape in shapes]
    found = correspond(
        [*source, TensorSpec("mo\ndule.\x07", (9,))], [*target, TensorSpec("new", (8,))]
    )
    text = format_proposal(found)
    assert "# found by wrapper: 3" in text
    assert "# not used: mo\\ndule.\\u0007" in text
    assert "# not found: new" in text
    assert tomllib.loads(text) == {f"module.{name}": name for name, _ in shapes}


@pytest.mark.parametrize(
    ("renames", "message", "hint"),
    [
        ({"conv.wieght": "a"}, "'conv.wieght', which the checkpoint does not have", "conv.weight"),
        ({"conv.weight": "heda"}, "to 'heda', which the target does not have", "head"),
    ],
)
def test_a_map_of_absent_names_is_an_error(
    renames: dict[str, str], message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as raised:
        check_map(renames, ["conv.weight"], ["a", "head"])
    assert message in str(raised.value)
    assert hint in str(raised.value.hint)


def test_a_map_of_known_names_is_fine() -> None:
    check_map({"a": "b"}, ["a"], ["b"])
