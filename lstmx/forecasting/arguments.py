"""Checks of the forecaster's arguments, with messages that use their names."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lstmx.models import head_named
from lstmx.models.arguments import CELLS, require_choice
from lstmx.models.instance_scaling import SCALER_TYPES

HEADS = ("quantiles", "gaussian", "student_t", "negative_binomial", "mae", "mse")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a forecaster reads its frames, and how its network is built and trained.

    The attributes are the arguments of `LSTMForecaster` of the same names, checked, as Python numbers and
    tuples.
    """

    h: int
    input_size: int
    head: str
    decoder: str
    cell: str
    encoder_hidden_size: int
    encoder_n_layers: int
    patch_size: int
    linear: bool
    lags: tuple[int, ...]
    scaler_type: str
    log: bool
    season_length: int
    shrinkage: float
    dropout_rate: float
    know_series: bool
    hist_exog_list: tuple[str, ...]
    futr_exog_list: tuple[str, ...]
    stat_exog_list: tuple[str, ...]
    members: int
    max_steps: int
    learning_rate: float
    batch_size: int
    start_padding: bool
    val_check_steps: int
    random_seed: int
    alias: str
    quiet: bool


# Arguments that may differ between a fit and a warm start from it.
_FREE = (
    "shrinkage",
    "dropout_rate",
    "max_steps",
    "learning_rate",
    "batch_size",
    "start_padding",
    "val_check_steps",
    "random_seed",
    "alias",
    "quiet",
)


def checked(given: Mapping[str, Any]) -> Recipe:
    """The arguments of a forecaster, checked one by one and together.

    Args:
      given: all arguments by name.

    Raises:
      ValueError: naming the argument, the rule and the value.
    """
    values: dict[str, Any] = {name: rule(name, given[name]) for name, rule in _RULES.items()}
    input_size = given["input_size"]
    values["input_size"] = 3 * values["h"] if input_size is None else integer("input_size", input_size, 1)
    recipe = Recipe(**values)
    _require_compatible(recipe)
    return recipe


def recipe_of(forecaster: Any) -> Recipe:
    """The checked arguments of a forecaster, which may have been changed since its construction."""
    return checked({field.name: getattr(forecaster, field.name) for field in dataclasses.fields(forecaster)})


def require_same_network(fitted: Recipe, now: Recipe) -> None:
    """Raises ValueError unless both recipes define the same network and inputs."""
    for name in (field.name for field in dataclasses.fields(Recipe) if field.name not in _FREE):
        before, after = getattr(fitted, name), getattr(now, name)
        if before != after:
            raise ValueError(f"warm_start needs the same {name}: fitted with {before!r}, got {after!r}")


def integer(name: str, value: Any, least: int) -> int:
    """A Python or NumPy integer as a Python one; ValueError for anything else, or below `least`.

    Example:
      >>> integer("h", np.int64(3), 1)
      3
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return int(value)


def require_val_size(val_size: Any, h: int) -> int:
    """The checked `val_size`: 0 or at least `h`."""
    val_size = integer("val_size", val_size, 0)
    if 0 < val_size < h:
        raise ValueError(f"val_size must be 0 or at least h, which is {h}, got {val_size}")
    return val_size


def switch(name: str, value: Any) -> bool:
    """A Python or NumPy boolean as a Python one; ValueError for anything else."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def functions(name: str, value: Any) -> tuple[Callable[..., Any], ...]:
    """One function or several as a tuple; ValueError for anything else.

    Example:
      >>> functions("callbacks", print), functions("callbacks", [])
      ((<built-in function print>,), ())
    """
    several = (value,) if callable(value) else items_of(value)
    if several is None or not all(callable(function) for function in several):
        raise ValueError(f"{name} must be functions of one record, got {value!r}")
    return several


def _integer(least: int) -> Callable[[str, Any], int]:
    return lambda name, value: integer(name, value, least)


def _number(fits: Callable[[float], bool], rule: str) -> Callable[[str, Any], float]:
    def checked(name, value):
        if not is_number(value) or not fits(value):
            raise ValueError(f"{name} must be {rule}, got {value!r}")
        return float(value)

    return checked


def _choice(*choices: str) -> Callable[[str, Any], str]:
    def checked(name, value):
        require_choice(name, value, choices)
        return str(value)

    return checked


def _columns(name: str, value: Any) -> tuple[str, ...]:
    """Names of columns; a string is one name."""
    names = (value,) if isinstance(value, str) else items_of(value)
    if names is None or not all(isinstance(column, str) for column in names):
        raise ValueError(f"{name} must be a list of column names, got {value!r}")
    if len({*names}) < len(names):
        raise ValueError(f"{name} must not name a column twice, got {value!r}")
    return tuple(str(column) for column in names)


def _lags(name: str, value: Any) -> tuple[int, ...]:
    lags = items_of(value)
    if lags is None:
        raise ValueError(f"{name} must be a list of integers, got {value!r}")
    return tuple(integer(name, lag, 2) for lag in lags)


def _season(name: str, value: Any) -> int:
    season = integer(name, value, 0)
    if season == 1:
        raise ValueError(f"{name} must be 0 or at least 2, got 1")
    return season


def _seed(name: str, value: Any) -> int:
    seed = integer(name, value, 0)
    if seed >= 2**63:
        raise ValueError(f"{name} must be below 2**63, got {value!r}")
    return seed


def _alias(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be the name of a column, got {value!r}")
    return str(value)


_share = _number(lambda share: 0 <= share < 1, "in [0, 1)")
_RULES = {
    "h": _integer(1),
    "head": _choice(*HEADS),
    "decoder": _choice("direct", "recurrent"),
    "cell": _choice(*CELLS),
    "encoder_hidden_size": _integer(1),
    "encoder_n_layers": _integer(1),
    "patch_size": _integer(1),
    "linear": switch,
    "lags": _lags,
    "scaler_type": _choice(*SCALER_TYPES),
    "log": switch,
    "season_length": _season,
    "shrinkage": _share,
    "dropout_rate": _share,
    "know_series": switch,
    "hist_exog_list": _columns,
    "futr_exog_list": _columns,
    "stat_exog_list": _columns,
    "members": _integer(1),
    "max_steps": _integer(1),
    "learning_rate": _number(lambda rate: 0 < rate < math.inf, "a finite number above 0"),
    "batch_size": _integer(1),
    "start_padding": switch,
    "val_check_steps": _integer(1),
    "random_seed": _seed,
    "alias": _alias,
    "quiet": switch,
}


def _require_compatible(recipe: Recipe) -> None:
    if recipe.patch_size > recipe.input_size:
        raise ValueError(
            f"patch_size must be at most input_size, which is {recipe.input_size}, got {recipe.patch_size}"
        )
    if len({*recipe.lags}) < len(recipe.lags) or max(recipe.lags, default=0) > recipe.input_size:
        raise ValueError(
            f"lags must be different integers from 2 to input_size, which is {recipe.input_size}, got "
            f"{recipe.lags}"
        )
    if recipe.decoder == "recurrent":
        for name, value in (
            ("patch_size", recipe.patch_size > 1),
            ("hist_exog_list", recipe.hist_exog_list),
            ("shrinkage", recipe.shrinkage),
        ):
            if value:
                raise ValueError(f"{name} requires decoder='direct', got decoder='recurrent'")
    elif recipe.lags:
        raise ValueError("lags require decoder='recurrent', got decoder='direct'")
    for name in recipe.hist_exog_list:
        if name in recipe.futr_exog_list:
            raise ValueError(f"hist_exog_list and futr_exog_list must not share a column, got {name!r} twice")
    if not head_named(recipe.head).location_scale:
        if recipe.log:
            raise ValueError(f"log requires a head of real values, got head={recipe.head!r} of counts")
        if recipe.shrinkage:
            raise ValueError(f"shrinkage requires a head of real values, got head={recipe.head!r} of counts")


def is_number(value: Any) -> bool:
    """Whether a value is a number of Python or NumPy, and not a boolean."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def items_of(value: Any) -> tuple | None:
    """The items of a list, tuple, range, array or the like; None if it is none of these."""
    if isinstance(value, str | bytes) or not (isinstance(value, Sequence) or getattr(value, "ndim", 0) == 1):
        return None
    return tuple(value)
