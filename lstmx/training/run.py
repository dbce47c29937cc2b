"""The folder of a run: its config, and which process may write in it."""

import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

from lstmx.training.config import config_differences, config_from_dict, config_to_dict
from lstmx.training.files import lock_file, write_atomically
from lstmx.training.prolonging import asks_for_more_steps, refusal_to_prolong

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "lstmx")


class RunError(ValueError):
    """A run folder cannot be used as asked; the message says why.

    Attributes:
        cause: "config" if the run has another config, "steps" if its learning rate schedule allows no further
            steps, "start" if it started from other weights; None for anything else.
    """

    def __init__(self, message: str, cause: str | None = None):
        super().__init__(message)
        self.cause = cause


@dataclass(frozen=True)
class RunRecord:
    """What `config.json` holds.

    Attributes:
        experiment: name of the experiment, or path of its file.
        config: its config as a dict; see `lstmx.training.config_from_dict`.
        versions: versions of Python and of the libraries that started the run.
        git: commit of the code, with "-dirty" if it had changes; None outside of a repository.
        init_from: folder of the run whose weights it started from; None if it started from new ones.
    """

    experiment: str
    config: Mapping[str, Any]
    versions: Mapping[str, str] = field(default_factory=dict)
    git: str | None = None
    init_from: str | None = None


@dataclass(frozen=True)
class Run:
    """A run folder that only this process may write in, for as long as `claim_run` lasts.

    Attributes:
        folder: the folder.
        record: the content of its config.json.
        is_new: nothing has been recorded in it yet.
        is_prolonged: more steps are requested than before.
    """

    folder: Path
    record: RunRecord
    is_new: bool
    is_prolonged: bool = False

    def write_record(self) -> None:
        """Writes config.json, after which the folder is a run."""
        write_atomically(self.folder / "config.json", json.dumps(asdict(self.record), indent=2) + "\n")


def check_assets(folder: Path, assets: Mapping[str, str]) -> None:
    """Raises RunError if a task's assets differ from those stored in the run: its data have changed."""
    kept = read_assets(folder)
    changed = [name for name, text in assets.items() if kept.get(name, text) != text]
    if changed:
        raise RunError(
            f"the data are not those that the run {folder} was started with ({', '.join(changed)} differ); "
            "restore them or start another run"
        )


def keep_assets(folder: Path, assets: Mapping[str, str]) -> None:
    """Stores the assets of a task in its run: vocabularies, scalers, digests of the data.

    Args:
        folder: the run folder.
        assets: file name -> text.

    Raises:
        RunError: the run was started with others, so its data were different.
    """
    check_assets(folder, assets)
    (folder / "assets").mkdir(exist_ok=True)
    for name, text in assets.items():
        write_atomically(folder / "assets" / name, text)


def read_assets(folder: str | Path) -> dict[str, str]:
    """The assets of a run: file name -> text."""
    files = sorted(Path(folder, "assets").glob("[!.]*"))
    return {file.name: file.read_text(encoding="utf-8") for file in files if file.suffix != ".tmp"}


def make_record(experiment: str, config: Mapping[str, Any]) -> RunRecord:
    """The record of a run that is started with the installed versions."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            # A checkout that is run in place.
            versions[package] = getattr(sys.modules.get(package), "__version__", "not installed")
    return RunRecord(experiment, json.loads(json.dumps(config)), versions, _git_commit())


def _git_commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def open_run(folder: str | Path) -> RunRecord:
    """Reads the record of a run, without changing anything.

    Args:
        folder: the run folder.

    Returns:
        Its record: experiment and config, with versions.

    Raises:
        RunError: there is no such folder, it is not a run, or its config.json is damaged.

    Example:
        >>> open_run("no/such/run")
        Traceback (most recent call last):
        lstmx.training.run.RunError: no run at no/such/run: there is no such folder
    """
    folder = Path(folder)
    path = folder / "config.json"
    if not folder.is_dir():
        reason = "it is a file" if folder.exists() else "there is no such folder"
        raise RunError(f"no run at {folder}: {reason}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return RunRecord(
            content["experiment"],
            content["config"],
            content.get("versions", {}),
            content.get("git"),
            content.get("init_from"),
        )
    except FileNotFoundError:
        raise RunError(f"no run at {folder}: it has no config.json") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged ({error!r}): restore it or choose another folder") from error


@contextmanager
def claim_run(
    folder: str | Path, experiment: str, config: Any, init_from: str | Path | None = None
) -> Iterator[Run]:
    """Makes or opens a run folder for training and locks it against other processes.

    Nothing is compiled and no data are read, so a wrong folder is reported early. config.json is not written
    here but by `Run.write_record`, so that a failure to set up the training does not leave a run behind.

    Args:
        folder: the run folder; made if there is none.
        experiment: name of the experiment or path of its file.
        config: its config, a dataclass or a dict. Fields that an older version's run lacks have the defaults
            of the dataclass. It may ask for more `steps` than the run has, if the learning rate does not
            depend on their number: see `lstmx.training.prolonging`.
        init_from: folder of the run whose weights it starts from, to be recorded; None for new ones.

    Yields:
        The run.

    Raises:
        RunError: it is a file, cannot be written, holds something else, is in use, has another config or
            another start.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file: a run needs a folder")
    _refuse_foreign(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise RunError(f"cannot write in {folder}: {error.strerror or error}") from error
    with _lock(folder):
        record = make_record(experiment, config_to_dict(config) if is_dataclass(config) else config)
        record = replace(record, init_from=None if init_from is None else str(Path(init_from).resolve()))
        if not (folder / "config.json").exists():
            yield Run(folder, record, is_new=True)
            return
        old = open_run(folder)
        old = replace(old, config=_completed(old.config, config))
        _refuse_changed(folder, old, record)
        # The versions stay those that started the run, so that others are noticed.
        yield Run(folder, replace(old, config=record.config), False, old.config != record.config)


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists() or (folder / "config.json").exists():
        return
    others = [entry.name for entry in folder.iterdir() if entry.name != "lock" and entry.suffix != ".tmp"]
    if others:
        shown = ", ".join(sorted(others)[:3]) + (", ..." if len(others) > 3 else "")
        raise RunError(
            f"{folder} is not empty and not a run (no config.json, but {shown}): choose another folder"
        )


def _completed(old: Mapping[str, Any], config: Any) -> Mapping[str, Any]:
    """A config read from a run, with the fields that did not exist when the run was made."""
    if not is_dataclass(config):
        return old
    try:
        return config_to_dict(config_from_dict(type(config), old))
    except ValueError:
        # It has fields that no longer exist; comparing it as it is shows which.
        return old


def _refuse_changed(folder: Path, old: RunRecord, new: RunRecord) -> None:
    if old.init_from != new.init_from:
        starts = [
            f"from the weights of {run}" if run else "from new weights"
            for run in (old.init_from, new.init_from)
        ]
        raise RunError(f"the run in {folder} started {starts[0]}, requested is one {starts[1]}", "start")
    lines = []
    # By stem: the file of an experiment may have been moved, with the run or without.
    if Path(old.experiment).stem != Path(new.experiment).stem:
        lines.append(f"  experiment: {old.experiment} in the run, {new.experiment} requested")
    differences = config_differences(old.config, new.config)
    if not lines and asks_for_more_steps(differences):
        reason = refusal_to_prolong(new.config, differences["steps"][0])
        if reason:
            raise RunError(f"the run in {folder} cannot be prolonged: {reason}", "steps")
        return
    for name, (before, after) in differences.items():
        lines.append(f"  {name}: {before} in the run, {after} requested")
    if lines:
        raise RunError("\n".join([f"the run in {folder} has another config:", *lines]), "config")


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    # The lock belongs to the open file and the system drops it with the process, however that ends: a lock
    # left by a crash needs no detection. The content only serves the message.
    with (folder / "lock").open("a+", encoding="utf-8") as file:
        try:
            lock_file(file)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise RunError(f"{folder} is in use by {owner}: wait for it, or choose another folder") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
