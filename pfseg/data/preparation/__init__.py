"""Whole scenes cut into patches: what `pfseg prepare` does."""
