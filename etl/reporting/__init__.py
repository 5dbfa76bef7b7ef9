"""What a run came to beside earlier runs: history, comparison, HTML report, metrics file."""
