"""Real models: what needs torch's modules or torchvision's architectures."""
