"""The parts of scripts/benchmark.py: rivals, how they are timed, and the page that tells of it."""
