"""Arguments of `scan` and `step` that are refused: in another order, of another type, without structure."""

import jax
import numpy as np
import pytest

import lstmx
from lstmx.convert import torch

LSTM, GRU = lstmx.LSTM(3), lstmx.GRU(3)
NETWORKS = {
    "lstm": LSTM,
    "regularized": lstmx.Regularized(LSTM, hidden_zoneout=0.1),
    "stack": lstmx.Stack((LSTM, LSTM)),
    "stack of arrays": lstmx.Stack((GRU, GRU)),
    "bidirectional": lstmx.Bidirectional(GRU),
}
networks = pytest.mark.parametrize("name", NETWORKS)
XS = np.ones((2, 2, 3), np.float32)  # T, B and the number of parts alike


def params_of(network):
    return network.init(jax.random.key(0), 3)


@networks
def test_a_state_in_the_place_of_xs_is_refused(name):
    network = NETWORKS[name]
    params, state = params_of(network), network.initial_state((2,))
    with pytest.raises(TypeError, match=r"xs must be an array, got .*scan\(cell, params, xs, initial_sta"):
        lstmx.scan(network, params, state, XS)
    with pytest.raises(TypeError, match=r"x must be an array, got .*step\(cell, params, state, x\)"):
        lstmx.step(network, params, XS[0], state)


@networks
def test_an_array_is_no_state_of_several(name):
    network = NETWORKS[name]
    with pytest.raises(
        (TypeError, ValueError), match=r"state must be a .* got an array of shape \(2, 2, 3\);"
    ):
        lstmx.scan(network, params_of(network), XS, XS)


def test_a_state_of_the_shape_of_xs_is_refused():
    params, state = params_of(GRU), GRU.initial_state((2,))
    order = r"scan\(cell, params, xs, initial_state\)"
    with pytest.raises(ValueError, match=rf"state must have shape \(3,\), got \(2, 2, 3\); .*{order}"):
        lstmx.scan(GRU, params, state, XS)
    with pytest.raises(ValueError, match=r"shape \(3,\), got \(2, 3\); .*step\(cell, params, state, x\)"):
        lstmx.step(GRU, params, state, XS[0, 0])
    with pytest.raises(ValueError, match=r"the state must be one array, got a LSTMState; .*step\(cell"):
        lstmx.step(GRU, params, LSTM.initial_state((2,)), XS[0])


COUNTS = {
    "remat=True": ({"remat": True}, ValueError, 'remat must be None, "gates", "sqrt" or .*, got True'),
    "remat=False": ({"remat": False}, ValueError, "remat must be .*, got False"),
    "remat of 2.0": ({"remat": 2.0}, ValueError, "remat must be .*, got 2.0"),
    "unroll=True": ({"unroll": True}, ValueError, "unroll must be an integer of at least 1, got True"),
    "unroll of 1.5": ({"unroll": 1.5}, ValueError, "unroll must be an integer of at least 1, got 1.5"),
    "lengths of flags": ({"lengths": [True, True]}, TypeError, "lengths must be integers, got bool"),
    "lengths of floats": ({"lengths": [1.0, 2.0]}, TypeError, "lengths must be integers, got float32"),
    "mask of numbers": ({"mask": np.ones((2, 2), int)}, TypeError, "mask must be boolean, got int32"),
    "states of 2": ({"return_states": 2}, ValueError, "return_states must be False, True or"),
    "reverse as text": ({"reverse": "yes"}, TypeError, "reverse must be True or False, got 'yes'"),
}


@pytest.mark.parametrize("case", COUNTS)
@pytest.mark.parametrize("name", ["lstm", "stack"])
def test_booleans_are_no_numbers_and_numbers_no_booleans(name, case):
    options, error, message = COUNTS[case]
    with pytest.raises(error, match=message):
        lstmx.scan(NETWORKS[name], params_of(NETWORKS[name]), XS, **options)


SIZES = {
    "hidden_size": lambda value: lstmx.LSTM(value),
    "num_heads": lambda value: lstmx.GRU(4, num_heads=value),
    "projection_size": lambda value: lstmx.LSTM(4, projection_size=value),
    "input_size": lambda value: [cell.init(jax.random.key(0), value) for cell in (LSTM, lstmx.MinGRU(3))],
    "num_layers": lambda value: lstmx.networks.stacked(GRU, value),
    "rounds": lambda value: lstmx.Mogrifier(LSTM, rounds=value),
    "rank": lambda value: lstmx.Mogrifier(LSTM, rank=value),
    "kernel_size": lambda value: lstmx.ConvLSTM(2, (4, 4), kernel_size=value),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_integers_of_at_least_one(name):
    for value in (True, 2.0, "2"):
        with pytest.raises(TypeError, match=rf"{name} must .*integer.*, got {value!r}"):
            SIZES[name](value)
    with pytest.raises(ValueError, match=rf"{name} must be at least 1.*, got 0"):
        SIZES[name](0)
    SIZES[name](np.int64(1))


def test_integers_of_numpy_are_integers():
    params = params_of(LSTM)
    expected = lstmx.scan(LSTM, params, XS)[1]
    got = lstmx.scan(LSTM, params, XS, remat=np.int64(1), unroll=np.int32(2))[1]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def without_structure(tree):
    """What orbax returns without a target: dictionaries and lists."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return {name: without_structure(part) for name, part in tree._asdict().items()}
    if isinstance(tree, tuple):
        return [without_structure(part) for part in tree]
    return {k: without_structure(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


USES = {
    "scan": lambda network, params: lstmx.scan(network, params, XS),
    "step": lambda network, params: lstmx.step(network, params, None, XS[0]),
    "start": lambda network, params: lstmx.networks.start(network, params, (2,)),
    "layer": lambda network, params: lstmx.nnx.Layer(network, 3, params=params),
    "converter": torch.to_state_dict,
}


@pytest.mark.parametrize("use", USES)
@networks
def test_parameters_without_structure_are_refused_with_the_way_to_restore_them(use, name):
    network = NETWORKS[name]
    params = params_of(network)
    if (use, name) in {("step", "bidirectional"), ("converter", "regularized")}:
        return  # refused with any parameters
    wrong = [without_structure(params)]
    if isinstance(network, lstmx.Stack):
        wrong.append({str(k): part for k, part in enumerate(params)})
    elif isinstance(params, lstmx.Params):
        wrong.append(list(params))
    for given in wrong:
        with pytest.raises(TypeError, match=r"got a.*orbax .*jax\.eval_shape\(lambda: network\.init\("):
            USES[use](network, given)


def test_what_orbax_restores(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    network = NETWORKS["stack"]
    params = params_of(network)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", params)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "params")
        with pytest.raises(TypeError, match="got a dict of 'initial', 'input', 'recurrent', 'update'; orbax"):
            lstmx.scan(network, restored, XS)
        structure = jax.eval_shape(lambda: network.init(jax.random.key(0), 3))
        restored = checkpointer.restore(tmp_path / "params", structure)
    expected = lstmx.scan(network, params, XS)[1]
    np.testing.assert_array_equal(lstmx.scan(network, restored, XS)[1], expected)


def test_lists_in_the_place_of_tuples_of_layers_are_taken():
    network = NETWORKS["stack"]
    params, state = params_of(network), network.initial_state((2,))
    expected = lstmx.scan(network, params, XS, state)[1]
    np.testing.assert_array_equal(lstmx.scan(network, list(params), XS, list(state))[1], expected)
