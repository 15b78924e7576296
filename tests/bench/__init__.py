"""Benchmarks: ratios in one run against the plain way to do the same. ``python -m tests.bench``."""
