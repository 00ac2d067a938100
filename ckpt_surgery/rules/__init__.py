"""Choosing and rewriting names: which keys a rule takes, and what a renaming makes of them.

Names and nothing else: a rule is tried against the dotted names of a state dict (and, for
``_metadata``, of its modules) and never sees a tensor. A rule that cannot work is refused when it
is made, so whoever holds one can use it.
"""

from ckpt_surgery.rules.modules import rewrite_metadata, strip_metadata
from ckpt_surgery.rules.names import near
from ckpt_surgery.rules.rewriting import (
    AddPrefix,
    MapNames,
    Replace,
    RewriteRule,
    Rewritten,
    StripPrefix,
    Substitute,
    find_collisions,
    parse_name_map,
    require_changes,
    rewrite,
)
from ckpt_surgery.rules.selecting import (
    Chosen,
    Rule,
    RuleKind,
    Selection,
    parse_key_list,
    selection,
)

__all__ = [
    "AddPrefix",
    "Chosen",
    "MapNames",
    "Replace",
    "RewriteRule",
    "Rewritten",
    "Rule",
    "RuleKind",
    "Selection",
    "StripPrefix",
    "Substitute",
    "find_collisions",
    "near",
    "parse_key_list",
    "parse_name_map",
    "require_changes",
    "rewrite",
    "rewrite_metadata",
    "selection",
    "strip_metadata",
]
