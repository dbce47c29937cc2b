"""Long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lstmx.cells import base


class LSTMState(NamedTuple):
    """State of an LSTM: cell `c` and output `h`, both `[*batch, H]`. A valid Flax carry `(c, h)`."""

    c: jax.Array
    h: jax.Array


@dataclasses.dataclass(frozen=True)
class LSTM:
    """LSTM cell.

        i, f, g, o = split(x_t W + b + h_{t-1} U)
        c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g)
        h_t = sigmoid(o) * tanh(c_t)

    Attributes:
      hidden_size: H, the number of units.
      forget_bias: initial value of the forget gate's bias (Jozefowicz et al. 2015: 1). It is added by
        `init` alone, never at run time.
      use_bias: whether there is a bias; without one `forget_bias` has no effect.
      dtype: type of the matmuls; None promotes from parameters and inputs. `c` is kept in float32 at least.
      param_dtype: type in which the parameters are stored.

    Parameters: `input.kernel` `[D, 4H]`, `input.bias` `[4H]`, `recurrent.kernel` `[H, 4H]`, gates in the
    order i, f, g, o.

    Source: Hochreiter & Schmidhuber, "Long short-term memory", 1997; Gers, Schmidhuber & Cummins,
    "Learning to forget", 2000.

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> cell = lstmx.LSTM(hidden_size=4)
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> state, ys = lstmx.scan(cell, params, jnp.ones((5, 2, 3)))  # T=5, B=2, D=3
      >>> ys.shape, state.c.shape
      ((5, 2, 4), (2, 4))
    """

    hidden_size: int
    forget_bias: float = 1.0
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
        input_params = {"kernel": base.input_kernel(input_key, input_size, units, 4, dtype)}
        if self.use_bias:
            bias = jnp.zeros((4, units), dtype).at[1].set(self.forget_bias)
            input_params["bias"] = bias.reshape(-1)
        return base.Params(
            input=input_params,
            recurrent={"kernel": base.recurrent_kernel(recurrent_key, units, 4, dtype)},
        )

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> LSTMState:
        shape, dtype = (*batch_shape, self.hidden_size), self.dtype or self.param_dtype
        return LSTMState(c=jnp.zeros(shape, base.carried_dtype(dtype)), h=jnp.zeros(shape, dtype))

    def update(self, params, state, z, r):
        del params
        wide = state.c.dtype
        c, h = _gates(state.c, z.astype(wide) + r.astype(wide))
        return LSTMState(c=c, h=h.astype(z.dtype))

    def output(self, state):
        return state.h


@jax.custom_jvp
def _gates(c: jax.Array, a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`(c_t, h_t)` from `c_{t-1}` `[..., H]` and the pre-activations `a` `[..., 4H]`."""
    i, f, g, o = _activate(a)
    c = f * c + i * g
    return c, o * jnp.tanh(c)


@_gates.defjvp
def _gates_jvp(primals, tangents):
    # Written out so that every tangent meets one coefficient. Autodiff then keeps these six arrays of H for
    # the reverse pass instead of eleven, and a backward step is six multiplications and the matmul.
    c, a = primals
    i, f, g, o = _activate(a)
    c_next = f * c + i * g
    squashed = jnp.tanh(c_next)
    dc, da = tangents
    di, df, dg, do = jnp.split(da, 4, axis=-1)
    dc_next = f * dc + (g * i * (1 - i)) * di + (c * f * (1 - f)) * df + (i * (1 - g * g)) * dg
    dh = (squashed * o * (1 - o)) * do + (o * (1 - squashed * squashed)) * dc_next
    return (c_next, o * squashed), (dc_next, dh)


def _activate(a: jax.Array) -> tuple[jax.Array, ...]:
    i, f, g, o = jnp.split(a, 4, axis=-1)
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
