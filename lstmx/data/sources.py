"""TFDS data sets without TensorFlow: prepared once as array_record files, then read by position."""

import contextlib
import io
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# The one random-access format of TFDS that is written without TensorFlow and read in order without pyarrow.
_FILE_FORMAT = "array_record"


def is_prepared(builder: "tfds.core.DatasetBuilder") -> bool:
    """Whether a TFDS data set is on disk, complete.

    Args:
      builder: a constructed builder.

    Returns:
      True if its folder holds a `dataset_info.json`, which TFDS writes last. A folder without it was left
      behind by an attempt that was killed or failed.
    """
    return (pathlib.Path(builder.data_dir) / "dataset_info.json").is_file()


def prepared(
    builder: "tfds.core.DatasetBuilder", split: str | None = None
) -> Sequence[Any] | dict[str, Sequence[Any]]:
    """Prepares a TFDS data set unless it is prepared, and opens it for random access.

    Preparing writes a folder beside the final one and renames it at the end, so that a killed process leaves
    nothing that would be read later, and of several processes that prepare the same set all get it.

    Args:
      builder: a constructed builder whose generation does not need TensorFlow.
      split: a TFDS split such as `"train"` or `"train[:50%]"`; None for a dict of all of them.

    Returns:
      A sequence of records, each a dict of numpy values (text as bytes: see `text_of`), or a dict of such
      sequences by split name. It can be the source of a `grain.MapDataset`.

    Raises:
      PermissionError: if the set is not prepared and the folder cannot be written to.
      RuntimeError: if preparing fails.
      ConnectionError, ValueError: raised by the builder, unchanged.

    Example, for a builder class `MyCorpus`:

        records = prepared(MyCorpus(data_dir="data"), "train")
        text_of(records[0], "text")
    """
    if not is_prepared(builder):
        _require_writable(pathlib.Path(builder.data_dir))
        _prepare(builder)
    return builder.as_data_source(split)


def text_of(record: Mapping[str, Any], key: str) -> str:
    """Reads a text feature as `str`, in whatever form TFDS returns it.

    Array records give text as bytes, `tfds.testing.mock_data` as str, and batched readers as 0-d arrays.

    Args:
      record: one record of a data source.
      key: the name of the text feature.

    Returns:
      The text.

    Raises:
      KeyError: if the record has no such feature.
      TypeError: if the feature is not text.

    Example:
      >>> text_of({"text": b"caf\\xc3\\xa9"}, "text")
      'café'
    """
    if key not in record:
        raise KeyError(f"the record has no feature {key!r}, only {sorted(record)}")
    value = record[key]
    if hasattr(value, "item"):  # a 0-d numpy array
        value = value.item()
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, str):
        return value
    raise TypeError(f"feature {key!r} must be text (bytes or str), got {type(value).__name__}")


def require_host(host: str, *, instead: str, port: int = 443, timeout: float = 3.0) -> None:
    """Fails fast if a host that a download needs cannot be reached; a download would retry for minutes.

    Where the environment names a proxy for https, the proxy has to be reachable instead.

    Args:
      host: host name.
      instead: what the user can do without the network: which file to put where.
      port: TCP port.
      timeout: seconds for resolving and connecting together.

    Raises:
      ConnectionError: if the host does not resolve or accept a connection in time; says `instead`.

    Example, before a download:

        require_host("example.org", instead="put corpus.txt into data/")
    """
    # Imported here: it takes longer to import than the rest of this package.
    import urllib.parse
    import urllib.request

    reached = f"{host}:{port}"
    proxy = urllib.request.getproxies().get("https")
    if proxy and not urllib.request.proxy_bypass(host):
        address = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        host, port = address.hostname or host, address.port or 80
        reached = f"{reached} through the proxy {host}:{port}"

    problem: list[str] = [f"no answer within {timeout:g} s"]

    def connect():
        deadline = time.monotonic() + timeout
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            for at, (family, kind, protocol, _, address) in enumerate(addresses):
                try:
                    with socket.socket(family, kind, protocol) as connection:
                        # An unreachable IPv6 address often comes first and must leave time for the next.
                        share = (deadline - time.monotonic()) / (len(addresses) - at)
                        connection.settimeout(max(share, 0.01))
                        connection.connect(address)
                    problem.clear()
                    return
                except OSError as error:
                    problem[:] = [str(error)]
        except (OSError, UnicodeError) as error:
            problem[:] = [str(error)]

    # Resolving has no time limit of its own and cannot be interrupted, so it is waited for from outside.
    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(timeout)
    if problem:
        raise ConnectionError(
            f"cannot reach {reached} ({problem[0]}); to continue without a download, {instead}"
        )


def _require_writable(folder: pathlib.Path) -> None:
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise PermissionError(f"cannot prepare a data set in {folder}: {existing} is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(
            f"cannot prepare a data set in {folder}: {existing} is read-only; choose another data_dir, or "
            "copy the folder there from a machine where it was prepared"
        )


def _prepare(builder: "tfds.core.DatasetBuilder") -> None:
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig()
    if pathlib.Path(builder.data_dir).exists():
        # A leftover without dataset_info.json: by default TFDS would take it for the finished data set.
        config = config.replace(download_mode=tfds.GenerateMode.REUSE_CACHE_IF_EXISTS)
    try:
        # TFDS announces itself on stdout, which belongs to the results of the program.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_config=config, file_format=_FILE_FORMAT)
    except (ConnectionError, ValueError):
        raise
    except Exception as error:
        if not is_prepared(builder):
            raise RuntimeError(
                f"preparing the data set {builder.info.full_name} in {builder.data_dir} failed with "
                f"{type(error).__name__}: {error}; nothing half-written will be read; run again once the "
                "cause is removed"
            ) from error
        # Another process was faster. What it wrote is this same data set.
        builder.info.read_from_directory(builder.data_dir)
