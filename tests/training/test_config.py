from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from lstmx.training import config_differences, config_from_dict, config_to_dict


@dataclasses.dataclass(frozen=True)
class Wide:
    size: int = 4
    rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Deep:
    depth: int = 2


@dataclasses.dataclass(frozen=True)
class Experiment:
    path: Path
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[int, str] = (1, "a")
    clip: float | None = None
    mode: Literal["fast", "exact"] = "exact"
    model: Wide | Deep = Wide()
    inner: Wide = Wide()
    on: bool = True
    dtype: object = np.float32


VALUES = Experiment(Path("a/b"), (3,), (2, "b"), 1.5, "fast", Deep(7), Wide(1, 2.0), False)


def test_a_config_survives_json():
    text = json.dumps(config_to_dict(VALUES))
    assert config_from_dict(Experiment, json.loads(text)) == dataclasses.replace(VALUES, dtype="float32")
    assert json.loads(text)["model"] == {"type": "Deep", "depth": 7}
    assert json.loads(text)["inner"] == {"size": 1, "rate": 2.0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "path is missing and has no default"),
        ({"path": "a", "pth": 1}, "pth is not a field of Experiment"),
        ({"path": "a", "inner": {"sise": 1}}, "inner.sise is not a field of Wide"),
        ({"path": "a", "inner": {"size": "1"}}, "inner.size must be of type int, got '1'"),
        ({"path": "a", "inner": {"size": True}}, "inner.size must be of type int, got True"),
        ({"path": "a", "sizes": [1, "x"]}, r"sizes\[1\] must be of type int, got 'x'"),
        ({"path": "a", "mode": "slow"}, "mode must be one of 'fast', 'exact', got 'slow'"),
        ({"path": "a", "model": {"type": "Thin"}}, "model.type must be one of Wide, Deep, got 'Thin'"),
        ({"path": "a", "clip": "x"}, "clip must be a number"),
    ],
)
def test_what_is_wrong_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        config_from_dict(Experiment, values)


def test_a_value_without_json_is_named():
    with pytest.raises(TypeError, match=r"dtype: .* cannot be stored as JSON"):
        config_to_dict(dataclasses.replace(VALUES, dtype=lambda: None))


def test_differences_are_dotted_and_complete():
    old, new = config_to_dict(VALUES), config_to_dict(dataclasses.replace(VALUES, inner=Wide(9, 2.0)))
    assert config_differences(old, new) == {"inner.size": (1, 9)}
    assert config_differences({"a": 1}, {"b": None}) == {"a": (1, "absent"), "b": ("absent", None)}
    assert config_differences(old, old) == {}
