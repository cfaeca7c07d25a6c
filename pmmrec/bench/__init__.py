"""Measure a training step: its useful work, where its time goes, and how far it is from the hardware's limits."""
