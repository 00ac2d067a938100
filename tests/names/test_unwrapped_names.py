"""Names without what wrappers add."""

import pytest

from ckpt_surgery.names.spellings import unwrapped


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("module.fc.weight", "fc.weight"),
        ("a._orig_mod.b.module", "a.b.module"),
        ("fc.weight", "fc.weight"),
        ("modules.a", "modules.a"),
        ("module", "module"),
    ],
)
def test_only_segments_that_wrappers_add_go(name: str, without: str) -> None:
    assert unwrapped(name) == without
