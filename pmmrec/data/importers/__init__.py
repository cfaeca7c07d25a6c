"""Importers: one for each layout that users already have."""
