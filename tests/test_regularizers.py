"""Regularizers: each against a loop that applies the paper's definition to the masks that were drawn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import variants
from numpy_lstm import gru_step, lstm_step, sigmoid

import lstmx
from lstmx import regularizers

KEY = jax.random.key(7)
T, B, H, D = 6, 3, 4, 3


def case_of(cell):
    return variants.random_case(cell, np.random.default_rng(0), T, (B,), D)


def drawn(cell, steps=T):
    """The masks inside of the loop, as `scan` draws them from KEY."""
    return cell.parts[0].noise(jax.random.split(KEY, 4)[3], steps, (B,))


def run(cell, case, key=KEY, **options):
    return jax.jit(functools.partial(lstmx.scan, cell, key=key, **options))(*case)


def loop(step, case):
    """`step(params, state, x, t, b) -> state` over rows and steps."""
    params, xs, state = case
    leaves = state if isinstance(state, tuple) else (state,)
    finals, ys = [], np.zeros((T, B, H))
    for b in range(B):
        row = tuple(leaf[b] for leaf in leaves)
        for t in range(T):
            row = step(params, row, xs[t, b], t, b)
            ys[t, b] = row[-1]
        finals.append(row)
    return [np.stack(leaf) for leaf in zip(*finals, strict=True)], ys


def is_mask(mask, rate):
    """Whether a mask holds 0 and 1 / (1 - rate) alone, both of them."""
    return sorted({round(float(v), 5) for v in np.unique(mask)}) == [0.0, round(1 / (1 - rate), 5)]


@pytest.mark.usefixtures("double")
def test_recurrent_dropout_masks_what_the_recurrent_map_reads():
    cell = lstmx.Regularized(lstmx.LSTM(H, param_dtype="float64"), recurrent_dropout=0.4)
    case, mask = case_of(cell), np.asarray(drawn(cell).locked["recurrent"])
    assert mask.shape == (B, H)
    assert is_mask(mask, 0.4)

    def step(params, state, x, t, b):
        return lstm_step()(params, (state[0], state[1] * mask[b]), x)

    assert oracles.relative_error(run(cell, case), loop(step, case)) <= 1e-12


@pytest.mark.usefixtures("double")
def test_a_mask_for_each_gate():
    cell = lstmx.Regularized(lstmx.LSTM(H, param_dtype="float64"), recurrent_dropout=0.4, per_gate=True)
    case, mask = case_of(cell), np.asarray(drawn(cell).locked["recurrent"])
    assert mask.shape == (B, 4, H)

    def step(params, state, x, t, b):
        c, h = state
        kernels = np.split(params.recurrent["kernel"], 4, axis=1)
        z = np.split(x @ params.input["kernel"] + params.input["bias"], 4)
        i, f, g, o = (z[k] + (h * mask[b, k]) @ kernels[k] for k in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return c, sigmoid(o) * np.tanh(c)

    assert oracles.relative_error(run(cell, case), loop(step, case)) <= 1e-12


@pytest.mark.usefixtures("double")
def test_a_mask_for_each_gate_of_a_gru_that_resets_before():
    # Keras: the candidate reads its own masked h, the state that is kept is whole.
    inner = lstmx.GRU(H, reset_after=False, param_dtype="float64")
    cell = lstmx.Regularized(inner, recurrent_dropout=0.4, per_gate=True)
    case, mask = case_of(cell), np.asarray(drawn(cell).locked["recurrent"])

    def step(params, state, x, t, b):
        (h,) = state
        z_r, z_u, z_n = np.split(x @ params.input["kernel"] + params.input["bias"], 3)
        of_reset, of_update = np.split(params.recurrent["kernel"], 2, axis=1)
        reset = sigmoid(z_r + (h * mask[b, 0]) @ of_reset)
        update = sigmoid(z_u + (h * mask[b, 1]) @ of_update)
        n = np.tanh(z_n + (reset * h * mask[b, 2]) @ params.update["kernel"])
        return (update * h + (1 - update) * n,)

    assert oracles.relative_error(run(cell, case), loop(step, case)) <= 1e-12


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.usefixtures("double")
def test_update_dropout_masks_the_candidate(locked):
    cell = lstmx.LSTM(H, param_dtype="float64")
    cell = lstmx.Regularized(cell, update_dropout=0.4, update_dropout_locked=locked)
    case, noise = case_of(cell), drawn(cell)
    mask = np.asarray((noise.locked if locked else noise.stepwise)["candidate"])
    assert is_mask(mask, 0.4)
    mask = np.broadcast_to(mask, (T, B, H))

    def step(params, state, x, t, b):
        c, h = state
        a = x @ params.input["kernel"] + params.input["bias"] + h @ params.recurrent["kernel"]
        i, f, g, o = np.split(a, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g) * mask[t, b]
        return c, sigmoid(o) * np.tanh(c)

    assert oracles.relative_error(run(cell, case), loop(step, case)) <= 1e-12


ZONED = {"lstm": (lstmx.LSTM, lstm_step(), (0.4, 0.3)), "gru": (lstmx.GRU, gru_step(), (0.4,))}


@pytest.mark.parametrize("name", ZONED)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.usefixtures("double")
def test_zoneout_keeps_units_back(name, training):
    make, inner, rates = ZONED[name]
    cell_rate = {"cell_zoneout": rates[1]} if len(rates) > 1 else {}
    cell = lstmx.Regularized(make(H, param_dtype="float64"), hidden_zoneout=rates[0], **cell_rate)
    case, masks = case_of(cell), drawn(cell).stepwise
    order = ("c", "h")[-len(rates) :]

    def step(params, state, x, t, b):
        new = inner(params, state if name == "lstm" else state[0], x)
        new = new if name == "lstm" else (new,)
        mixed = []
        for leaf, old, fresh, rate in zip(order, state, new, rates[::-1], strict=True):
            kept = np.asarray(masks[leaf])[t, b] if training else rate
            mixed.append(kept * old + (1 - kept) * fresh)
        return tuple(mixed)

    got = run(cell, case, key=KEY if training else None)
    assert oracles.relative_error(got, loop(step, case)) <= 1e-12
    if training:
        assert {bool(v) for v in np.unique(masks["h"])} == {False, True}
    else:  # the step of evaluation is that of scan without a key
        params, xs, state = case
        _, y = lstmx.step(cell, params, state, xs[0])
        assert oracles.relative_error(y, got[1][0]) <= 1e-12


@pytest.mark.usefixtures("double")
def test_the_mean_of_zoneout_is_its_evaluation():
    # One step: later ones are not linear in the masks.
    cell = lstmx.Regularized(lstmx.LSTM(H, param_dtype="float64"), hidden_zoneout=0.3, cell_zoneout=0.2)
    params, xs, state = case_of(cell)
    keys = jax.random.split(KEY, 4000)
    many = jax.jit(jax.vmap(lambda key: lstmx.scan(cell, params, xs[:1], state, key=key)[0]))(keys)
    mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), many)
    expected, _ = lstmx.scan(cell, params, xs[:1], state)
    # 4,000 draws of a difference of about 1: the standard error is 0.008.
    for got, want in zip(mean, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=0.04)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.usefixtures("double")
def test_weight_drop_drops_weights_once(rows):
    inner = lstmx.LSTM(16, param_dtype="float64")
    cell = lstmx.Regularized(inner, weight_drop=0.4, weight_drop_rows=rows)
    params, xs, _ = variants.random_case(cell, np.random.default_rng(0), T, (B,), D)
    kernel = params.recurrent["kernel"]

    def outputs(params, key=KEY, cell=cell):
        return lstmx.scan(cell, params, xs, key=key)[1]

    # The kernel that was used, read off from one step: a state of unit vectors, no inputs.
    state = lstmx.LSTMState(jnp.zeros((16, 16)), jnp.eye(16))
    quiet = params._replace(input=jax.tree.map(jnp.zeros_like, params.input))
    gates = lstmx.scan(cell, quiet, jnp.zeros((1, 16, D)), state, key=KEY, return_states="gates")[2]
    logits = [np.log(gates[n][0] / (1 - gates[n][0])) for n in "if"]
    logits += [np.arctanh(gates["g"][0]), np.log(gates["o"][0] / (1 - gates["o"][0]))]
    used = np.concatenate(logits, axis=-1)
    ratio = used / kernel
    dropped = np.abs(ratio) < 1e-9
    np.testing.assert_allclose(ratio[~dropped], 1 / 0.6, rtol=1e-6)
    assert 0.2 < dropped.mean() < 0.6
    together = np.all(dropped == dropped[:1], axis=0)
    assert together.all() == rows
    # All steps use that kernel.
    same = params._replace(recurrent={"kernel": np.where(dropped, 0, kernel / 0.6)})
    assert oracles.relative_error(outputs(params), outputs(same, cell=inner)) <= 1e-6


@pytest.mark.usefixtures("double")
def test_weight_drop_reaches_a_candidate_that_reads_h():
    inner = lstmx.GRU(H, reset_after=False, param_dtype="float64")
    params, _, _ = case_of(inner)
    cell = lstmx.Regularized(inner, weight_drop=0.5)
    # Gates at one half, inputs away: n = tanh(h U_n / 2), and U_n can be read off a state of unit vectors.
    quiet = params._replace(
        input=jax.tree.map(jnp.zeros_like, params.input),
        recurrent=jax.tree.map(jnp.zeros_like, params.recurrent),
    )
    *_, gates = lstmx.scan(cell, quiet, jnp.zeros((1, H, D)), jnp.eye(H), key=KEY, return_states="gates")
    ratio = 2 * np.arctanh(gates["n"][0]) / params.update["kernel"]
    assert {round(float(v), 6) for v in ratio.ravel()} == {0.0, 2.0}


def test_locked_dropout_on_inputs_and_outputs():
    inner = lstmx.LSTM(16)
    cell = lstmx.Regularized(inner, input_dropout=0.4, output_dropout=0.3)
    params, xs, _ = variants.random_case(cell, np.random.default_rng(0), T, (B,), D, np.float32)
    _, input_key, output_key, _ = jax.random.split(KEY, 4)
    dropped = regularizers.locked_dropout(input_key, jnp.asarray(xs), 0.4)
    expected = regularizers.locked_dropout(output_key, lstmx.scan(inner, params, dropped)[1], 0.3)
    state, ys = lstmx.scan(cell, params, xs, key=KEY)
    np.testing.assert_allclose(ys, expected, rtol=1e-6)
    # The state, which the next batch continues, is whole.
    assert oracles.relative_error(state, lstmx.scan(inner, params, dropped)[0]) <= 1e-6
    assert (np.asarray(state.h) != 0).all()


def test_a_locked_mask_is_the_same_in_all_steps():
    ys = np.asarray(regularizers.locked_dropout(KEY, jnp.ones((5, 4, 100)), 0.3))
    assert (ys == ys[0]).all()
    assert is_mask(ys, 0.3)
    assert 0.6 < (ys[0] > 0).mean() < 0.8
    assert not (ys[0, 0] == ys[0, 1]).all()
    assert regularizers.locked_dropout(KEY, jnp.ones((2, 3)), 0.0).sum() == 6


def test_what_is_dropped_may_be_anything():
    xs = jnp.full((5, 4, 100), jnp.nan)
    assert float(jnp.isnan(regularizers.locked_dropout(KEY, xs, 0.5)).mean()) < 0.7


def test_words_are_dropped_as_a_whole():
    table = np.asarray(regularizers.embedding_dropout(KEY, jnp.ones((200, 5)), 0.25))
    assert (table == table[:, :1]).all()
    assert is_mask(table, 0.25)
    assert 0.15 < (table[:, 0] == 0).mean() < 0.35


def test_penalties_on_activations():
    rng = np.random.default_rng(0)
    ys, mask = rng.normal(size=(T, B, H)).astype(np.float32), rng.random((T, B)) < 0.7
    np.testing.assert_allclose(regularizers.activation_penalty(ys, 2.0), 2 * (ys**2).mean(), rtol=1e-6)
    np.testing.assert_allclose(
        regularizers.temporal_activation_penalty(ys, 0.5), 0.5 * (np.diff(ys, axis=0) ** 2).mean(), rtol=1e-6
    )
    np.testing.assert_allclose(
        regularizers.activation_penalty(ys, 2.0, mask), 2 * (ys[mask] ** 2).mean(), rtol=1e-6
    )
    pairs = mask[1:] & mask[:-1]
    np.testing.assert_allclose(
        regularizers.temporal_activation_penalty(ys, 0.5, mask),
        0.5 * (np.diff(ys, axis=0)[pairs] ** 2).mean(),
        rtol=1e-6,
    )
    assert regularizers.activation_penalty(ys, 1.0, np.zeros((T, B), bool)) == 0
    gradient = jax.grad(regularizers.activation_penalty)(jnp.asarray(ys, "bfloat16"), 1.0)
    assert gradient.dtype == jnp.bfloat16


def test_without_a_key_there_is_no_noise():
    rates = {"input_dropout": 0.3, "recurrent_dropout": 0.4, "update_dropout": 0.4, "weight_drop": 0.4}
    inner = lstmx.LSTM(H)
    case = variants.random_case(inner, np.random.default_rng(0), T, (B,), D, np.float32)
    cell = lstmx.Regularized(inner, **rates)
    # By the same implementation: a regularized cell has no native kernel.
    plain = run(inner, case, None, implementation="fused")
    assert oracles.relative_error(run(cell, case, None), plain) == 0
    assert oracles.relative_error(run(cell, case), run(cell, case)) == 0
    for other in (jax.random.key(8), None):
        assert oracles.relative_error(run(cell, case)[1], run(cell, case, other)[1]) > 0.01


def test_every_rate_makes_a_difference_by_itself():
    case = variants.random_case(lstmx.LSTM(H), np.random.default_rng(0), T, (B,), D, np.float32)
    plain = run(lstmx.LSTM(H), case)
    assert not lstmx.networks.is_stochastic(lstmx.Regularized(lstmx.LSTM(H)))
    for rate in regularizers.RATES:
        cell = lstmx.Regularized(lstmx.LSTM(H), **{rate: 0.5})
        assert lstmx.networks.is_stochastic(cell)
        assert oracles.relative_error(run(cell, case)[1], plain[1]) > 1e-3, rate


def test_layers_and_directions_draw_apart():
    cell = lstmx.Regularized(lstmx.LSTM(32), output_dropout=0.5)
    net = lstmx.Bidirectional(cell)
    params, xs, _ = variants.random_case(cell, np.random.default_rng(0), T, (B,), D, np.float32)
    _, ys = lstmx.scan(net, (params, params), xs, key=KEY)
    forward, backward = np.split(np.asarray(ys) != 0, 2, axis=-1)
    assert not (forward == backward).all()


def test_flax_layers_draw_noise():
    from flax import nnx

    cell = lstmx.Regularized(lstmx.LSTM(H), recurrent_dropout=0.4)
    layer = lstmx.nnx.Layer(cell, D, rngs=nnx.Rngs(0, dropout=1))
    xs = jnp.ones((B, T, D))
    first, second = layer(xs)[1], layer(xs)[1]
    assert not np.allclose(first, second)
    layer.eval()
    assert (layer(xs)[1] == layer(xs)[1]).all()
    module = lstmx.linen.Layer(cell)
    variables = module.init(jax.random.key(0), xs, deterministic=True)
    noisy = [
        module.apply(variables, xs, deterministic=False, rngs={"dropout": k})[1]
        for k in jax.random.split(KEY)
    ]
    assert not np.allclose(*noisy)


WRONG = {
    "rate of one": ({"input_dropout": 1.0}, r"input_dropout must lie in \[0, 1\), got 1.0"),
    "negative rate": ({"cell_zoneout": -0.1}, r"cell_zoneout must lie in \[0, 1\), got -0.1"),
    "a number that is none": ({"weight_drop": float("nan")}, r"weight_drop must lie in \[0, 1\), got nan"),
    "no cell": ({"cell": lstmx.GRU(4), "cell_zoneout": 0.1}, "needs a cell c .* the state of GRU is h"),
    "stabilised cell": ({"cell": lstmx.SLSTM(4), "cell_zoneout": 0.1}, "state of SLSTM is c, n, m, h"),
    "no candidate": ({"cell": lstmx.Elman(4), "update_dropout": 0.1}, "Elman has no candidate"),
    "heads": (
        {"cell": lstmx.LSTM(4, num_heads=2), "per_gate": True},
        "per_gate=True: the gates of this LSTM cannot",
    ),
    "per gate of nothing": ({"per_gate": True}, "per_gate=True has no effect without recurrent_dropout"),
    "locked nothing": ({"update_dropout_locked": True}, "has no effect without update_dropout"),
    "rows of nothing": (
        {"weight_drop_rows": True},
        "weight_drop_rows=True has no effect without weight_drop",
    ),
    "no recurrent map": ({"cell": lstmx.MinGRU(4), "recurrent_dropout": 0.1}, "MinGRU has no recurrent map"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_has_no_place_is_refused(case):
    options, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        lstmx.Regularized(**{"cell": lstmx.LSTM(4), **options})


def test_networks_and_kernels_that_are_not_there_are_refused():
    with pytest.raises(TypeError, match="Regularized wraps a cell, got Stack"):
        lstmx.Regularized(lstmx.Stack((lstmx.LSTM(4),)))
    cell = lstmx.Regularized(lstmx.IndRNN(4), weight_drop=0.3)
    with pytest.raises(ValueError, match="weight_drop: IndRNN has no recurrent kernel"):
        lstmx.scan(cell, cell.init(KEY, D), jnp.ones((T, B, D)), key=KEY)
    with pytest.raises(ValueError, match=r"rate must lie in \[0, 1\), got 2"):
        regularizers.locked_dropout(KEY, jnp.ones((2, 3)), 2)
