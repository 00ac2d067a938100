"""Laws of rules for paths: what a glob of segments takes."""

from __future__ import annotations

import pytest

from ckpt_surgery.errors import UsageError
from ckpt_surgery.names.entries import EntryRule


def takes(rule: EntryRule, path: str) -> bool:
    reached = rule.start
    for name in path.split("/"):
        reached = rule.step(reached, name)
    return rule.matches(reached)


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("args", ["args"], ["arg", "args/lr", "x/args"]),
        ("args/lr", ["args/lr"], ["args", "lr"]),
        ("*", ["a", "a.b"], ["a/b"]),
        ("a*", ["a", "args"], ["b", "args/lr"]),
        ("h/**", ["h/a", "h/a/b"], ["h", "g/a"]),
        ("**", ["a", "a/b/c"], []),
        ("**/lr", ["lr", "a/lr", "a/b/lr"], ["lr/a", "alr"]),
        ("a/**/z", ["a/z", "a/b/z", "a/b/c/z"], ["a", "z", "a/b"]),
        ("?/[ab]", ["x/a", "y/b"], ["xx/a", "x/c"]),
        ("a/**/**/z", ["a/z", "a/b/z"], ["z"]),
    ],
)
def test_a_rule_takes_whole_paths(text, yes, no):
    rule = EntryRule(text)
    assert [path for path in yes if not takes(rule, path)] == []
    assert [path for path in no if takes(rule, path)] == []


def test_a_rule_that_cannot_lead_on_has_reached_nothing():
    rule = EntryRule("a/b")
    assert not rule.step(rule.start, "x")
    assert not rule.step(rule.step(rule.step(rule.start, "a"), "b"), "c")


def test_a_rule_says_how_it_was_asked_for():
    rule = EntryRule("args")
    assert (rule.option, rule.is_glob) == ("--entry args", False)
    assert rule.to_dict() == {"kind": "entry", "text": "args"}
    assert EntryRule("a*").is_glob
    with pytest.raises(UsageError, match="'--entry' is empty"):
        EntryRule("")
