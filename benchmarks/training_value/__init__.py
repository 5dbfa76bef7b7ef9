"""Measurements of what models learn from the published triples."""
