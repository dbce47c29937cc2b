"""What is particular to an option of the LSTM: parameters, initial values, refusals, bounds."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import variants

import lstmx
from lstmx.cells import base

KEY = jax.random.key(0)
# The eight variants of Greff et al. 2015, table 1, around the vanilla LSTM with peepholes: their weights for
# H units and D inputs, counted by hand. W 4HD, R 4HH, b 4H, p 3H; less a gate takes HD + HH + H + H away.
H, D = 5, 3
VANILLA = 4 * H * (D + H + 1) + 3 * H
GATE = H * (D + H + 1) + H
ODYSSEY = {
    "vanilla": ({}, VANILLA),
    "no input gate": ({"input_gate": "none"}, VANILLA - GATE),
    "no forget gate": ({"forget_gate": False}, VANILLA - GATE),
    "no output gate": ({"output_gate": False}, VANILLA - GATE),
    "no input activation": ({"candidate_activation": "identity"}, VANILLA),
    "no output activation": ({"output_activation": "identity"}, VANILLA),
    "no peepholes": ({"peephole": False}, VANILLA - 3 * H),
    "coupled": ({"input_gate": "coupled"}, VANILLA - GATE),
    "full gate recurrence": ({"gate_recurrence": True}, VANILLA + 9 * H * H),
}


@pytest.mark.parametrize("variant", ODYSSEY)
def test_number_of_parameters(variant):
    options, count = ODYSSEY[variant]
    cell = lstmx.LSTM(H, **{"peephole": True, **options})
    assert base.count(cell.init(KEY, D)) == count


def test_projection_and_heads_have_fewer_parameters():
    params = lstmx.LSTM(8, projection_size=2, num_heads=2).init(KEY, 3)
    assert params.recurrent["kernel"].shape == (2, 1, 4, 4)
    assert params.update["projection"].shape == (8, 2)
    assert lstmx.LSTM(8, projection_size=2).output_size == 2
    state = lstmx.LSTM(8, projection_size=2).initial_state((3,))
    assert (state.c.shape, state.h.shape) == ((3, 8), (3, 2))


@pytest.mark.usefixtures("double")
def test_heads_are_a_block_diagonal_matrix():
    heads, plain = (lstmx.LSTM(6, num_heads=n, param_dtype="float64") for n in (3, 1))
    params, xs, state = variants.random_case(heads, np.random.default_rng(0))
    dense = np.zeros((6, 4, 6))
    for n, block in enumerate(params.recurrent["kernel"]):
        dense[2 * n : 2 * n + 2, :, 2 * n : 2 * n + 2] = block
    same = params._replace(recurrent={"kernel": dense.reshape(6, 24)})
    got, expected = lstmx.scan(heads, params, xs, state), lstmx.scan(plain, same, xs, state)
    assert oracles.relative_error(got, expected) <= 1e-12


def test_heads_start_orthogonal():
    kernel = np.float64(lstmx.LSTM(12, num_heads=3).init(KEY, 2).recurrent["kernel"])
    for block, gate in itertools.product(range(3), range(4)):
        part = kernel[block, :, gate]
        np.testing.assert_allclose(part.T @ part, np.eye(4), atol=1e-5)


def test_chrono_initialisation():
    # Compiled, the kernels that nobody asks for are not drawn.
    bias = jax.jit(lambda key: lstmx.LSTM(4000, chrono=100.0).init(key, 1).input["bias"])(KEY)
    i, f, g, o = np.split(np.float64(bias), 4)
    np.testing.assert_allclose(i, -f)
    assert not np.any([g, o])
    # exp(b_f) is uniform on [1, 99]: mean 50, standard error 98 / sqrt(12 * 4000) = 0.45.
    assert abs(np.exp(f).mean() - 50) < 2
    assert np.exp(f).min() >= 1 - 1e-5
    assert np.exp(f).max() <= 99 + 1e-3
    (f, *_) = np.split(lstmx.LSTM(4, chrono=100.0, input_gate="coupled").init(KEY, 1).input["bias"], 3)
    assert (f > 0).all()


@pytest.mark.parametrize(
    "options", [{"layer_norm": "per_gate"}, {"input_gate": "none"}, {"layer_norm": "ba"}]
)
def test_the_forget_bias_finds_its_gate(options):
    cell = lstmx.LSTM(4, forget_bias=3.0, **options)
    params = cell.init(KEY, 2)
    bias = params.update["bias"] if cell.layer_norm == "per_gate" else params.input["bias"]
    for name, part in zip(cell.gate_names, np.split(bias, len(cell.gate_names)), strict=True):
        assert (part == (3 if name == "f" else 0)).all()


@pytest.mark.usefixtures("double")
def test_capped_and_coupled_gates_bound_the_cell():
    for gate in ("capped", "coupled"):
        cell = lstmx.LSTM(4, input_gate=gate, param_dtype="float64")
        params, xs, _ = variants.random_case(cell, np.random.default_rng(0), 200)
        final, _ = lstmx.scan(cell, jax.tree.map(lambda leaf: 10 * leaf, params), xs)
        assert np.abs(final.c).max() <= 1


@pytest.mark.usefixtures("double")
def test_clips_are_two_things():
    loud = functools.partial(variants.random_case, rng=np.random.default_rng(0))
    clipped = lstmx.LSTM(4, cell_clip=0.5, param_dtype="float64")
    params, xs, _ = loud(clipped)
    _, _, states = lstmx.scan(clipped, params, 10 * xs, return_states=True)
    assert np.abs(states.c).max() == 0.5
    gates = lstmx.LSTM(4, gate_clip=0.5, param_dtype="float64")
    *_, values = lstmx.scan(gates, params, 10 * xs, return_states="gates")
    lowest, highest = 1 / (1 + np.exp(0.5)), 1 / (1 + np.exp(-0.5))
    np.testing.assert_allclose([values["f"].min(), values["f"].max()], [lowest, highest], rtol=1e-12)
    np.testing.assert_allclose(np.abs(values["g"]).max(), np.tanh(0.5), rtol=1e-12)


@pytest.mark.usefixtures("double")
def test_layer_norms_are_three_things():
    kinds = ("ba", "fastrnns", "per_gate")
    cells = [lstmx.LSTM(4, layer_norm=kind, param_dtype="float64") for kind in kinds]
    xs = np.random.default_rng(0).normal(size=(6, 2, 3))
    # With the initial scales and biases the same kernels give three different results,
    runs = [lstmx.scan(cell, cell.init(KEY, 3), xs, return_states=True) for cell in cells]
    for one, other in itertools.combinations(runs, 2):
        assert oracles.relative_error(one[1], other[1]) > 0.01
    # and c is carried normalised in one form alone.
    for kind, (_, _, states) in zip(kinds, runs, strict=True):
        is_normal = np.allclose(states.c.std(axis=-1), 1, atol=0.05)
        assert is_normal == (kind == "fastrnns")
    # Inputs of another scale are the same to a norm of x W alone, as "ba" and "fastrnns" have it.
    scaled = [lstmx.scan(cell, cell.init(KEY, 3), 100 * xs)[1] for cell in cells[:2]]
    for run, ys in zip(runs, scaled, strict=False):
        np.testing.assert_allclose(ys, run[1], atol=1e-3)


WRONG = {
    "input_gate": ({"input_gate": "open"}, 'input_gate must be "full", .* got \'open\''),
    "layer_norm": ({"layer_norm": "batch"}, "layer_norm must be None, .* got 'batch'"),
    "epsilon": ({"layer_norm_epsilon": -1.0}, "layer_norm_epsilon must be at least 0, got -1"),
    "coupled to nothing": (
        {"input_gate": "coupled", "forget_gate": False},
        "input_gate='coupled' needs the forget gate, which forget_gate=False removes",
    ),
    "capped by nothing": ({"input_gate": "capped", "forget_gate": False}, "input_gate='capped'"),
    "peepholes of no gate": (
        {"peephole": True, "input_gate": "none", "forget_gate": False, "output_gate": False},
        "peephole=True needs a gate",
    ),
    "recurrence of no gate": (
        {"gate_recurrence": True, "input_gate": "none", "forget_gate": False, "output_gate": False},
        "gate_recurrence=True needs a gate",
    ),
    "clip of no projection": ({"projection_clip": 1.0}, "projection_clip=1.0 needs a projection_size"),
    "projection": ({"projection_size": 0}, "projection_size must be at least 1, got 0"),
    "heads": ({"num_heads": 3}, "num_heads must divide hidden_size, got 3 heads and hidden_size=4"),
    "heads of a projection": (
        {"num_heads": 2, "projection_size": 3}, "num_heads must divide projection_size, got 2 heads .*=3",
    ),
    "gate clip": ({"gate_clip": 0.0}, "gate_clip must be positive or None, got 0.0"),
    "cell clip": ({"cell_clip": -1.0}, "cell_clip must be positive or None, got -1.0"),
    "chrono without a gate": ({"chrono": 10.0, "forget_gate": False}, "needs forget_gate=True and"),
    "chrono without a bias": ({"chrono": 10.0, "use_bias": False}, "and use_bias=True"),
    "short chrono": ({"chrono": 2.0}, "chrono, .* must be more than 2, got 2.0"),
    "two biases": ({"chrono": 10.0, "forget_bias": 2.0}, "forget_bias=2.0 has no effect"),
    "gate activation": ({"gate_activation": "step"}, "gate_activation: an activation must be .* got 'step'"),
    "numbers of an activation": (
        {"output_activation": ("elu", 1, 2)}, r"output_activation: .* got \('elu', 1, 2\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_contradictions_are_refused(case):
    options, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        lstmx.LSTM(4, **options)


def test_a_list_is_an_activation_too():
    cell = lstmx.LSTM(4, gate_activation=["hard_sigmoid", 0.2, 0.5])
    assert cell == lstmx.LSTM(4, gate_activation=("hard_sigmoid", 0.2, 0.5))
    hash(cell)


@pytest.mark.parametrize("options", [{"num_heads": 2}, {"forget_bias": 0.0}, {"use_bias": False}])
def test_options_that_change_no_equation_keep_the_fast_gates(options):
    # Six arrays for a step's derivative, where autodiff of the general form keeps more.
    def kept(cell):
        case = variants.random_case(cell, np.random.default_rng(0), dtype=np.float32)
        _, pullback = jax.vjp(lambda *case: lstmx.scan(cell, *case, implementation="fused")[1], *case)
        return sum(leaf.shape[:2] == (7, 4) and leaf.shape[-1] == 4 for leaf in jax.tree.leaves(pullback))

    plain = kept(lstmx.LSTM(4))
    assert kept(lstmx.LSTM(4, **options)) == plain
    assert kept(lstmx.LSTM(4, peephole=True)) > plain
    assert jnp.float32 == lstmx.LSTM(4).param_dtype
