"""Functions with a hand-written reverse pass, with a clear error in forward mode.

`jax.custom_vjp` would do, but forward mode through it ends in an error that does not say what to do instead,
and under `jit` in an internal one. Here the derivative is a linear primitive: transposing it calls the
reverse pass, batching it batches the reverse pass, and evaluating it, which only forward mode does, raises.
"""

from collections.abc import Callable, Sequence

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_linear_p = Primitive("lstmx_reverse_pass")
_linear_p.multiple_results = True


def message(name: str) -> str:
    """The error message of an implementation for forward mode."""
    return (
        f'implementation "{name}" has a hand-written reverse pass and no forward-mode derivative (jvp, '
        'jacfwd, linearize evaluated forwards); use implementation="reference", which has both'
    )


def linear_map(
    reverse: Callable[..., Sequence[jax.Array]],
    residuals: Sequence[jax.Array],
    tangents: Sequence[jax.Array],
    outputs: Sequence[jax.Array],
    refusal: str,
) -> list[jax.Array]:
    """The tangents of `outputs`, as a linear map of `tangents` of which only the transpose can be computed.

    Args:
      reverse: `reverse(residuals, cotangents)` returns one cotangent for each of `tangents`.
      residuals: what the reverse pass needs, flat.
      tangents: the tangents of the inputs, flat.
      outputs: arrays with the shapes and types of the result.
      refusal: the error message for forward mode.
    """
    avals = tuple(jax.typeof(x) for x in outputs)
    options = {"reverse": reverse, "n_residuals": len(residuals), "avals": avals, "refusal": refusal}
    return _linear_p.bind(*residuals, *tangents, **options)


def _refuse(*_, refusal, **__):
    raise NotImplementedError(refusal)


def _transpose(cotangents, *args, reverse, n_residuals, **_):
    residuals, linear = args[:n_residuals], args[n_residuals:]
    cotangents = [ad.instantiate_zeros(ct) if isinstance(ct, ad.Zero) else ct for ct in cotangents]
    results = reverse(residuals, cotangents)
    return [None] * n_residuals + [
        ct if ad.is_undefined_primal(x) else None for ct, x in zip(results, linear, strict=True)
    ]


def _batch(args, dims, *, reverse, n_residuals, avals, refusal):
    size = next(x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None)
    # A tangent without the batch axis is broadcast: the transpose of the broadcast sums the cotangents, as
    # required.
    tangents = [
        batching.bdim_at_front(x, d, size)
        for x, d in zip(args[n_residuals:], dims[n_residuals:], strict=True)
    ]
    residuals = args[:n_residuals]
    axes = list(dims[:n_residuals])

    def batched_reverse(residuals, cotangents):
        return jax.vmap(lambda r, c: list(reverse(r, c)), in_axes=(axes, 0))(
            list(residuals), list(cotangents)
        )

    avals = tuple(a.update(shape=(size, *a.shape)) for a in avals)
    options = {"reverse": batched_reverse, "n_residuals": n_residuals, "avals": avals, "refusal": refusal}
    out = _linear_p.bind(*residuals, *tangents, **options)
    return out, [0] * len(out)


_linear_p.def_abstract_eval(lambda *_, avals, **__: list(avals))
_linear_p.def_impl(_refuse)
mlir.register_lowering(_linear_p, _refuse)
ad.primitive_transposes[_linear_p] = _transpose
ad.primitive_jvps[_linear_p] = _refuse
batching.primitive_batchers[_linear_p] = _batch
