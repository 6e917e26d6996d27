"""Scaling laws of potentials: how the error falls with compute, weights and frames, and what the next FLOP is worth."""
