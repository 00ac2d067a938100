"""The formats of checkpoints, one a module: each reads, lays out and checks its own files.

`registry` has their names, `detect` finds the one that a file is of.
"""

from ckpt_surgery.formats.detect import read

__all__ = ["read"]
