"""Measure what a checkpoint could do on a domain, and recommend one plan."""
