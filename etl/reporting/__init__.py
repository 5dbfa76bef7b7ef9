"""Earlier runs and expected ranges, comparison of snapshots, the HTML report, the metrics file."""
