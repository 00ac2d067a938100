"""Comparing checkpoints with targets: what fits, which name stands for which."""
