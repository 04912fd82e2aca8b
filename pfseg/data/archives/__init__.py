"""The layouts that data sets are published in."""
