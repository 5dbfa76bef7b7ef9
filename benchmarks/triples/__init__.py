"""Measurements of the steps from candidates to triples on disk."""
