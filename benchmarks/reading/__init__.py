"""Measurements of reading the source tables."""
