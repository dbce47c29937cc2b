"""Frames of daily sales, and a forecaster small enough for tests."""

import numpy as np
import pandas as pd

SMALL = {"input_size": 12, "encoder_hidden_size": 6, "max_steps": 8, "batch_size": 16, "dropout_rate": 0.0}


def frame(lengths=(60, 45), seed=0):
    """Daily series with a week's rhythm; `price` moves them, `shop` is what they are."""
    chance = np.random.default_rng(seed)
    parts = []
    for number, length in enumerate(lengths):
        steps = np.arange(length)
        price = chance.normal(size=length)
        level = 10 ** (1 + number)
        y = level * (5 + np.sin(2 * np.pi * steps / 7) + price + 0.05 * chance.normal(size=length))
        days = pd.date_range("2024-01-01", periods=length, freq="D")
        parts.append(pd.DataFrame({"unique_id": "ab"[number], "ds": days, "y": y, "price": price}))
    return pd.concat(parts, ignore_index=True)


STATIC = pd.DataFrame({"unique_id": ["a", "b"], "shop": ["north", "south"], "size": [1.0, 3.0]})


def ahead(df, h):
    """The rows after the end of each series."""
    parts = []
    for label, own in df.groupby("unique_id"):
        days = pd.date_range(own["ds"].max(), periods=h + 1, freq="D")[1:]
        parts.append(pd.DataFrame({"unique_id": label, "ds": days, "price": np.linspace(-1, 1, h)}))
    return pd.concat(parts, ignore_index=True)
