"""Published sets of time series: their sizes, their splits and the errors of naive forecasts on them."""

import pathlib
import warnings

import numpy as np
import pytest

from experiments.datasets.series_sets import load_series
from lstmx.data.series import SeriesWindows

DATA = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"


def needs(folder):
    return pytest.mark.skipif(not (DATA / folder).is_dir(), reason=f"needs shared/data/{folder}")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A set of the published files, and the warnings."""
    root = tmp_path_factory.mktemp("series")

    def real(name):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            return load_series(name, DATA, root), [str(one.message) for one in caught]

    return real


def repeat_errors(found):
    """MSE and MAE of the last value over all test windows, after standardizing each series."""
    values = found.panel.targets.reshape(len(found.ids), -1)
    train, begin, end = (int(stops[0]) for stops in found[8:11])
    known = values[:, :train]
    values = (values - known.mean(axis=1, keepdims=True)) / known.std(axis=1, keepdims=True)
    windows, ahead = end - begin - found.horizon + 1, range(found.horizon)
    last = values[:, begin - 1 : begin - 1 + windows]
    errors = [values[:, begin + step : begin + step + windows] - last for step in ahead]
    count = len(SeriesWindows(found.panel, 1, found.horizon).within(begin, end)[0])
    assert count == windows * len(found.ids)
    return np.mean([np.mean(e**2) for e in errors]), np.mean([np.mean(abs(e)) for e in errors])


def naive_scores(found):
    """Mean sMAPE and MASE of the seasonal naive forecast of the steps from `validation_stop` on."""
    smapes, mases = [], []
    for number in np.flatnonzero(found.test_stop - found.validation_stop >= found.horizon):
        values, cut = found.panel.series(number)[:, 0], found.validation_stop[number]
        past, actual = values[:cut], values[cut : cut + found.horizon]
        forecast = past[-found.mase_season_length :][np.arange(found.horizon) % found.mase_season_length]
        error = abs(actual - forecast)
        smapes.append(np.mean(200 * error / (abs(actual) + abs(forecast))))
        scale = np.mean(abs(past[found.mase_season_length :] - past[: -found.mase_season_length]))
        mases.append(np.mean(error) / scale)
    return len(mases), np.mean(smapes), np.mean(mases)


# The errors of "Repeat" are those of Zeng et al. 2023, Table 2, in their three digits.
@needs("ett")
@pytest.mark.parametrize(
    ("name", "rows", "stops", "errors"),
    [
        ("etth1", 17_420, (8640, 11_520, 14_400), (1.295, 0.713)),
        ("etth2", 17_420, (8640, 11_520, 14_400), (0.432, 0.422)),
        ("ettm1", 69_680, (34_560, 46_080, 57_600), (1.214, 0.665)),
    ],
)
def test_transformers(real, name, rows, stops, errors):
    found, warned = real(name)
    assert not warned
    assert found.ids == ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
    assert found.panel.lengths.tolist() == [rows] * 7
    assert tuple(int(cut[0]) for cut in found[8:11]) == stops
    np.testing.assert_allclose(repeat_errors(found), errors, atol=1e-3)


@needs("weather")
def test_weather_of_jena(real):
    found, warned = real("weather")
    assert len(found.ids) == 21
    assert found.panel.lengths.tolist() == [52_696] * 21
    assert tuple(int(cut[0]) for cut in found[8:11]) == (36_887, 42_157, 52_696)
    assert "2 of 52,696 rows are not 10 minutes" in warned[0]
    assert "81 values are -9999" in warned[1]
    np.testing.assert_allclose(repeat_errors(found), (0.259, 0.254), atol=5e-4)


@needs("m4")
@pytest.mark.parametrize(
    ("name", "count", "lengths", "scores"),
    [("m4-hourly", 414, (748, 1008), (13.912, 1.193)), ("m4-weekly", 359, (93, 2610), (9.161, 2.777))],
)
def test_m4_scores_of_the_competition(real, name, count, lengths, scores):
    found, warned = real(name)
    assert not warned
    assert (found.panel.lengths.min(), found.panel.lengths.max()) == lengths
    evaluated, *measured = naive_scores(found)
    assert evaluated == len(found.ids) == count
    np.testing.assert_allclose(measured, scores, atol=5e-4)


@needs("aus_retail")
def test_retail_of_australia(real):
    found, warned = real("retail")
    assert len(found.ids) == 152
    assert found.panel.targets.shape == (64_532, 1)
    assert not np.isnan(found.panel.targets).any()
    assert ["4 of 152 series end before 2017-01" in message for message in warned] == [True]
    assert found.panel.static.sum(axis=1).tolist() == [2.0] * 152
    evaluated, smape, mase = naive_scores(found)
    print(f"retail, seasonal naive: {evaluated} series, sMAPE {smape:.3f}, MASE {mase:.3f}")
    assert evaluated == 148
    np.testing.assert_allclose((smape, mase), (7.439, 1.460), atol=5e-4)


@needs("vic_electricity")
def test_electricity_of_victoria(real):
    found, warned = real("electricity")
    assert not warned
    assert found.panel.lengths.tolist() == [52_608]
    assert found.start[0] == np.datetime64("2011-12-31T13:00:00")
    midnights = found.panel.future[:, 2] == 1
    assert midnights.sum() == 1096  # all days of three years have one, whatever the clocks do
    holidays = found.panel.future[midnights, 0]
    assert holidays[[0, 25]].tolist() == [1, 1]  # 1 and 26 January


@needs("bike_sharing")
def test_bicycles_of_washington(real):
    found, warned = real("bike")
    assert not warned
    assert found.panel.lengths.tolist() == [17_544]
    assert found.historic_names[4:] == ("weather=clear", "weather=mist", "weather=rain")


@needs("sp500")
def test_stocks(real):
    found, warned = real("sp500")
    assert not warned
    assert found.panel.lengths.tolist() == [5105, 1259, 1259, 1259, 1259]
    assert found.train_stop.tolist() == [4025, *[505] * 4]
    assert found.validation_stop.tolist() == [4277, *[757] * 4]
    np.testing.assert_allclose(np.exp(found.panel.targets[[0, 5104], 0]), [1455.219971, 2874.560059])
