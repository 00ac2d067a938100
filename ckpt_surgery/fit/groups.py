"""Which group of an optimizer the new parameters of a fitted model join."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from ckpt_surgery.errors import UsageError
from ckpt_surgery.fit.adaptations import below
from ckpt_surgery.names.suggest import near_hint
from ckpt_surgery.startup.lazy_dataclass import dataclass

_RULE: Final = re.compile(r"(?P<prefix>.+)=(?P<group>\d{1,9})", re.ASCII)


@dataclass(frozen=True, slots=True)
class GroupRule:
    """New parameters at or below `prefix` join the group at the position `group`, from 0."""

    prefix: str
    group: int

    def __str__(self) -> str:
        return f"{self.prefix}={self.group}"


def parse_group_rules(texts: Iterable[str]) -> tuple[GroupRule, ...]:
    """Return the rules of ``--optimizer-group NAME=K``; raises UsageError for anything else."""
    rules: dict[str, GroupRule] = {}
    for text in texts:
        found = _RULE.fullmatch(text.strip())
        if found is None:
            raise UsageError(
                f"'optimizer_group {text}' names no group",
                hint="write it as NAME=K, K being the position of the group, from 0",
                fields=("optimizer_group",),
            )
        rule = GroupRule(found["prefix"], int(found["group"]))
        if rules.setdefault(rule.prefix, rule) != rule:
            raise UsageError(
                f"'optimizer_group' gives '{rule.prefix}' two groups", fields=("optimizer_group",)
            )
    return tuple(rules.values())


def group_of(name: str, rules: Sequence[GroupRule]) -> int | None:
    """Return the group that the most confined rule for `name` says; None without any."""
    fitting = [rule for rule in rules if below(name, rule.prefix)]
    return max(fitting, key=lambda rule: len(rule.prefix)).group if fitting else None


def require_used(rules: Sequence[GroupRule], added: Sequence[str]) -> None:
    """Raise UsageError for a rule that applies to none of the `added` parameters."""
    for rule in rules:
        if not any(below(name, rule.prefix) for name in added):
            raise UsageError(
                f"'optimizer_group {rule}' applies to nothing: no optimizer gets a new parameter "
                f"at or below '{rule.prefix}'",
                hint=near_hint(rule.prefix, added),
                fields=("optimizer_group",),
            )
