"""Benchmarks: speed, memory and training value, on synthetic and on real data. `python -m benchmarks` runs them."""
