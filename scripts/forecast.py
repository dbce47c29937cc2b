#!/usr/bin/env python3
"""Forecasts the series of a CSV file by a run: forecast.py RUN --input new.csv --output forecast.csv."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

import experiments
from lstmx.training import read_assets, restore_params, terminal


def forecast(
    run: tyro.conf.Positional[Path],
    input: Path,
    output: Path | None = None,
    plot: Path | None = None,
    level: tuple[float, ...] = (80.0,),
    checkpoint: str = "best",
    debug: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Forecasts the steps after the last value of each series.

    Args:
        run: the run folder, of the experiment `forecasting`.
        input: a CSV file with the columns that the run was trained on (for a run on a named set: unique_id,
            ds, y and its covariates, without those of the calendar). Columns known in advance need a further
            row for each step to forecast, with an empty target.
        output: CSV file for the forecasts; by default the standard output.
        plot: picture of the first series and their forecasts, as PNG, PDF or SVG; requires matplotlib.
        level: widths of the intervals in percent; ignored by runs that forecast points.
        checkpoint: best (by validation loss), latest, or the number of a step.
        debug: show tracebacks of errors.
    """
    with terminal.clean_errors(debug):
        module, config = experiments.reopen(run)
        if not hasattr(module, "make_forecaster"):
            raise ValueError(f"{run} is a run of {module.__name__}, which does not forecast series")
        forecaster = module.make_forecaster(config, read_assets(run), input)
        params = restore_params(run, forecaster.task, checkpoint).items["params"]
        table = forecaster.table(params, level)
        if plot is not None:
            forecaster.plot(params, plot)
        table.to_csv(sys.stdout if output is None else output, index=False)
    if output is not None:
        count = len(forecaster.series.ids)
        print(
            f"{len(table):,} rows, {forecaster.task.windows.horizon} for each of {count:,} series: {output}"
        )
    if plot is not None:
        print(f"picture: {plot}")


if __name__ == "__main__":
    tyro.cli(forecast)
