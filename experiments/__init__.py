"""The experiments, one readable file each; `load` finds them by name, or a file of your own by its path."""

import difflib
import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from lstmx.training import config_from_dict, open_run


def names() -> list[str]:
    """The experiments known by name."""
    return sorted(
        m.name for m in pkgutil.iter_modules(__path__) if not m.ispkg and not m.name.startswith("_")
    )


def load(name_or_path: str) -> ModuleType:
    """Loads an experiment: a module with `Config`, `make_task(config)` and perhaps `PRESETS`.

    Args:
        name_or_path: name of a file in this folder without its suffix, or path of any file that ends in .py.

    Returns:
        The module.

    Raises:
        ValueError: there is none, or it lacks what an experiment has.

    Example:
        >>> load("no_such_experiment")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: no experiment named no_such_experiment...
    """
    if name_or_path.endswith(".py"):
        module = _load_file(Path(name_or_path))
    elif name_or_path in names():
        module = importlib.import_module(f"{__name__}.{name_or_path}")
    else:
        close = difflib.get_close_matches(name_or_path, names(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        known = ", ".join(names()) or "none"
        raise ValueError(
            f"no experiment named {name_or_path}{hint} (known: {known}; a file of your own is given by its "
            "path, which ends in .py)"
        )
    missing = [name for name in ("Config", "make_task") if not hasattr(module, name)]
    if missing:
        raise ValueError(f"{name_or_path} is not an experiment: it has no {' and no '.join(missing)}")
    return module


def reopen(folder: str | Path) -> tuple[ModuleType, Any]:
    """The experiment of a run and its config.

    Args:
        folder: the run folder.

    Returns:
        (module, config).

    Raises:
        ValueError: there is no run, or its experiment is gone or has other options now.
    """
    record = open_run(folder)
    module = load(record.experiment)
    return module, config_from_dict(module.Config, record.config)


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"no experiment at {path}: there is no such file")
    name = f"{__name__}.file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look up the types of their fields through sys.modules.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
