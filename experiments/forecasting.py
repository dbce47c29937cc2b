"""Forecasting with recurrent networks, compared with simple baselines.

    python scripts/train.py forecasting --preset ettm1 --workdir RUN --data.path FOLDER
    python scripts/evaluate.py RUN --split test

The folder holds the published files (ETTh1.csv, weather.csv, Hourly-train.csv, ...), compressed
(.gz, .xz) or not.

Measured on 2 CPU cores in less than 4 minutes each (README.md in this folder): mean squared errors, 96 steps
ahead, 0.281 on ETTm1 (multivariate; each channel by itself 0.287, and 0.324, 0.360 and 0.414 for 192, 336 and
720 steps), 0.370 on ETTh1 and 0.147 on Weather; sMAPE 8.82 and MASE 0.76 on M4 Hourly, 6.24 and 1.92
on M4 Weekly; MASE 0.37 on the electricity of Victoria, and step by step 0.36 in 15 minutes; MASE 1.26 on
retail sales, 14 % below the seasonal naive forecast; no skill on stock prices.

By convention, ETT and Weather are standardized by mean and deviation of the training part, and scored in
these units over all windows of the test part.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lstmx.training import LoopConfig, OptimizerConfig

if TYPE_CHECKING:
    # As in char_lm: --help needs none of what these import.
    from experiments.tasks.forecasting.run_forecaster import RunForecaster
    from experiments.tasks.forecasting.task import Forecasting


@dataclass(frozen=True)
class DataConfig:
    """The series.

    Attributes:
        name: name of the set; those of `vega` come with the package vega_datasets and need no files; `table`
            is your own file.
        path: folder with the files; or a CSV file, which implies `--data.name table`.
        id: column of the table with the names of the series; omit it for a single series.
        time: column of its times, ISO 8601 or integers.
        target: column of its values.
        historic: columns known only for the past.
        future: columns known in advance.
        frequency: pandas alias of the frequency of a table, or step of integer times; inferred by default.
        delimiter: of a table, one character or `tab`; recognised by the header by default.
        season_length: steps per season of a table, for scores and baselines; by default the usual one for the
            frequency.
        splits: shares of the training, validation and test parts of each series of a table.
        input_size: number of past steps that the network reads (the look-back).
        horizon: number of steps to forecast; by default the usual one for the set.
        least_history: number of steps that a window must have before its targets; below `input_size`, windows
            are padded with missing values.
        batch_size: windows per step.
        log: whether to forecast logarithms of the values, which must be positive; forecasts are transformed
            back, so a mean becomes a median.
        back: number of steps by which all parts end earlier, to evaluate a recipe at other times.
        train_until: whether the training part ends before the validation part or, once the recipe is chosen,
            before the test part.
        data_dir: where prepared data are stored; by default that of tensorflow-datasets.
    """

    name: Literal[
        "etth1", "etth2", "ettm1", "ettm2", "weather", "m4-hourly", "m4-weekly", "retail", "electricity",
        "bike", "sp500", "vega-weather", "vega-stocks", "table",
    ] = "vega-weather"  # fmt: skip
    path: Path | None = None
    id: str | None = None
    time: str = "ds"
    target: str = "y"
    historic: tuple[str, ...] = ()
    future: tuple[str, ...] = ()
    frequency: str | None = None
    delimiter: str | None = None
    season_length: int | None = None
    splits: tuple[float, float, float] = (80, 10, 10)
    input_size: int = 56
    horizon: int | None = None
    least_history: int = 56
    batch_size: int = 64
    log: bool = False
    back: int = 0
    train_until: Literal["validation", "test"] = "validation"
    data_dir: Path | None = None


@dataclass(frozen=True)
class ModelConfig:
    """The network.

    Attributes:
        multivariate: whether to read and forecast all series together, rather than each by itself.
        decoder: forecasts all steps at once (direct), or one after the other from samples of the one before
            (recurrent, DeepAR).
        cell: recurrent cell.
        hidden_size: units per layer.
        num_layers: number of layers.
        patch_size: time steps per step of the recurrent network.
        patch_stride: steps from one patch to the next; `patch_size` by default.
        readout: whether forecasts are computed from the last output or from all of them.
        scaler_type: how a window is normalized.
        affine: whether the normalization has learnt parameters.
        lags: further past values that the recurrent decoder reads at each step: their distances in steps.
        season_length: steps per season of an exponential smoothing with learnt rates, whose level and season
            are removed before the network and added after it (ES-RNN); 0 for none.
        linear: whether to add a linear map of the history to the forecast; not for counts.
        shrinkage: how far forecasts are shrunk towards the level and season of the normalization, in [0, 1);
            with the direct decoder.
        know_series: whether to learn an embedding of each series.
        dropout_rate: on inputs, between layers and on outputs.
    """

    multivariate: bool = False
    decoder: Literal["direct", "recurrent"] = "direct"
    cell: Literal["lstm", "slstm", "gru", "elman"] = "lstm"
    hidden_size: int = 32
    num_layers: int = 1
    patch_size: int = 1
    patch_stride: int | None = None
    readout: Literal["last", "all"] = "last"
    scaler_type: Literal["none", "last", "standard", "last_standard", "robust", "mean"] = "standard"
    affine: bool = False
    lags: tuple[int, ...] = ()
    season_length: int = 0
    linear: bool = True
    shrinkage: float = 0.0
    know_series: bool = False
    dropout_rate: float = 0.4


@dataclass(frozen=True)
class Config:
    """A forecaster and its training.

    Attributes:
        steps: number of updates.
        seed: seed of all randomness.
        head: the kind of forecast: a point (with the error that is minimized), quantiles, or a distribution.
        paths: number of paths that the recurrent decoder samples per window.
        members: number of networks trained side by side from different initial parameters; their forecasts
            are averaged.
        data: the series.
        model: the network.
        optimizer: the optimizer.
        loop: evaluation, checkpoints and log.
    """

    steps: int = 500
    seed: int = 0
    head: Literal["mse", "mae", "quantiles", "gaussian", "student_t", "negative_binomial"] = "quantiles"
    paths: int = 100
    members: int = 1
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=2e-3, schedule="cosine", warmup_steps=50, weight_decay=0.1, average_horizon=100
    )
    loop: LoopConfig = LoopConfig(eval_every=50, checkpoint_every=250, log_every=50)


# Shared by the recipes of the published sets.
COSINE = OptimizerConfig(schedule="cosine", warmup_steps=50, average_horizon=500)

# For sets that are standardized by convention: scored in their units, so windows are only shifted.
ETTM1 = Config(
    steps=4800,
    head="mse",
    data=DataConfig(name="ettm1", input_size=336, least_history=336, batch_size=224),
    model=ModelConfig(
        hidden_size=64, patch_size=12, readout="all", scaler_type="last", linear=True, dropout_rate=0.5
    ),
    optimizer=replace(COSINE, learning_rate=5e-4, average_horizon=300),
    loop=LoopConfig(eval_every=400, checkpoint_every=400, log_every=50),
)

ELECTRICITY = Config(
    steps=4000,
    data=DataConfig(name="electricity", input_size=336, least_history=336, batch_size=128),
    model=ModelConfig(hidden_size=128, patch_size=24, linear=True, dropout_rate=0.2),
    optimizer=replace(COSINE, learning_rate=1e-3),
    loop=LoopConfig(eval_every=500, checkpoint_every=500, log_every=50),
)

PRESETS = {
    "tiny": Config(
        steps=20,
        data=DataConfig(input_size=14, least_history=14, batch_size=8),
        model=ModelConfig(hidden_size=4, dropout_rate=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        loop=LoopConfig(eval_every=10, checkpoint_every=10, log_every=5),
    ),
    "ettm1": ETTM1,
    "etth1": replace(
        ETTM1,
        steps=6000,
        data=replace(ETTM1.data, name="etth1", batch_size=112),
        loop=replace(ETTM1.loop, eval_every=500, checkpoint_every=500),
    ),
    "weather": replace(
        ETTM1,
        steps=3000,
        data=replace(ETTM1.data, name="weather", batch_size=336),
        model=replace(ETTM1.model, hidden_size=128, know_series=True, dropout_rate=0.2),
        optimizer=replace(COSINE, learning_rate=1e-3),
        loop=replace(ETTM1.loop, eval_every=1000, checkpoint_every=500),
    ),
    "electricity": ELECTRICITY,
    "deepar": replace(
        ELECTRICITY,
        head="student_t",
        data=replace(ELECTRICITY.data, input_size=504, least_history=504),
        model=ModelConfig(
            decoder="recurrent",
            hidden_size=128,
            scaler_type="standard",
            # One day, two days and a week before, in half-hours.
            lags=(48, 96, 336),
            dropout_rate=0.1,
        ),
        optimizer=replace(COSINE, learning_rate=2e-3),
    ),
    "retail": Config(
        steps=1500,
        data=DataConfig(
            name="retail", input_size=60, least_history=36, batch_size=128, log=True, train_until="test"
        ),
        model=ModelConfig(
            hidden_size=64,
            patch_size=12,
            readout="all",
            scaler_type="none",
            season_length=12,
            shrinkage=0.4,
            know_series=True,
            dropout_rate=0.5,
        ),
        optimizer=replace(COSINE, average_horizon=200),
        loop=LoopConfig(eval_every=500, checkpoint_every=500, log_every=50),
    ),
    "bike": Config(
        steps=2000,
        data=DataConfig(name="bike", input_size=168, least_history=168, batch_size=128),
        model=ModelConfig(hidden_size=64, patch_size=24, readout="all", dropout_rate=0.3),
        optimizer=replace(COSINE, average_horizon=200),
        loop=LoopConfig(eval_every=250, checkpoint_every=250, log_every=50),
    ),
    "sp500": Config(
        steps=1000,
        data=DataConfig(name="sp500", input_size=60, least_history=60, batch_size=128),
        model=ModelConfig(
            patch_size=5, scaler_type="last_standard", linear=False, shrinkage=0.5, dropout_rate=0.5
        ),
        optimizer=replace(COSINE, weight_decay=0.1, average_horizon=200),
        loop=LoopConfig(eval_every=100, checkpoint_every=250, log_every=50),
    ),
    "m4-weekly": Config(
        steps=3000,
        data=DataConfig(name="m4-weekly", input_size=104, least_history=26, batch_size=256, log=True),
        model=ModelConfig(
            hidden_size=128, patch_size=13, readout="all", scaler_type="last_standard", dropout_rate=0.3
        ),
        optimizer=COSINE,
        loop=LoopConfig(eval_every=250, checkpoint_every=500, log_every=50),
    ),
    "m4-hourly": Config(
        steps=6000,
        data=DataConfig(name="m4-hourly", input_size=168, least_history=168, batch_size=256, log=True),
        model=ModelConfig(
            hidden_size=128,
            patch_size=24,
            readout="all",
            scaler_type="none",
            season_length=24,
            dropout_rate=0.1,
        ),
        optimizer=replace(COSINE, learning_rate=2e-3),
        loop=LoopConfig(eval_every=500, checkpoint_every=500, log_every=50),
    ),
}


def sweep() -> dict[str, str]:
    """What `scripts/sweep.py` varies if nothing else is asked for."""
    return {
        "optimizer.learning_rate": "log:3e-4:1e-2",
        "model.hidden_size": "16,32,64,128",
        "model.dropout_rate": "0:0.6",
        # Both divide by the same spread: losses in other units would not be comparable.
        "model.scaler_type": "standard,last_standard",
    }


def make_task(config: Config) -> "Forecasting":
    """Reads the series and makes the task of a config."""
    from experiments.datasets.series_sets import load_series
    from experiments.datasets.series_table import columns_of, read_table, table_set
    from experiments.tasks.forecasting.task import Forecasting

    data = config.data
    if data.name != "table" and (data.path is None or not data.path.is_file()):
        series = load_series(data.name, data.path, data.data_dir)
    elif data.path is None:
        raise ValueError("--data.name table requires a file: --data.path FILE.csv")
    else:
        table = read_table(data.path, **columns_of(data))
        series = table_set(table, horizon=data.horizon, season_length=data.season_length, splits=data.splits)
    return Forecasting(config, series.cut(back=data.back, until=data.train_until))


def make_forecaster(config: Config, assets: Mapping[str, str], path: Path) -> "RunForecaster":
    """Forecasts of the series of a file by a run, from its assets."""
    from experiments.tasks.forecasting.run_forecaster import RunForecaster

    return RunForecaster(config, assets, path)
