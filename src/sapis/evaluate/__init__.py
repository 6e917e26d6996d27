"""Errors of a potential against reference labels."""
