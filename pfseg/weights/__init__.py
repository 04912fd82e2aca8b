"""Weights files: reading them, starting from them, checkpoints."""
