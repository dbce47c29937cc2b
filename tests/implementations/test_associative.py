"""The associative scan, against the reference, and against the logarithmic form of minGRU's paper."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import variants

import lstmx
from lstmx.cells.minimal import MinGRU, MinLSTM
from lstmx.implementations import associative, choice

CELLS = {
    "mingru": MinGRU(3, param_dtype="float64"),
    "minlstm": MinLSTM(3, "identity", learn_initial_state=True, param_dtype="float64"),
}


def results(cell, case, **options):
    """Gradients of everything, final state and outputs."""
    run = functools.partial(lstmx.scan, cell, **options)
    return jax.jit(variants.with_gradients(run))(*case)


def flags(steps, batch):
    rng = np.random.default_rng(steps)
    return {
        "lengths": rng.integers(0, steps + 1, batch) * (np.arange(batch) > 0),
        "mask": rng.random((steps, batch)) < 0.7,
        "resets": rng.random((steps, batch)) < 0.1,
    }


OPTIONS = {
    "plain": (),
    "lengths": ("lengths",),
    "mask and resets": ("mask", "resets"),
    "reverse": ("reverse",),
    "reverse, lengths and resets": ("lengths", "resets", "reverse"),
}


def case_of(name, options, steps):
    """A case, and its result by the reference."""
    case = variants.random_case(CELLS[name], np.random.default_rng(1), steps, (4,), 2)
    chosen = {key: ({**flags(steps, 4), "reverse": True})[key] for key in OPTIONS[options]}
    return case, chosen, results(CELLS[name], case, implementation="reference", **chosen)


@pytest.mark.cross_section(2)
@pytest.mark.parametrize(
    ("name", "options", "steps"),
    [
        *(("mingru", options, 300) for options in OPTIONS),
        ("minlstm", "reverse, lengths and resets", 100),
        ("minlstm", "mask and resets", 1),
    ],
)
@pytest.mark.usefixtures("double")
def test_is_the_reference(name, options, steps):
    case, chosen, expected = case_of(name, options, steps)
    got = results(CELLS[name], case, implementation="associative", **chosen)
    assert oracles.relative_error(got, expected) <= 1e-12


@pytest.mark.parametrize("options", ["mask and resets", "reverse, lengths and resets"])
@pytest.mark.usefixtures("double")
def test_all_of_time_at_once(options, monkeypatch):
    driver = importlib.import_module("lstmx.scan")._scan
    asked = []
    monkeypatch.setattr(associative, "_in_chunks", lambda: asked.append(True))
    driver.clear_cache()
    case, chosen, expected = case_of("minlstm", options, 30)
    got = results(CELLS["minlstm"], case, implementation="associative", **chosen)
    monkeypatch.undo()
    driver.clear_cache()
    assert asked
    assert oracles.relative_error(got, expected) <= 1e-12


@pytest.mark.parametrize("remat", ["gates", "sqrt", 4])
@pytest.mark.usefixtures("double")
def test_recomputing_changes_nothing(remat):
    case, chosen, expected = case_of("minlstm", "reverse, lengths and resets", 9)
    got = results(CELLS["minlstm"], case, implementation="associative", remat=remat, **chosen)
    assert oracles.relative_error(got, expected) <= 1e-12


@pytest.mark.usefixtures("double")
def test_recomputing_keeps_less():
    cell, (case, _, _) = CELLS["minlstm"], case_of("minlstm", "plain", 300)

    def kept(remat):
        run = functools.partial(lstmx.scan, cell, implementation="associative", remat=remat)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(jax.vjp(run, *case)[1]))

    assert 0 < kept("gates") < kept(None) / 10


@pytest.mark.parametrize("batch", [(), (2, 3), (0,)])
@pytest.mark.usefixtures("double")
def test_any_batch_axes(batch):
    cell = CELLS["mingru"]
    case = variants.random_case(cell, np.random.default_rng(1), 6, batch, 2)
    resets = np.random.default_rng(2).random((6, *batch)) < 0.3
    got, expected = (
        results(cell, case, implementation=name, resets=resets) for name in ("associative", "reference")
    )
    assert oracles.relative_error(got, expected) <= 1e-12


@pytest.mark.parametrize("cell", [MinGRU(3), MinLSTM(3)])
def test_no_steps(cell):
    params, xs, state = variants.random_case(cell, np.random.default_rng(1), 0, (2,), 2, np.float32)
    final, ys = lstmx.scan(cell, params, xs, state, implementation="associative")
    np.testing.assert_array_equal(final, state)
    assert ys.shape == (0, 2, 3)


@pytest.mark.usefixtures("double")
def test_forward_mode_and_second_derivatives():
    cell = CELLS["minlstm"]
    params, xs, state = variants.random_case(cell, np.random.default_rng(1), 5, (2,), 2)

    def loss(implementation, xs):
        final, ys = lstmx.scan(cell, params, xs, state, implementation=implementation)
        return jnp.sum(jnp.sin(ys)) + jnp.sum(final**2)

    for derivative in (jax.jacfwd, jax.hessian):
        got, expected = (
            jax.jit(derivative(functools.partial(loss, name)))(xs) for name in ("associative", "reference")
        )
        assert oracles.relative_error(got, expected) <= 1e-12


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_states_are_computed_in_single_precision_at_least(dtype):
    cell = MinLSTM(2, use_bias=False, dtype=dtype)
    # Pre-activations that even bfloat16 holds exactly: what differs is how the states are added up.
    params = lstmx.Params({"kernel": np.eye(6, dtype=np.float32)}, {})
    xs = np.random.default_rng(0).integers(-8, 8, (500, 3, 6)) / np.float32(4)
    got, expected = (
        lstmx.scan(cell, params, xs, implementation=name) for name in ("associative", "reference")
    )
    assert [leaf.dtype for leaf in got] == [jnp.float32, jnp.dtype(dtype)]
    assert oracles.relative_error(got[0], expected[0]) <= 1e-6


def logarithmic(cell, params, xs, h):
    """The paper's form: states as sums of exponentials of sums of logarithms (Heinsen 2023)."""
    z = cell.input_map(params.input, xs)
    if isinstance(cell, MinGRU):
        u, n = jnp.split(z, 2, axis=-1)
        log_a, log_b = -jax.nn.softplus(u), -jax.nn.softplus(-u)
    else:
        i, f, n = jnp.split(z, 3, axis=-1)
        difference = jax.nn.softplus(-f) - jax.nn.softplus(-i)
        log_a, log_b = -jax.nn.softplus(difference), -jax.nn.softplus(-difference)
    log_n = jnp.where(n >= 0, jnp.log(jax.nn.relu(n) + 0.5), -jax.nn.softplus(-n))
    sums = jnp.concatenate([jnp.zeros_like(h)[None], jnp.cumsum(log_a, axis=0)])
    values = jnp.concatenate([jnp.log(h)[None], log_b + log_n])
    return jnp.exp(sums + jax.lax.cumlogsumexp(values - sums, axis=0))[1:]


@pytest.mark.parametrize("cell", [MinGRU(8), MinLSTM(8)])
@pytest.mark.parametrize("scale", [1, 20])
def test_is_more_accurate_than_the_logarithmic_form(cell, scale):
    params, xs, state = variants.random_case(cell, np.random.default_rng(1), 2000, (2,), 4, np.float32)
    xs, state = scale * xs, np.abs(state)
    got = lstmx.scan(cell, params, xs, state, implementation="associative")[1]
    in_logarithms = jax.jit(functools.partial(logarithmic, cell))(params, xs, state)
    with jax.enable_x64(True):
        wide = jax.tree.map(np.float64, (params, xs, state))
        exact = lstmx.scan(cell, *wide, implementation="reference")[1]
        agreeing = logarithmic(cell, *wide)
    assert oracles.relative_error(agreeing, exact) <= 1e-9
    assert oracles.relative_error(got, exact) <= 1e-6
    # Sums of thousands of logarithms lose the digits that their differences need.
    assert oracles.relative_error(in_logarithms, exact) >= 1e-5


def test_other_cells_are_refused():
    cell = lstmx.GRU(4)
    params = cell.init(jax.random.key(0), 3)
    with pytest.raises((ValueError, NotImplementedError), match=r"associative.*coefficients.*GRU"):
        lstmx.scan(cell, params, jnp.ones((5, 2, 3)), implementation="associative")
    assert "GRU" in associative.refusal(choice.Job(cell))
