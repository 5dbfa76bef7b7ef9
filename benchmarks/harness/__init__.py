"""What all measurements share: timing, databases, results, plots, synthetic inputs."""
