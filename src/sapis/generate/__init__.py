"""Structures for a broad training set: molecules from a grammar, and what may become of each."""
