"""Pure functions from frames to frames: personas, candidates, ranking events."""
