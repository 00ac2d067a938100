"""Optimizer state dicts in a pickle graph: which state belongs to which parameter, and edits.

The form is that of `torch.optim.Optimizer.state_dict`: ``{"state": {index: {…}}, "param_groups":
[{"lr": …, "params": [index, …], "param_names": […]}]}``. An index counts the parameters in the
order in which they were handed over, group after group; names are stored only if the optimizer was
made from `named_parameters()` (torch 2.6 and later).
"""

from ckpt_surgery.training.optimizers.correspond import Certainty, StateOwners, correspond
from ckpt_surgery.training.optimizers.edit import (
    Edited,
    Target,
    align,
    remove,
    rename,
)
from ckpt_surgery.training.optimizers.in_step import (
    InStep,
    OptimizerChoice,
    Resize,
    Sources,
    keep_in_step,
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
from ckpt_surgery.training.optimizers.survey import FoundOptimizer, find

__all__ = [
    "Certainty",
    "Edited",
    "FoundOptimizer",
    "InStep",
    "Key",
    "Moment",
    "OptimizerChoice",
    "OptimizerState",
    "ParameterGroup",
    "ParameterState",
    "Resize",
    "Sources",
    "StateOwners",
    "Target",
    "align",
    "correspond",
    "find",
    "find_optimizers",
    "keep_in_step",
    "read_optimizer",
    "remove",
    "rename",
]
