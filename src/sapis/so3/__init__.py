"""Rotations and reflections in three dimensions: harmonics and their products. No atoms."""
