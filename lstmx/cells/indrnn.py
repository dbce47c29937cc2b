"""Independently recurrent network (Li et al. 2018)."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lstmx.cells import activations, base, initializers
from lstmx.cells.activations import Activation, resolve
from lstmx.cells.initializers import Initializer


@dataclasses.dataclass(frozen=True)
class IndRNN:
    """IndRNN cell: an Elman cell in which each unit is recurrently connected only to itself.

        h_t = relu(x_t W + b + u * h_{t-1})

    A unit's gradient over T steps is bounded by `|u| ** T`, so that |u| near 1 and an activation that does
    not saturate can bridge thousands of steps; units interact in the next layer.

    Attributes:
      hidden_size: H, the number of units.
      activation: a name, or a name with numbers (`lstmx.cells.activations`).
      recurrent_range: `init` draws u uniformly from this interval. The paper, for sequences of T steps and
        relu: `(0, 2 ** (1 / T))`, in the last of several layers `(2 ** (-1 / T), 2 ** (1 / T))`, and |u| is
        clipped to the upper end after every update; for long sequences the default is about the same.
      use_bias: whether there is a bias.
      learn_initial_state: whether the initial state is a parameter (initially zero).
      dtype: type of the matmuls and of the state; None promotes from parameters and inputs.
      param_dtype: type in which the parameters are stored.
      kernel_init: initializer of `input.kernel`, called for each gate; None for the default. Initializers are
        functions `(key, shape, dtype)` such as `jax.nn.initializers.normal()`.
      recurrent_init: initializer of u, called with shape `(H,)`; None for `recurrent_range`.
      bias_init: initializer of the bias; None for zeros.

    Parameters: `input.kernel` `[D, H]`, `input.bias` `[H]`, `recurrent.scale` `[H]`, which is u. The state is
    the array h `[*batch, H]`.

    Source: Li, Li, Cook, Zhu & Gao, "Independently recurrent neural network (IndRNN): building a longer and
    deeper RNN", 2018.

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> from lstmx.cells.indrnn import IndRNN
      >>> cell = IndRNN(hidden_size=4, recurrent_range=(0, 2 ** (1 / 5)))
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> state, ys = lstmx.scan(cell, params, jnp.ones((5, 2, 3)))
      >>> ys.shape, params.recurrent["scale"].shape
      ((5, 2, 4), (4,))
    """

    hidden_size: int
    activation: Activation = "relu"
    recurrent_range: tuple[float, float] = (0.0, 1.0)
    use_bias: bool = True
    learn_initial_state: bool = False
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer | None = dataclasses.field(default=None, repr=False)
    recurrent_init: Initializer | None = dataclasses.field(default=None, repr=False)
    bias_init: Initializer | None = dataclasses.field(default=None, repr=False)

    num_feature_axes = 1
    input_shape = staticmethod(base.dense_input_shape)
    input_map = staticmethod(base.affine)

    def __post_init__(self):
        base.validate(self)
        activations.check(self, "activation")
        low, high = map(float, self.recurrent_range)
        if not low <= high:
            raise ValueError(f"recurrent_range must be (low, high) with low <= high, got {(low, high)}")
        object.__setattr__(self, "recurrent_range", (low, high))
        if self.recurrent_init is not None and (low, high) != (0.0, 1.0):
            raise ValueError(f"recurrent_range={(low, high)} has no effect with recurrent_init")

    def init(self, key: jax.Array, input_size: int) -> base.Params:
        base.require_sizes(input_size=input_size)
        units, dtype = self.hidden_size, self.param_dtype
        input_key, recurrent_key = jax.random.split(key)
        kernel = initializers.input_kernel(input_key, input_size, units, 1, dtype, self.kernel_init)
        input_params = {"kernel": kernel}
        if self.use_bias:
            bias_key = jax.random.fold_in(key, 2)
            input_params["bias"] = initializers.bias(bias_key, units, 1, dtype, self.bias_init)
        if self.recurrent_init is None:
            scale = jax.random.uniform(recurrent_key, (units,), dtype, *self.recurrent_range)
        else:
            scale = initializers.vector("recurrent_init", recurrent_key, units, dtype, self.recurrent_init)
        return base.Params(input_params, {"scale": scale}, (), base.initial_params(self))

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), self.dtype or self.param_dtype)

    def recurrent_map(self, params: base.PyTree, y: jax.Array) -> base.PyTree:
        return params["scale"].astype(y.dtype) * y

    def update(self, params: base.PyTree, state: base.State, z: base.PyTree, r: base.PyTree) -> base.State:
        del params
        return resolve(self.activation)(z + r).astype(state.dtype)

    def output(self, state: base.State) -> jax.Array:
        return state.astype(self.dtype or state.dtype)
