"""Measurements of whole runs, and of other ways to do the work of a run."""
