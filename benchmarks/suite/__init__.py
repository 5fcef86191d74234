"""The parts of `benchmarks.bench`."""
