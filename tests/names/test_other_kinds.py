"""What a rule that matches nothing would match as one of another kind."""

import pytest

from ckpt_surgery.errors import UsageError
from ckpt_surgery.names import Rule, Selection

NAMES = ("layer1.0.conv1.weight", "layer1.0.bn1.weight", "fc.weight", "fc.bias")


@pytest.mark.parametrize(
    ("kind", "text", "hint"),
    [
        ("glob", "layer1.*weight", "--glob 'layer1.**weight' matches 2 names; '*' stays within a"),
        ("glob", r"fc\\..*", None),
        ("prefix", "fc.*", "--glob 'fc.*' matches 2 names"),
        ("name", "fc", "--prefix 'fc' matches 2 names"),
    ],
)
def test_hint_names_the_kind_that_would_match(kind: str, text: str, hint: str | None) -> None:
    wanted = Selection((Rule(kind, text),))
    with pytest.raises(UsageError) as refused:
        wanted.require_matches(wanted.choose(NAMES).counts, NAMES)
    said = refused.value.hint or ""
    if hint is None:
        assert "matches" not in said
    else:
        assert said.startswith(hint)
        assert ("crosses dots" in said) == ("**" in hint)
