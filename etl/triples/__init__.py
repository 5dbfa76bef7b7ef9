"""Pure: ranking events -> dataset, splits, negative samples, triples."""
