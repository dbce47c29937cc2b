"""The parts of scripts/report.py: what is read from a run or a sweep, curves, and the pages."""
