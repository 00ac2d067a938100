"""The verbs: arguments in, a report out. The command line and library users call the same ones.

`match` and `fit` have to be imported from their modules: they need more than the others.
"""

from ckpt_surgery.ops.convert import convert
from ckpt_surgery.ops.editing import Output
from ckpt_surgery.ops.freeze_plan import freeze_plan
from ckpt_surgery.ops.inspect import inspect
from ckpt_surgery.ops.rename import rename
from ckpt_surgery.ops.strip import strip

__all__ = ["Output", "convert", "freeze_plan", "inspect", "rename", "strip"]
