"""Choosing and rewriting names: which keys a rule takes, and what a renaming makes of them.

Names and nothing else: a rule is tried against the dotted names of a state dict (and, for
``_metadata``, of its modules) and never sees a tensor. A rule that cannot work is refused when it
is made, so whoever holds one can use it. The names here choose; what renames is imported from
`rewriting` and `modules`.
"""

from ckpt_surgery.names.select import (
    Chosen,
    Rule,
    RuleKind,
    Selection,
    parse_key_list,
    selection,
)
from ckpt_surgery.names.suggest import near

__all__ = [
    "Chosen",
    "Rule",
    "RuleKind",
    "Selection",
    "near",
    "parse_key_list",
    "selection",
]
