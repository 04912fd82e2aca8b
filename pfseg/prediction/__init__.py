"""Maps from any image: reading in rows, prediction in overlapping windows, writing in rows."""
