import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from lstmx.data import is_prepared, prepared, require_host, text_of

ROOT = pathlib.Path(__file__).resolve().parents[2]


class CountingBuilder(tfds.core.GeneratorBasedBuilder):
    """Six numbered texts; counts how often they are generated and can fail on the way."""

    VERSION = tfds.core.Version("1.0.0")
    generated = 0
    failure = None
    rival = None

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        if self.rival is not None and self is not self.rival:
            prepared(self.rival)
        return {"train": self._generate_examples(4), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for number in range(count):
            if number == 1 and self.failure is not None:
                raise self.failure
            type(self).generated += 1
            yield number, {"text": f"tëxt {number}"}


@pytest.fixture(autouse=True)
def _fresh_builder(monkeypatch):
    monkeypatch.setattr(CountingBuilder, "generated", 0)
    monkeypatch.setattr(CountingBuilder, "failure", None)
    monkeypatch.setattr(CountingBuilder, "rival", None)


def texts(source):
    return [text_of(record, "text") for record in source]


def test_prepares_once_and_opens_every_split(tmp_path, capfd):
    builder = CountingBuilder(data_dir=tmp_path)
    assert not is_prepared(builder)
    splits = prepared(builder)
    assert is_prepared(builder)
    assert {name: texts(source) for name, source in splits.items()} == {
        "train": [f"tëxt {number}" for number in range(4)],
        "test": ["tëxt 0", "tëxt 1"],
    }
    again = CountingBuilder(data_dir=tmp_path)
    assert texts(prepared(again, "train[1:3]")) == ["tëxt 1", "tëxt 2"]
    assert CountingBuilder.generated == 6
    assert capfd.readouterr().out == ""  # stdout belongs to the program's results


def test_folder_without_dataset_info_is_prepared_anew(tmp_path):
    builder = CountingBuilder(data_dir=tmp_path)
    folder = pathlib.Path(builder.data_dir)
    folder.mkdir(parents=True)
    (folder / "counting_builder-train.array_record-00000-of-00001").write_bytes(b"half a file")
    assert not is_prepared(builder)
    assert len(prepared(builder, "train")) == 4
    assert CountingBuilder.generated == 6


def test_failed_preparation_names_the_cause_and_leaves_nothing_to_read(tmp_path, monkeypatch):
    monkeypatch.setattr(CountingBuilder, "failure", OSError(28, "No space left on device"))
    builder = CountingBuilder(data_dir=tmp_path)
    with pytest.raises(RuntimeError, match=r"counting_builder.*failed with OSError.*No space left"):
        prepared(builder)
    assert not is_prepared(builder)
    monkeypatch.setattr(CountingBuilder, "failure", None)
    assert len(prepared(CountingBuilder(data_dir=tmp_path), "train")) == 4


@pytest.mark.parametrize("error", [ValueError("not UTF-8"), ConnectionError("no network")])
def test_errors_in_the_words_of_the_builder_pass_unchanged(tmp_path, monkeypatch, error):
    monkeypatch.setattr(CountingBuilder, "failure", error)
    with pytest.raises(type(error), match=str(error)):
        prepared(CountingBuilder(data_dir=tmp_path))


def test_a_set_that_another_process_finished_meanwhile_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(CountingBuilder, "rival", CountingBuilder(data_dir=tmp_path))
    source = prepared(CountingBuilder(data_dir=tmp_path), "train")
    assert texts(source) == [f"tëxt {number}" for number in range(4)]
    assert CountingBuilder.generated == 12
    assert [path.name for path in (tmp_path / "counting_builder").iterdir()] == ["1.0.0"]


def test_read_only_folder_is_an_error_before_preparing(tmp_path, monkeypatch):
    # Permission bits do not bind root, so that the answer of the system is set here.
    monkeypatch.setattr(os, "access", lambda path, mode: pathlib.Path(path) != tmp_path)
    builder = CountingBuilder(data_dir=tmp_path)
    with pytest.raises(PermissionError, match="is read-only; choose another data_dir"):
        prepared(builder)
    assert CountingBuilder.generated == 0
    assert not any(tmp_path.iterdir())


def test_prepared_set_is_read_from_a_read_only_folder(tmp_path, monkeypatch):
    prepared(CountingBuilder(data_dir=tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert len(prepared(CountingBuilder(data_dir=tmp_path), "train")) == 4


def test_data_dir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(PermissionError, match="is a file, not a folder"):
        prepared(CountingBuilder(data_dir=tmp_path / "data"))


@pytest.mark.parametrize("value", ["café", "café".encode(), np.array("café"), np.array("café".encode())])
def test_text_of_makes_str_of_every_form(value):
    assert text_of({"text": value}, "text") == "café"


def test_text_of_refuses_what_is_not_text():
    with pytest.raises(KeyError, match=r"no feature 'body', only \['text'\]"):
        text_of({"text": b""}, "body")
    with pytest.raises(TypeError, match=r"feature 'text' must be text .*got int"):
        text_of({"text": np.int64(3)}, "text")


@pytest.fixture
def without_proxy(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.usefixtures("without_proxy")
def test_reachable_host_passes(listener):
    assert require_host("127.0.0.1", port=listener, instead="") is None


@pytest.mark.usefixtures("without_proxy")
def test_refused_connection_says_what_to_do_instead():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectionError, match=f"cannot reach 127.0.0.1:{port} .*refused.*put a.txt into b/"):
        require_host("127.0.0.1", port=port, instead="put a.txt into b/")


@pytest.mark.usefixtures("without_proxy")
def test_host_that_does_not_resolve(monkeypatch):
    def unknown(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ConnectionError, match=r"nowhere.invalid:443 \(.*Name or service not known\)"):
        require_host("nowhere.invalid", instead="...")


@pytest.mark.usefixtures("without_proxy")
def test_resolver_that_hangs_is_given_up(monkeypatch):
    hang = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: hang.wait(20) and [])
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"no answer within 0.2 s"):
        require_host("slow.invalid", instead="...", timeout=0.2)
    assert time.monotonic() - start < 2
    hang.set()


@pytest.mark.usefixtures("without_proxy")
def test_with_a_proxy_the_proxy_is_what_must_answer(monkeypatch, listener):
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{listener}")
    require_host("nowhere.invalid", instead="...")
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{closed}")
    with pytest.raises(ConnectionError, match=f"nowhere.invalid:443 through the proxy 127.0.0.1:{closed}"):
        require_host("nowhere.invalid", instead="...")


def test_import_needs_numpy_alone():
    # An empty parent package: what lstmx/__init__.py imports is not this package's doing.
    code = (
        "import sys, types; "
        "sys.modules['lstmx'] = types.ModuleType('lstmx'); "
        "sys.modules['lstmx'].__path__ = ['lstmx']; "
        "import lstmx.data; "
        "heavy = {'tensorflow_datasets', 'tensorflow', 'grain', 'jax', 'flax'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
