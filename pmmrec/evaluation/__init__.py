"""Evaluation: full ranking, its metrics, and the floors that any model must pass."""
