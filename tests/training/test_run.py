import json
import os
import subprocess
import sys
import types
from dataclasses import dataclass

import pytest

from lstmx.training import RunError, claim_run, open_run, read_metrics
from lstmx.training.metrics import MetricsLog, best_validation
from lstmx.training.run import make_record

CONFIG = {"steps": 3, "model": {"size": 128}}


def make_run(folder, config=CONFIG):
    with claim_run(folder, "toy", config) as run:
        run.write_record()


def test_a_run_is_read_back(tmp_path):
    make_run(tmp_path / "deep" / "run")
    record = open_run(tmp_path / "deep" / "run")
    assert (record.experiment, record.config) == ("toy", CONFIG)
    assert {"python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"} <= set(record.versions)


def test_the_same_config_opens_it_again(tmp_path):
    make_run(tmp_path)
    with claim_run(tmp_path, "elsewhere/toy.py", CONFIG) as run:
        assert not run.is_new


def test_another_config_is_refused_field_by_field(tmp_path):
    make_run(tmp_path)
    asked = {"steps": 3, "model": {"size": 256, "depth": 2}}
    with pytest.raises(RunError) as error, claim_run(tmp_path, "other", asked):
        pass
    assert "experiment: toy in the run, other requested" in str(error.value)
    assert "model.size: 128 in the run, 256 requested" in str(error.value)
    assert "model.depth: absent in the run, 2 requested" in str(error.value)
    assert "steps" not in str(error.value)


@dataclass(frozen=True)
class Model:
    size: int = 128
    depth: int = 1


@dataclass(frozen=True)
class Config:
    steps: int = 3
    model: Model = Model()


def test_a_run_of_an_older_version_has_the_defaults_of_newer_fields(tmp_path):
    make_run(tmp_path, {"steps": 3, "model": {"size": 64}})
    with claim_run(tmp_path, "toy", Config(model=Model(64))) as run:
        assert not run.is_new
    with (
        pytest.raises(RunError, match=r"another config.*\n  model.depth: 1 in the run, 2 requested$"),
        claim_run(tmp_path, "toy", Config(model=Model(64, depth=2))),
    ):
        pass


def test_a_run_of_an_older_version_with_a_field_that_is_gone_is_refused(tmp_path):
    make_run(tmp_path, {"steps": 3, "model": {"size": 128, "depth": 1, "bias": True}})
    with pytest.raises(RunError, match=r"model\.bias: True in the run, absent requested"):
        make_run(tmp_path, Config())


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(RunError, match="is a file"), claim_run(tmp_path / "file", "toy", CONFIG):
        pass
    with pytest.raises(RunError, match="cannot write"), claim_run(tmp_path / "file" / "run", "toy", CONFIG):
        pass
    assert (tmp_path / "file").read_text() == "precious"


def test_a_folder_of_something_else_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with (
        pytest.raises(RunError, match=r"not empty and not a run .*thesis\.tex"),
        claim_run(tmp_path, "toy", CONFIG),
    ):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_read_only_folder_is_refused(tmp_path, monkeypatch):
    # Root may write anywhere, so the refusal of the system is put in place by hand.
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with (
        pytest.raises(RunError, match=r"cannot write in .*: Permission denied"),
        claim_run(tmp_path, "toy", CONFIG),
    ):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write in a read-only folder")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="cannot write"), claim_run(tmp_path, "toy", CONFIG):
        pass


def test_one_process_at_a_time_and_a_crash_frees_the_folder(tmp_path):
    code = f"""
import os, sys
from lstmx.training.run import claim_run
with claim_run({str(tmp_path)!r}, "toy", {CONFIG!r}) as run:
    run.write_record()
    print("claimed", flush=True)
    sys.stdin.read()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as other:
        assert other.stdout.readline() == b"claimed\n"
        with (
            pytest.raises(RunError, match=f"in use by process {other.pid} on "),
            claim_run(tmp_path, "toy", CONFIG),
        ):
            pass
        other.kill()
        other.wait()
        with claim_run(tmp_path, "toy", CONFIG) as run:
            assert not run.is_new


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"experiment": "toy"}'])
def test_a_damaged_record_is_an_error(tmp_path, content):
    make_run(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(RunError, match=r"config\.json is damaged"):
        open_run(tmp_path)


def test_what_is_not_a_run(tmp_path):
    with pytest.raises(RunError, match="no such folder"):
        open_run(tmp_path / "none")
    with pytest.raises(RunError, match=r"no config\.json"):
        open_run(tmp_path)


def test_the_record_holds_plain_json():
    record = make_record("toy", {"sizes": (1, 2)})
    assert record.config == {"sizes": [1, 2]}


def test_metrics_are_cut_at_the_resumed_step_and_survive_a_torn_line(tmp_path):
    with MetricsLog(tmp_path, resumed_step=0, tensorboard=False) as log:
        for step in range(1, 6):
            log.write({"step": step, "split": "train", "loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "spl')
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    with MetricsLog(tmp_path, resumed_step=3, tensorboard=False) as log:
        log.write({"step": 4, "split": "train", "loss": float("nan")})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    assert json.loads(lines[-1])["loss"] is None


def test_a_damaged_line_within_is_an_error(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_metrics(tmp_path / "m.jsonl")


def test_the_best_is_finite_and_the_later_of_equals():
    losses = [(1, 2.0), (2, 1.0), (3, None), (4, 1.0), (5, 3.0)]
    records = [{"step": step, "split": "validation", "loss": loss} for step, loss in losses]
    records.append({"step": 6, "split": "train", "loss": 0.0})
    assert best_validation(records)["step"] == 4
    assert best_validation(records[2:3]) is None


def test_without_fcntl_a_run_is_locked_by_msvcrt(tmp_path, monkeypatch):
    """As on Windows, where `fcntl` does not exist."""
    held = []

    def locking(descriptor, mode, count):
        if held:
            raise OSError(13, "Permission denied")
        held.append((os.lseek(descriptor, 0, os.SEEK_CUR) > 1 << 30, mode, count))

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    with claim_run(tmp_path, "toy", CONFIG) as run:
        run.write_record()
        with pytest.raises(RunError, match="is in use by process"), claim_run(tmp_path, "toy", CONFIG):
            pass
    assert held == [(True, 2, 1)]
    assert (tmp_path / "lock").stat().st_size == 0


def test_the_training_package_imports_where_unix_modules_do_not_exist():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('fcntl', 'resource', 'pwd', 'grp', 'termios')))\n"
        "import lstmx.training, lstmx.training.cli, lstmx.data"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
