"""The persistent kernel, interpreted, against the reference in bfloat16 and in float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmx
from lstmx.implementations import choice, pallas
from lstmx.implementations.pallas import memory

# A relative error in the norm; bfloat16 has 8 bits, and the reference comes to half of it.
TOLERANCE = 0.01

MASK = np.random.default_rng(0).random((4, 3)) < 0.6
CASES = {
    # H, B, T, and options of scan
    "one step": (64, 2, 1, {}),
    "one row, reverse": (100, 1, 3, {"reverse": True}),
    "two warpgroups, two tiles": (128, 9, 3, {}),
    "three CTAs, two tiles": (192, 9, 2, {}),
    "four CTAs, states, reverse": (250, 1, 2, {"return_states": True, "reverse": True}),
    "five CTAs, lengths": (320, 3, 3, {"lengths": np.array([3, 0, 2])}),
    "lengths": (16, 4, 4, {"lengths": np.array([4, 0, 3, 1])}),
    "states, holes, reverse": (16, 3, 4, {"return_states": True, "reverse": True, "mask": MASK}),
}
cases = pytest.mark.parametrize("name", CASES)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setitem(choice.IMPLEMENTATIONS, "pallas", pallas)
    with pallas.interpreted():
        yield


def cell_of(hidden, dtype="bfloat16", **options):
    return lstmx.LSTM(hidden, dtype=dtype, **options)


def arrays(hidden, batch, steps, features=3):
    """Parameters, inputs and a state, of numbers that bfloat16 can hold."""
    batch = batch if isinstance(batch, tuple) else (batch,)
    rng = np.random.default_rng((hidden, *batch, steps))

    def draw(*shape, scale=1.0):
        return jnp.asarray(rng.standard_normal(shape) * scale, jnp.bfloat16).astype(jnp.float32)

    cell = cell_of(hidden)
    params = cell.init(jax.random.key(0), features)
    params = jax.tree.map(lambda leaf: draw(*leaf.shape, scale=0.5 if leaf.ndim == 1 else 0.2), params)
    state = type(cell.initial_state())(c=draw(*batch, hidden), h=draw(*batch, hidden))
    return params, draw(steps, *batch, features), state


def loss(cell, params, xs, state, **options):
    """A loss that depends on every output and on every leaf of the final state, and what it was made of."""
    state = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), state, cell.initial_state())
    results = lstmx.scan(cell, params, xs, state, **options)
    leaves = [leaf.astype(jnp.promote_types(leaf.dtype, "float32")) for leaf in jax.tree.leaves(results)]
    # Shifted, so that the cotangent of a zero is not zero; each output weighed in its own way.
    weights = [jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape) for leaf in leaves]
    weighed = [jnp.sum(jnp.sin(leaf + 1) * weight) for leaf, weight in zip(leaves, weights, strict=True)]
    return sum(weighed), results


def gradients(cell, case, **options):
    """The results, and the gradients with respect to parameters, xs and initial state."""
    compute = jax.value_and_grad(functools.partial(loss, cell, **options), (0, 1, 2), has_aux=True)
    (_, results), grads = jax.jit(compute)(*case)
    return results, grads


def exact(hidden, case, **options):
    with jax.enable_x64(True):
        case = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), case)
        cell = cell_of(hidden, "float64", param_dtype="float64")
        results, grads = gradients(cell, case, implementation="reference", **options)
        return jax.tree.map(np.asarray, (results, grads))


def assert_near(got, want, tolerance=TOLERANCE):
    for (path, x), y in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert x.shape == y.shape
        error = np.linalg.norm(x - y)
        assert error <= tolerance * np.linalg.norm(y), f"{jax.tree_util.keystr(path)}: {error}"


@pytest.mark.cross_section(4)
@cases
def test_float64(name):
    hidden, batch, steps, options = CASES[name]
    case = arrays(hidden, batch, steps)
    got = gradients(cell_of(hidden), case, implementation="pallas", **options)
    assert_near(got, exact(hidden, case, **options))


def test_no_less_exact_than_the_reference():
    case = arrays(16, 3, 5)
    want = exact(16, case)

    def errors(name):
        found = gradients(cell_of(16), case, implementation=name)
        assert_near(found, want)
        return [
            np.linalg.norm(np.asarray(x, np.float64) - y) / np.linalg.norm(y)
            for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True)
        ]

    assert np.mean(errors("pallas")) < 1.25 * np.mean(errors("reference"))


@pytest.mark.full
def test_long_memory():
    """A forget gate of 0.999, which bfloat16 rounds to 1, over 60 steps."""
    params, xs, state = arrays(16, 1, 60)
    params.input["bias"] = params.input["bias"].at[16:32].set(7)
    case = params, 0 * xs, state
    _, (_, _, got) = gradients(cell_of(16), case, implementation="pallas")
    _, (_, _, want) = exact(16, case)
    assert_near(got.c, want.c)


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_types_and_shapes_are_those_of_the_reference(batch):
    params, xs, state = arrays(16, batch, 2)
    case = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params), xs, state
    cell = cell_of(16, param_dtype="bfloat16")
    got, want = (gradients(cell, case, implementation=name) for name in ("pallas", "reference"))
    assert jax.tree.map(jax.typeof, got) == jax.tree.map(jax.typeof, want)
    assert_near(got, want, 2 * TOLERANCE)


def test_without_gradient_no_cell_states_are_kept():
    params, xs, state = arrays(16, 3, 7)
    run = functools.partial(loss, cell_of(16), implementation="pallas")
    jaxpr = str(jax.make_jaxpr(run)(params, xs, state))
    assert "f32[8,64]" in jaxpr  # the last one, padded to a tile
    assert "f32[7,8,64]" not in jaxpr
    assert "f32[7,8,64]" in str(jax.make_jaxpr(jax.grad(run, has_aux=True))(params, xs, state))


def test_remat_keeps_fewer_residuals():
    case = arrays(16, 3, 2)

    def residuals(remat):
        run = functools.partial(loss, cell_of(16), implementation="pallas", remat=remat)
        _, pullback, _ = jax.eval_shape(lambda *case: jax.vjp(run, *case, has_aux=True), *case)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))

    # z: bfloat16 [T, B, 4H]
    assert residuals("gates") == residuals(None) - 2 * 3 * 64 * 2
    got = gradients(cell_of(16), case, implementation="pallas", remat="gates")
    assert_near(got, gradients(cell_of(16), case, implementation="reference"), 2 * TOLERANCE)


@pytest.mark.parametrize("shared", [True, False])
def test_vmap(shared):
    """Of rows with shared parameters, which are merged, and of parameters."""
    members = [arrays(16, 3, 2)]
    members += [jax.tree.map(lambda leaf: leaf * 0.5, members[0])]
    params, xs, state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    params = members[0][0] if shared else params

    def compute(*case, name="pallas"):
        return gradients(cell_of(16), case, implementation=name)

    mapped = jax.vmap(compute, in_axes=(None if shared else 0, 0, 0))(params, xs, state)
    for k, member in enumerate(members):
        member = (members[0][0], *member[1:]) if shared else member
        want = compute(*member, name="reference")
        assert_near(jax.tree.map(lambda leaf, k=k: leaf[k], mapped), want, 2 * TOLERANCE)


def test_members_share_one_kernel(monkeypatch):
    """`vmap` over parameters makes one call, whose clusters have the weights of their member."""
    from lstmx.implementations.pallas import lstm

    calls = []

    def recurrence(elements, weights, operand, *args, **options):
        calls.append((weights.shape[0], operand.shape[0]))
        return kernel(elements, weights, operand, *args, **options)

    kernel = lstm.recurrence
    monkeypatch.setattr(lstm, "recurrence", recurrence)
    cases = [arrays(70, 9, 2), arrays(70, 9, 2, features=3)]
    cases[1] = jax.tree.map(lambda leaf: leaf * 0.5, cases[1])
    params, xs, state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cases)

    def members(params, xs, state):  # each with two batches of rows
        inner = jax.vmap(lambda x: gradients(cell_of(70), (params, x, state), implementation="pallas"))
        return inner(jnp.stack([xs, -xs]))

    mapped = jax.vmap(members)(params, xs, state)
    # Two sets of parameters; of each 2 * 9 rows, filled up to 24.
    assert set(calls[-2:]) == {(2, 48)}
    for k, (p, x, s) in enumerate(cases):
        for j, sign in enumerate((1, -1)):
            want = gradients(cell_of(70), (p, sign * x, s), implementation="reference")
            assert_near(jax.tree.map(lambda leaf, k=k, j=j: leaf[k, j], mapped), want, 2 * TOLERANCE)


def test_empty_sequences_and_batches():
    for batch, steps in ((3, 0), (0, 3)):
        params, xs, state = arrays(16, batch, steps)
        _, (final, ys) = loss(cell_of(16), params, xs, state, implementation="pallas")
        assert ys.shape == (steps, batch, 16)
        np.testing.assert_array_equal(final.c, state.c)


def test_forward_mode_is_refused():
    params, xs, state = arrays(16, 3, 2)
    run = lambda xs: loss(cell_of(16), params, xs, state, implementation="pallas")[0]  # noqa: E731
    with pytest.raises(NotImplementedError, match='"pallas" has a hand-written reverse pass'):
        jax.jvp(run, (xs,), (xs,))


def test_resets_are_refused():
    params, xs, state = arrays(16, 3, 2)
    with pytest.raises(NotImplementedError, match="cannot reset states"):
        loss(cell_of(16), params, xs, state, implementation="pallas", resets=np.ones((2, 3), bool))


@pytest.mark.parametrize(
    ("cell", "remat", "reason"),
    [
        (cell_of(16), None, None),
        (cell_of(320, learn_initial_state=True, use_bias=False), "gates", None),
        (cell_of(321), None, "hidden_size <= 320, got 321"),
        (cell_of(16, "float32"), None, "computes in bfloat16, got float32"),
        (cell_of(16, peephole=True), None, "only the plain LSTM"),
        (cell_of(16, num_heads=2), None, "num_heads=2"),
        (lstmx.GRU(16, dtype="bfloat16"), None, "only the plain LSTM"),
        (cell_of(16), "sqrt", "'sqrt'"),
        (cell_of(16), 4, "got 4"),
    ],
)
def test_refusal(cell, remat, reason):
    refusal = pallas.refusal(choice.Job(cell, remat=remat, platform="gpu"))
    assert refusal == reason if reason is None else reason in refusal


@pytest.mark.parametrize(
    ("capability", "reason"), [("9.0", None), ("8.0", "got 8.0"), ("10.0", "got 10.0"), (None, "Hopper")]
)
def test_needs_hopper(capability, reason, monkeypatch):
    device = dataclasses.make_dataclass("Device", [] if capability is None else ["compute_capability"])
    monkeypatch.setattr(jax, "devices", lambda *_: [device(*[capability] * (capability is not None))])
    pallas._interpreted.set(False)
    refusal = pallas.refusal(choice.Job(cell_of(16), platform="gpu"))
    assert refusal == reason if reason is None else reason in refusal
    assert "needs an NVIDIA GPU" in pallas.refusal(choice.Job(cell_of(16), platform="cpu"))


ALL = {"lengths": np.array([5, 0, 3]), "return_states": True}


def lowered(hidden, monkeypatch, **options):
    """The gradient for a GPU, as far as it goes without one: to MLIR with its layouts and copies."""
    pallas._interpreted.set(False)
    monkeypatch.setattr(pallas, "refusal", lambda job: None)
    run = functools.partial(loss, cell_of(hidden), implementation="pallas", **options)
    traced = jax.jit(jax.grad(run, (0, 1, 2), has_aux=True)).trace(*arrays(hidden, 3, 5))
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(("hidden", "options"), [(64, {}), (128, ALL), (192, {}), (320, ALL)])
def test_lowers_for_a_gpu(hidden, options, monkeypatch):
    """The other paths of the kernel; the names of operations stay legible in what they are packed into."""
    text = lowered(hidden, monkeypatch, **options)
    assert text.count("@mosaic_gpu_v2") == 2
    # The addresses of other CTAs, and the meetings.
    for operation in ("nvvm.mapa", "nvvm.cluster.arrive", "nvvm.cluster.wait"):
        assert text.count(operation + "\\00") == (2 if hidden > 128 else 0)


@pytest.mark.parametrize(("hidden", "ctas"), [(1, 1), (128, 1), (129, 3), (256, 4), (320, 5), (321, None)])
def test_ctas(hidden, ctas):
    assert memory.fewest_ctas(memory.BACKWARD, -(-hidden // 64)) == ctas


def test_memory_is_counted_for_all_options(monkeypatch):
    """For the steps as they are with all options, and to the byte, as Mosaic does for one size too many."""
    steps = []
    monkeypatch.setattr(memory, "fewest_ctas", lambda step, groups: steps.append(step) or groups)
    bytes_ = memory.taken(memory.BACKWARD, 6, 6)
    assert bytes_ > memory.BYTES
    with pytest.raises(ValueError, match=f"smem_bytes={bytes_} > max_smem_bytes={memory.BYTES}"):
        lowered(384, monkeypatch, **ALL)
    assert set(steps) == {memory.FORWARD, memory.BACKWARD}
