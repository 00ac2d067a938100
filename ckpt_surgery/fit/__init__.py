"""What a target takes of a checkpoint: the plan, adaptations, values, initial values."""
