"""Measurements that take minutes: quality, weaknesses, speed, training. Run as `python -m benchmarks.NAME`."""
