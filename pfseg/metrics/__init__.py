"""Scores: confusion matrix and boundaries (no Jittor)."""
