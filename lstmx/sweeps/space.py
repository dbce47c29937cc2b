"""A space of configs: for some fields of an experiment's config, by dotted name, the values to try.

optimizer.learning_rate=log:1e-4:1e-2    uniform in the logarithm
model.dropout_rate=0:0.6                 uniform; whole numbers if the field is an int
data.batch_size=16:64:16                 16, 32, 48 or 64
model.cell=lstm,gru                      one of several
"""

import json
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from lstmx.training.cli import closest_flag
from lstmx.training.config import field_types, replace_fields


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds, both included.

    Attributes:
        low: the least value.
        high: the greatest.
        log: whether the logarithm is uniform, or the value.
        step: distance of the values from `low` on; None for all between the bounds.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def examples(self) -> tuple[Any, ...]:
        """The bounds, which the config must accept."""
        return self.low, self.high

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high


@dataclass(frozen=True)
class Choice:
    """One of several values.

    Attributes:
        values: the values, in the order given.
    """

    values: tuple[Any, ...]

    @property
    def examples(self) -> tuple[Any, ...]:
        """The values, each of which the config must accept."""
        return self.values

    def __contains__(self, value: Any) -> bool:
        return value in self.values


Space = dict[str, Range | Choice]


def parse_space(
    config: Any,
    texts: Mapping[str, Any],
    also: Callable[[Any], Any] = lambda config: None,
    *,
    called: str = "field of the config",
) -> Space:
    """Reads a space and checks it against a config.

    Args:
        config: the config that each trial starts from: a dataclass that checks its fields.
        texts: by dotted field, a text as in this module's description, or a sequence of values.
        also: a further check of each config at the bounds of the space, that raises a ValueError.
        called: what a field is called in messages.

    Returns:
        The ranges and choices by field.

    Raises:
        ValueError: the space is empty, a field does not exist or cannot be varied, or a value has the wrong
            type or is refused by the config.

    Example:
        >>> from lstmx.training import OptimizerConfig
        >>> space = parse_space(OptimizerConfig(), {"learning_rate": "log:1e-4:1e-2", "name": "adamw,lamb"})
        >>> for part in space.values():
        ...     print(part)
        Range(low=0.0001, high=0.01, log=True, step=None)
        Choice(values=('adamw', 'lamb'))
        >>> parse_space(OptimizerConfig(), {"warmup": "0:1"})
        Traceback (most recent call last):
        ValueError: the space has warmup, which is not a field of the config; did you mean warmup_steps?
    """
    if not texts:
        raise ValueError("the space is empty: name at least one field with its values")
    known, space = field_types(type(config)), Space()
    for name, text in texts.items():
        if name not in known:
            raise ValueError(f"the space has {name}, which {_not_a_field(name, known, called)}")
        try:
            space[name] = _parse(text, known[name])
            for value in space[name].examples:
                also(replace_fields(config, {name: value}))
        except ValueError as error:
            raise ValueError(f"the space has {name}={_shown(text)}: {error}") from error
    return space


def parse_values(space: Space, texts: Mapping[str, str], config: Any) -> dict[str, Any]:
    """Reads the values of one trial, FIELD=VALUE each.

    Args:
        space: the space.
        texts: the values by dotted field.
        config: the config that each trial starts from.

    Returns:
        The values by field.

    Raises:
        ValueError: a field is not in the space, or the value is not.

    Example:
        >>> from lstmx.training import OptimizerConfig
        >>> space = parse_space(OptimizerConfig(), {"learning_rate": "log:1e-4:1e-2"})
        >>> parse_values(space, {"learning_rate": "1e-3"}, OptimizerConfig())
        {'learning_rate': 0.001}
    """
    known, values = field_types(type(config)), {}
    for name, text in texts.items():
        if name not in space:
            raise ValueError(f"{name} cannot be tried first: the space has {', '.join(space)}")
        values[name] = _value(text, known[name])
        if values[name] not in space[name]:
            raise ValueError(f"{name}={text} cannot be tried first: it is outside of the space")
    return values


def split_assignments(texts: Sequence[str]) -> dict[str, str]:
    """Splits texts FIELD=VALUE.

    Example:
        >>> split_assignments(["model.cell=lstm,gru"])
        {'model.cell': 'lstm,gru'}
    """
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ValueError(f"expected FIELD=VALUES, got {text!r}")
        if name in pairs:
            raise ValueError(f"{name} is given twice: {pairs[name]} and {value}")
        pairs[name] = value
    return pairs


def _not_a_field(name: str, known: Mapping[str, Any], called: str) -> str:
    inside = [field for field in known if field.startswith(name + ".")]
    if inside:
        return f"is a group of fields: {', '.join(inside)}"
    # As options are spelled, whose words `closest_flag` knows: lr is learning-rate.
    near = closest_flag(name, [field.replace("_", "-") for field in known])
    return f"is not a {called}" + (f"; did you mean {near.replace('-', '_')}?" if near else "")


def _shown(text: Any) -> str:
    return text if isinstance(text, str) else json.dumps(list(text), default=str)


def _parse(text: Any, hint: Any) -> Range | Choice:
    if not isinstance(text, str):
        return _choice(tuple(text))
    words = text.split(":")
    log = words[0] == "log"
    numbers = words[1:] if log else words
    if not log and len(numbers) == 1:
        return _choice(tuple(_value(word, hint) for word in text.split(",")))
    number = _number(hint)
    if number is None:
        raise ValueError(f"a range needs a field of numbers, and this one is {_type_name(hint)}")
    if len(numbers) not in ((2,) if log else (2, 3)):
        raise ValueError("a range is LOW:HIGH, LOW:HIGH:STEP or log:LOW:HIGH")
    try:
        low, high, *step = map(number, numbers)
    except ValueError:
        raise ValueError(f"the bounds of a range must be of type {number.__name__}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"the lower bound must be below the upper one, got {low} and {high}")
    if log and low <= 0:
        raise ValueError(f"a logarithmic range must be above 0, got {low}")
    if step and not 0 < step[0] <= high - low:
        raise ValueError(f"the step must be above 0 and at most {high - low}, got {step[0]}")
    return Range(low, high, log, *step)


def _choice(values: tuple[Any, ...]) -> Choice:
    if not values:
        raise ValueError("a choice needs values")
    if len(set(map(repr, values))) < len(values):
        raise ValueError("a value is there twice")
    return Choice(values)


def _members(hint: Any) -> tuple[Any, ...]:
    if hasattr(hint, "__metadata__"):
        return _members(get_args(hint)[0])
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _number(hint: Any) -> type | None:
    """The type of the numbers of a field, None if it has no numbers."""
    members = _members(hint)
    return float if float in members else int if int in members else None


def _value(text: str, hint: Any) -> Any:
    members = _members(hint)
    if type(None) in members and text.lower() == "none":
        return None
    if bool in members:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"must be true or false, got {text}")
        return text.lower() == "true"
    for member in members:
        if get_origin(member) is Literal:
            same = [value for value in get_args(member) if str(value) == text]
            if not same:
                raise ValueError(f"must be one of {', '.join(map(str, get_args(member)))}, got {text}")
            return same[0]
    number = _number(hint)
    if number is None:
        return text
    try:
        return number(text)
    except ValueError:
        raise ValueError(f"must be of type {number.__name__}, got {text!r}") from None


def _type_name(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint).removeprefix("typing."))
