"""Molecular dynamics with checks, and the structures it proposes."""
