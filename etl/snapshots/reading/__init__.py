"""Reading snapshots: their files, their rows in batches, events for `expand`."""
