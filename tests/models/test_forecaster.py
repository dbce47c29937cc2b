"""The forecasters compared with loops over steps, and invariants of forecasts."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

from lstmx.models import (
    DirectForecaster,
    Gaussian,
    NegativeBinomial,
    Point,
    Quantiles,
    RecurrentForecaster,
    StudentT,
)
from lstmx.models.forecaster_parts import CELLS
from lstmx.models.instance_scaling import SCALER_TYPES

CHANCE = np.random.default_rng(0)
B, L, H = 3, 11, 4
HISTORY = CHANCE.normal(5, 2, (B, L, 2)).astype(np.float32)
TARGET = CHANCE.normal(5, 2, (B, H, 2)).astype(np.float32)
EXISTS = CHANCE.random((B, L, 2)) < 0.7
EXISTS[1, :5] = False
EXISTS[2, 8:] = False
COVARIATES = {
    "future": CHANCE.normal(size=(B, L + H, 3)).astype(np.float32),
    "static": CHANCE.normal(size=(B, 2)).astype(np.float32),
    "series": np.array([1, 0, 1]),
}
HISTORIC = CHANCE.normal(size=(B, L, 1)).astype(np.float32)
COUNTS = {"future": 3, "static": 2, "num_series": 2}
PLAIN = {"input_size": L, "horizon": H, "targets": 2, "hidden_size": 6}


def make(kind, **options):
    model = kind(rngs=nnx.Rngs(params=1), **{"head": Gaussian(), **PLAIN, **options})
    model.eval()
    # So that biases and learnt scales are not trivial.
    chance = np.random.default_rng(3)
    graph, params = nnx.split(model)
    shaken = jax.tree.map(lambda leaf: leaf + chance.normal(0, 0.2, leaf.shape).astype(np.float32), params)
    return nnx.merge(graph, shaken)


def call(model, name, *arguments, **options):
    graph, params = nnx.split(model)
    run = jax.jit(
        lambda params, arguments, options: getattr(nnx.merge(graph, params), name)(*arguments, **options)
    )
    return run(params, arguments, options)


def array(param):
    return np.asarray(param[...], np.float64)


def affine(linear, x):
    return x @ array(linear.kernel) + (0 if linear.bias is None else array(linear.bias))


def scaled(history, exists):
    """Mean and deviation of the existing values of one series, per column."""
    found = [column[known] for column, known in zip(history.T, exists.T, strict=True)]
    mean = np.array([values.mean() if len(values) else 0 for values in found])
    return mean, np.array([values.std() if len(values) and values.std() else 1 for values in found])


def recurrent(model, inputs, passed_over):
    """Outputs step by step, zero where a step is skipped."""
    state, ys = model.recurrent.initial_state(), []
    for x, over in zip(inputs, passed_over, strict=True):
        if over:
            ys.append(np.zeros(PLAIN["hidden_size"]))
            continue
        state, y = model.recurrent.step(state, jnp.asarray(x, jnp.float32))
        ys.append(np.asarray(y, np.float64))
    return np.array(ys)


def one_direct(model, row, patch, stride, readout, historic):
    """The outputs of one window, before the head."""
    history, exists = HISTORY[row].astype(np.float64), EXISTS[row]
    loc, scale = scaled(history, exists)
    gamma = np.exp(array(model.scaling.log_gamma))
    zs = np.where(exists, (history - loc) / scale * gamma + array(model.scaling.beta), 0)
    covariates = [HISTORIC[row], COVARIATES["future"][row, :L]] if historic else []
    xs = np.concatenate([zs, exists, *covariates], axis=1)
    ends = range(L, 0, -stride)
    ends = [end for end in ends if end > patch - stride or end == L][::-1]
    whole = np.concatenate([np.zeros((patch, xs.shape[1])), xs])
    some = np.concatenate([np.zeros((patch, 2), bool), exists])
    inputs = [affine(model.embedding, whole[end : end + patch].ravel()) for end in ends]
    over = [not some[end : end + patch].any() for end in ends]
    if historic:
        of_static = affine(model.static.of_static, COVARIATES["static"][row])
        of_series = array(model.static.of_series.embedding)[COVARIATES["series"][row]]
        inputs = [x + of_static + of_series for x in inputs]
    ys = recurrent(model, inputs, over)
    kept = [y for y, passed in zip(ys, over, strict=True) if not passed]
    read = ys.ravel() if readout == "all" else kept[-1]
    if historic:
        steps = affine(model.steps, read).reshape(H, -1)
        steps = steps + affine(model.ahead, COVARIATES["future"][row, L:])
        raw = affine(model.output, np.asarray(nnx.gelu(steps), np.float64))
    else:
        raw = affine(model.output, read)
    raw = raw.reshape(H, 2, -1).copy()
    raw[..., 0] += affine(model.linear, zs.T).T
    return raw


@pytest.mark.cross_section(3)
@pytest.mark.parametrize("readout", ["last", "all"])
@pytest.mark.parametrize(("patch", "stride"), [(1, 1), (4, 4), (4, 3), (11, 2)])
@pytest.mark.parametrize("historic", [False, True])
def test_direct_is_the_loop(readout, patch, stride, historic):
    counts = {"historic": 1, **COUNTS} if historic else {}
    options = {"patch_size": patch, "patch_stride": stride, "readout": readout, "missing": True}
    model = make(DirectForecaster, affine=True, linear=True, **options, **counts)
    given = {"historic": HISTORIC, **COVARIATES} if historic else {}
    raw, loc, scale = call(model, "raw", HISTORY, EXISTS, **given)
    expected = np.array([one_direct(model, row, patch, stride, readout, historic) for row in range(B)])
    assert oracles.relative_error(raw, expected) <= 1e-5
    # A forecast of z = 0 is the one whose normalized value is zero.
    gamma, beta = np.exp(array(model.scaling.log_gamma)), array(model.scaling.beta)
    mean, spread = map(np.array, zip(*map(scaled, HISTORY, EXISTS), strict=True))
    np.testing.assert_allclose(loc[:, 0], mean - spread / gamma * beta, rtol=1e-5)
    np.testing.assert_allclose(scale[:, 0], spread / gamma, rtol=1e-5)


@pytest.mark.parametrize("lags", [(), (2, 5), (7, 3, 11)])
def test_recurrent_is_the_loop(lags):
    model = make(RecurrentForecaster, num_layers=1, scaler_type="standard", lags=lags, **COUNTS)
    first = max(lags, default=1)
    raw, loc, scale = call(model, "raw", HISTORY, TARGET, EXISTS, **COVARIATES)
    for row in range(B):
        mean, spread = scaled(HISTORY[row].astype(np.float64), EXISTS[row])
        known = np.concatenate([EXISTS[row], np.ones((H, 2), bool)])
        zs = np.where(known, (np.concatenate([HISTORY[row], TARGET[row]]) - mean) / spread, 0)
        constant = affine(model.static.of_static, COVARIATES["static"][row])
        constant = constant + array(model.static.of_series.embedding)[COVARIATES["series"][row]]
        inputs = [
            [
                *(zs[step - lag] for lag in (1, *sorted(lags))),
                *(known[step - lag] for lag in (1, *sorted(lags))),
                COVARIATES["future"][row, step],
            ]
            for step in range(first, L + H)
        ]
        inputs = np.array([np.concatenate(parts) for parts in inputs])
        before = [not known[:step].any() for step in range(first, L + H)]
        ys = recurrent(model, affine(model.embedding, inputs) + constant, before)
        expected = affine(model.output, ys).reshape(L + H - first, 2, -1)
        assert oracles.relative_error(raw[row], expected) <= 1e-5
        np.testing.assert_allclose(loc[row, 0], mean, rtol=1e-5)
        np.testing.assert_allclose(scale[row, 0], spread, rtol=1e-5)


@pytest.mark.parametrize(("season_length", "lags"), [(0, ()), (3, ()), (0, (2, 3)), (3, (3, 11))])
def test_paths_go_on_from_what_was_drawn(season_length, lags):
    """Deterministic forecasts, read as if they were the true values, are forecast again."""
    model = make(
        RecurrentForecaster, head=Point(), season_length=season_length, lags=lags, dropout_rate=0.3, **COUNTS
    )
    graph, params = nnx.split(model)
    paths = jax.jit(
        lambda params: nnx.merge(graph, params).paths(
            jax.random.key(0), HISTORY, EXISTS, count=2, **COVARIATES
        )
    )(params)
    np.testing.assert_array_equal(paths[0], paths[1])
    raw, loc, scale = call(model, "raw", HISTORY, paths[0], EXISTS, **COVARIATES)
    again = model.head.distribution(raw[:, -H:], loc[:, -H:], scale)
    np.testing.assert_allclose(again, paths[0], rtol=2e-5, atol=1e-5)


def test_paths_have_the_distribution_of_the_next_step():
    model = make(RecurrentForecaster)
    graph, params = nnx.split(model)
    paths = jax.jit(
        lambda params: nnx.merge(graph, params).paths(jax.random.key(0), HISTORY, EXISTS, count=4000)
    )(params)
    raw, loc, scale = call(model, "raw", HISTORY, TARGET, EXISTS)
    first = model.head.distribution(raw[:, L - 1], loc[:, 0], scale[:, 0])
    errors = np.abs(paths[:, :, 0].mean(axis=0) - first.loc) / first.scale
    assert errors.max() < 4 / np.sqrt(4000)
    np.testing.assert_allclose(paths[:, :, 0].std(axis=0), first.scale, rtol=4 / np.sqrt(2 * 4000))


@pytest.mark.parametrize("scaler_type", ["standard", "last_standard", "robust"])
@pytest.mark.parametrize("kind", [DirectForecaster, RecurrentForecaster])
def test_units_do_not_matter(kind, scaler_type):
    model = make(kind, scaler_type=scaler_type, **({"missing": True} if kind is DirectForecaster else {}))
    target = (TARGET,) if kind is RecurrentForecaster else ()
    in_other = tuple(3 * x - 7 for x in (HISTORY, *target))
    raw, *_ = call(model, "raw", HISTORY, *target, EXISTS)
    other, loc, scale = call(model, "raw", *in_other, EXISTS)
    assert oracles.relative_error(other, raw) <= 2e-5
    _, loc_here, scale_here = call(model, "raw", HISTORY, *target, EXISTS)
    np.testing.assert_allclose(loc, 3 * loc_here - 7, rtol=1e-4)
    np.testing.assert_allclose(scale, 3 * scale_here, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "scaler_type"),
    [
        *((DirectForecaster, name) for name in SCALER_TYPES),
        *((RecurrentForecaster, name) for name in ("last_standard", "mean")),
    ],
)
def test_what_does_not_exist_has_no_influence(kind, scaler_type):
    options = {"missing": True, "patch_size": 3} if kind is DirectForecaster else {"lags": (3, 4)}
    model = make(kind, scaler_type=scaler_type, **options)
    target = (TARGET,) if kind is RecurrentForecaster else ()
    exists = EXISTS.copy()
    exists[0] = False
    graph, params = nnx.split(model)

    @jax.jit
    def run(params, history):
        def loss(params):
            raw, loc, scale = nnx.merge(graph, params).raw(history, *target, exists)
            return jnp.sum(raw**2), (raw, loc, scale)

        return jax.grad(loss, has_aux=True)(params)

    gradients, found = run(params, np.where(exists, HISTORY, 0))
    _, other = run(params, np.where(exists, HISTORY, 1e9))
    jax.tree.map(np.testing.assert_array_equal, found, other)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradients, found)))


HEADS = [Point("mae"), Quantiles((0.1, 0.5, 0.9)), StudentT(), NegativeBinomial()]


@pytest.mark.parametrize(("cell", "head"), list(zip(CELLS, HEADS, strict=True)))
def test_cells_and_heads(cell, head):
    model = make(DirectForecaster, cell=cell, head=head, num_layers=2, dropout_rate=0.3)
    graph, params = nnx.split(model)

    @jax.jit
    def run(params):
        model = nnx.merge(graph, params)
        noisy, *_ = model.raw(HISTORY, deterministic=False, rngs=nnx.Rngs(dropout=jax.random.key(2)))
        return head.mean(model(HISTORY)), noisy, model.raw(HISTORY)[0]

    mean, noisy, quiet = run(params)
    assert mean.shape == (B, H, 2)
    assert oracles.relative_error(noisy, quiet) > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"cell": "rnn"}, "cell must be one of lstm, slstm, gru, elman, got 'rnn'"),
        ({"scaler_type": "minmax"}, "scaler_type must be one of none, last, .* got 'minmax'"),
        ({"readout": "first"}, "readout must be one of last, all, got 'first'"),
        ({"patch_size": 12}, "got 12, 12 and 11"),
        ({"patch_size": 2, "patch_stride": 3}, "got 3, 2 and 11"),
        ({"linear": True, "head": NegativeBinomial()}, "linear requires a head with a location, got Neg"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        make(DirectForecaster, **options)


BOTH = [DirectForecaster, RecurrentForecaster]


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("name", ["input_size", "horizon", "targets", "hidden_size", "num_layers"])
def test_sizes_are_integers_of_at_least_one(kind, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        make(kind, **{name: 0})
    for value in (True, 2.0):
        with pytest.raises(TypeError, match=f"{name} must be an integer, got {value}"):
            make(kind, **{name: value})


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("name", ["future", "static", "num_series", "season_length"])
def test_counts_are_integers_of_at_least_zero(kind, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 0, got -1"):
        make(kind, **{name: -1})
    with pytest.raises(TypeError, match=f"{name} must be an integer, got True"):
        make(kind, **{name: True})


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "mse"}, r"head must be a ForecastHead, such as head_named\('mse'\), got 'mse'"),
        ({"head": Gaussian}, "head must be a ForecastHead"),
        ({"affine": 1}, "affine must be True or False, got 1"),
    ],
)
def test_arguments_of_another_type_are_refused(kind, options, message):
    with pytest.raises(TypeError, match=message):
        make(kind, **options)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "lstmm"}, "cell must be one of lstm, slstm, gru, elman, got 'lstmm'"),
        ({"scaler_type": "revin"}, "scaler_type must be one of none, .*, got 'revin'"),
        ({"season_length": 1}, "season_length must be 0 or at least 2, got 1"),
        ({"dropout_rate": 1.0}, r"dropout_rate must lie in \[0, 1\), got 1.0"),
    ],
)
def test_arguments_out_of_range_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        make(kind, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": True}, "patch_size must be an integer, got True"),
        ({"patch_size": 4, "patch_stride": 2.0}, "patch_stride must be an integer, got 2.0"),
        ({"historic": 1.0}, "historic must be an integer, got 1.0"),
        ({"linear": "yes"}, "linear must be True or False, got 'yes'"),
        ({"missing": None}, "missing must be True or False, got None"),
    ],
)
def test_argument_types_of_the_direct_forecaster(options, message):
    with pytest.raises(TypeError, match=message):
        make(DirectForecaster, **options)


def test_a_history_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\[batch, 11, 2\], got shape \(3, 4, 2\)"):
        make(DirectForecaster)(TARGET)


@pytest.mark.parametrize("head", [Gaussian(), Quantiles((0.1, 0.5, 0.9))])
def test_shrunk_forecasts_lie_between_those_of_the_network_and_the_level(head):
    options = {"head": head, "linear": True, "scaler_type": "last_standard"}
    whole, shrunk = (make(DirectForecaster, shrinkage=share, **options) for share in (0.0, 0.3))
    raw, *_ = call(whole, "raw", HISTORY)
    found, *_ = call(shrunk, "raw", HISTORY)
    np.testing.assert_allclose(found[..., 0], 0.7 * raw[..., 0], rtol=1e-5)
    np.testing.assert_array_equal(found[..., 1:], raw[..., 1:])
    means = [head.mean(model(HISTORY)) for model in (whole, shrunk)]
    np.testing.assert_allclose(means[1], 0.7 * means[0] + 0.3 * HISTORY[:, -1:], rtol=1e-4)
    # Training is not shrunk: the network would learn to undo it.
    seen = shrunk.raw(HISTORY, deterministic=False, rngs=nnx.Rngs(dropout=0))[0]
    np.testing.assert_allclose(seen, raw, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [DirectForecaster, RecurrentForecaster])
def test_dropout_and_shrinkage_follow_the_mode(kind):
    own = {"shrinkage": 0.3} if kind is DirectForecaster else {}
    model = kind(rngs=nnx.Rngs(0), head=Gaussian(), dropout_rate=0.5, **PLAIN, **own)
    arguments = (HISTORY,) if kind is DirectForecaster else (HISTORY, TARGET)
    noisy = model.raw(*arguments)[0]
    assert not np.array_equal(noisy, model.raw(*arguments)[0])
    clean = model.raw(*arguments, deterministic=True)[0]
    model.eval()
    np.testing.assert_array_equal(model.raw(*arguments)[0], clean)


def test_shrinkage_needs_a_level():
    for head, share, message in (
        (Gaussian(), 1.0, r"shrinkage must lie in \[0, 1\), got 1.0"),
        (NegativeBinomial(), 0.2, "shrinkage requires a head with a location, got Neg"),
    ):
        with pytest.raises(ValueError, match=message):
            make(DirectForecaster, head=head, shrinkage=share)


@pytest.mark.parametrize("lags", [(1,), (0, 2), (4, 4), (2, 12), (2.0,), (True,)])
def test_lags_that_do_not_fit(lags):
    with pytest.raises(ValueError, match=r"different integers from 2 to input_size, which is 11, got \("):
        make(RecurrentForecaster, lags=lags)
