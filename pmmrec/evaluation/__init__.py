"""Evaluation: full ranking, its metrics, and the baselines that every model should beat."""
