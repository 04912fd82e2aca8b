"""Watching a run: the records file, the terminal, Weights & Biases and sample panels (no Jittor)."""
