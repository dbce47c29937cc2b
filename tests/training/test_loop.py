import json
import signal
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments
from lstmx.training import (
    LoopConfig,
    NonFiniteError,
    OptimizerConfig,
    RunError,
    Task,
    make_keys,
    make_optimizer,
    make_step,
    read_metrics,
    stop_on_signals,
    timing,
    train,
)
from lstmx.training import checkpoint as checkpoints
from lstmx.training.state import init_state

toy = experiments.load(str(Path(__file__).parent / "toy_experiment.py"))
OPTIMIZER = OptimizerConfig("adamw", 0.05)
LOOP = LoopConfig(eval_every=10, checkpoint_every=5, log_every=1, tensorboard=False)
TIMES = (*timing.TIMES, "units_per_s")


def run_toy(folder, *, task=None, steps=20, seed=0, loop=LOOP, optimizer=OPTIMIZER, quiet=True):
    task = task or toy.Toy(toy.Config())
    options = {"steps": steps, "seed": seed, "optimizer": optimizer, "loop": loop, "quiet": quiet}
    with stop_on_signals() as stop:
        return train(task, folder, stop=stop, **options)


def records(folder):
    found = read_metrics(Path(folder) / "metrics.jsonl")
    return [{name: value for name, value in record.items() if name not in TIMES} for record in found]


class StopsAt(toy.Toy):
    """Raises a signal while the batch of a step is made."""

    def __init__(self, config, step, number=signal.SIGTERM):
        super().__init__(config)
        self.step, self.number = step, number

    def batch(self, step):
        if step + 1 == self.step:
            signal.raise_signal(self.number)
        return super().batch(step)


def test_the_toy_is_a_task():
    assert isinstance(toy.Toy(toy.Config()), Task)


def test_the_loss_decreases_and_the_result_says_so(tmp_path):
    result = run_toy(tmp_path, steps=100)
    losses = [record["loss"] for record in records(tmp_path) if record["split"] == "train"]
    assert np.mean(losses[-10:]) < 0.1 * np.mean(losses[:10])
    assert (result.status, result.step, result.signal) == ("finished", 100, None)
    assert result.best["loss"] == min(r["loss"] for r in records(tmp_path) if r["split"] == "validation")
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved == json.loads(json.dumps(result.summary()))


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path):
    states = [run_toy(tmp_path / str(i), seed=seed).state for i, seed in enumerate((0, 0, 1))]
    prints = [toy.fingerprint(state) for state in states]
    assert prints[0] == prints[1] != prints[2]
    assert records(tmp_path / "0") == records(tmp_path / "1")


def test_logging_and_saving_do_not_change_the_bits(tmp_path):
    sparse = LoopConfig(eval_every=0, checkpoint_every=0, log_every=7, sample=False, tensorboard=False)
    first, second = run_toy(tmp_path / "a"), run_toy(tmp_path / "b", loop=sparse)
    assert toy.fingerprint(first.state) == toy.fingerprint(second.state)
    assert [r["step"] for r in records(tmp_path / "b") if r["split"] == "train"] == [7, 14, 20]
    assert [r["step"] for r in records(tmp_path / "b") if r["split"] == "validation"] == [20]
    assert checkpoints.saved_steps(tmp_path / "b") == [20]


@pytest.mark.cross_section(2)
@pytest.mark.parametrize("stops", [(1,), (7, 8), (10, 19)])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, stops):
    whole = run_toy(tmp_path / "whole")
    for stop in stops:
        result = run_toy(tmp_path / "parts", task=StopsAt(toy.Config(), stop))
        assert (result.status, result.step, result.signal) == ("interrupted", stop, signal.SIGTERM)
        assert checkpoints.saved_steps(tmp_path / "parts")[-1] == stop
    result = run_toy(tmp_path / "parts")
    assert toy.fingerprint(result.state) == toy.fingerprint(whole.state)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    for sample in (tmp_path / "whole" / "samples").iterdir():
        assert (tmp_path / "parts" / "samples" / sample.name).read_text() == sample.read_text()


def test_a_finished_run_returns_its_state(tmp_path):
    first = run_toy(tmp_path)
    (tmp_path / "result.json").unlink()
    again = run_toy(tmp_path)
    assert toy.fingerprint(again.state) == toy.fingerprint(first.state)
    assert (tmp_path / "result.json").exists()
    assert again.best == first.best


def test_handlers_are_put_back(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    run_toy(tmp_path, task=StopsAt(toy.Config(), 3, signal.SIGINT))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_it_runs_in_another_thread(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(run_toy(tmp_path)))
    thread.start()
    thread.join()
    assert results[0].status == "finished"


@pytest.mark.parametrize("nan_at", [1, 10, 13])
def test_a_nan_stops_and_leaves_the_checkpoints_alone(tmp_path, nan_at):
    loop = LoopConfig(eval_every=10, checkpoint_every=5, log_every=5, tensorboard=False)
    with pytest.raises(NonFiniteError) as error:
        run_toy(tmp_path, task=toy.Toy(toy.Config(nan_at=nan_at)), loop=loop)
    message = str(error.value)
    assert f"at step {nan_at}: loss nan, grad norm nan, learning rate 0.05" in message
    assert "--" not in message  # the command line adds its options: tests/scripts/test_train.py
    saved = checkpoints.saved_steps(tmp_path)
    assert saved == [step for step in (5, 10, 15) if step < nan_at][-2:]
    assert all(checkpoints.find_problem(tmp_path, step) is None for step in saved)
    assert all(np.isfinite(record["loss"]) for record in records(tmp_path))


def test_an_infinite_gradient_of_a_finite_loss_stops_too(tmp_path):
    class Steep(toy.Toy):
        def loss(self, params, carry, batch, key):
            loss, rest = super().loss(params, carry, batch, key)
            return loss + jnp.sqrt(jnp.sum(0.0 * params["linear"]["bias"] ** 2)), rest

    with pytest.raises(NonFiniteError, match=r"at step 1: loss [0-9.]+, grad norm nan"):
        run_toy(tmp_path, task=Steep(toy.Config()))


def test_a_non_finite_validation_loss_is_never_the_best(tmp_path, capsys):
    task = toy.Toy(toy.Config())
    task.validation_losses = [3.0, float("nan"), 4.0]
    loop = LoopConfig(eval_every=5, checkpoint_every=0, log_every=5, keep_latest=1, tensorboard=False)
    result = run_toy(tmp_path, task=task, steps=15, loop=loop, quiet=False)
    assert result.best["step"] == 5
    assert checkpoints.saved_steps(tmp_path) == [5, 15]
    assert "not finite: never the best" in capsys.readouterr().out
    assert [r["loss"] for r in records(tmp_path) if r["split"] == "validation"] == [3.0, None, 4.0]


def test_without_a_validation_split_nothing_is_best(tmp_path):
    task = toy.Toy(toy.Config())
    task.splits = ("train",)
    result = run_toy(tmp_path, task=task)
    assert result.best is None
    assert result.validation is None
    assert checkpoints.saved_steps(tmp_path)[-1] == 20


def test_the_step_is_traced_once(tmp_path):
    task = toy.Toy(toy.Config())
    run_toy(tmp_path, task=StopsAt(toy.Config(), 7))
    run_toy(tmp_path, task=task)
    assert task.traces == 1


def test_weak_types_of_init_do_not_compile_twice(tmp_path):
    class Weak(toy.Toy):
        def init(self, key):
            params, carry = super().init(key)
            return params | {"scale": jnp.asarray(1.0), "offset": 0.5}, carry

    task = Weak(toy.Config())
    run_toy(tmp_path, task=task)
    assert task.traces == 1


def test_an_optimizer_of_optax_itself(tmp_path):
    import optax

    result = run_toy(tmp_path / "a", optimizer=optax.adamw(0.05, weight_decay=0.0))
    assert "learning_rate" not in result.train
    whole = toy.fingerprint(result.state)
    run_toy(tmp_path / "b", optimizer=optax.adamw(0.05, weight_decay=0.0), task=StopsAt(toy.Config(), 8))
    result = run_toy(tmp_path / "b", optimizer=optax.adamw(0.05, weight_decay=0.0))
    assert toy.fingerprint(result.state) == whole


def test_the_state_is_donated_even_where_the_optimizer_keeps_the_parameters():
    import optax

    keeps = optax.GradientTransformation(
        init=lambda params: params, update=lambda g, state, params: (g, state)
    )
    task, keys = toy.Toy(toy.Config()), make_keys(0)
    state = init_state(task, keeps, keys.init)
    after, _ = make_step(task.loss, keeps)(state, task.batch(0), keys.step)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert int(after.step) == 1


def test_metrics_of_the_step():
    task = toy.Toy(toy.Config())
    optimizer, schedule = make_optimizer(
        OptimizerConfig("sgd", 0.1, schedule="linear", clip_norm=0.1), steps=10
    )
    keys = make_keys(0)
    state = init_state(task, optimizer, keys.init)
    key = jax.random.fold_in(keys.step, 0)
    (loss, _), grads = jax.value_and_grad(task.loss, has_aux=True)(
        state.params, state.carry, task.batch(0), key
    )
    norm = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(grads)))
    state, metrics = make_step(task.loss, optimizer, schedule)(state, task.batch(0), keys.step)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-6)
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)
    assert norm > 0.1  # so that the norm shown is the one before clipping
    assert float(metrics["learning_rate"]) == pytest.approx(0.1)
    assert int(state.step) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda carry, metrics: ({**carry, "average": jnp.zeros(4)}, metrics), "carry must keep its shapes"),
        (lambda carry, metrics: ({"average": carry["average"]}, metrics), "carry must keep its structure"),
        (lambda carry, metrics: (carry, {"output": jnp.zeros(2)}), r"scalars, got output of shape \(2,\)"),
    ],
)
def test_a_task_that_breaks_the_rules_is_told_which(tmp_path, change, message):
    class Wrong(toy.Toy):
        def loss(self, params, carry, batch, key):
            loss, rest = super().loss(params, carry, batch, key)
            return loss, change(*rest)

    with pytest.raises(ValueError, match=message):
        run_toy(tmp_path, task=Wrong(toy.Config()))


def test_another_config_is_refused(tmp_path):
    run_toy(tmp_path)
    with pytest.raises(RunError, match=r"optimizer\.learning_rate: 0\.05 in the run, 0\.1 requested"):
        run_toy(tmp_path, optimizer=OptimizerConfig("adamw", 0.1))


@pytest.mark.parametrize(
    ("field", "value"), [("log_every", 0), ("eval_every", -1), ("keep_latest", 0), ("keep_best", -1)]
)
def test_loop_values_are_checked(field, value):
    with pytest.raises(ValueError, match=f"{field} must be at least .*, got {value}"):
        LoopConfig(**{field: value})


def test_event_files_hold_what_the_log_holds(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.event_file_writer import EventsWriter  # noqa: F401, the writer is what is under test
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401

    run_toy(tmp_path, loop=LoopConfig(eval_every=10, log_every=5, tensorboard=True))
    (file,) = (tmp_path / "tensorboard").iterdir()
    content, position, found = file.read_bytes(), 0, set()
    while position < len(content):  # TFRecord: length, its checksum, data, its checksum
        length = int.from_bytes(content[position : position + 8], "little")
        event = Event.FromString(content[position + 12 : position + 12 + length])
        found |= {(event.step, value.tag, round(value.simple_value, 5)) for value in event.summary.value}
        position += 16 + length
    for record in records(tmp_path):
        assert (record["step"], f"{record['split']}/loss", round(record["loss"], 5)) in found


def test_it_needs_no_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    run_toy(tmp_path, loop=LoopConfig(eval_every=10, log_every=5, tensorboard=True))
    assert not (tmp_path / "tensorboard").exists()


def test_it_says_how_long_it_will_take_once_it_knows(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "lstmx.training.progress.Throughput.is_settled", property(lambda self: self._steps >= 2)
    )
    run_toy(tmp_path / "run", quiet=False)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("about ")]
    assert len(printed) == 1
    assert " for the remaining 16 steps, without evaluations" in printed[0]


def test_pictures_are_drawn_once_it_has_finished(tmp_path, capsys):
    class Draws(toy.Toy):
        def draw(self, params, folder):
            assert (folder / "result.json").exists()
            assert params["linear"]["kernel"].shape == (4, 3)
            return [folder / "a.png", folder / "b.png"]

    run_toy(tmp_path / "run", task=StopsAt(toy.Config(), 12), quiet=False)
    assert "picture:" not in capsys.readouterr().out
    run_toy(tmp_path / "run", task=Draws(toy.Config()), quiet=False)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == [f"picture: {tmp_path / 'run' / name}.png" for name in "ab"]
