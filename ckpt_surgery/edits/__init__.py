"""Edits of a checkpoint, one kind a file, and plans, which are sequences of them."""
