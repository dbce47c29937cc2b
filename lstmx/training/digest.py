"""Digests of checkpoints: the SHA-256 of each file, and whether the checkpoint is complete.

orbax notices missing and truncated files, but silently returns arrays with a flipped bit.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lstmx.training.files import write_atomically


def saved_steps(run: Path) -> list[int]:
    """Steps of the checkpoints in a run folder, complete or not, in ascending order."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal())


def find_problem(run: Path, step: int) -> str | None:
    """Compares each file of a checkpoint with its digest.

    Args:
        run: the run folder.
        step: the checkpoint.

    Returns:
        What is wrong, with the name of the file; None if the checkpoint is complete.
    """
    digest = read_digest(run, step)
    if digest is None:
        return f"{digest_path(run, step).name} in digests is missing or damaged"
    if digest["status"] != "complete":
        return f"it was not finished (its status is {digest['status']})"
    folder = run / "checkpoints" / str(step)
    for name, expected in digest["files"].items():
        try:
            found = _sha256(folder / name)
        except FileNotFoundError:
            return f"file {name} is missing"
        except OSError as error:
            return f"file {name} cannot be read: {error.strerror}"
        if found != expected:
            return f"file {name} is damaged (its SHA-256 differs)"
    return None


def is_torn(run: Path, step: int) -> bool:
    """Whether a checkpoint is incomplete because of a kill: nothing is lost, since it was not counted yet."""
    digest = read_digest(run, step)
    return digest is not None and digest["status"] != "complete"


def digest_path(run: Path, step: int) -> Path:
    """Where the digest of a checkpoint is."""
    return run / "digests" / f"{step}.json"


def write_digest(run: Path, step: int, status: str, files: Mapping[str, str]) -> None:
    """Writes the digest of a checkpoint: status and files with their SHA-256."""
    write_atomically(digest_path(run, step), json.dumps({"status": status, "files": files}, indent=1) + "\n")


def read_digest(run: Path, step: int) -> dict[str, Any] | None:
    """Reads the digest of a checkpoint; None if it is missing or damaged."""
    try:
        digest = json.loads(digest_path(run, step).read_text(encoding="utf-8"))
        if digest["status"] in ("saving", "deleting") or (digest["status"] == "complete" and digest["files"]):
            return {"status": digest["status"], "files": dict(digest["files"])}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below a folder, by its path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
