"""The seam between models and what uses them: predictions, derivatives, bundle, calculator."""
