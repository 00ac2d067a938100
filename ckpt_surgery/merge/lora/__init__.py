"""Low-rank adapters: read in the namings that exist, folded into the weights that they change."""
