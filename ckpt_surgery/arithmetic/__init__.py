"""What needs numbers: torch is imported here and in `models`, and nowhere else."""
