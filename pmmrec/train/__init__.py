"""Training: the only room that knows of accelerate and of trackers."""
