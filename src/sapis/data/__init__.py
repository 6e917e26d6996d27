"""Structures and labels: systems, formats, neighbours, batches, reference energies, splits, lint."""
