"""The probe: whether a model trained on the triples ranks held-out items better than simple rankings do."""
