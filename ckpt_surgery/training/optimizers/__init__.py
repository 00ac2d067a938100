"""Optimizer state dicts in a pickle graph: which state belongs to which parameter, and edits.

The form is that of `torch.optim.Optimizer.state_dict`: ``{"state": {index: {…}}, "param_groups":
[{"lr": …, "params": [index, …], "param_names": […]}]}``. An index counts the parameters in the
order in which they were handed over, group after group; names are stored only if the optimizer was
made from `named_parameters()` (torch 2.6 and later).
"""

from ckpt_surgery.training.optimizers.correspond import Certainty, StateOwners, correspond
from ckpt_surgery.training.optimizers.differences import MomentChanges, Sources
from ckpt_surgery.training.optimizers.edit import align, remove, rename
from ckpt_surgery.training.optimizers.in_step import (
    InStep,
    OptimizerChoice,
    changed_moments,
    keep_in_step,
    with_nodes,
)
from ckpt_surgery.training.optimizers.made import made_moments
from ckpt_surgery.training.optimizers.members import (
    Edited,
    Groups,
    Member,
    MomentChange,
    MomentMaker,
    Target,
)
from ckpt_surgery.training.optimizers.recognise import (
    Key,
    Moment,
    OptimizerState,
    ParameterGroup,
    ParameterState,
    find_optimizers,
    read_optimizer,
)
from ckpt_surgery.training.optimizers.regroup import rebuild
from ckpt_surgery.training.optimizers.survey import FoundOptimizer, at_paths, find

__all__ = [
    "Certainty",
    "Edited",
    "FoundOptimizer",
    "Groups",
    "InStep",
    "Key",
    "Member",
    "Moment",
    "MomentChange",
    "MomentChanges",
    "MomentMaker",
    "OptimizerChoice",
    "OptimizerState",
    "ParameterGroup",
    "ParameterState",
    "Sources",
    "StateOwners",
    "Target",
    "align",
    "at_paths",
    "changed_moments",
    "correspond",
    "find",
    "find_optimizers",
    "keep_in_step",
    "made_moments",
    "read_optimizer",
    "rebuild",
    "remove",
    "rename",
    "with_nodes",
]
