"""The cells against the numbers in Keras 3's own tests, made of constant kernels; Keras is not needed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmx
from lstmx import LSTMState


def counting(*shape, scale=1.0):
    """0, 1, 2, ..., times a scale."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) * np.float32(scale)


def time_major(xs):
    return np.moveaxis(xs, 1, 0)


def constant(cell, features, kernel=0.01, recurrent=0.02, bias=0.03, unit_forget_bias=True):
    """Parameters as Keras' constant initialisers make them; the bias of a forget gate is 1 by default."""
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), features))
    values = {"input": kernel, "recurrent": recurrent, "update": recurrent}

    def fill(path, leaf):
        value = bias if path[-1].key == "bias" else values[path[0].name]
        return np.full(leaf.shape, value, np.float32)

    params = jax.tree.map_with_path(fill, shapes)
    if unit_forget_bias and isinstance(cell, lstmx.LSTM | lstmx.ConvLSTM) and cell.use_bias:
        params.input["bias"].reshape(4, -1)[1] = 1
    return params


def rows(values, units):
    """The units of a row are all alike, when every weight is."""
    return np.repeat(np.asarray(values)[..., None], units, axis=-1)


def close(actual, expected, atol=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=atol)


LSTM, GRU, ELMAN = lstmx.LSTM(3), lstmx.GRU(3), lstmx.Elman(4)
# (cell, options of `constant`, reverse, last outputs of the rows)
LAST = {
    "lstm": (LSTM, {}, False, [0.6288687, 0.86899155, 0.9460773]),
    "lstm, backwards": (LSTM, {}, True, [0.35622165, 0.74789524, 0.8872726]),
    "lstm, bias of all gates": (
        LSTM,
        {"unit_forget_bias": False},
        False,
        [0.57019705, 0.8661914, 0.9459622],
    ),
    "lstm, no bias": (lstmx.LSTM(3, use_bias=False), {}, False, [0.54986924, 0.86226785, 0.9443936]),
    "gru": (GRU, {}, False, [0.5217289, 0.6371659, 0.39384964]),
    "gru, backwards": (GRU, {}, True, [0.24406259, 0.611516, 0.3928808]),
    "gru, reset before": (
        lstmx.GRU(3, reset_after=False),
        {},
        False,
        [0.51447755, 0.6426879, 0.40208298],
    ),
    "gru, no bias": (lstmx.GRU(3, use_bias=False), {}, False, [0.49988455, 0.64701194, 0.4103359]),
    "elman": (ELMAN, {}, False, [0.405432, 0.73605347]),
    "elman, backwards": (ELMAN, {}, True, [0.11144729, 0.5528889]),
}


@pytest.mark.parametrize("name", LAST)
def test_last_output(name):
    cell, options, reverse, expected = LAST[name]
    xs = counting(2, 3, 4) if isinstance(cell, lstmx.Elman) else counting(3, 6, 4)
    _, ys = lstmx.scan(cell, constant(cell, 4, **options), time_major(xs), reverse=reverse)
    close(ys[0 if reverse else -1], rows(expected, cell.hidden_size))


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (lstmx.LSTM(4), [0.3124785, 0.6863672]),
        (lstmx.GRU(4), [0.29542392, 0.5885018]),
        (lstmx.Elman(4), [0.40559256, 0.7361247]),
    ],
)
def test_the_state_of_one_sequence_starts_the_next(cell, expected):
    params, xs = constant(cell, 4), time_major(counting(2, 3, 4))
    state, _ = lstmx.scan(cell, params, xs)
    _, ys = lstmx.scan(cell, params, xs, state)
    close(ys[-1], rows(expected, 4))


INITIAL = {
    "lstm": (
        lstmx.LSTM(2),
        LSTMState(counting(2, 2), counting(2, 2)),
        [[0.20574439, 0.3558822], [0.64930826, 0.66276]],
        [[0.13281618, 0.2790356], [0.5839337, 0.5992567]],
    ),
    "gru": (
        lstmx.GRU(2),
        counting(2, 2),
        [[0.23774096, 0.33508456], [0.83659905, 1.0227708]],
        [[0.13486053, 0.23261218], [0.78257304, 0.9691353]],
    ),
    "elman": (
        lstmx.Elman(4),
        counting(2, 4),
        rows([0.33621645, 0.6262637], 4),
        rows([0.07344437, 0.43043602], 4),
    ),
}


@pytest.mark.parametrize("name", INITIAL)
@pytest.mark.parametrize("reverse", [False, True])
def test_initial_state(name, reverse):
    cell, state, forwards, backwards = INITIAL[name]
    xs = time_major(counting(2, 4, 3))
    _, ys = lstmx.scan(cell, constant(cell, 3), xs, state, reverse=reverse)
    close(ys[0 if reverse else -1], backwards if reverse else forwards)


GAPS = np.array([[True, True, False, True], [True, False, False, True]])
PADDING = np.array([[True, True, True, False], [True, True, False, False]])
PADDING_IN_FRONT = PADDING[:, ::-1]


@pytest.mark.parametrize(
    ("cell", "mask", "expected"),
    [
        (lstmx.LSTM(2), PADDING, [[0.0158891, 0.05552048, 0.11755939, 0], [0.14185596, 0.28556206, 0, 0]]),
        (lstmx.GRU(2), GAPS, [[0.03606692, 0.09497581, 0, 0.19393763], [0.16051409, 0, 0, 0.30818558]]),
        (lstmx.Elman(2), GAPS, [[0.0599281, 0.15122814, 0, 0.32394567], [0.3969304, 0, 0, 0.608085]]),
    ],
)
def test_outputs_are_zero_where_the_mask_is(cell, mask, expected):
    _, ys = lstmx.scan(cell, constant(cell, 3), time_major(counting(2, 4, 3)), mask=mask.T)
    close(time_major(ys), rows(expected, 2))


@pytest.mark.parametrize(
    ("cell", "mask", "reverse", "expected"),
    [
        (lstmx.LSTM(2), PADDING, False, [0.11755939, 0.28556206]),
        (lstmx.LSTM(2), PADDING_IN_FRONT, True, [0.15341201, 0.3844719]),
        (lstmx.GRU(2), GAPS, False, [0.19393763, 0.30818558]),
        (lstmx.GRU(2), GAPS, True, [0.11669192, 0.28380975]),
        (lstmx.Elman(4), GAPS, False, [0.32951632, 0.61799484]),
        (lstmx.Elman(4), GAPS, True, [0.07376196, 0.43645123]),
    ],
)
def test_state_after_a_mask(cell, mask, reverse, expected):
    xs = time_major(counting(2, 4, 3))
    state, _ = lstmx.scan(cell, constant(cell, 3), xs, mask=mask.T, reverse=reverse)
    close(cell.output(state), rows(expected, cell.hidden_size))


def bidirectional(cell, features, state=None, mask=None, merge="concat", xs=None, **of_the_backward):
    """Final states and outputs of a cell in both directions, the backward one with weights of its own."""
    net = lstmx.Bidirectional(cell, merge=merge)
    params = (constant(cell, features), constant(cell, features, **of_the_backward))
    xs = counting(2, 12 // features, features) if xs is None else xs
    return lstmx.scan(net, params, time_major(xs), state, mask=None if mask is None else mask.T)


def test_bidirectional_elman():
    state, _ = bidirectional(lstmx.Elman(2), 4)
    close(state.forward, rows([0.39687276, 0.7237238], 2))
    close(state.backward, rows([0.10004295, 0.53391594], 2))
    state, _ = bidirectional(lstmx.Elman(2), 4, kernel=0.03, bias=0.01)
    close(state.forward * state.backward, rows([0.08374989, 0.6740834], 2))


def test_sum_of_both_directions():
    _, ys = bidirectional(lstmx.GRU(2), 4, merge="sum")
    expected = [[0.20937867, 0.34462988, 0.40290534], [0.59829646, 0.6734641, 0.6479671]]
    close(time_major(ys), rows(expected, 2))


def test_bidirectional_lstm():
    state, _ = bidirectional(lstmx.LSTM(2), 3)
    close(state.forward.h, rows([0.1990008, 0.52335435], 2))
    close(state.forward.c, rows([0.35567185, 1.0492687], 2))
    close(state.backward.h, rows([0.12659755, 0.44717982], 2))
    close(state.backward.c, rows([0.2501858, 0.941473], 2))
    state, _ = bidirectional(lstmx.LSTM(2), 3, state)
    close(state.forward.h, rows([0.26234663, 0.6137073], 2))
    close(state.backward.h, rows([0.16959146, 0.5381646], 2))


def test_bidirectional_initial_state():
    state = [LSTMState(h=k * counting(2, 2), c=(k + 1) * counting(2, 2)) for k in (1, 3)]
    state, ys = bidirectional(lstmx.LSTM(2), 3, tuple(state))
    close(state.forward.h, [[0.20794602, 0.4577124], [0.6682636, 0.6711909]])
    close(state.backward.h, [[0.14046375, 0.48191673], [0.60943645, 0.60950446]])
    close(ys[-1, :, :2], state.forward.h)
    close(ys[0, :, 2:], state.backward.h)


def test_bidirectional_mask():
    state, _ = bidirectional(lstmx.GRU(2), 3, mask=GAPS)
    close(state.forward, rows([0.19393763, 0.30818558], 2))
    close(state.backward, rows([0.11669192, 0.28380975], 2))


def test_stack_of_linear_cells():
    cells = [lstmx.Elman(units, "identity", use_bias=False) for units in (3, 2)]
    params = tuple(constant(cell, k, 1.0, 1.0) for cell, k in zip(cells, (4, 3), strict=True))
    net, xs = lstmx.Stack(cells), time_major(counting(2, 3, 4))
    state, ys = lstmx.scan(net, params, xs)
    close(time_major(ys), rows([[18, 156, 786], [162, 1020, 4386]], 2))
    close(state[0], rows([158, 782], 3))
    close(lstmx.scan(net, params, xs, state)[1][-1], rows([34092, 173196], 2))


def test_stack_of_lstms_with_a_mask():
    cells, ones = (lstmx.LSTM(1), lstmx.LSTM(1)), {"kernel": 1.0, "recurrent": 1.0, "bias": 0.0}
    params = tuple(constant(cell, k, **ones) for cell, k in zip(cells, (4, 1), strict=True))
    mask = np.array([[True, True, True], [True, True, False]])
    state, _ = lstmx.scan(lstmx.Stack(cells), params, np.ones((3, 2, 4)), mask=mask.T)
    close(state[1].h, [[0.7793], [0.5998]], atol=1e-4)


CONV_LSTM = {
    "1": (
        counting(2, 3, 4, 5, scale=0.1),
        [[0.40807986, 0.46421072], [0.80933154, 0.8233646]],
    ),
    "2": (
        counting(2, 3, 4, 4, 5, scale=0.01),
        [
            [[0.48694518, 0.50237733], [0.5461202, 0.5598283]],
            [[0.8661607, 0.86909103], [0.8774414, 0.8800861]],
        ],
    ),
    "3": (
        counting(2, 3, 4, 4, 4, 5, scale=0.01),
        [
            [
                [[0.99149036, 0.99180907], [0.99258363, 0.9927925]],
                [[0.99413764, 0.99420583], [0.9943788, 0.9944278]],
            ],
            np.full((2, 2, 2), 0.9950547),
        ],
    ),
}


@pytest.mark.parametrize("dimensions", CONV_LSTM)
def test_conv_lstm(dimensions):
    xs, expected = CONV_LSTM[dimensions]
    cell = lstmx.ConvLSTM(2, spatial_shape=xs.shape[2:-1], kernel_size=3, padding="valid")
    _, ys = lstmx.scan(cell, constant(cell, 5), time_major(xs))
    close(ys[-1], rows(expected, 2))


def conv_lstm_sums(steps, scale):
    """The sums of h and c after some steps from an initial state that is not zero."""
    cell = lstmx.ConvLSTM(4, spatial_shape=(5, 5), kernel_size=3)
    state = LSTMState(*[counting(2, 5, 5, 4, scale=scale)] * 2)
    xs = counting(2, steps, 5, 5, 3, scale=scale)
    final, _ = lstmx.scan(cell, constant(cell, 3, bias=0.0), time_major(xs), state)
    return float(jnp.sum(final.h)), float(jnp.sum(final.c))


def test_conv_lstm_initial_state():
    np.testing.assert_allclose(conv_lstm_sums(1, 0.1), [188.89502, 2170.444], rtol=1e-6)
    np.testing.assert_allclose(conv_lstm_sums(3, 0.01)[0], 119.812454, rtol=1e-6)
