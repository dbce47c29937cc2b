"""The messages of layers that read batch first describe the caller's arrays."""

import jax
import numpy as np
import pytest
from flax import nnx

import lstmx

B, T, D = 2, 5, 3
XS = np.ones((B, T, D), np.float32)
NNX = lstmx.nnx.LSTM(D, 4, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0))
LINEN = lstmx.linen.LSTM(4, num_layers=2, bidirectional=True)
VARIABLES = LINEN.init(jax.random.key(0), XS)
RUNS = {"nnx": NNX, "linen": lambda *args, **options: LINEN.apply(VARIABLES, *args, **options)}

IDS = np.array([[1, 1, 2, 2, 3], [1, 2, 2, 1, 3]])
CASES = {
    "rank": ((np.ones(D),), {}, r"xs must be \[\*batch, time, features\], got shape \(3,\)"),
    "a number": ((np.float32(1),), {}, r"xs must be \[\*batch, time, features\], got shape \(\)"),
    "features": (
        (np.ones((B, T, 7)),),
        {},
        r"xs has 7 features.* for 3; xs has shape \(2, 5, 7\), read as \[\*batch, time, features\]",
    ),
    "mask": (
        (XS,),
        {"mask": np.ones((T, B), bool)},
        r"mask must be \[\*batch, time\] = \(2, 5\), got \(5, 2\)",
    ),
    "resets": ((XS,), {"resets": np.ones((B, 4), bool)}, r"resets must be \[\*batch, time\] = \(2, 5\), got"),
    "a flag": ((XS,), {"resets": np.array(True)}, r"resets must be \[\*batch, time\] = \(2, 5\), got \(\)"),
    "segments": ((XS,), {"segment_ids": IDS.T}, r"segment_ids must be \[\*batch, time\] = \(2, 5\), got"),
    "decreasing": (
        (XS,),
        {"segment_ids": IDS},
        r"got 1 after 2 at \[\*batch, time\] = \[1, 3\]",
    ),
    "lengths": (
        (XS,),
        {"lengths": np.array([5, 5, 5])},
        r"lengths must have the batch shape \(2,\), got \(3,\)",
    ),
}


# Linen compares the shapes of parameters before anything is run, and names them.
PAIRS = [(skin, case) for skin in RUNS for case in CASES if (skin, case) != ("linen", "features")]


@pytest.mark.parametrize(("skin", "case"), PAIRS)
def test_axes_are_named_in_the_callers_order(skin, case):
    arguments, options, message = CASES[case]
    with pytest.raises(ValueError, match=message):
        RUNS[skin](*arguments, **options)


def test_initial_states_are_batch_first_anyway():
    state = jax.tree.map(lambda leaf: np.ones((3, *leaf.shape[1:])), NNX.initial_state((B,)))
    with pytest.raises(ValueError, match=r"the state's \.c must have shape \(2, 4\), got \(3, 4\)"):
        NNX(XS, state)


@pytest.mark.parametrize("skin", RUNS)
def test_swapped_arguments(skin):
    state = NNX.initial_state((B,))
    with pytest.raises(TypeError, match=r"xs must be an array, got .*order of arguments is layer\(xs, init"):
        RUNS[skin](state, XS)
    plain = lstmx.nnx.LSTM(D, 4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"the state must be .* is layer\(xs, initial_state\)"):
        plain(XS, (XS,))


def test_scan_keeps_its_own_order():
    params = NNX.parameters()
    with pytest.raises(ValueError, match=r"mask must be \[time, \*batch\] = \(5, 2\), got \(2, 5\)"):
        lstmx.scan(NNX.network, params, np.ones((T, B, D)), mask=np.ones((B, T), bool))
