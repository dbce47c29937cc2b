"""Configs as JSON: nested frozen dataclasses to dicts and back, and what differs between two of them."""

import dataclasses
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

Config = TypeVar("Config")
ABSENT = "absent"


def config_to_dict(config: Any) -> dict[str, Any]:
    """Turns a nested dataclass into what JSON can hold.

    A dataclass in a field that allows several of them carries the name of its class as "type". Tuples become
    lists, paths become strings, types such as `jnp.float32` become the name of their dtype.

    Args:
        config: a dataclass instance.

    Returns:
        A dict of dicts, lists, strings, numbers, booleans and None.

    Raises:
        TypeError: a field holds something else; the message names it.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Data:
        ...     path: Path = Path("a.txt")
        ...     sizes: tuple[int, ...] = (1, 2)
        >>> config_to_dict(Data())
        {'path': 'a.txt', 'sizes': [1, 2]}
    """
    return _encode_fields(config, prefix="")


def _encode_fields(config: Any, prefix: str) -> dict[str, Any]:
    hints = get_type_hints(type(config))
    fields = [field for field in dataclasses.fields(config) if field.init]
    return {f.name: _encode(getattr(config, f.name), hints[f.name], prefix + f.name) for f in fields}


def _encode(value: Any, hint: Any, name: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        tag = {} if hint is type(value) else {"type": type(value).__name__}
        return tag | _encode_fields(value, name + ".")
    if isinstance(value, Mapping):
        return {str(key): _encode(item, Any, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        hints = _element_hints(hint, len(value))
        return [_encode(item, hints[i], f"{name}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    import numpy as np

    try:
        return np.dtype(value).name
    except TypeError:
        raise TypeError(f"{name}: {type(value).__name__} cannot be stored as JSON, got {value!r}") from None


def config_from_dict(cls: type[Config], values: Mapping[str, Any], prefix: str = "") -> Config:
    """Builds a nested dataclass from the dict that `config_to_dict` made; absent fields keep their defaults.

    Args:
        cls: the dataclass.
        values: its fields.
        prefix: prefix of the names of fields in messages.

    Returns:
        An instance of cls.

    Raises:
        ValueError: an unknown or missing field or one of the wrong type; the message names it.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Data:
        ...     path: Path = Path("a.txt")
        ...     sizes: tuple[int, ...] = (1, 2)
        >>> config_from_dict(Data, {"sizes": [3]})
        Data(path=PosixPath('a.txt'), sizes=(3,))
        >>> config_from_dict(Data, {"size": [3]})
        Traceback (most recent call last):
        ValueError: size is not a field of Data, which has path, sizes
    """
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cast(Any, cls)) if field.init}
    for name in values:
        if name not in fields:
            known = ", ".join(fields)
            raise ValueError(f"{prefix}{name} is not a field of {cls.__name__}, which has {known}")
    for name, field in fields.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and name not in values:
            raise ValueError(f"{prefix}{name} is missing and has no default")
    return cls(**{name: _decode(value, hints[name], prefix + name) for name, value in values.items()})


def _decode(value: Any, hint: Any, name: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hasattr(hint, "__metadata__"):  # Annotated[X, ...], as tyro uses it
        return _decode(value, arguments[0], name)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return config_from_dict(hint, {k: v for k, v in value.items() if k != "type"}, name + ".")
    if origin in (Union, types.UnionType):
        return _decode_union(value, arguments, name)
    if origin is Literal:
        _check(value in arguments, name, f"one of {', '.join(map(repr, arguments))}", value)
        return value
    if hint is tuple or hint is list or origin in (tuple, list):
        _check(isinstance(value, list | tuple), name, "a list", value)
        hints = _element_hints(hint, len(value))
        return (origin or hint)(_decode(item, hints[i], f"{name}[{i}]") for i, item in enumerate(value))
    if hint is Path:
        _check(isinstance(value, str | Path), name, "a path", value)
        return Path(value)
    if hint is float:
        _check(isinstance(value, int | float) and not isinstance(value, bool), name, "a number", value)
        return float(value)
    if hint in (int, str, bool, type(None)):
        _check(type(value) is hint, name, f"of type {hint.__name__}", value)
    return value


def _decode_union(value: Any, members: tuple[Any, ...], name: str) -> Any:
    if value is None and type(None) in members:
        return None
    if isinstance(value, Mapping) and "type" in value:
        named = [member for member in members if getattr(member, "__name__", None) == value["type"]]
        classes = ", ".join(getattr(member, "__name__", str(member)) for member in members)
        _check(bool(named), f"{name}.type", f"one of {classes}", value["type"])
        return _decode(value, named[0], name)
    problems = []
    for member in members:
        try:
            return _decode(value, member, name)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError(" or ".join(problems))


def _element_hints(hint: Any, count: int) -> list[Any]:
    arguments = get_args(hint)
    if get_origin(hint) is tuple and len(arguments) == count and Ellipsis not in arguments:
        return list(arguments)
    return [arguments[0] if get_origin(hint) in (tuple, list) and arguments else Any] * count


def _check(holds: bool, name: str, rule: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"{name} must be {rule}, got {value!r}")


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields in which two config dicts differ.

    Args:
        old: one config as a dict.
        new: the other.

    Returns:
        Dotted name of the field -> (old value, new value); a value that one of them lacks is `"absent"`.

    Example:
        >>> config_differences({"model": {"size": 128}, "seed": 0}, {"model": {"size": 256}, "seed": 0})
        {'model.size': (128, 256)}
    """
    differences: dict[str, tuple[Any, Any]] = {}
    for name in [*old, *(name for name in new if name not in old)]:
        before, after = old.get(name, ABSENT), new.get(name, ABSENT)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            inner = config_differences(before, after)
            differences |= {f"{name}.{field}": pair for field, pair in inner.items()}
        elif before != after:
            differences[name] = (before, after)
    return differences


def field_types(cls: type, prefix: str = "") -> dict[str, Any]:
    """The types of all fields of a config, by dotted name; nested configs are left out, their fields are not.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Model:
        ...     size: int = 8
        >>> @dataclasses.dataclass(frozen=True)
        ... class Settings:
        ...     rate: float = 0.1
        ...     model: Model = Model()
        >>> field_types(Settings)
        {'rate': <class 'float'>, 'model.size': <class 'int'>}
    """
    hints = get_type_hints(cls)
    types_by_name: dict[str, Any] = {}
    for field in dataclasses.fields(cast(Any, cls)):
        name, hint = prefix + field.name, hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            types_by_name |= field_types(hint, name + ".")
        elif field.init:
            types_by_name[name] = hint
    return types_by_name


def replace_fields(config: Config, values: Mapping[str, Any], prefix: str = "") -> Config:
    """A config with other values in some fields.

    Args:
        config: a nested dataclass.
        values: the values by dotted name, of the types that `config_from_dict` accepts.
        prefix: prefix of the names of fields in messages.

    Returns:
        A new config; its `__post_init__` has checked it.

    Raises:
        ValueError: an unknown field, a value of the wrong type, or one that the config refuses.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Model:
        ...     size: int = 8
        >>> @dataclasses.dataclass(frozen=True)
        ... class Settings:
        ...     model: Model = Model()
        >>> replace_fields(Settings(), {"model.size": 16})
        Settings(model=Model(size=16))
        >>> replace_fields(Settings(), {"model.size": "16"})
        Traceback (most recent call last):
        ValueError: model.size must be of type int, got '16'
    """
    hints = get_type_hints(type(config))
    inner: dict[str, dict[str, Any]] = {}
    outer: dict[str, Any] = {}
    for name, value in values.items():
        first, _, rest = name.partition(".")
        if first not in hints:
            raise ValueError(f"{prefix}{first} is not a field of {type(config).__name__}")
        if rest:
            inner.setdefault(first, {})[rest] = value
        else:
            outer[first] = _decode(value, hints[first], prefix + first)
    for first, fields in inner.items():
        outer[first] = replace_fields(getattr(config, first), fields, f"{prefix}{first}.")
    return dataclasses.replace(cast(Any, config), **outer)
