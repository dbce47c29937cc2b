"""The simple recurrent network (Elman 1990)."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lstmx.cells import activations, base, initializers
from lstmx.cells.activations import Activation, resolve
from lstmx.cells.initializers import Initializer


@dataclasses.dataclass(frozen=True)
class Elman:
    """Elman cell.

        h_t = activation(x_t W + b + h_{t-1} U)

    Attributes:
      hidden_size: H, the number of units.
      activation: a name, or a name with numbers (`lstmx.cells.activations`); `"tanh"`, `"relu"`, ...
      use_bias: whether there is a bias.
      gate_clip: limit of the magnitude of the pre-activation (ONNX's `clip`).
      num_heads: N blocks on the diagonal of U.
      learn_initial_state: whether the initial state is a parameter (initially zero).
      dtype: type of the matmuls and of the state; None promotes from parameters and inputs.
      param_dtype: type in which the parameters are stored.
      kernel_init: initializer of `input.kernel`, called for each gate; None for the default. Initializers are
        functions `(key, shape, dtype)` such as `jax.nn.initializers.normal()`.
      recurrent_init: initializer of `recurrent.kernel`; None for orthogonal.
      bias_init: initializer of the bias; None for zeros.

    Parameters: `input.kernel` `[D, H]`, `input.bias` `[H]`, `recurrent.kernel` `[H, H]` (with heads
    `[N, H/N, 1, H/N]`). The state is the array h `[*batch, H]`.

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
    activation: Activation = "tanh"
    use_bias: bool = True
    gate_clip: float | None = None
    num_heads: int = 1
    learn_initial_state: bool = False
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer | None = dataclasses.field(default=None, repr=False)
    recurrent_init: Initializer | None = dataclasses.field(default=None, repr=False)
    bias_init: Initializer | None = dataclasses.field(default=None, repr=False)

    num_feature_axes = 1
    input_shape = staticmethod(base.dense_input_shape)
    input_map = staticmethod(base.affine)
    recurrent_map = staticmethod(base.affine)
    recurrent_map_by_gate = staticmethod(base.affine_by_gate)

    def __post_init__(self):
        base.validate(self)
        activations.check(self, "activation")

    @property
    def num_gates_masked(self) -> int | None:
        """The number of gates that can each read a separately masked h; None with heads."""
        return 1 if self.num_heads == 1 else None

    def init(self, key: jax.Array, input_size: int) -> base.Params:
        base.require_sizes(input_size=input_size)
        units, dtype = self.hidden_size, self.param_dtype
        input_key, recurrent_key = jax.random.split(key)
        kernel = initializers.input_kernel(input_key, input_size, units, 1, dtype, self.kernel_init)
        input_params = {"kernel": kernel}
        if self.use_bias:
            bias_key = jax.random.fold_in(key, 2)
            input_params["bias"] = initializers.bias(bias_key, units, 1, dtype, self.bias_init)
        kernel = initializers.recurrent_kernel(
            recurrent_key, units, units, 1, dtype, self.recurrent_init, self.num_heads
        )
        return base.Params(input_params, {"kernel": kernel}, initial=base.initial_params(self))

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), self.dtype or self.param_dtype)

    def update(self, params: base.PyTree, state: base.State, z: base.PyTree, r: base.PyTree) -> base.State:
        del params
        a = z + r
        if self.gate_clip is not None:
            a = jnp.clip(a, -self.gate_clip, self.gate_clip)
        return resolve(self.activation)(a).astype(state.dtype)

    def output(self, state: base.State) -> jax.Array:
        return state.astype(self.dtype or state.dtype)
