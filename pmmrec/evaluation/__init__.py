"""Evaluation: full ranking, its metrics, and the baselines that any model must pass."""
