"""The parts of scripts/benchmark.py: the rivals, the timing and the page."""
