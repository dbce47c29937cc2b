"""Reads data sets of the builders in this folder, preparing them the first time."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import tensorflow_datasets as tfds
from absl import logging as absl_logging

from lstmx.data import is_prepared, prepared

SPLITS = ("train", "validation", "test")

Contents = TypeVar("Contents")


class DamagedError(Exception):
    """The prepared records are not those that the configuration names."""


def load_prepared(
    builder_type: type[tfds.core.GeneratorBasedBuilder],
    config: tfds.core.BuilderConfig,
    data_dir: str | os.PathLike | None,
    read: Callable[[Mapping[str, Sequence[Any]]], Contents],
) -> Contents:
    """Reads the records of a builder, preparing them the first time.

    Args:
      builder_type: the builder.
      config: its configuration.
      data_dir: where TFDS keeps its data sets; None for TFDS's own default.
      read: makes the result from the records of each split; raises `DamagedError` if they are damaged.

    Returns:
      What `read` returns.

    Raises:
      RuntimeError: if the prepared copy is damaged, with the folder to delete; and the errors of preparing.
    """
    data_dir = None if data_dir is None else pathlib.Path(data_dir).expanduser()
    folder = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    folder = folder / builder_type.name / config.name
    with _damage_named(folder), _without_custom_config_warning():
        builder = builder_type(config=config, data_dir=data_dir)
    if not is_prepared(builder):
        prepared(builder)  # here, so that what goes wrong in preparing is not taken for damage
    with _damage_named(folder):
        return read(prepared(builder))


@contextlib.contextmanager
def _damage_named(folder: pathlib.Path) -> Iterator[None]:
    # The error of a damaged file depends on the place: JSON, protobuf, array_record, UTF-8 or digest.
    try:
        yield
    except PermissionError:
        raise
    except Exception as error:
        if not folder.exists():
            raise
        raise RuntimeError(
            f"the prepared data set {folder} is damaged ({type(error).__name__}: {error}); delete this "
            "folder and run again, it will be prepared again"
        ) from error


@contextlib.contextmanager
def _without_custom_config_warning() -> Iterator[None]:
    # Every config of these builders is a custom one: TFDS warns about that on stderr, with a page of repr.
    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        yield
    finally:
        absl_logging.set_verbosity(verbosity)
