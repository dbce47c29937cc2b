"""What a TPU would be given, as far as that can be known without one: the scans of all cells, lowered."""

import jax
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
