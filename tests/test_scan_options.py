"""Packed sequences, states and gates on request, and what the reverse pass keeps."""

import functools

import jax
import jax.numpy as jnp
import losses
import numpy as np
import oracles
import pytest
import variants

import lstmx
from lstmx.implementations import chunks

implementations = pytest.mark.parametrize("implementation", ["reference", "fused"])
reversals = pytest.mark.parametrize("reverse", [False, True])

# Rows of packed sequences: [start, stop) of each.
PACKED = [[(0, 3), (3, 4), (4, 9)], [(0, 9)], [(2, 5), (6, 8)], []]
STEPS = 9


def ids_of(packed):
    ids = np.zeros((STEPS, len(packed)), np.int32)
    for b, row in enumerate(packed):
        for number, (start, stop) in enumerate(row):
            ids[start:stop, b] = 2 * number + 1
    return ids


@pytest.mark.cross_section(3)
@pytest.mark.parametrize(
    "make", [lstmx.LSTM, functools.partial(lstmx.GRU, learn_initial_state=True), lstmx.MinGRU]
)
@implementations
@reversals
@pytest.mark.usefixtures("double")
def test_packed_sequences_are_sequences(make, implementation, reverse):
    cell = make(4, param_dtype="float64")
    params, xs, state = variants.random_case(cell, np.random.default_rng(0), STEPS)
    options = {"implementation": implementation, "reverse": reverse}
    got_state, got = lstmx.scan(cell, params, xs, state, segment_ids=ids_of(PACKED), **options)
    expected, covered = np.zeros(got.shape), np.zeros((STEPS, 4), bool)
    for b, row in enumerate(PACKED):
        at = jax.tree.map(lambda leaf, b=b: leaf[b], state)
        for start, stop in row[:: -1 if reverse else 1]:
            own, ys = lstmx.scan(cell, params, xs[start:stop, b], at, **options)
            expected[start:stop, b], covered[start:stop, b] = ys, True
            at = None  # the first that is read continues the given state, the others start anew
        final = own if row else at
        got_row = jax.tree.map(lambda leaf, b=b: leaf[b], got_state)
        assert oracles.relative_error(got_row, final) <= 1e-12
    assert oracles.relative_error(got, expected) <= 1e-12
    assert not np.asarray(got)[~covered].any()


@pytest.mark.usefixtures("double")
def test_packed_sequences_in_both_directions():
    net = lstmx.Bidirectional(lstmx.LSTM(4, param_dtype="float64"))
    params, xs, _ = variants.random_case(net.forward, np.random.default_rng(0), STEPS)
    _, got = lstmx.scan(net, (params, params), xs, segment_ids=ids_of(PACKED))
    for b, row in enumerate(PACKED):
        for start, stop in row:
            _, ys = lstmx.scan(net, (params, params), xs[start:stop, b])
            assert oracles.relative_error(got[start:stop, b], ys) <= 1e-12


def test_segment_ids_under_jit():
    cell = lstmx.LSTM(4)
    params, xs, _ = variants.random_case(cell, np.random.default_rng(0), STEPS, dtype=np.float32)
    ids = ids_of(PACKED)
    got = jax.jit(lambda ids: lstmx.scan(cell, params, xs, segment_ids=ids))(ids)
    assert oracles.relative_error(got, lstmx.scan(cell, params, xs, segment_ids=ids)) <= 1e-6


@pytest.mark.cross_section(3)
@pytest.mark.parametrize("name", ["lstm-gate-recurrence", "gru", "slstm", "zoneout", "lstm-ba-projection"])
@implementations
@reversals
@pytest.mark.usefixtures("double")
def test_states_are_those_of_shorter_sequences(name, implementation, reverse):
    cell, (params, xs, state) = variants.double_case(name)
    options = {"implementation": implementation, "reverse": reverse}
    flags = {"mask": losses.MASK, "resets": losses.RESETS}
    final, ys, states = lstmx.scan(cell, params, xs, state, return_states=True, **flags, **options)
    plain = lstmx.scan(cell, params, xs, state, **flags, **options)
    assert oracles.relative_error((final, ys), plain) <= 1e-12
    for t in (0, 3, 6):
        rows = slice(t, None) if reverse else slice(t + 1)
        own = {k: v[rows] for k, v in flags.items()}
        expected, _ = lstmx.scan(cell, params, xs[rows], state, **own, **options)
        assert oracles.relative_error(jax.tree.map(lambda leaf, t=t: leaf[t], states), expected) <= 1e-12


@pytest.mark.parametrize("name", ["lstm-peephole", "gru", "lstm-fastrnns"])
@pytest.mark.usefixtures("double")
def test_states_have_gradients(name):
    cell, case = variants.double_case(name)

    def gradient(implementation, remat=None):
        def loss(params, xs, state):
            options = variants.OPTIONS["mask and resets"]
            _, ys, states = lstmx.scan(
                cell,
                params,
                xs,
                state,
                return_states=True,
                implementation=implementation,
                remat=remat,
                **options,
            )
            return sum(jnp.sum(jnp.sin(leaf + 1)) for leaf in jax.tree.leaves((ys, states)))

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*case)

    expected = gradient("reference")
    for remat in (None, "gates", 3):
        assert oracles.relative_error(gradient("fused", remat), expected) <= 1e-12


@reversals
@pytest.mark.usefixtures("double")
def test_gates_make_the_states(reverse):
    cell, (params, xs, state) = variants.double_case("lstm-peephole")
    flags = {"mask": losses.MASK, "resets": losses.RESETS, "reverse": reverse}
    _, ys, states = lstmx.scan(cell, params, xs, state, return_states=True, **flags)
    *_, gates = lstmx.scan(cell, params, xs, state, return_states="gates", **flags)
    assert set(gates) == set("ifgo")
    first = np.asarray(state.c)[None]
    before = np.concatenate([states.c[1:], first] if reverse else [first, states.c[:-1]])
    before = np.where(losses.RESETS[..., None], 0, before)
    c = gates["f"] * before + gates["i"] * gates["g"]
    kept = losses.MASK[..., None]
    assert oracles.relative_error(jnp.where(kept, c, 0), jnp.where(kept, states.c, 0)) <= 1e-12
    assert oracles.relative_error(gates["o"] * np.tanh(c), ys) <= 1e-12  # zero where there is no step


def test_gates_of_a_network():
    net = lstmx.Stack((lstmx.Bidirectional(lstmx.LSTM(4)), lstmx.GRU(3)))
    params = net.init(jax.random.key(0), 5)
    _, ys, gates = lstmx.scan(net, params, jnp.ones((6, 2, 5)), return_states="gates")
    assert ys.shape == (6, 2, 3)
    assert gates[0].backward["f"].shape == (6, 2, 4)
    assert set(gates[1]) == {"reset", "update", "n"}
    for gate in jax.tree.leaves((gates[0].forward["i"], gates[1]["update"])):
        assert 0 < float(gate.min()) <= float(gate.max()) < 1


def test_states_are_batch_major_in_flax():
    from flax import nnx

    layer = lstmx.nnx.LSTM(3, 4, num_layers=2, rngs=nnx.Rngs(0))
    state, ys, states = layer(jnp.ones((2, 5, 3)), return_states=True)
    assert [s.c.shape for s in states] == [(2, 5, 4)] * 2
    np.testing.assert_allclose(states[1].h, ys, rtol=1e-6)
    np.testing.assert_allclose(states[1].c[:, -1], state[1].c, rtol=1e-6)


@pytest.mark.cross_section(3)
@pytest.mark.parametrize("remat", [1, 2, 3, 6, 7, 20, "sqrt"])
@reversals
@pytest.mark.usefixtures("double")
def test_chunks_change_nothing(remat, reverse):
    cell, case = variants.double_case("lstm")
    options = {"lengths": losses.LENGTHS, "resets": losses.RESETS, "reverse": reverse}

    def everything(remat):
        compute = jax.grad(variants.loss_of(cell, remat=remat, **options), argnums=(0, 1, 2), has_aux=True)
        return jax.jit(compute)(*case)

    assert oracles.relative_error(everything(remat), everything(None)) <= 1e-12


@pytest.mark.parametrize("steps", [150, 151])  # three chunks; two and a rest
@reversals
@pytest.mark.usefixtures("double")
def test_gates_are_redone_in_chunks(steps, reverse):
    cell = lstmx.GRU(3, reset_after=False, learn_initial_state=True, param_dtype="float64")
    rng = np.random.default_rng(0)
    case = variants.random_case(cell, rng, steps)
    options = {"mask": rng.random((steps, 4)) < 0.8, "resets": rng.random((steps, 4)) < 0.05}

    def everything(**way):
        loss = variants.loss_of(cell, reverse=reverse, return_states=True, **options, **way)
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*case)

    got, expected = everything(remat="gates"), everything(implementation="reference")
    assert oracles.relative_error(got, expected) <= 1e-12


def memory_of_training(steps, remat, features=16):
    """Outputs and scratch of a training step that is given the cotangent of ys, in units of ys."""
    cell = lstmx.LSTM(256)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), features))
    xs, dys = (jax.ShapeDtypeStruct((steps, 8, n), jnp.float32) for n in (features, 256))

    def step(params, xs, dys):
        ys, pullback = jax.vjp(lambda p: lstmx.scan(cell, p, xs, remat=remat)[1], params)
        return ys, pullback(dys)

    memory = jax.jit(step).lower(params, xs, dys).compile().memory_analysis()
    return (memory.temp_size_in_bytes + memory.output_size_in_bytes) / (dys.size * 4)


def test_memory_of_a_long_sequence():
    assert 1 < memory_of_training(20_000, "sqrt") < 1.2
    assert memory_of_training(20_000, "gates") < 2.5
    assert memory_of_training(20_000, None) > 5


def test_lengths_of_chunks():
    for steps in [*range(60), 1000, 20_000, 10_007]:
        n = chunks.length_of("sqrt", steps)
        assert 1 <= n <= 2 * max(steps, 1) ** 0.5 + 1
        assert steps < 4 or 2 * n >= steps**0.5
    assert 20_000 % chunks.length_of("sqrt", 20_000) == 0


def kernels_in_loops(make, **options):
    """Shapes of what the forward loop emits that have the size of one of the update's kernels."""
    cell = make(16)
    case = variants.random_case(cell, np.random.default_rng(0), dtype=np.float32)
    sizes = {leaf.shape for leaf in jax.tree.leaves(case[0].update) if leaf.ndim > 1}
    assert sizes
    loss = variants.loss_of(cell, implementation="fused", **options)
    jaxpr = jax.make_jaxpr(jax.grad(lambda *case: loss(*case)[0], argnums=(0, 1, 2)))(*case)
    found = []
    for loop in loops(jaxpr.jaxpr):
        for v in loop.outvars:  # carried accumulators as well as stacks
            if v.aval.shape in sizes or v.aval.shape[1:] in sizes:
                found.append(v.aval.shape)
    return found


def loops(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from loops(inner)


UPDATES_WITH_MATMULS = {
    "projection": functools.partial(lstmx.LSTM, projection_size=7),
    "gate recurrence": functools.partial(lstmx.LSTM, gate_recurrence=True),
    "reset before": functools.partial(lstmx.GRU, reset_after=False),
    "mogrifier": lambda size: lstmx.Mogrifier(lstmx.LSTM(size), rank=5),
    "regularized": lambda size: lstmx.Regularized(
        lstmx.Mogrifier(lstmx.LSTM(size)), update_dropout=0.1, hidden_zoneout=0.2
    ),
}


@pytest.mark.parametrize("name", UPDATES_WITH_MATMULS)
@pytest.mark.parametrize("remat", [None, "gates"])
def test_weight_gradients_of_updates_leave_the_loop(name, remat):
    options = {"key": jax.random.key(1)} if name == "regularized" else {}
    assert kernels_in_loops(UPDATES_WITH_MATMULS[name], remat=remat, **options) == []


XS = np.ones((5, 2, 3), np.float32)
IDS = np.array([[1, 1], [1, 1], [2, 1], [2, 0], [0, 0]])
WRONG = {
    "decreasing": (
        {"segment_ids": IDS[:, ::-1][[0, 2, 3, 1, 4]]}, ValueError,
        r"must not decrease along a row .* got 1 after 2 at \[time, \*batch\] = \[3, 1\]",
    ),
    "negative": ({"segment_ids": IDS - 1}, ValueError, r"0 \(padding\) or positive, got -1"),
    "type": ({"segment_ids": IDS * 1.0}, TypeError, "segment_ids must be integers, got float32"),
    "shape": ({"segment_ids": IDS.T}, ValueError, r"segment_ids must be .* = \(5, 2\), got \(2, 5\)"),
    "with lengths": ({"segment_ids": IDS, "lengths": np.array([5, 4])}, ValueError, "cannot be combined"),
    "with resets": ({"segment_ids": IDS, "resets": IDS > 1}, ValueError, "segment_ids cannot be combined"),
    "remat": ({"remat": 0}, ValueError, 'remat must be None, "gates", "sqrt" or a number of steps, got 0'),
    "states": ({"return_states": "all"}, ValueError, "return_states must be .*, got 'all'"),
    "associative": ({"implementation": "associative"}, NotImplementedError, "LSTM has none"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_named(case):
    arguments, error, message = WRONG[case]
    cell = lstmx.LSTM(4)
    with pytest.raises(error, match=message):
        lstmx.scan(cell, cell.init(jax.random.key(0), 3), XS, **arguments)


def test_a_cell_without_gates_has_none_to_return():
    cell = lstmx.Elman(4)
    with pytest.raises(ValueError, match='return_states="gates": Elman has no gates'):
        lstmx.scan(cell, cell.init(jax.random.key(0), 3), XS, return_states="gates")
