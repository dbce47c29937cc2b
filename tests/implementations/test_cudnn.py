"""cuDNN's layer, its call replaced by `lstm_ref`, which JAX has as its reference and which needs no GPU."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.experimental import rnn
from jax.extend.core import jaxprs_in_params

import lstmx
from lstmx.implementations import choice, cudnn
from lstmx.implementations.reference import Sequence
from lstmx.networks import stacked

CELL = lstmx.LSTM(4)
TOLERANCE = 3e-6


def reference_call(x, h, c, weights, lengths, sizes):
    """`cudnn._call` by `lstm_ref`; all is NaN where cuDNN would fail, which is where a length is 0."""
    rows, steps, features = x.shape
    cells = sizes.num_layers * (1 + sizes.bidirectional)
    assert features == sizes.input_size
    assert lengths.shape == (rows,)
    assert h.shape == c.shape == (cells, rows, sizes.hidden_size)
    assert {leaf.dtype for leaf in (x, h, c, weights)} == {np.dtype("float32")}
    assert weights.size == rnn.get_num_params_in_lstm(*sizes[:4])
    unpacked = rnn.unpack_lstm_weights(weights, *sizes[:4])
    results = rnn.lstm_ref(x, h, c, *unpacked, lengths, *sizes[:3], 0.0, sizes.bidirectional)
    fine = (jnp.min(lengths) >= 1) & (jnp.max(lengths) <= steps)
    return tuple(jnp.where(fine, leaf, jnp.nan) for leaf in results)


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """As if there were a GPU."""
    monkeypatch.setattr(cudnn, "_call", reference_call)
    monkeypatch.setattr(choice, "platform", lambda: "gpu")


def case(net, steps=5, batch=(3,), seed=0):
    """Random parameters, inputs and initial state."""
    return oracles.random_case(net, np.random.default_rng(seed), steps, batch, 3, np.float32)


def run(net, implementation="cudnn", **options):
    def results(params, xs, state):
        return lstmx.scan(net, params, xs, state, implementation=implementation, **options)

    return results


def loss(results):
    return lambda *args: sum(jnp.sum(jnp.sin(leaf + 1)) for leaf in jax.tree.leaves(results(*args)))


def evaluated(function, *args):
    return jax.jit(function)(*args)


def graded(results, *args):
    """Values, and the gradients of a loss of them all with respect to all arguments."""
    gradient = jax.grad(loss(results), argnums=tuple(range(len(args))))
    return evaluated(lambda *args: (results(*args), gradient(*args)), *args)


def calls(function, *args):
    """How many calls of cuDNN a function makes, and whether there is a loop around one."""
    text = str(jax.make_jaxpr(function)(*args))
    return len(re.findall(r"\blstmx_cudnn\[", text)), "scan[" in text


NETWORKS = {
    "cell": CELL,
    "stack": stacked(CELL, 2),
    "bidirectional": lstmx.Bidirectional(CELL),
    "deep": stacked(CELL, 2, bidirectional=True),
    "without-bias": lstmx.Stack((lstmx.LSTM(4, use_bias=False), CELL)),
    "learnt-state": lstmx.Bidirectional(lstmx.LSTM(4, learn_initial_state=True)),
}


@pytest.mark.cross_section(3)
@pytest.mark.parametrize(
    ("name", "lengths", "reverse"),
    [
        *((name, [5, 0, 2], False) for name in NETWORKS if name != "stack"),
        *((name, [5, 0, 2], True) for name in ("cell", "deep")),
        ("stack", None, True),
    ],
)
def test_values_and_gradients(name, lengths, reverse):
    net = NETWORKS[name]
    params, xs, state = case(net)
    options = {"lengths": None if lengths is None else np.array(lengths), "reverse": reverse}
    args = (params, xs) if name == "learnt-state" else (params, xs, state)
    found, expected = (
        graded(lambda params, xs, state=None, i=i: run(net, i, **options)(params, xs, state), *args)
        for i in ("cudnn", "reference")
    )
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert oracles.relative_error(found, expected) <= TOLERANCE
    assert calls(run(net, **options), params, xs, state) == (1, False)


def test_batch_axes():
    net = NETWORKS["bidirectional"]
    args = case(net, batch=(2, 3))
    lengths = np.array([[1, 0, 5], [2, 1, 0]])
    found, expected = (graded(run(net, i, lengths=lengths), *args) for i in ("cudnn", "reference"))
    assert oracles.relative_error(found, expected) <= TOLERANCE


@pytest.mark.cross_section(3)
@pytest.mark.parametrize(("steps", "batch"), [(0, (2,)), (3, (0,)), (1, (1,)), (2, ())])
@pytest.mark.parametrize("name", ["cell", "deep"])
def test_the_least_sizes(name, steps, batch):
    args = case(NETWORKS[name], steps, batch)
    found, expected = (evaluated(run(NETWORKS[name], i), *args) for i in ("cudnn", "reference"))
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, expected)
    assert oracles.relative_error(found, expected) <= TOLERANCE


def test_what_stands_in_the_padding_reaches_nothing():
    net = NETWORKS["bidirectional"]
    params, xs, state = case(net)
    lengths, spoilt = np.array([5, 0, 2]), xs.copy()
    spoilt[2:, 1:], spoilt[:, 1] = np.nan, np.nan
    clean, found = (graded(run(net, lengths=lengths), params, x, state) for x in (xs, spoilt))
    assert oracles.relative_error(found, clean) == 0


PLAIN_CALLS = {
    "sizes": (lstmx.Stack((lstmx.LSTM(3), lstmx.LSTM(4))), {}, 2),
    "merge": (lstmx.Bidirectional(CELL, merge="sum"), {}, 2),
    "merged layers": (lstmx.Stack((lstmx.Bidirectional(CELL, merge="mul"), CELL)), {}, 3),
    "residual": (stacked(CELL, 3, connections="residual"), {}, 3),
    "dense": (stacked(CELL, 3, connections="dense"), {}, 3),
    "some bidirectional": (lstmx.Stack((lstmx.Bidirectional(CELL), CELL)), {}, 2),
    "dropout": (stacked(CELL, 3, dropout_rate=0.5), {"key": jax.random.key(0)}, 3),
    "dropout unused": (stacked(CELL, 3, dropout_rate=0.5), {}, 1),
    "key without dropout": (stacked(CELL, 3), {"key": jax.random.key(0)}, 1),
    "nested": (lstmx.Stack((stacked(CELL, 2), CELL)), {}, 1),
    "chunks of all layers": (stacked(CELL, 3), {"remat": 2}, 2),
    "chunks of a direction": (lstmx.Bidirectional(CELL), {"remat": 5}, 2),
}


@pytest.mark.cross_section(3)
@pytest.mark.parametrize("name", PLAIN_CALLS)
def test_one_call_where_it_can_be_and_otherwise_one_a_layer(name):
    net, options, count = PLAIN_CALLS[name]
    args = case(net)
    assert calls(run(net, **options), *args)[0] == count
    found, expected = (evaluated(run(net, i, **options), *args) for i in ("cudnn", "reference"))
    assert oracles.relative_error(found, expected) <= TOLERANCE


def test_recomputation_in_chunks():
    net, lengths = stacked(CELL, 2), np.array([5, 0, 2])
    args = case(net)
    found = graded(run(net, lengths=lengths, remat=2), *args)
    expected = graded(run(net, "reference", lengths=lengths), *args)
    assert oracles.relative_error(found, expected) <= TOLERANCE


def test_the_fastest_may_be_one_call(monkeypatch):
    net = NETWORKS["deep"]
    args = case(net)
    assert calls(run(net, None, mask=np.ones((5, 3), bool)), *args)[0] == 0
    monkeypatch.setattr(choice, "_PREFERRED", ("cudnn", *choice._PREFERRED))
    assert calls(run(net, None), *args)[0] == 1
    assert calls(run(net, "fused"), *args)[0] == 0
    assert calls(run(net, None, mask=np.ones((5, 3), bool)), *args)[0] == 0


# Refusals.

REFUSED = {
    "gru": (lstmx.GRU(4), {}, "runs LSTMs, and this is a GRU"),
    "peephole": (
        lstmx.LSTM(4, peephole=True),
        {},
        r"runs LSTMs without options, and this is LSTM\(.*peephole=True",
    ),
    "heads": (lstmx.LSTM(4, num_heads=2), {}, "runs LSTMs without options, and this is .*num_heads=2"),
    "regularized": (lstmx.Regularized(CELL, recurrent_dropout=0.5), {}, "runs LSTMs, and this is"),
    "bfloat16": (lstmx.LSTM(4, dtype=jnp.bfloat16), {}, "computes in float32, not in bfloat16"),
    "mask": (CELL, {"mask": np.ones((5, 3), bool)}, "no gaps, which a mask may have: pass lengths instead"),
    "resets": (CELL, {"resets": np.zeros((5, 3), bool)}, "cannot reset states within a row"),
    "segments": (CELL, {"segment_ids": np.ones((5, 3), int)}, "cannot reset states within a row"),
    "states": (CELL, {"return_states": True}, "returns only the final cell state"),
    "gates": (CELL, {"return_states": "gates"}, "returns only the final cell state"),
    "remat": (CELL, {"remat": "gates"}, "cannot recompute gates"),
    "mixed stack": (lstmx.Stack((CELL, lstmx.GRU(4))), {}, "runs LSTMs, and this is a GRU"),
    "stack of bfloat16": (stacked(lstmx.LSTM(4, dtype=jnp.bfloat16), 2), {}, "computes in float32"),
    "stack with a mask": (stacked(CELL, 2), {"mask": np.ones((5, 3), bool)}, "pass lengths instead"),
    "stack with states": (stacked(CELL, 2), {"return_states": True}, "returns only the final cell state"),
    "both with resets": (
        lstmx.Bidirectional(CELL),
        {"resets": np.zeros((5, 3), bool)},
        "cannot reset states",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_do_is_refused_with_the_reason(name):
    net, options, reason = REFUSED[name]
    args = case(net)
    message = rf'implementation "cudnn" .*{reason}.*; these can run it: .*fused'
    with pytest.raises(NotImplementedError, match=message):
        run(net, **options)(*args)
    assert jax.eval_shape(run(net, None, **options), *args)


def test_without_a_gpu_it_is_refused(monkeypatch):
    monkeypatch.setattr(choice, "platform", lambda: "cpu")
    for net in (CELL, stacked(CELL, 2)):
        with pytest.raises(NotImplementedError, match="runs on NVIDIA GPUs, and the platform is cpu"):
            run(net)(*case(net))


@pytest.mark.parametrize(
    ("cells", "remat", "reason"),
    [
        (((CELL,), (lstmx.LSTM(5),)), None, r"layers of one size, got \[4, 5\]"),
        (((CELL,), (CELL, CELL)), None, "as many directions"),
        (((CELL,), (lstmx.LSTM(4, dtype="bfloat16"),)), None, "one compute type"),
        (((CELL, CELL),), 3, "both directions"),
        (((CELL, CELL), (CELL, lstmx.GRU(4))), None, "this is a GRU"),
    ],
)
def test_layers_that_do_not_fit_one_call(cells, remat, reason):
    layers = cudnn.Layers(cells, jnp.dtype("float32"))
    assert re.search(reason, cudnn.refusal(choice.Job(layers, None, remat, "gpu")))


@pytest.mark.parametrize("name", ["resets", "noise"])
def test_what_nobody_asked_the_refusal_about_is_refused_by_the_run(name):
    params, xs, state = case(CELL)
    sequence = Sequence(jnp.asarray(xs))._replace(**{name: jnp.zeros((5, 3), bool)})
    with pytest.raises(NotImplementedError, match="no resets, noise"):
        cudnn.run(CELL, params, state, state, sequence, reverse=False, unroll=1, remat=None, states=False)


BAD_INPUT = {
    "features": (lambda p, x, s: (p, x[..., :2], s), "xs has 2 features, the parameters are for 3"),
    "axes": (lambda p, x, s: (p, x[0, 0], s), r"xs must be \[time, \*batch, features\]"),
    "params": (lambda p, x, s: (p[:1], x, s), "params must have one entry for each of 2 layers, got 1"),
    "state": (lambda p, x, s: (p, x, s[:1]), "state must have one entry for each of 2 layers, got 1"),
    "state's shape": (
        lambda p, x, s: (p, x[:, :2], s),
        r"the state's \.c must have shape \(2, 4\), got \(3, 4\)",
    ),
    "kernel": (
        lambda p, x, s: ((p[0], p[0]), x, s),
        r"tensors of cell 2 must have shapes .*w_ih=\(16, 8\).*got \(\(16, 3\)",
    ),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_of_a_network(name):
    spoil, message = BAD_INPUT[name]
    net = NETWORKS["deep"]
    with pytest.raises(ValueError, match=message):
        run(net)(*spoil(*case(net)))


def test_states_in_the_forms_that_networks_take():
    net = stacked(CELL, 2)
    params, xs, state = case(net)
    plain = tuple(tuple(layer) for layer in state)
    expected = run(net)(params, xs, state)
    assert oracles.relative_error(run(net)(params, xs, plain), expected) == 0
    half = (None, state[1])
    found, expected = (run(net, i)(params, xs, half) for i in ("cudnn", "reference"))
    assert oracles.relative_error(found, expected) <= TOLERANCE
    assert calls(run(net), params, xs, half) == (1, False)


# Derivatives and vmap.


def test_forward_mode_is_refused():
    args = case(CELL)
    for function in (run(CELL), jax.jit(run(CELL))):
        with pytest.raises(
            NotImplementedError, match=r'implementation "cudnn" .* no forward-mode derivative'
        ):
            jax.jvp(function, args, args)


def test_second_derivatives_are_refused():
    params, xs, state = case(CELL)
    slope = jax.grad(lambda xs: loss(run(CELL))(params, xs, state))
    with pytest.raises(NotImplementedError, match=r'"cudnn" has only first derivatives; use .*"reference"'):
        jax.grad(lambda xs: jnp.sum(slope(xs) ** 2))(xs)


@pytest.mark.parametrize(
    ("axes", "inside"),
    [
        ((None, 1, None), False),
        ((None, None, 0), False),
        ((0, None, None), False),
        ((None, 1, 0), True),
        ((0, 1, 0), True),
    ],
    ids=["inputs", "states", "parameters", "gradient of each row", "gradient of each"],
)
def test_vmap(axes, inside):
    net, lengths = CELL, np.array([4, 0])
    several = [case(net, steps=4, batch=(2,), seed=seed) for seed in range(3)]
    args = [
        part[0] if axis is None else jax.tree.map(lambda *leaves, axis=axis: np.stack(leaves, axis), *part)
        for part, axis in zip(zip(*several, strict=True), axes, strict=True)
    ]

    def results(implementation):
        one = run(net, implementation, lengths=lengths)
        if inside:
            return jax.vmap(lambda *args: (one(*args), jax.grad(loss(one), (0, 1, 2))(*args)), axes)
        return lambda *args: (
            jax.vmap(one, axes)(*args),
            jax.grad(loss(jax.vmap(one, axes)), (0, 1, 2))(*args),
        )

    found, expected = (evaluated(results(i), *args) for i in ("cudnn", "reference"))
    assert oracles.relative_error(found, expected) <= TOLERANCE
    loops = calls(jax.vmap(run(net, lengths=lengths), axes), *args)[1]
    assert loops == (axes[0] is not None)


def test_vmap_of_mapped_lengths():
    params, xs, state = case(CELL, batch=(3, 2))
    lengths = np.array([[5, 0], [2, 3], [1, 5]])

    def mapped(implementation, axes):
        one = lambda xs, lengths, state: run(CELL, implementation, lengths=lengths)(params, xs, state)  # noqa: E731
        return jax.vmap(jax.vmap(one, axes), axes)(xs, lengths, state)

    found, expected = (mapped(i, (1, 0, 0)) for i in ("cudnn", "reference"))
    assert oracles.relative_error(found, expected) <= TOLERANCE


def test_jacobian():
    params, xs, state = case(CELL, steps=2, batch=(2,))
    found, expected = (
        evaluated(jax.jacrev(lambda xs, i=i: run(CELL, i)(params, xs, state)[1]), xs)
        for i in ("cudnn", "reference")
    )
    assert oracles.relative_error(found, expected) <= TOLERANCE


# What the stand-in cannot show: the call itself.


# Of another size than all above: what is traced with the true call must not be found in their caches.
TRUE = lstmx.LSTM(6)


@pytest.fixture
def real_call(monkeypatch, gpu):
    """The true call, which can be traced without a GPU once the sizes of buffers are known."""
    monkeypatch.undo()
    monkeypatch.setattr(choice, "platform", lambda: "gpu")
    sizes = "compute_rnn_workspace_reserve_space_sizes"
    monkeypatch.setattr(rnn.gpu_rnn, sizes, lambda *_: (16, 32), raising=False)


def equations(jaxpr, name):
    """All equations of a primitive, in a jaxpr and in those within it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == name:
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner, name)


@pytest.mark.usefixtures("real_call")
def test_the_call_of_a_stack_and_of_its_gradient():
    net, lengths = stacked(TRUE, 2, bidirectional=True), np.array([5, 0, 2])
    args = case(net, batch=(3,))
    jaxpr = jax.make_jaxpr(jax.grad(loss(run(net, lengths=lengths)), (0, 1, 2)))(*args).jaxpr
    (forward,) = equations(jaxpr, "rnn_fwd")
    (backward,) = equations(jaxpr, "rnn_bwd")
    sizes = {"input_size": 3, "hidden_size": 6, "num_layers": 2, "dropout": 0.0, "bidirectional": True}
    for equation in (forward, backward):
        assert equation.params == {**sizes, "cudnn_allow_tf32": True}
    count = rnn.get_num_params_in_lstm(3, 6, 2, True)
    shapes = [(3, 5, 3), (4, 3, 6), (4, 3, 6), (count,), (3,)]
    assert [v.aval.shape for v in forward.invars] == shapes
    assert [str(v.aval.dtype) for v in forward.invars] == ["float32"] * 4 + ["int32"]


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("lengths", [None, [5, 0, 2]])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_cudnn_itself(monkeypatch, bidirectional, lengths):
    monkeypatch.undo()
    net = stacked(lstmx.LSTM(8), 2, bidirectional)
    args, lengths = case(net), None if lengths is None else np.array(lengths)
    with jax.default_matmul_precision("highest"):
        found, expected = (graded(run(net, i, lengths=lengths), *args) for i in ("cudnn", "reference"))
    assert oracles.relative_error(found, expected) <= 1e-5


COARSE = (None, "default", "bfloat16", "tensorfloat32", "high", "TF32_TF32_F32")
FINE = ("highest", "float32", "F32_F32_F32", "TF32_TF32_F32_X3")


@pytest.mark.usefixtures("real_call")
@pytest.mark.parametrize("precision", [*COARSE, *FINE])
def test_tf32_only_where_matmuls_may_use_it(precision):
    params, xs, state = case(TRUE)
    with jax.default_matmul_precision(precision):
        jaxpr = jax.make_jaxpr(jax.grad(loss(run(TRUE))))(params, xs, state).jaxpr
    (forward,), (backward,) = equations(jaxpr, "rnn_fwd"), equations(jaxpr, "rnn_bwd")
    assert forward.params["cudnn_allow_tf32"] == backward.params["cudnn_allow_tf32"] == (precision in COARSE)


def test_the_order_of_the_weights():
    sizes = 3, 4, 2, True
    weights = np.arange(rnn.get_num_params_in_lstm(*sizes))
    found = cudnn.unpack(weights, *sizes)
    theirs = rnn.unpack_lstm_weights(weights, *sizes)
    expected = [cudnn.Tensors(*(kind[k] for kind in theirs)) for k in range(4)]
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    np.testing.assert_array_equal(cudnn.pack(found), weights)
