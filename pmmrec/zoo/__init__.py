"""Checkpoints made of parts: saving, loading, transferring, publishing and fetching them."""
