"""Errors, settings, files, records, seeds: no atoms, no model."""
