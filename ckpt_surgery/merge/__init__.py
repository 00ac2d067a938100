"""Merging checkpoints: files, choosing, copying, methods, recipes."""
