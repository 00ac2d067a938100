"""The verbs: arguments in, a report out. The command line and library users call the same ones."""

from ckpt_surgery.ops.convert import convert
from ckpt_surgery.ops.editing import Output
from ckpt_surgery.ops.inspect import inspect
from ckpt_surgery.ops.rename import rename
from ckpt_surgery.ops.strip import strip

__all__ = ["Output", "convert", "inspect", "rename", "strip"]
