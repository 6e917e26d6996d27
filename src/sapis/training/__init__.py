"""Loss, optimiser, the one loop, checkpoints."""
