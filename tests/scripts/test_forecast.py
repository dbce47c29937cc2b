"""From a table to forecasts, by the commands of a user."""

import contextlib
import io
import json

import numpy as np
import pandas as pd
import pytest
from commands import load

import experiments
from lstmx.training import cli


def sales(length=120):
    """Two shops with a weekly season; the second sells ten times as much."""
    days = pd.date_range("2024-01-01", periods=length)
    steps = np.arange(length)
    chance = np.random.default_rng(0)
    parts = [
        pd.DataFrame(
            {
                "shop": shop,
                "day": days,
                "sold": size * (5 + np.sin(2 * np.pi * steps / 7) + 0.02 * chance.normal(size=length)),
                "holiday": steps % 7 == 6,
            }
        )
        for shop, size in (("001", 10), ("002", 100))
    ]
    return pd.concat(parts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run on a table, and the table."""
    folder = tmp_path_factory.mktemp("forecast")
    sales().to_csv(folder / "sales.csv.gz", index=False)
    options = ["--preset", "tiny", "--steps", "120", "--optimizer.learning-rate", "0.02"]
    options += ["--loop.no-tensorboard", "--loop.eval-every", "0", "--loop.checkpoint-every", "0"]
    options += ["--data.path", folder / "sales.csv.gz", "--data.id", "shop", "--data.time", "day"]
    options += ["--data.target", "sold", "--data.future", "holiday", "--model.hidden-size", "8"]
    captured = io.StringIO()
    with contextlib.redirect_stdout(captured):
        command = ["forecasting", "--workdir", folder / "run", *options]
        assert cli.main(experiments.load, [], [str(word) for word in command]) == 0
    assert "table: 2 series of 120 to 120 steps; windows of 14 steps to forecast 7" in captured.getvalue()
    return folder


def ahead():
    """The table and the week after it, with known holidays."""
    week = sales(127).groupby("shop").tail(7).assign(sold=np.nan)
    return pd.concat([sales(), week])


def test_it_forecasts_the_week_after(folder):
    ahead().to_csv(folder / "new.csv", index=False)
    paths = {"output": folder / "forecast.csv", "plot": folder / "forecast.png"}
    load("forecast")(folder / "run", folder / "new.csv", **paths, level=(80, 90))
    found = pd.read_csv(paths["output"], dtype={"shop": str})
    bounds = [f"forecast-{side}-{width}" for width in (80, 90) for side in ("lo", "hi")]
    assert found.columns.tolist() == ["shop", "day", "forecast", *bounds]
    truth = sales(127).groupby("shop").tail(7)
    assert found["shop"].tolist() == truth["shop"].tolist()
    assert pd.to_datetime(found["day"]).tolist() == truth["day"].tolist()
    size = np.repeat([10, 100], 7)
    assert (np.abs(found["forecast"] - truth["sold"].to_numpy()) / size).mean() < 0.4
    assert (found["forecast-lo-90"] <= found["forecast-lo-80"]).all()
    assert (found["forecast-lo-80"] < found["forecast-hi-80"]).all()
    assert paths["plot"].read_bytes().startswith(b"\x89PNG")


def test_evaluation_ends_with_the_scores_of_all_forecasts(folder, capsys):
    load("evaluate")(folder / "run", split="test", json=True)
    captured = capsys.readouterr().out.splitlines()
    result = json.loads(captured[-1])
    assert set(result["scores"]) == {"last value", "seasonal naive", "linear", "lstm"}
    assert result["mase"] == result["scores"]["lstm"]["mase"]
    # The week before is a forecast of the week: what it misses is the noise.
    assert 0 < result["scores"]["seasonal naive"]["smape"] < 2
    assert any(line.split()[:2] == ["seasonal", "naive"] for line in captured)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda df: df.drop(columns="shop"), "shop"),
        (lambda df: df.assign(sold="many"), "'many'"),
        (lambda df: pd.concat([df, df.iloc[:1]]), "2024-01-01"),
        (lambda df: df.dropna(), "holiday must be known for the next 7 steps"),
    ],
)
def test_tables_that_do_not_fit_are_refused(folder, change, message, capsys):
    change(ahead()).to_csv(folder / "bad.csv", index=False)
    with pytest.raises(SystemExit):
        load("forecast")(folder / "run", folder / "bad.csv")
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_what_is_no_table_is_refused(folder, capsys):
    (folder / "bad.csv").write_bytes(b"shop,day,sold\n\xff\xfe,2024-01-01,3\n")
    for name, message in (("bad.csv", "is not a CSV file"), ("none.csv", "there is no file")):
        with pytest.raises(SystemExit):
            load("forecast")(folder / "run", folder / name)
        assert message in capsys.readouterr().err
