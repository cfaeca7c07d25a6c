"""Data: domains on disk, and batches made of them."""
