"""The heads of forecasters compared with SciPy, loops and their own samples."""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lstmx.models import forecast_heads
from lstmx.models.forecast_heads import (
    Counts,
    ForecastHead,
    Gaussian,
    LocationScale,
    NegativeBinomial,
    Point,
    Quantiles,
    StudentT,
    head_named,
)

HEADS = {
    "mse": Point("mse"),
    "mae": Point("mae"),
    "quantiles": Quantiles(),
    "gaussian": Gaussian(),
    "student_t": StudentT(),
    "negative_binomial": NegativeBinomial(),
}
UNEVEN = (0.05, 0.2, 0.5, 0.6, 0.99)
LEVELS = (0.11, 0.5, 0.6, 0.88)

heads = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
families = pytest.mark.parametrize("name", ["gaussian", "student_t", "negative_binomial"])


def run(function, *args):
    """The result of a compiled function as NumPy arrays."""
    return jax.tree.map(np.asarray, jax.jit(function)(*args))


def quantiles_of(head, distribution, levels):
    """Quantiles, uncompiled where SciPy computes them."""
    if isinstance(head, StudentT | NegativeBinomial):
        return head.quantiles(distribution, levels)
    return run(lambda d: head.quantiles(d, levels), distribution)


def softplus(x):
    return np.logaddexp(x, 0)


def frozen(name, raw, loc=0.0, scale=1.0):
    """SciPy's distribution of the outputs, by the formulas of the docstrings."""
    positive = softplus(np.asarray(raw, np.float64)) + 1e-4
    if name == "negative_binomial":
        mu, alpha = scale * positive[..., 0], positive[..., 1] / np.sqrt(scale)
        return stats.nbinom(1 / alpha, 1 / (1 + alpha * mu))
    place = loc + scale * raw[..., 0]
    if name == "gaussian":
        return stats.norm(place, scale * positive[..., 1])
    return stats.t(2 + positive[..., 2], place, scale * positive[..., 1])


def problem(head, size=200, spread=3.0):
    """Outputs, level, scale and targets that all heads take."""
    rng = np.random.default_rng(0)
    raw = rng.normal(0, spread, (size, head.num_parameters))
    loc, scale = rng.normal(0, 5, size), rng.lognormal(0, 1.5, size)
    return raw, loc, scale, rng.poisson(rng.lognormal(1, 1.5, size))


@families
def test_likelihoods_are_those_of_scipy(name, double):
    raw, loc, scale, y = problem(HEADS[name])
    head, oracle = HEADS[name], frozen(name, raw, loc, scale)
    found = run(lambda *args: head.loss(head.distribution(*args), y), raw, loc, scale)
    expected = -(oracle.logpmf if name == "negative_binomial" else oracle.logpdf)(y)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@families
def test_quantiles_are_those_of_scipy(name):
    raw, loc, scale, _ = problem(HEADS[name], 50, spread=1.0)
    raw, loc, scale = (np.float32(x) for x in (raw, loc, scale))
    found = quantiles_of(HEADS[name], run(HEADS[name].distribution, raw, loc, scale), LEVELS)
    expected = np.stack([frozen(name, raw, loc, scale).ppf(level) for level in LEVELS], axis=-1)
    # A count is all right or all wrong; one of them may be, where the level is met to the last digit.
    assert np.mean(~np.isclose(found, expected, rtol=1e-5, atol=1e-5)) < 0.01
    assert found.shape == (50, len(LEVELS))


@families
def test_the_mean_is_that_of_scipy(name):
    raw, loc, scale, _ = problem(HEADS[name], spread=1.0)
    found = HEADS[name].mean(run(HEADS[name].distribution, raw, loc, scale))
    np.testing.assert_allclose(found, frozen(name, raw, loc, scale).mean(), rtol=1e-5, atol=1e-5)


def test_a_student_distribution_has_a_variance():
    distribution = run(StudentT().distribution, np.float32([[0, 0, -1e4], [0, 0, -50]]))
    assert (distribution.df > 2).all()


def test_student_keeps_its_digits_in_float32():
    df, y = np.meshgrid([2.5, 30.0, 1e4, 1e8], np.linspace(-30, 30, 13))
    found = run(lambda df: StudentT().loss(LocationScale(df * 0, df * 0 + 1, df), y), np.float32(df))
    np.testing.assert_allclose(found, -stats.t(df).logpdf(y), rtol=2e-6)


def nats_of_counts(mu, alpha, y):
    return NegativeBinomial().loss(Counts(mu, alpha), y)


def test_counts_keep_their_digits_in_float32():
    """Where the textbook formula loses all digits: nearly Poisson counts."""
    alpha, mu, ratio = np.meshgrid([1e-6, 1e-3, 1.0, 100.0], [0.01, 3.0, 500.0], [0, 0.9, 1, 1.3])
    y = np.round(ratio * mu)
    mu, alpha = np.float32(mu), np.float32(alpha)
    slope = jax.grad(lambda *args: nats_of_counts(*args).sum(), 1)
    found, found_slope = run(nats_of_counts, mu, alpha, y), run(slope, mu, alpha, y)
    mu, alpha = np.float64(mu), np.float64(alpha)
    with jax.enable_x64(True):
        expected_slope = run(slope, mu, alpha, y)
    np.testing.assert_allclose(found, -stats.nbinom.logpmf(y, 1 / alpha, 1 / (1 + alpha * mu)), 1e-5, 1e-4)
    # Of log(alpha), which is about what a network's output is.
    np.testing.assert_allclose(found_slope * alpha, expected_slope * alpha, rtol=1e-3, atol=1e-4)


def test_counts_without_excess_variance_are_poisson(double):
    mu, y = np.repeat([0.5, 4.0, 80.0], 3), np.array([0, 1, 2, 0, 4, 9, 60, 80, 95])
    found = run(nats_of_counts, mu, np.full(9, 1e-12), y)
    np.testing.assert_allclose(found, -stats.poisson(mu).logpmf(y), rtol=1e-8)


def test_a_count_at_its_mean_wants_no_other_mean(double):
    slopes = run(jax.grad(nats_of_counts, (0, 1)), np.float64(3), np.float64(0.5), 3.0)
    assert slopes[0] == pytest.approx(0, abs=1e-12)
    assert abs(slopes[1]) > 0.1


def test_points_are_shifted_outputs_and_their_losses_errors():
    raw, loc, scale, y = problem(Point())
    point = loc + scale * raw[:, 0]
    for name, expected in (("mse", (y - point) ** 2), ("mae", np.abs(y - point))):
        found = run(HEADS[name].distribution, raw, loc, scale)
        np.testing.assert_allclose(found, point, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(run(HEADS[name].loss, found, y), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("levels", [HEADS["quantiles"].levels, UNEVEN, (0.5,), (0.5, 0.9), (0.1, 0.5)])
def test_quantiles_are_the_loop_over_levels(levels, double):
    head = Quantiles(levels)
    raw, loc, scale, y = problem(head, 20)
    found = run(head.distribution, raw, loc, scale)
    loss = run(head.loss, found, y)
    for row in range(20):
        middle = levels.index(0.5)
        expected, place = {0.5: raw[row, 0]}, 1
        for outwards in (levels[middle:], levels[middle::-1]):
            for inner, level in itertools.pairwise(outwards):
                step = (stats.norm.ppf(level) - stats.norm.ppf(inner)) / np.log(2)
                expected[level] = expected[inner] + step * softplus(raw[row, place])
                place += 1
        quantiles = [loc[row] + scale[row] * expected[level] for level in levels]
        np.testing.assert_allclose(found[row], quantiles, rtol=1e-10)
        costs = [
            level * (y[row] - q) if y[row] > q else (1 - level) * (q - y[row])
            for level, q in zip(levels, quantiles, strict=True)
        ]
        np.testing.assert_allclose(loss[row], 2 * sum(costs) / len(levels), rtol=1e-10)


def test_zeros_are_the_quantiles_of_a_normal_distribution():
    head = Quantiles(UNEVEN)
    found = run(head.distribution, np.zeros(5, np.float32), 3.0, 2.0)
    np.testing.assert_allclose(found, stats.norm(3, 2).ppf(UNEVEN), rtol=1e-6)


@pytest.mark.parametrize("loc", [0, 1e6])
def test_quantiles_never_cross(loc):
    head = Quantiles(np.linspace(0.05, 0.95, 19))
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(4000, 19)) * rng.choice([1, 50], (4000, 1))
    found = run(head.distribution, raw, loc, 0.37)
    assert (np.diff(found) >= 0).all()
    assert (found[:, -1] > found[:, 0]).all()


def test_the_loss_of_many_quantiles_is_the_crps():
    """It is known for the standard normal distribution: Gneiting & Raftery 2007."""
    levels, y, normal = np.arange(1, 200) / 200, np.array([-2.0, 0.0, 0.3, 3.0]), stats.norm
    crps = y * (2 * normal.cdf(y) - 1) + 2 * normal.pdf(y) - 1 / np.sqrt(np.pi)
    found = run(Quantiles(levels).loss, np.float32([normal.ppf(levels)] * 4), y)
    np.testing.assert_allclose(found, crps, rtol=0.01)


def test_quantiles_between_the_levels_are_on_straight_lines():
    head = Quantiles(UNEVEN)
    asked, distribution = (0.05, 0.125, 0.6, 0.9, 0.3), run(head.distribution, problem(head, 4)[0])
    expected = [np.interp(asked, UNEVEN, row) for row in distribution]
    distribution = distribution.reshape(2, 2, 5)
    found = quantiles_of(head, distribution, asked)
    np.testing.assert_allclose(found, np.reshape(expected, (2, 2, 5)), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(quantiles_of(head, distribution, UNEVEN), distribution)
    np.testing.assert_array_equal(head.mean(distribution), distribution[..., 2])
    np.testing.assert_array_equal(quantiles_of(Quantiles((0.5,)), np.float32([[7]]), [0.5, 0.5]), [[7, 7]])


def test_levels_may_come_from_a_range():
    levels = Quantiles(np.linspace(0.05, 0.95, 19)).levels
    assert levels == tuple(n / 20 for n in range(1, 20))
    assert 0.5 not in np.linspace(0.05, 0.95, 19)


def test_the_median_of_absolute_errors_is_the_point():
    points = jnp.array([1.0, 2.0])
    np.testing.assert_array_equal(Point("mae").quantiles(points, [0.5, 0.5]), [[1, 1], [2, 2]])


def samples_of_keys(head, distribution, shape):
    """Of key 0, having seen that the key decides them."""
    draw = jax.jit(lambda seed: head.sample(distribution, jax.random.key(seed), shape))
    first, again, other = (np.asarray(draw(seed)) for seed in (0, 0, 1))
    assert first.shape == (*shape, 2)
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5
    assert (first[0] != first[1]).any()
    return first


@families
def test_samples_have_the_distribution(name):
    head, count = HEADS[name], 10_000
    # A Student distribution of 9 degrees of freedom: its fourth moment exists.
    raw = np.array([[0.3, 0.5, 7.0], [2.0, -1.0, 7.0]])[:, : head.num_parameters]
    loc, scale = np.array([-4.0, 1.0]), np.array([2.0, 9.0])
    distribution = run(head.distribution, raw, loc, scale)
    samples = samples_of_keys(head, distribution, (count // 10, 10))
    samples, oracle = samples.reshape(count, 2).astype(np.float64), frozen(name, raw, loc, scale)
    mean, variance, _, excess = oracle.stats("mvsk")
    assert (np.abs(samples.mean(0) - mean) < 4 * np.sqrt(variance / count)).all()
    spread = variance * np.sqrt((excess + 2) / count)
    assert (np.abs(samples.var(0) - variance) < 4 * spread).all()
    levels = (0.1, 0.5, 0.9)
    for level, quantile in zip(levels, quantiles_of(head, distribution, levels).T, strict=True):
        below, expected = (samples <= quantile).mean(0), oracle.cdf(quantile)
        assert (np.abs(below - expected) < 4 * np.sqrt(level * (1 - level) / count)).all()
        if name == "negative_binomial":
            assert (expected >= level).all()
            assert (oracle.cdf(quantile - 1) < level).all()


def test_samples_of_quantiles_fill_the_lines_between_them():
    head, count = Quantiles(UNEVEN), 10_000
    distribution = run(head.distribution, np.float32([[0, 1, 2, 3, -1], [5, -2, 0, 0, 0]]))
    samples = samples_of_keys(head, distribution, (count,))
    asked = np.array([0.1, 0.2, 0.3, 0.5, 0.55, 0.9])
    below = (samples[..., None] <= quantiles_of(head, distribution, asked)).mean(0)
    assert (np.abs(below - asked) < 4 * np.sqrt(asked * (1 - asked) / count)).all()
    np.testing.assert_array_equal(samples.min(0), distribution[:, 0])
    np.testing.assert_array_equal(samples.max(0), distribution[:, -1])
    assert abs((samples == distribution[:, 0]).mean() - 0.05) < 0.01


@pytest.mark.parametrize("name", ["mse", "mae"])
def test_samples_of_a_point_are_the_point(name):
    samples = HEADS[name].sample(jnp.arange(3.0), jax.random.key(0), (2, 4))
    np.testing.assert_array_equal(samples, np.broadcast_to([0, 1, 2], (2, 4, 3)))


@heads
def test_to_forecast_a_normalized_target_is_to_forecast_the_target(head):
    raw, loc, scale, y = problem(head)
    plain, moved = run(head.distribution, raw), run(head.distribution, raw, loc, scale)
    if not head.location_scale:
        np.testing.assert_array_equal(moved, run(head.distribution, raw, 0.0, scale))
        np.testing.assert_allclose(moved.mu, scale * plain.mu, rtol=1e-5)
        np.testing.assert_allclose(moved.alpha, plain.alpha / np.sqrt(scale), rtol=1e-5)
        return
    np.testing.assert_allclose(head.mean(moved), loc + scale * head.mean(plain), rtol=1e-4, atol=1e-4)
    losses, found = run(head.loss, plain, (y - loc) / scale), run(head.loss, moved, y)
    factors = {"mse": scale**2, "mae": scale, "quantiles": scale}
    name = next(name for name, one in HEADS.items() if one == head)
    expected = losses * factors[name] if name in factors else losses + np.log(scale)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    if not isinstance(head, Point):
        columns = loc[:, None] + scale[:, None] * quantiles_of(head, plain, LEVELS)
        np.testing.assert_allclose(quantiles_of(head, moved, LEVELS), columns, rtol=1e-4, atol=1e-3)


@heads
def test_extreme_outputs_and_targets_have_finite_losses_and_gradients(head):
    if isinstance(head, Quantiles):
        head = Quantiles((0.1, 0.5, 0.9))
    raw = np.array([*itertools.product([-50.0, -1, 0, 50], repeat=head.num_parameters)], np.float32)
    targets = np.array([0, 1, 1e6] if isinstance(head, NegativeBinomial) else [-1e6, 0, 1e6], np.float32)

    def loss(raw, target, scale):
        return head.loss(head.distribution(raw, 0.0, scale), target)

    both = jax.vmap(jax.value_and_grad(loss), (0, None, None))
    both = jax.vmap(jax.vmap(both, (None, 0, None)), (None, None, 0))
    values, gradients = run(both, raw, targets, np.array([1e-3, 1, 1e3], np.float32))
    assert values.shape == (3, 3, len(raw))
    assert np.isfinite(values).all()
    assert np.isfinite(gradients).all()


@heads
def test_gradients_are_the_slopes(head, double):
    raw, loc, scale, y = problem(head, 30, spread=1.5)

    def loss(raw):
        return head.loss(head.distribution(raw, loc, scale), y)

    found = run(jax.grad(lambda raw: loss(raw).sum()), raw)
    quickly, width = jax.jit(loss), 1e-6
    for column in range(head.num_parameters):
        aside = width * (np.arange(head.num_parameters) == column)
        slopes = (quickly(raw + aside) - quickly(raw - aside)) / (2 * width)
        np.testing.assert_allclose(found[:, column], slopes, rtol=1e-5, atol=1e-6)
    assert (found != 0).any(axis=0).all()


@heads
def test_heads_are_static_arguments(head):
    traces = []

    def loss(head, raw, target):
        traces.append(head)
        return head.loss(head.distribution(raw, 1.0, 2.0), target).sum()

    total = jax.jit(loss, static_argnums=0)
    raw = jnp.ones((3, head.num_parameters))
    same = eval(repr(head), vars(forecast_heads))
    assert same == head
    assert same is not head
    assert total(head, raw, 2.0) == total(same, raw, 2.0)
    assert traces == [head]
    assert len({*HEADS.values(), head, same}) == len(HEADS)


@heads
def test_narrow_outputs_are_computed_in_float32(head):
    raw = jnp.full((2, 3, head.num_parameters), 0.5, jnp.bfloat16)
    loc, scale = np.full((2, 1), 1000, np.int32), np.full(3, 0.5)
    distribution = run(head.distribution, raw, loc, scale)
    wide = run(head.distribution, np.asarray(raw, np.float32), 1000.0, 0.5)
    assert {leaf.dtype for leaf in jax.tree.leaves((distribution, wide))} == {np.dtype("float32")}
    jax.tree.map(np.testing.assert_array_equal, distribution, wide)
    loss = run(head.loss, distribution, jnp.ones((2, 3), jnp.bfloat16))
    for result in (loss, head.mean(distribution)):
        assert (result.shape, result.dtype) == ((2, 3), np.float32)


@heads
def test_heads_have_what_the_protocol_says(head):
    assert type(head.num_parameters) is int
    assert type(head.location_scale) is bool
    for name, method in inspect.getmembers(ForecastHead, inspect.isfunction):
        if not name.startswith("_"):
            own = inspect.signature(getattr(type(head), name)).parameters
            expected = inspect.signature(method).parameters
            assert [*own] == [*expected]
            assert [p.default for p in own.values()] == [p.default for p in expected.values()]


@pytest.mark.parametrize("name", HEADS)
def test_heads_have_names(name):
    assert head_named(name) == HEADS[name]


def test_named_quantiles_have_levels():
    assert head_named("quantiles", [0.1, 0.5]) == Quantiles((0.1, 0.5))
    with pytest.raises(ValueError, match=r'levels require the head "quantiles", got \(0.1,\) for "mse"'):
        head_named("mse", [0.1])
    names = "mse, mae, quantiles, gaussian, student_t, negative_binomial, got 'cauchy'"
    with pytest.raises(ValueError, match=f"head must be one of {names}"):
        head_named("cauchy")


def test_an_unknown_error_is_refused():
    with pytest.raises(ValueError, match='error must be "mse" or "mae", got \'huber\''):
        Point("huber")


@pytest.mark.parametrize(
    "levels", [(), (0.1, 0.9), (0.5, 0.1), (0.5, 0.5), (0, 0.5), (0.5, 1), (0.5, np.nan)]
)
def test_levels_that_are_none_are_refused(levels):
    with pytest.raises(
        ValueError, match=r"levels must increase strictly in \(0, 1\) and contain 0.5, got \("
    ):
        Quantiles(levels)


@pytest.mark.parametrize("levels", [0.5, ("median",), None])
def test_levels_that_are_no_numbers_are_refused(levels):
    with pytest.raises(ValueError, match="levels must be a list of numbers, got"):
        Quantiles(levels)


@heads
@pytest.mark.parametrize("level", [0, 1, -0.1, 1.5, np.nan])
def test_levels_of_no_quantile_are_refused(head, level):
    distribution = [np.ones(2)] * (2 if isinstance(head, NegativeBinomial) else 3)
    with pytest.raises(ValueError, match=rf"levels must lie in \(0, 1\), got \[0.5, {level}\]"):
        head.quantiles(distribution, [0.5, level])


def test_quantiles_that_are_not_known_are_refused():
    for level in (0.04, 0.995):
        with pytest.raises(ValueError, match=f"levels must lie between 0.05 and 0.99, got {level}"):
            Quantiles(UNEVEN).quantiles(np.zeros(5), [0.5, level])
    for name, levels, known in (("mse", [0.5], r"\[\]"), ("mae", [0.5, 0.9], r"\[0.5\]")):
        with pytest.raises(ValueError, match=rf'Point\("{name}"\) has the quantiles {known}, not'):
            Point(name).quantiles(np.zeros(2), levels)


@heads
@pytest.mark.parametrize("extra", [-1, 1])
def test_outputs_of_another_number_are_refused(head, extra):
    count = head.num_parameters
    with pytest.raises(ValueError, match=rf"raw must be \[..., {count}\] for {type(head).__name__}\(.*shape"):
        head.distribution(np.zeros((4, count + extra), np.float32))
