"""The simple recurrent network (Elman 1990)."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lstmx.cells import base

_ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


@dataclasses.dataclass(frozen=True)
class Elman:
    """Elman cell.

        h_t = activation(x_t W + b + h_{t-1} U)

    Attributes:
      hidden_size: H, the number of units.
      activation: `"tanh"` or `"relu"`.
      use_bias: whether there is a bias.
      dtype: type of the matmuls and of the state; None promotes from parameters and inputs.
      param_dtype: type in which the parameters are stored.

    Parameters: `input.kernel` `[D, H]`, `input.bias` `[H]`, `recurrent.kernel` `[H, H]`. The state is the
    array h `[*batch, H]`.

    Source: Elman, "Finding structure in time", 1990.

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> cell = lstmx.Elman(hidden_size=4, activation="relu")
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> state, y = lstmx.step(cell, params, cell.initial_state((2,)), jnp.ones((2, 3)))
      >>> y.shape
      (2, 4)
    """

    hidden_size: int
    activation: Literal["tanh", "relu"] = "tanh"
    use_bias: bool = True
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    num_feature_axes = 1
    input_shape = staticmethod(base.dense_input_shape)
    input_map = staticmethod(base.affine)
    recurrent_map = staticmethod(base.affine)

    def __post_init__(self):
        base.validate(self)
        if self.activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(_ACTIVATIONS)}, got {self.activation!r}")

    def init(self, key: jax.Array, input_size: int) -> base.Params:
        base.require_input_size(input_size)
        units, dtype = self.hidden_size, self.param_dtype
        input_key, recurrent_key = jax.random.split(key)
        bias = {"bias": jnp.zeros(units, dtype)} if self.use_bias else {}
        return base.Params(
            input={"kernel": base.input_kernel(input_key, input_size, units, 1, dtype), **bias},
            recurrent={"kernel": base.recurrent_kernel(recurrent_key, units, 1, dtype)},
        )

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), self.dtype or self.param_dtype)

    def update(self, params, state, z, r):
        del params
        return _ACTIVATIONS[self.activation](z + r).astype(state.dtype)

    def output(self, state):
        return state.astype(self.dtype or state.dtype)
