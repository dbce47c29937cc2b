"""Gated recurrent unit (Cho et al. 2014), in the reset-after form of cuDNN, torch and Keras."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lstmx.cells import base


@dataclasses.dataclass(frozen=True)
class GRU:
    """GRU cell, the reset gate applied after the recurrent matmul.

        z = x_t W + b,  r = h_{t-1} U + b'
        reset  = sigmoid(z_r + r_r)
        update = sigmoid(z_u + r_u)
        n      = tanh(z_n + reset * r_n)
        h_t    = (1 - update) * n + update * h_{t-1}

    Attributes:
      hidden_size: H, the number of units.
      use_bias: whether there are biases.
      dtype: type of the matmuls; None promotes from parameters and inputs. The state is kept in float32 at
        least, since it integrates over time.
      param_dtype: type in which the parameters are stored.

    Parameters: `input.kernel` `[D, 3H]`, `input.bias` `[3H]`, `recurrent.kernel` `[H, 3H]`,
    `recurrent.bias` `[3H]`, gates in the order reset, update, n. Only the last third of the recurrent bias
    cannot be expressed by the input bias; the whole is kept so that weights of cuDNN, torch and Keras fit.

    The state is the array h `[*batch, H]`.

    Source: Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014 (eq. 5-8, version 1
    of the paper has the reset after the matmul).

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> cell = lstmx.GRU(hidden_size=4)
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> state, ys = lstmx.scan(cell, params, jnp.ones((5, 2, 3)))
      >>> bool(jnp.all(state == ys[-1]))
      True
    """

    hidden_size: int
    use_bias: bool = True
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    num_feature_axes = 1
    input_shape = staticmethod(base.dense_input_shape)
    input_map = staticmethod(base.affine)
    recurrent_map = staticmethod(base.affine)

    def __post_init__(self):
        base.validate(self)

    def init(self, key: jax.Array, input_size: int) -> base.Params:
        base.require_input_size(input_size)
        units, dtype = self.hidden_size, self.param_dtype
        input_key, recurrent_key = jax.random.split(key)
        bias = {"bias": jnp.zeros(3 * units, dtype)} if self.use_bias else {}
        return base.Params(
            input={"kernel": base.input_kernel(input_key, input_size, units, 3, dtype), **bias},
            recurrent={"kernel": base.recurrent_kernel(recurrent_key, units, 3, dtype), **bias},
        )

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> jax.Array:
        dtype = base.carried_dtype(self.dtype or self.param_dtype)
        return jnp.zeros((*batch_shape, self.hidden_size), dtype)

    def update(self, params, state, z, r):
        del params
        return _gates(state, z.astype(state.dtype), r.astype(state.dtype))

    def output(self, state):
        return state.astype(self.dtype or state.dtype)


@jax.custom_jvp
def _gates(h: jax.Array, z: jax.Array, r: jax.Array) -> jax.Array:
    """`h_t` `[..., H]` from `h_{t-1}` `[..., H]` and the two maps' results `[..., 3H]`."""
    _, update, n, _ = _activate(z, r)
    return n + update * (h - n)


@_gates.defjvp
def _gates_jvp(primals, tangents):
    # As in the LSTM: one coefficient a tangent, five arrays kept for the reverse pass.
    h, z, r = primals
    reset, update, n, r_n = _activate(z, r)
    dh, dz, dr = tangents
    dz_r, dz_u, dz_n = jnp.split(dz, 3, axis=-1)
    dr_r, dr_u, dr_n = jnp.split(dr, 3, axis=-1)
    through_n = (1 - update) * (1 - n * n)
    dh_next = (
        update * dh
        + ((h - n) * update * (1 - update)) * (dz_u + dr_u)
        + through_n * dz_n
        + (through_n * reset) * dr_n
        + (through_n * r_n * reset * (1 - reset)) * (dz_r + dr_r)
    )
    return n + update * (h - n), dh_next


def _activate(z: jax.Array, r: jax.Array) -> tuple[jax.Array, ...]:
    z_r, z_u, z_n = jnp.split(z, 3, axis=-1)
    r_r, r_u, r_n = jnp.split(r, 3, axis=-1)
    reset = jax.nn.sigmoid(z_r + r_r)
    return reset, jax.nn.sigmoid(z_u + r_u), jnp.tanh(z_n + reset * r_n), r_n
