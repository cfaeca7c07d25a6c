"""Recommenders that transfer: items are what they are, users the order of what they touched."""
