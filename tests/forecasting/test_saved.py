"""Forecasters in folders: damage is noticed, and a save is all or nothing."""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from sales_frames import SMALL, frame

from lstmx.forecasting import LSTMForecaster, saved
from lstmx.forecasting.saved import by_path

PLAIN = frame((40, 30)).drop(columns="price")
OPTIONS = {**SMALL, "max_steps": 1, "encoder_hidden_size": 3}


@pytest.fixture(scope="module")
def fitted():
    return LSTMForecaster(h=3, **OPTIONS).fit(PLAIN)


@pytest.fixture
def folder(fitted, tmp_path):
    fitted.save(tmp_path / "kept")
    return tmp_path / "kept"


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def load_error(folder):
    with pytest.raises(ValueError, match=r"is damaged|is missing|no forecaster in|cannot be read") as error:
        LSTMForecaster.load(folder)
    return str(error.value)


def test_names_of_files_hold_their_digests(folder):
    files = json.loads((folder / "forecaster.json").read_text())["files"]
    assert {*content(folder)} == {"forecaster.json", *(file["name"] for file in files.values())}
    for kind, file in files.items():
        digest = hashlib.sha256((folder / file["name"]).read_bytes()).hexdigest()
        assert (file["sha256"], file["name"]) == (digest, f"{kind}-{digest[:16]}.npz")


@pytest.mark.parametrize("kind", ["forecaster.json", "weights", "series"])
def test_any_flipped_bit_is_noticed(folder, kind):
    (path,) = folder.glob(f"{kind}*")
    whole, chance = path.read_bytes(), np.random.default_rng(0)
    places = {0, len(whole) - 1, *chance.integers(len(whole), size=60).tolist()}
    if kind == "forecaster.json":
        # The digest itself, the format, and the names of what is read first.
        for word in (b'"sha256"', b'"format"', b'"files"', b'"series"', b'"arguments"'):
            start = whole.index(word)
            places |= {*range(start, start + len(word) + 12)}
    for place in places:
        bit = 1 << int(chance.integers(8))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        assert str(path) in load_error(folder)
    path.write_bytes(whole)
    LSTMForecaster.load(folder)


@pytest.mark.parametrize("kind", ["forecaster.json", "weights", "series"])
def test_files_that_are_cut_or_gone_are_named(folder, kind):
    (path,) = folder.glob(f"{kind}*")
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert str(path) in load_error(folder)
    path.write_bytes(whole + b"\n")
    assert str(path) in load_error(folder)
    path.unlink()
    assert path.name in load_error(folder)
    path.mkdir()
    assert path.name in load_error(folder)


def resealed(folder, change):
    """Changes forecaster.json, with a digest that fits."""
    path = folder / "forecaster.json"
    described = json.loads(path.read_text())
    change(described)
    text = json.dumps({**described, "sha256": "0" * 64})
    path.write_text(text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest(), 1))


def test_what_does_not_fit_is_named(folder):
    resealed(folder, lambda described: described["arguments"].update(encoder_hidden_size=7))
    assert "its arguments do not describe the network of the weights" in load_error(folder)
    resealed(folder, lambda described: described["arguments"].update(encoder_hidden_size=-7))
    assert "encoder_hidden_size must be an integer of at least 1, got -7" in load_error(folder)
    resealed(folder, lambda described: described.update(format=3, lstmx="9.0"))
    with pytest.raises(ValueError, match=r"forecaster\.json has format 3, of lstmx 9\.0; .* formats 1 and 2"):
        LSTMForecaster.load(folder)


def fingerprint(forecaster):
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(forecaster._fitted.params))


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


@pytest.mark.parametrize("step", ["replace", "fsync", "unlink"])
@pytest.mark.parametrize("after", [False, True])
def test_a_save_that_is_killed_leaves_the_old_or_the_new(fitted, tmp_path, monkeypatch, step, after):
    other = LSTMForecaster(h=3, random_seed=1, **OPTIONS).fit(PLAIN)
    old, new = fingerprint(fitted), fingerprint(other)
    assert old != new
    real, seen = getattr(os, step), set()
    for kill_at in range(1, 20):
        folder, calls = tmp_path / str(kill_at), []
        fitted.save(folder)

        def killing(*args, kill_at=kill_at, calls=calls, **kwargs):
            calls.append(args)
            if len(calls) == kill_at and not after:
                raise Killed
            result = real(*args, **kwargs)
            if len(calls) == kill_at:
                raise Killed
            return result

        with monkeypatch.context() as patch:
            patch.setattr(os, step, killing)
            with contextlib.suppress(Killed):
                other.save(folder)
        loaded = fingerprint(LSTMForecaster.load(folder))
        assert loaded in (old, new)
        seen.add(loaded)
        # The next save is whole, and leaves nothing behind.
        fitted.save(folder)
        assert fingerprint(LSTMForecaster.load(folder)) == old
        assert len(content(folder)) == 3
        if len(calls) < kill_at:
            break
    assert len(calls) < kill_at
    assert seen == ({new} if step == "unlink" else {old, new})


def test_a_save_that_fails_leaves_the_old(fitted, folder, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    before = content(folder)
    other = LSTMForecaster(h=3, random_seed=1, **OPTIONS).fit(PLAIN)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            other.save(folder)
    assert content(folder) == before


def test_files_of_others_are_left_alone(fitted, folder):
    for name in ("weights_backup.npz", "series.csv", "weights-notes.npz", "a.tmp"):
        (folder / name).write_text("mine")
    fitted.save(folder, save_dataset=False)
    assert len(content(folder)) == 2 + 4


def write_format_1(fitted, folder):
    """What the first version wrote."""
    folder.mkdir()
    fitted.save(folder / "new")
    described = json.loads((folder / "new" / "forecaster.json").read_text())
    for kind in ("weights", "series"):
        shutil.move(folder / "new" / described["files"][kind]["name"], folder / f"{kind}.npz")
    del described["files"], described["sha256"]
    (folder / "forecaster.json").write_text(json.dumps({**described, "format": 1}, indent=2))
    shutil.rmtree(folder / "new")


def test_the_first_format_is_read_and_replaced(fitted, tmp_path):
    folder = tmp_path / "kept"
    write_format_1(fitted, folder)
    assert {*content(folder)} == {"forecaster.json", "weights.npz", "series.npz"}
    loaded = LSTMForecaster.load(folder)
    pd.testing.assert_frame_equal(loaded.predict(), fitted.predict())
    loaded.save(folder)
    assert len(content(folder)) == 3
    assert not (folder / "weights.npz").exists()
    pd.testing.assert_frame_equal(LSTMForecaster.load(folder).predict(), fitted.predict())


@pytest.mark.parametrize("name", ["forecaster.json", "weights.npz", "series.npz"])
def test_damage_of_the_first_format_is_named(fitted, tmp_path, name):
    """Without digests a flipped bit may pass; what is noticed is a ValueError that names the file."""
    folder = tmp_path / "kept"
    write_format_1(fitted, folder)
    path, chance = folder / name, np.random.default_rng(1)
    whole, noticed = path.read_bytes(), 0
    for place in chance.integers(len(whole), size=60).tolist():
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << int(chance.integers(8))]) + whole[place + 1 :]
        )
        try:
            LSTMForecaster.load(folder)
        except ValueError as error:
            assert name in str(error)  # noqa: PT017, it may also be no error
            noticed += 1
    assert noticed > 10
    path.write_bytes(whole[: len(whole) // 2])
    assert name in load_error(folder)
    path.unlink()
    assert name in load_error(folder)


def test_weights_are_saved_as_they_are(fitted, folder):
    weights = saved.read(Path(folder)).weights
    for name, leaf in by_path(fitted._fitted.params).items():
        np.testing.assert_array_equal(weights[name], leaf)
