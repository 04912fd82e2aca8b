"""Comparing runs afterwards from the files in their folders: tables, statistics over seeds, one HTML page."""
