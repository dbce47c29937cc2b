#!/usr/bin/env python3
"""Sweeps hyperparameters: sweep.py EXPERIMENT [--workdir SWEEP] [--trials N] [--space FIELD=VALUES ...]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import experiments
from lstmx.sweeps import cli
from lstmx.training import keep_freed_memory

if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(cli.main(experiments.load, experiments.names()))
