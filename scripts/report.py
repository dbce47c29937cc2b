#!/usr/bin/env python3
"""Makes a page of a run or of a sweep, to look at in a browser: report.py RUN -o report.html."""

import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from lstmx.training import terminal
from lstmx.training.files import write_atomically
from scripts.reporting import reading, run_page, sweep_page


def report(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|SWEEP")],
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FILE")] = None,
    debug: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Makes a page of a run or of a sweep: one HTML file that needs no network and no other file.

    Args:
        folder: the folder of a run or of a sweep, finished or not.
        output: the page; report.html in the folder if not given.
        debug: show tracebacks of errors.
    """
    with terminal.clean_errors(debug):
        found = reading.read(folder)
        is_sweep = isinstance(found, reading.SweepData)
        text = sweep_page.sweep_page(found) if is_sweep else run_page.run_page(found)
        path = folder / "report.html" if output is None else output
        try:
            write_atomically(path, text)
        except OSError as error:
            raise ValueError(f"cannot write {path}: {error.strerror or error}") from error
    print(f"page: {path}")


if __name__ == "__main__":
    tyro.cli(report)
