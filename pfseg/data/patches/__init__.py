"""Whole scenes cut into patches: what `python -m pfseg.prepare` does."""
