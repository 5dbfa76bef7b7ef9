"""The probe: whether a model trained on the triples ranks held-out positives better than simple rankings do."""
