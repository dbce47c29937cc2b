import itertools
import json
import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import experiments
from lstmx.training import (
    CheckpointError,
    LoopConfig,
    OptimizerConfig,
    RunError,
    digest,
    restore_params,
    train,
)
from lstmx.training import checkpoint as checkpoints
from lstmx.training.optimizer import make_optimizer
from lstmx.training.state import abstract_state, init_state

toy = experiments.load(str(Path(__file__).parent / "toy_experiment.py"))
CONFIG = toy.Config(optimizer=OptimizerConfig("adamw", 0.05, weight_decay=0.01))
LOOP = LoopConfig(eval_every=4, checkpoint_every=4, log_every=1, tensorboard=False, sample=False)
STEPS = 12


def run_toy(folder, *, steps=STEPS, loop=LOOP, task=None):
    return train(
        task or toy.Toy(CONFIG), folder, steps=steps, optimizer=CONFIG.optimizer, loop=loop, quiet=True
    )


def full_target():
    optimizer, _ = make_optimizer(CONFIG.optimizer, STEPS)
    return checkpoints.state_items(abstract_state(toy.Toy(CONFIG), optimizer))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    result = run_toy(folder)
    assert checkpoints.saved_steps(folder) == [8, 12]
    return folder, toy.fingerprint(result.state)


@pytest.fixture
def copy(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run"


def harm(path, fault):
    content = path.read_bytes()
    if fault == "delete":
        path.unlink()
    elif fault == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif fault == "garble":
        path.write_bytes(bytes(byte ^ 0x5A for byte in content))
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


def files_of(folder, step):
    return [path for path in sorted((folder / "checkpoints" / str(step)).rglob("*")) if path.is_file()]


@pytest.mark.parametrize("fault", ["delete", "truncate", "garble", "flip"])
def test_each_damaged_file_is_found_and_the_one_before_taken(copy, fault, caplog):
    files = files_of(copy, 12)
    assert len(files) > 15
    target = full_target()
    for path in files:
        content = path.read_bytes()
        if not content:  # nothing to truncate or flip; that it exists is checked below
            continue
        caplog.clear()
        harm(path, fault)
        with caplog.at_level(logging.WARNING):
            assert checkpoints.restore_latest(copy, target).step == 8
        name = path.relative_to(copy / "checkpoints" / "12").as_posix()
        assert "checkpoint 12 skipped" in caplog.text
        assert f"file {name} is " in caplog.text
        with pytest.raises(CheckpointError, match=r"checkpoint 12 in .* cannot be used"):
            checkpoints.restore(copy, 12, target)
        path.write_bytes(content)
    assert checkpoints.restore_latest(copy, target).step == 12


@pytest.mark.parametrize("fault", ["delete", "truncate", "garble", "flip", "empty"])
def test_a_damaged_digest_is_a_damaged_checkpoint(copy, fault):
    path = copy / "digests" / "12.json"
    path.write_bytes(b"") if fault == "empty" else harm(path, fault)
    assert checkpoints.restore_latest(copy, full_target()).step == 8
    with pytest.raises(CheckpointError, match="checkpoint 12"):
        checkpoints.restore(copy, 12, full_target())


def test_training_goes_on_from_the_one_before_to_the_same_bits(copy, trained, caplog):
    harm(max(files_of(copy, 12), key=lambda path: path.stat().st_size), "flip")
    (copy / "result.json").unlink()
    result = run_toy(copy)
    assert toy.fingerprint(result.state) == trained[1]
    assert "checkpoint 12 skipped" in caplog.text
    assert checkpoints.find_problem(copy, 12) is None
    assert (copy / "damaged" / "12").is_dir()


def test_all_damaged_is_an_error_and_changes_nothing(copy):
    for step in (8, 12):
        harm(files_of(copy, step)[0], "flip")
    before = sorted(path.relative_to(copy) for path in copy.rglob("*"))
    with pytest.raises(CheckpointError) as error:
        run_toy(copy)
    assert "no checkpoint in" in str(error.value)
    assert "  12: file _CHECKPOINT_METADATA is damaged" in str(error.value)
    assert "  8: file _CHECKPOINT_METADATA is damaged" in str(error.value)
    assert sorted(path.relative_to(copy) for path in copy.rglob("*")) == before


def test_all_digests_lost_is_an_error_and_not_a_new_start(copy):
    shutil.rmtree(copy / "digests")
    with pytest.raises(CheckpointError, match="is missing or damaged"):
        run_toy(copy)


def test_a_checkpoint_torn_by_a_kill_is_no_loss(copy, trained, caplog):
    digest.write_digest(copy, 12, "saving", {})
    result = run_toy(copy)
    assert "checkpoint 12 skipped: it was not finished" in caplog.text
    assert toy.fingerprint(result.state) == trained[1]


def test_a_half_deleted_checkpoint_is_swept_away(copy, caplog):
    digest.write_digest(copy, 8, "deleting", {})
    for path in files_of(copy, 8)[::2]:
        path.unlink()
    run_toy(copy)
    assert checkpoints.saved_steps(copy) == [12]
    assert not (copy / "damaged").exists()
    assert not caplog.records


def test_the_first_checkpoint_torn_by_a_kill_starts_anew(copy, trained, capsys):
    shutil.rmtree(copy / "checkpoints" / "8")
    digest.write_digest(copy, 12, "saving", {})
    result = run_toy(copy)
    assert toy.fingerprint(result.state) == trained[1]


def test_explicit_steps(copy):
    target = full_target()
    assert int(checkpoints.restore(copy, 8, target).items["training"]["step"]) == 8
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 9 in .*, only of 8, 12"):
        checkpoints.restore(copy, 9, target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16),
            r"float32\[4,3\] in the .* bfloat16\[4,3\] in",
        ),
        (
            lambda leaf: jax.ShapeDtypeStruct((4, 5), leaf.dtype),
            r"float32\[4,3\] in the .* float32\[4,5\] in",
        ),
    ],
)
def test_another_model_is_refused_with_the_array_named(copy, change, message):
    target = full_target()
    linear = target["params"]["linear"]
    linear["kernel"] = change(linear["kernel"])
    for restore in (checkpoints.restore_latest, lambda *args: checkpoints.restore(args[0], 12, args[1])):
        with pytest.raises(CheckpointError, match=rf"params\.linear\.kernel: {message}"):
            restore(copy, target)


def test_missing_and_extra_arrays_are_named(copy):
    target = full_target()
    target["params"]["linear"]["gain"] = target["params"]["linear"].pop("bias")
    with pytest.raises(CheckpointError) as error:
        checkpoints.restore_latest(copy, target)
    assert "params.linear.bias: float32[3] in the checkpoint, absent in the model" in str(error.value)
    assert "params.linear.gain: absent in the checkpoint, float32[3] in the model" in str(error.value)


@pytest.mark.parametrize("name", NAMES := OptimizerConfig.__annotations__["name"].__args__)
def test_the_state_of_each_optimizer_survives(tmp_path, name):
    optimizer, _ = make_optimizer(OptimizerConfig(name), STEPS)
    task = toy.Toy(CONFIG)
    state = init_state(task, optimizer, jax.random.key(3))
    with checkpoints.Saver(tmp_path, keep_latest=1, keep_best=0, resumed_step=None) as saver:
        saver.save(state, validation_loss=None, record={})
    target = abstract_state(task, optimizer)
    restored = checkpoints.items_state(
        checkpoints.restore(tmp_path, 0, checkpoints.state_items(target)).items
    )
    assert toy.fingerprint(restored) == toy.fingerprint(state)
    assert jnp.issubdtype(restored.carry["key"].dtype, jax.dtypes.prng_key)


@pytest.mark.parametrize(
    ("losses", "keep_latest", "keep_best", "kept", "best"),
    [
        ([5.0, 1.0, 3.0, 4.0], 2, 1, [2, 3, 4], 2),
        ([5.0, 1.0, 3.0, 4.0], 1, 1, [2, 4], 2),
        ([5.0, 1.0, 3.0, 4.0], 1, 0, [4], 4),
        ([5.0, 1.0, 3.0, 4.0], 1, 2, [2, 3, 4], 2),
        ([1.0, 2.0, 3.0, 4.0], 1, 1, [1, 4], 1),
        ([5.0, float("nan"), 3.0, None], 1, 1, [3, 4], 3),
        ([float("-inf"), None, float("nan"), None], 1, 1, [4], None),
        ([2.0, 1.0, 1.0, 4.0], 1, 1, [3, 4], 3),
    ],
)
def test_the_latest_and_the_best_are_kept(tmp_path, losses, keep_latest, keep_best, kept, best):
    optimizer, _ = make_optimizer(OptimizerConfig("sgd"), STEPS)
    state = init_state(toy.Toy(CONFIG), optimizer, jax.random.key(0))
    # A process for each half: what is best must be known from the disk.
    for half in ((1, 2), (3, 4)):
        resumed = None if half[0] == 1 else half[0] - 1
        with checkpoints.Saver(
            tmp_path, keep_latest=keep_latest, keep_best=keep_best, resumed_step=resumed
        ) as saver:
            for step in half:
                saved = state._replace(step=jnp.int32(step))
                saver.save(saved, validation_loss=losses[step - 1], record={})
                assert checkpoints.find_problem(tmp_path, step) is None
    assert checkpoints.saved_steps(tmp_path) == kept
    assert sorted(int(path.stem) for path in (tmp_path / "digests").iterdir()) == kept
    target = checkpoints.state_items(abstract_state(toy.Toy(CONFIG), optimizer))
    restored = checkpoints.restore_best(tmp_path, target)
    assert (restored and restored.step) == best


def test_a_step_that_orbax_refuses_is_an_error(copy):
    optimizer, _ = make_optimizer(CONFIG.optimizer, STEPS)
    state = init_state(toy.Toy(CONFIG), optimizer, jax.random.key(0))
    with (
        checkpoints.Saver(copy, keep_latest=2, keep_best=1, resumed_step=12) as saver,
        pytest.raises(CheckpointError, match="orbax refused to save step 5 after 12"),
    ):
        saver.save(state._replace(step=jnp.int32(5)), validation_loss=None, record={})
    assert checkpoints.find_problem(copy, 12) is None


@pytest.mark.parametrize("when", ["orbax", "digest"])
def test_a_full_disk_is_loud_and_keeps_the_last_checkpoint(tmp_path, monkeypatch, when):
    writes = itertools.count(1)
    if when == "orbax":
        import orbax.checkpoint as ocp

        owner, name, last_good = ocp.CheckpointManager, "save", 2
    else:
        owner, name, last_good = checkpoints, "write_digest", 4
    real = getattr(owner, name)

    def fail_at_last(*args, **kwargs):
        if next(writes) > last_good:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, fail_at_last)
    with pytest.raises(
        CheckpointError, match=r"could not save step 12: .*No space left(.|\n)*is that of step 8"
    ):
        run_toy(tmp_path / "run")
    monkeypatch.undo()
    assert checkpoints.restore_latest(tmp_path / "run", full_target()).step == 8
    assert run_toy(tmp_path / "run").step == 12


def test_parameters_for_evaluation(copy, caplog):
    task = toy.Toy(CONFIG)
    losses = {step: checkpoints.validation_loss(copy, step) for step in (8, 12)}
    best = min(losses, key=losses.get)
    restored = restore_params(copy, task)
    assert (restored.step, restored.validation_loss) == (best, losses[best])
    assert task.evaluate(restored.items["params"], "validation")["loss"] == losses[best]
    assert set(restored.items) == {"params"}
    assert restore_params(copy, task, "latest").step == 12
    assert restore_params(copy, task, 8).step == 8
    assert not caplog.records
    with pytest.raises(RunError, match="no such folder"):
        restore_params(copy / "none", task)
    with pytest.raises(RunError, match=r"no config\.json"):
        restore_params(copy / "checkpoints", task)
    for step in (8, 12):
        meta = copy / "checkpoints" / str(step) / "meta" / "metadata"
        content = json.loads(meta.read_text()) | {"validation_loss": None}
        meta.write_text(json.dumps(content))
        digest.write_digest(copy, step, "complete", digest.hash_files(meta.parent.parent))
    assert restore_params(copy, task).step == 12
    assert "no checkpoint in" in caplog.text
    assert "taking the latest, 12" in caplog.text
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* yet"):
        restore_params(copy, task)


def test_the_record_is_in_each_checkpoint(copy):
    meta = json.loads((copy / "checkpoints" / "12" / "meta" / "metadata").read_text())
    assert meta["config"] == json.loads((copy / "config.json").read_text())["config"]
    assert meta["arrays"]["params.linear.kernel"] == "float32[4,3]"
    assert meta["versions"]["jax"] == jax.__version__
