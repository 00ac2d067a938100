"""Operate on PyTorch checkpoints without running or loading them.

The verbs of the command line as functions: `inspect`, `strip`, `rename`, `convert`, `match`, `fit`,
`merge`, `freeze_plan`, `verify`, `digest`. Each takes paths, writes what it is told and returns a
report; `read` gives the description that they work on. Nothing here imports torch needlessly.

    >>> import ckpt_surgery as ckpt
    >>> report = ckpt.strip("resnet34.pth", "backbone.pth", ckpt.selection(pattern="fc"))
    >>> report.removed
    ('fc.weight', 'fc.bias')
"""

from __future__ import annotations

import sys
from types import ModuleType

TYPE_CHECKING = False  # what type checkers take for true; `typing` is a long import
if TYPE_CHECKING:
    from ckpt_surgery.checkpoint.description import (
        Checkpoint,
        Entry,
        Other,
        StateDict,
        Storage,
        Tensor,
    )
    from ckpt_surgery.checkpoint.findings import Finding
    from ckpt_surgery.edits.plan import Plan, apply
    from ckpt_surgery.errors import (
        CkptError,
        ConstructionError,
        DamagedFileError,
        LimitExceededError,
        LossyEditError,
        MismatchError,
        MissingDependencyError,
        NameCollisionError,
        NonFiniteError,
        PlanError,
        ReadError,
        UnknownFormatError,
        UsageError,
        WriteError,
    )
    from ckpt_surgery.fit.request import FitRequest
    from ckpt_surgery.formats import read
    from ckpt_surgery.freeze.build import FreezeRecipe, FreezeRule, GroupRule, Stage
    from ckpt_surgery.freeze.live import FreezePlan
    from ckpt_surgery.matching.request import MatchRequest
    from ckpt_surgery.merge.recipe import MergeRecipe
    from ckpt_surgery.merge.request import MergeRequest
    from ckpt_surgery.merge.scope import MergeScope
    from ckpt_surgery.names import Rule, Selection, selection
    from ckpt_surgery.names.rewrite import (
        AddPrefix,
        MapNames,
        Replace,
        StripPrefix,
        Substitute,
        Unwrap,
    )
    from ckpt_surgery.ops.consolidate import consolidate
    from ckpt_surgery.ops.convert import ConvertRequest, convert
    from ckpt_surgery.ops.diff import DiffRequest, diff
    from ckpt_surgery.ops.digest_lists import check_digests
    from ckpt_surgery.ops.fit import fit
    from ckpt_surgery.ops.freeze_plan import freeze_plan
    from ckpt_surgery.ops.hash import digest
    from ckpt_surgery.ops.inspect import inspect
    from ckpt_surgery.ops.lora import extract_lora, merge_loras
    from ckpt_surgery.ops.match import match
    from ckpt_surgery.ops.merge import merge, merge_recipe
    from ckpt_surgery.ops.rename import RenameRequest, rename
    from ckpt_surgery.ops.salvage import salvage
    from ckpt_surgery.ops.strip import StripRequest, strip
    from ckpt_surgery.ops.values import SetRequest, get_value, list_values, set_values
    from ckpt_surgery.ops.verify import verify
    from ckpt_surgery.ops.verify_checks import Checks
    from ckpt_surgery.ops.verify_policy import Policy, parse_policy
    from ckpt_surgery.pickles import Limits
    from ckpt_surgery.reports.adapters import AdapterReport
    from ckpt_surgery.reports.consolidating import ConsolidateReport
    from ckpt_surgery.reports.difference import DiffReport
    from ckpt_surgery.reports.edits import EditReport, SetReport, ValueChange
    from ckpt_surgery.reports.fitting import FitReport, MatchReport
    from ckpt_surgery.reports.hashing import CheckReport, HashReport
    from ckpt_surgery.reports.inspection import InspectReport
    from ckpt_surgery.reports.merging import MergeReport
    from ckpt_surgery.reports.verification import SalvageReport, VerifyReport
    from ckpt_surgery.startup.version import __version__
    from ckpt_surgery.writing.output import Output

# Where each public name comes from; imported when it is first used, so that `import ckpt_surgery`
# and the command line start at once.
_HOMES = {
    "ckpt_surgery.checkpoint.description": (
        "Checkpoint",
        "Entry",
        "Other",
        "StateDict",
        "Storage",
        "Tensor",
    ),
    "ckpt_surgery.errors": (
        "CkptError",
        "ConstructionError",
        "DamagedFileError",
        "LimitExceededError",
        "LossyEditError",
        "MismatchError",
        "MissingDependencyError",
        "NameCollisionError",
        "NonFiniteError",
        "PlanError",
        "ReadError",
        "UnknownFormatError",
        "UsageError",
        "WriteError",
    ),
    "ckpt_surgery.formats": ("read",),
    "ckpt_surgery.freeze.live": ("FreezePlan",),
    "ckpt_surgery.reports.fitting": ("FitReport", "MatchReport"),
    "ckpt_surgery.freeze.build": ("FreezeRecipe", "FreezeRule", "GroupRule", "Stage"),
    "ckpt_surgery.ops.consolidate": ("consolidate",),
    "ckpt_surgery.ops.convert": ("ConvertRequest", "convert"),
    "ckpt_surgery.writing.output": ("Output",),
    "ckpt_surgery.ops.freeze_plan": ("freeze_plan",),
    "ckpt_surgery.ops.digest_lists": ("check_digests",),
    "ckpt_surgery.ops.hash": ("digest",),
    "ckpt_surgery.ops.inspect": ("inspect",),
    "ckpt_surgery.ops.rename": ("RenameRequest", "rename"),
    "ckpt_surgery.ops.strip": ("StripRequest", "strip"),
    "ckpt_surgery.ops.fit": ("fit",),
    "ckpt_surgery.ops.match": ("match",),
    "ckpt_surgery.merge.recipe": ("MergeRecipe",),
    "ckpt_surgery.ops.lora": ("extract_lora", "merge_loras"),
    "ckpt_surgery.ops.merge": ("merge", "merge_recipe"),
    "ckpt_surgery.fit.request": ("FitRequest",),
    "ckpt_surgery.matching.request": ("MatchRequest",),
    "ckpt_surgery.merge.request": ("MergeRequest",),
    "ckpt_surgery.merge.scope": ("MergeScope",),
    "ckpt_surgery.pickles": ("Limits",),
    "ckpt_surgery.edits.plan": ("Plan", "apply"),
    "ckpt_surgery.reports.adapters": ("AdapterReport",),
    "ckpt_surgery.reports.consolidating": ("ConsolidateReport",),
    "ckpt_surgery.reports.edits": ("EditReport", "SetReport", "ValueChange"),
    "ckpt_surgery.reports.hashing": ("CheckReport", "HashReport"),
    "ckpt_surgery.reports.inspection": ("InspectReport",),
    "ckpt_surgery.reports.merging": ("MergeReport",),
    "ckpt_surgery.names": ("Rule", "Selection", "selection"),
    "ckpt_surgery.names.rewrite": (
        "AddPrefix",
        "MapNames",
        "Replace",
        "StripPrefix",
        "Substitute",
        "Unwrap",
    ),
    "ckpt_surgery.ops.salvage": ("salvage",),
    "ckpt_surgery.ops.values": ("SetRequest", "get_value", "list_values", "set_values"),
    "ckpt_surgery.ops.verify": ("verify",),
    "ckpt_surgery.ops.verify_checks": ("Checks",),
    "ckpt_surgery.startup.version": ("__version__",),
    "ckpt_surgery.ops.verify_policy": (
        "Policy",
        "parse_policy",
    ),
    "ckpt_surgery.reports.verification": (
        "SalvageReport",
        "VerifyReport",
    ),
    "ckpt_surgery.checkpoint.findings": ("Finding",),
    "ckpt_surgery.ops.diff": (
        "DiffRequest",
        "diff",
    ),
    "ckpt_surgery.reports.difference": ("DiffReport",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [  # `_HOMES` holds the same names, grouped; a test compares them
    "AdapterReport",
    "AddPrefix",
    "CheckReport",
    "Checkpoint",
    "Checks",
    "CkptError",
    "ConsolidateReport",
    "ConstructionError",
    "ConvertRequest",
    "DamagedFileError",
    "DiffReport",
    "DiffRequest",
    "EditReport",
    "Entry",
    "Finding",
    "FitReport",
    "FitRequest",
    "FreezePlan",
    "FreezeRecipe",
    "FreezeRule",
    "GroupRule",
    "HashReport",
    "InspectReport",
    "LimitExceededError",
    "Limits",
    "LossyEditError",
    "MapNames",
    "MatchReport",
    "MatchRequest",
    "MergeRecipe",
    "MergeReport",
    "MergeRequest",
    "MergeScope",
    "MismatchError",
    "MissingDependencyError",
    "NameCollisionError",
    "NonFiniteError",
    "Other",
    "Output",
    "Plan",
    "PlanError",
    "Policy",
    "ReadError",
    "RenameRequest",
    "Replace",
    "Rule",
    "SalvageReport",
    "Selection",
    "SetReport",
    "SetRequest",
    "Stage",
    "StateDict",
    "Storage",
    "StripPrefix",
    "StripRequest",
    "Substitute",
    "Tensor",
    "UnknownFormatError",
    "Unwrap",
    "UsageError",
    "ValueChange",
    "VerifyReport",
    "WriteError",
    "__version__",
    "apply",
    "check_digests",
    "consolidate",
    "convert",
    "diff",
    "digest",
    "extract_lora",
    "fit",
    "freeze_plan",
    "get_value",
    "inspect",
    "list_values",
    "match",
    "merge",
    "merge_loras",
    "merge_recipe",
    "parse_policy",
    "read",
    "rename",
    "salvage",
    "selection",
    "set_values",
    "strip",
    "verify",
]  # fmt: skip


def __getattr__(name: str) -> object:
    from importlib import import_module

    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """The package's module: in it `fit` and `merge` are verbs, although rooms have these names too.

    Importing a room would put the module in the verb's place (``import ckpt_surgery.fit.plan``).
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
