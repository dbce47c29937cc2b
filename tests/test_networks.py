"""Stacks and bidirectional networks, against torch and against the loop over single segments."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lstmx
from lstmx.networks import BothDirections


@pytest.mark.conformance
@pytest.mark.parametrize("cell_type", [lstmx.LSTM, lstmx.GRU])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", [None, [2, 6, 5]])
@pytest.mark.usefixtures("double")
def test_layers_of_torch(cell_type, bidirectional, lengths):
    torch_layers = pytest.importorskip("torch_layers", reason="torch is the oracle")
    cell = cell_type(4, param_dtype="float64")
    net = lstmx.networks.stacked(cell, num_layers=2, bidirectional=bidirectional)
    assert oracles.relative_error(*torch_layers.results_of_both(net, cell, lengths, steps=6)) <= 1e-12


def segments_of(keep, resets):
    """Of one row: the steps that exist, as one list for each sequence that a reset begins."""
    segments = [[]]
    for t in np.flatnonzero(keep):
        if resets[t] and segments[-1]:
            segments.append([])
        segments[-1].append(t)
    return segments


def run_alone(name, params, xs, state, keep, resets):
    """Both directions of one row `[T, D]`, every segment run alone. Returns final states and outputs."""
    segments = segments_of(keep, resets)
    fresh = jax.tree.map(np.zeros_like, state.forward)
    # The first sequence may go on from the given state, unless its own first step is a reset.
    first = state.forward if not (segments[0] and resets[segments[0][0]]) else fresh
    ys, finals = [], []
    for k, steps in enumerate(segments):
        starts = first if k == 0 else fresh, state.backward if k == len(segments) - 1 else fresh
        runs = [
            oracles.run(name, p, xs[steps][:, None], jax.tree.map(lambda leaf: leaf[None], s), reverse=r)
            for p, s, r in zip(params, starts, (False, True), strict=True)
        ]
        finals.append([jax.tree.map(lambda leaf: leaf[0], final) for final, _ in runs])
        ys.append(np.concatenate([y[:, 0] for _, y in runs], axis=-1))
    outputs = np.zeros((len(xs), ys[0].shape[-1]))
    outputs[np.flatnonzero(keep)] = np.concatenate(ys)
    return BothDirections(finals[-1][0], finals[0][1]), outputs


@settings(max_examples=40)
@given(data=st.data())
def test_resets_of_a_bidirectional_run_every_segment_alone(data):
    name = data.draw(st.sampled_from(["lstm", "gru"]), "name")
    steps, batch = data.draw(st.sampled_from([1, 6]), "steps"), 2
    flags = st.lists(st.booleans(), min_size=steps * batch, max_size=steps * batch)
    draw = lambda label: np.array(data.draw(flags, label)).reshape(steps, batch)  # noqa: E731
    resets, keep, options = draw("resets"), np.ones((steps, batch), bool), {}
    gaps = data.draw(st.sampled_from(["none", "lengths", "mask"]), "gaps")
    if gaps == "lengths":
        options["lengths"] = np.array(data.draw(st.tuples(*[st.integers(0, steps)] * batch), "lengths"))
        keep = np.arange(steps)[:, None] < options["lengths"]
    elif gaps == "mask":
        options["mask"] = keep = draw("mask")
    with jax.enable_x64(True):
        net = lstmx.Bidirectional(oracles.make(name, 3, param_dtype="float64"))
        params, xs, state = oracles.random_case(net, np.random.default_rng(0), steps, (batch,), features=2)
        got, ys = lstmx.scan(net, params, xs, state, resets=resets, **options)
        for b in range(batch):
            row = lambda tree, b=b: jax.tree.map(lambda leaf: leaf[b], tree)  # noqa: E731
            expected = run_alone(name, params, xs[:, b], row(state), keep[:, b], resets[:, b])
            assert oracles.relative_error((row(got), ys[:, b]), expected) <= 1e-12


CELL = lstmx.GRU(3, param_dtype="float64")
NETWORKS = {
    "cell": CELL,
    "stack": lstmx.Stack((CELL, CELL)),
    "bidirectional": lstmx.Bidirectional(CELL),
    "bidirectional stack": lstmx.Stack((lstmx.Bidirectional(CELL), lstmx.Bidirectional(CELL))),
    "mixed": lstmx.Stack((CELL, lstmx.Bidirectional(CELL))),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("options", ["plain", "mask", "resets", "mask and resets"])
@pytest.mark.usefixtures("double")
def test_reverse_reads_the_flipped_sequence(network, options):
    rng, net = np.random.default_rng(1), NETWORKS[network]
    params, xs, state = oracles.random_case(net, rng, steps=6)
    flags = {"mask": rng.random((6, 3)) < 0.7, "resets": rng.random((6, 3)) < 0.4}
    flags = {name: value for name, value in flags.items() if name in options}
    final, ys = lstmx.scan(net, params, xs, state, reverse=True, **flags)
    flipped = {name: value[::-1] for name, value in flags.items()}
    expected, ys_flipped = lstmx.scan(net, params, xs[::-1], state, **flipped)
    assert oracles.relative_error((final, ys), (expected, ys_flipped[::-1])) <= 1e-12


@dataclasses.dataclass(frozen=True)
class Echo:
    """A network that returns its input, to see what a Stack feeds it."""

    output_size = 8
    num_feature_axes = 1
    dtype = None
    parts = ()

    def init(self, key, input_size):
        return ()

    def start(self, params, batch_shape=()):
        return ()

    def initial_state(self, batch_shape=()):
        return ()

    def scan(self, params, xs, initial_state=None, **options):
        return (), xs

    def step(self, params, state, x, **options):
        return (), x


def dropped(layers, rate, key=None, xs=None):
    net = lstmx.Stack(layers, dropout_rate=rate)
    xs = jnp.ones((50, 40, 8)) if xs is None else xs
    return np.asarray(net.scan(net.init(jax.random.key(0), 8), xs, key=key)[1])


def test_no_dropout_without_a_key():
    assert np.all(dropped((Echo(), Echo()), 0.5) == 1)


@pytest.mark.parametrize("rate", [0.25, 0.8])
def test_statistics_of_dropout(rate):
    ys = dropped((Echo(), Echo()), rate, jax.random.key(1))
    np.testing.assert_allclose(np.unique(ys), [0, 1 / (1 - rate)], rtol=1e-6)
    # 16,000 draws: four standard errors are less than 0.016.
    assert abs(np.mean(ys == 0) - rate) < 0.016
    for axis in range(3):  # anew in every step, row and unit
        assert np.ptp(ys, axis=axis).all() == (ys.shape[axis] > 30)
        assert np.ptp(ys, axis=axis).any()


def test_no_dropout_after_the_last_layer():
    assert np.all(dropped((Echo(),), 0.5, jax.random.key(1)) == 1)


@pytest.mark.parametrize("layers", [(Echo(),) * 3, (lstmx.Stack((Echo(), Echo()), 0.5), Echo())])
def test_layers_drop_independently(layers):
    assert abs(np.mean(dropped(layers, 0.5, jax.random.key(1)) == 0) - 0.75) < 0.016


@pytest.mark.usefixtures("double")
def test_dropout_is_a_function_of_the_key():
    cell = lstmx.LSTM(4, param_dtype="float64")
    net = lstmx.Stack((cell, cell, cell), dropout_rate=0.5)
    case = oracles.random_case(net, np.random.default_rng(2))

    @functools.partial(jax.jit, static_argnums=1)
    def gradients(seed, implementation):
        def loss(params):
            options = {"key": jax.random.key(seed), "implementation": implementation}
            return jnp.sum(jnp.sin(lstmx.scan(net, params, *case[1:], **options)[1]))

        return jax.value_and_grad(loss)(case[0])

    assert oracles.relative_error(gradients(0, "fused"), gradients(0, "fused")) == 0
    assert oracles.relative_error(gradients(0, "fused"), gradients(0, "reference")) <= 1e-12
    assert oracles.relative_error(gradients(0, "fused"), gradients(1, "fused")) > 0.01


@pytest.mark.usefixtures("double")
def test_layers_of_different_cells():
    names, sizes = ("lstm", "gru", "elman"), (4, 3, 2)
    cells = [oracles.make(name, size, param_dtype="float64") for name, size in zip(names, sizes, strict=True)]
    net = lstmx.Stack(cells)
    params, xs, state = oracles.random_case(net, np.random.default_rng(3))
    assert net.output_size == 2
    expected, ys = [], xs
    for name, p, s in zip(names, params, state, strict=True):
        final, ys = oracles.run(name, p, ys, s)
        expected.append(final)
    assert oracles.relative_error(lstmx.scan(net, params, xs, state), (expected, ys)) <= 1e-12


@pytest.mark.usefixtures("double")
def test_directions_of_different_cells():
    net = lstmx.Bidirectional(lstmx.LSTM(4, param_dtype="float64"), lstmx.GRU(3, param_dtype="float64"))
    params, xs, state = oracles.random_case(net, np.random.default_rng(4))
    runs = [
        oracles.run(name, p, xs, s, reverse=reverse)
        for name, p, s, reverse in zip(("lstm", "gru"), params, state, (False, True), strict=True)
    ]
    (forward, ys), (backward, ys_backward) = runs
    expected = (forward, backward), np.concatenate([ys, ys_backward], axis=-1)
    assert net.output_size == 7
    assert oracles.relative_error(lstmx.scan(net, params, xs, state), expected) <= 1e-12


def test_step_of_a_stack_is_scan_of_one():
    net = lstmx.Stack((lstmx.LSTM(4), lstmx.GRU(3)), dropout_rate=0.5)
    params, xs, state = oracles.random_case(net, np.random.default_rng(5), dtype=np.float32)
    final, ys = lstmx.scan(net, params, xs, state)
    for t, x in enumerate(xs):
        state, y = lstmx.step(net, params, state, x)
        assert oracles.relative_error(y, ys[t]) <= 1e-6
    assert oracles.relative_error(state, final) <= 1e-6


def test_a_bidirectional_network_cannot_be_stepped():
    both = lstmx.Bidirectional(lstmx.GRU(3))
    for net in (both, lstmx.Stack((both,))):
        params, xs, state = oracles.random_case(net, np.random.default_rng(6), dtype=np.float32)
        with pytest.raises(TypeError, match="cannot be stepped"):
            lstmx.step(net, params, state, xs[0])


def test_layers_and_directions_draw_their_own_parameters():
    net = lstmx.Stack((lstmx.Bidirectional(lstmx.GRU(4)),) * 3)
    params = net.init(jax.random.key(0), 8)
    kernels = [d.recurrent["kernel"] for layer in params for d in layer]
    assert [layer.forward.input["kernel"].shape for layer in params] == [(8, 12)] * 3
    assert len({np.asarray(kernel).tobytes() for kernel in kernels}) == 6


def test_equal_networks_hash_alike():
    nets = [lstmx.Stack(layers, 0.5) for layers in ([lstmx.LSTM(4)], (lstmx.LSTM(4),))]
    assert nets[0] == nets[1]
    assert len({*nets, lstmx.Stack((lstmx.LSTM(4),))}) == 2
    assert lstmx.networks.stacked(lstmx.LSTM(4), 1, dropout_rate=0.5) == nets[0]


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5])
def test_dropout_rate_has_a_range(rate):
    with pytest.raises(ValueError, match=r"dropout_rate must lie in \[0, 1\), got"):
        lstmx.Stack((lstmx.LSTM(4),), dropout_rate=rate)


def test_a_stack_needs_layers():
    with pytest.raises(ValueError, match="at least one layer"):
        lstmx.Stack(())
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        lstmx.networks.stacked(lstmx.LSTM(4), 0)


@pytest.mark.parametrize("wrong", ["params", "state"])
def test_layers_are_counted(wrong):
    net = lstmx.Stack((lstmx.GRU(4), lstmx.GRU(4)))
    given = {"params": net.init(jax.random.key(0), 3), "state": net.initial_state((2,))}
    given[wrong] = given[wrong][:1]
    message = f"{wrong} must have one entry for each of 2 layers, got 1"
    with pytest.raises(ValueError, match=message):
        lstmx.scan(net, given["params"], np.ones((5, 2, 3), np.float32), given["state"])
    with pytest.raises(ValueError, match=message):
        lstmx.step(net, given["params"], given["state"], np.ones((2, 3), np.float32))


BAD = {
    "mask shape": ({"mask": np.ones((5, 3), bool)}, ValueError, r"mask must be .*\(5, 2\), got \(5, 3\)"),
    "reset shape": ({"resets": np.ones(5, bool)}, ValueError, r"resets must be .*\(5, 2\), got \(5,\)"),
    "reset type": ({"resets": np.ones((5, 2))}, TypeError, "resets must be boolean, got float32"),
    "both": ({"lengths": [1, 2], "mask": np.ones((5, 2), bool)}, ValueError, "lengths or mask, not both"),
}


@pytest.mark.parametrize(
    ("case", "masked"),
    [
        ("mask shape", False),
        ("reset shape", True),
        ("reset type", True),
        ("reset shape", False),
        ("reset type", False),
        ("both", False),
    ],
)
def test_bad_input_to_a_bidirectional_is_named(case, masked):
    options, error, message = BAD[case]
    net = lstmx.Bidirectional(lstmx.GRU(4))
    defaults = {"resets": np.zeros((5, 2), bool), **({"mask": np.ones((5, 2), bool)} if masked else {})}
    with pytest.raises(error, match=message):
        lstmx.scan(
            net, net.init(jax.random.key(0), 3), np.ones((5, 2, 3), np.float32), **{**defaults, **options}
        )
