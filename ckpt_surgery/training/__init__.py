"""Training state: optimizers, schedulers and averages, and whose parameters they keep."""
