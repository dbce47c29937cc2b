#!/usr/bin/env python3
"""Trains an experiment, or resumes a run: train.py EXPERIMENT [--workdir RUN] [--field value ...]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import experiments
from lstmx.training import cli, keep_freed_memory

if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(cli.main(experiments.load, experiments.names()))
