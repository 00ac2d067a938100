"""Files that the ranks of a training run saved each for itself, put together to one checkpoint."""
