"""What other machines and tools get: the scans of all cells, lowered for a TPU, and their primitives."""

import jax
import jax.extend
import numpy as np
import pytest
import variants

import lstmx


@pytest.mark.parametrize("name", variants.cross_section(variants.EVERY))
def test_scan_is_lowered_for_a_tpu(name):
    cell = variants.EVERY[name](4, dtype="bfloat16")
    key = jax.random.key(0)
    params = jax.eval_shape(lambda: cell.init(key, 3))
    inner = getattr(cell, "cell", cell) if isinstance(cell, lstmx.Regularized) else cell
    xs = jax.ShapeDtypeStruct((7, 2, *inner.input_shape(params)), np.float32)

    def loss(params, xs, key):
        options = {"key": key} if name in variants.REGULARIZED else {}
        final, ys = lstmx.scan(cell, params, xs, lengths=np.array([7, 3]), **options)
        return sum(leaf.astype("float32").sum() for leaf in jax.tree.leaves((final, ys)))

    leaves, tree = jax.tree.flatten(params)
    step = jax.jit(jax.grad(lambda leaves, *rest: loss(tree.unflatten(leaves), *rest), argnums=(0, 1)))
    exported = jax.export.export(step, platforms=["tpu"])(leaves, xs, key)
    assert exported.platforms == ("tpu",)
    text = str(exported.mlir_module())
    # A loop each way, not unrolled.
    assert text.count("stablehlo.while") >= 2
    # No kernel of another machine.
    assert "custom_call" not in text.replace("@Sharding", "")


def primitives_of(jaxpr):
    """The names of all primitives in a jaxpr, those of inner jaxprs included."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from primitives_of(inner)


def primitives(network, implementation):
    params = network.init(jax.random.key(0), 3)
    xs = np.ones((5, 2, 3), np.float32)

    def run(params, xs):
        options = {"implementation": implementation}
        stepped = lstmx.step(network, params, None, xs[0], **options)
        return lstmx.scan(network, params, xs, lengths=np.array([5, 2]), **options), stepped

    return set(primitives_of(jax.make_jaxpr(run)(params, xs).jaxpr))


@pytest.mark.parametrize("cell", [lstmx.LSTM(4), lstmx.GRU(4), lstmx.SLSTM(4), lstmx.MinGRU(4)], ids=repr)
def test_the_reference_uses_only_primitives_of_jax(cell):
    found = primitives(lstmx.Stack((cell, cell)), "reference")
    assert "scan" in found
    assert not [name for name in found if "lstmx" in name or name in ("ffi_call", "custom_vjp_call")]


def test_the_kernels_are_primitives_of_lstmx():
    if lstmx.which_implementation(lstmx.LSTM(4)) == "native":
        assert [name for name in primitives(lstmx.LSTM(4), "native") if "lstmx" in name]
