"""Your own tables: reading CSV files, and the splits of their series."""

import lzma

import numpy as np
import pandas as pd
import pytest

from experiments.datasets import series_files
from experiments.datasets.series_table import read_table, table_set

NAMES = {"id_col": None, "time_col": "time", "target_col": "load"}


def write(folder, **columns):
    path = folder / "table.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def test_a_table_of_one_series_needs_no_ids(tmp_path):
    times = pd.date_range("2024-03-01", periods=5, freq="30min")
    series = read_table(write(tmp_path, load=[1, 2, np.nan, 4, 5], time=times), **NAMES)
    assert series.ids == ("load",)
    assert series.freq == "30min"
    np.testing.assert_array_equal(series.panel.targets[:, 0], [1, 2, np.nan, 4, 5])


def test_ids_are_names_though_they_look_like_numbers(tmp_path):
    path = write(tmp_path, shop=["007", "7"] * 2, time=[1, 1, 2, 2], load=[1.0, 2, 3, 4])
    packed = tmp_path / "table.csv.xz"
    packed.write_bytes(lzma.compress(path.read_bytes()))
    series = read_table(packed, **{**NAMES, "id_col": "shop"})
    assert series.ids == ("007", "7")
    assert series.panel.series(0)[:, 0].tolist() == [1, 3]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_delimiters_and_byte_order_marks_are_recognised(tmp_path, delimiter, encoding):
    frame = pd.DataFrame({"shop": ["ä, b", "ä, b"], "time": [1, 2], "load": [1.5, 2.5]})
    path = tmp_path / "table.csv"
    frame.to_csv(path, sep=delimiter, encoding=encoding, index=False)
    series = read_table(path, **{**NAMES, "id_col": "shop"})
    assert series.ids == ("ä, b",)
    assert series.panel.targets.ravel().tolist() == [1.5, 2.5]


def test_a_delimiter_is_named_or_that_of_the_columns(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("time;load, MW, net;load\n1;0;1.5\n2;0;2.5\n")
    assert read_table(path, **NAMES).panel.targets.ravel().tolist() == [1.5, 2.5]
    path.write_text(path.read_text().replace(";", "~"))
    assert read_table(path, **NAMES, delimiter="~").panel.targets.ravel().tolist() == [1.5, 2.5]
    with pytest.raises(ValueError, match="load"):
        read_table(path, **NAMES)


def test_a_decimal_comma_is_no_number(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("time;load\n1;1,5\n2;2,5\n")
    with pytest.raises(ValueError, match=r"load must .*, got '1,5' in"):
        read_table(path, **NAMES)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_published_tables_are_recognised_too(delimiter, mark):
    rows = ["", "time,load", "2024-01-01,1.5"]
    table = series_files.read_table("table.csv", mark + "\n".join(rows).replace(",", delimiter).encode())
    assert (table.header, table.lines) == (["time", "load"], [3])
    assert table.numbers(["load"]).item() == 1.5


def test_each_series_is_cut_by_shares(tmp_path):
    lengths = {"a": 40, "b": 25}
    shops = np.repeat(list(lengths), list(lengths.values()))
    times = np.concatenate([pd.date_range("2024-01-01", periods=n, freq="h") for n in lengths.values()])
    path = write(tmp_path, shop=shops, time=times, load=np.arange(65.0))
    series = read_table(path, **{**NAMES, "id_col": "shop"})
    found = table_set(series, horizon=4, season_length=None, splits=(60, 20, 20))
    assert (found.season_length, found.horizon, found.frequency) == (24, 4, "h")
    assert found.train_stop.tolist() == [24, 15]
    assert found.validation_stop.tolist() == [32, 20]
    assert found.test_stop.tolist() == [40, 25]
    assert found.start.tolist() == [np.datetime64("2024-01-01", "s").item()] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 6}, "the validation part needs the 6 steps of a forecast .* the longest has 5"),
        ({"splits": (80, 20)}, r"splits must be three positive numbers, got \(80, 20\)"),
        ({"splits": (80, 20, 0)}, "splits must be three positive numbers"),
        ({"season_length": 0}, "season_length must be at least 1, got 0"),
    ],
)
def test_cuts_that_do_not_fit_are_refused(tmp_path, options, message):
    times = pd.date_range("2024-01-01", periods=50, freq="D")
    series = read_table(write(tmp_path, load=np.arange(50.0), time=times), **NAMES)
    with pytest.raises(ValueError, match=message):
        table_set(series, **{"horizon": 3, "season_length": 7, "splits": (80, 10, 10), **options})
