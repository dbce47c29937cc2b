"""minLSTM and minGRU (Feng et al. 2024): gates that do not depend on the past, so steps run in parallel.

Their update is `h_t = a_t * h_{t-1} + b_t` with coefficients that depend only on x_t and 0 <= a_t <= 1
(`coefficients`). `lstmx.implementations.associative` runs such cells in O(log T) parallel steps. There is no
recurrent map: `params.recurrent` is empty.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lstmx.cells import base, initializers
from lstmx.cells.initializers import Initializer


def positive(x: jax.Array) -> jax.Array:
    """`x + 1/2` where x >= 0, else `sigmoid(x)`: increasing, positive, with a continuous value at zero.

    Source: Feng et al. 2024, appendix B. It makes the states positive, so that they have a logarithm.

    Example:
      >>> import jax.numpy as jnp
      >>> positive(jnp.array([-100.0, 0.0, 2.0])).tolist()
      [0.0, 0.5, 2.5]
    """
    return jnp.where(x >= 0, x + 0.5, jax.nn.sigmoid(x))


_ACTIVATIONS = {"identity": lambda x: x, "positive": positive}


@dataclasses.dataclass(frozen=True)
class MinGRU:
    """minGRU cell.

        u   = sigmoid(x_t W_u + b_u)
        n   = g(x_t W_n + b_n)
        h_t = (1 - u) * h_{t-1} + u * n

    Attributes:
      hidden_size: H, the number of units.
      candidate_activation: g, `"positive"` (`x + 1/2` where x >= 0, else `sigmoid(x)`) or `"identity"`.
      use_bias: whether there is a bias.
      learn_initial_state: whether the initial state is a parameter (initially zero).
      dtype: type of the matmul; None promotes from parameters and inputs. The state is kept in float32 at
        least, since it integrates over time.
      param_dtype: type in which the parameters are stored.
      kernel_init: initializer of `input.kernel`, called for each gate; None for the default. Initializers are
        functions `(key, shape, dtype)` such as `jax.nn.initializers.normal()`.
      bias_init: initializer of the bias; None for zeros.

    Parameters: `input.kernel` `[D, 2H]`, `input.bias` `[2H]`, in the order u, n. The state is the array h
    `[*batch, H]`.

    Source: Feng, Tung, Ahmed, Bengio & Hajimirsadeghi, "Were RNNs all we needed?", 2024.

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> from lstmx.cells.minimal import MinGRU
      >>> cell = MinGRU(hidden_size=4)
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> state, ys = lstmx.scan(cell, params, jnp.ones((5, 2, 3)))
      >>> ys.shape, params.recurrent
      ((5, 2, 4), {})
    """

    hidden_size: int
    candidate_activation: Literal["positive", "identity"] = "positive"
    use_bias: bool = True
    learn_initial_state: bool = False
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer | None = dataclasses.field(default=None, repr=False)
    bias_init: Initializer | None = dataclasses.field(default=None, repr=False)

    num_feature_axes = 1
    input_shape = staticmethod(base.dense_input_shape)
    input_map = staticmethod(base.affine)

    def __post_init__(self):
        _validate(self)

    def init(self, key: jax.Array, input_size: int) -> base.Params:
        return _init(self, key, input_size, 2)

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> jax.Array:
        return _initial_state(self, batch_shape)

    def recurrent_map(self, params: base.PyTree, y: jax.Array) -> base.PyTree:
        return None

    def coefficients(self, params: base.PyTree, z: base.PyTree) -> base.PyTree:
        """`(a, b)` of `h_t = a * h_{t-1} + b`, both `[..., H]`, from the result of the input map."""
        del params
        u, n = self._split(z)
        return jax.nn.sigmoid(-u), jax.nn.sigmoid(u) * n

    def update(self, params: base.PyTree, state: base.State, z: base.PyTree, r: base.PyTree) -> base.State:
        a, b = self.coefficients(params, z)
        return a * state + b

    def output(self, state: base.State) -> jax.Array:
        return state.astype(self.dtype or state.dtype)

    def gates(
        self, params: base.PyTree, state: base.State, z: base.PyTree, r: base.PyTree
    ) -> dict[str, jax.Array]:
        """update and n after their activations, `[..., H]`."""
        del params, state, r
        u, n = self._split(z)
        return {"update": jax.nn.sigmoid(u), "n": n}

    def _split(self, z):
        u, n = jnp.split(z.astype(base.carried_dtype(z.dtype)), 2, axis=-1)
        return u, _ACTIVATIONS[self.candidate_activation](n)


@dataclasses.dataclass(frozen=True)
class MinLSTM:
    """minLSTM cell, its two gates normalised to a sum of one.

        i   = sigmoid(x_t W_i + b_i)
        f   = sigmoid(x_t W_f + b_f)
        g   = activation(x_t W_g + b_g)
        h_t = f / (f + i) * h_{t-1} + i / (f + i) * g

    Attributes:
      hidden_size: H, the number of units.
      candidate_activation: `"positive"` (`x + 1/2` where x >= 0, else `sigmoid(x)`) or `"identity"`.
      forget_bias: initial value of b_f; larger values make memories last longer initially.
      use_bias: whether there is a bias; without one `forget_bias` has no effect.
      learn_initial_state: whether the initial state is a parameter (initially zero).
      dtype: type of the matmul; None promotes from parameters and inputs. The state is kept in float32 at
        least, since it integrates over time.
      param_dtype: type in which the parameters are stored.
      kernel_init: initializer of `input.kernel`, called for each gate; None for the default. Initializers are
        functions `(key, shape, dtype)` such as `jax.nn.initializers.normal()`.
      bias_init: initializer of the bias, to which `forget_bias` is added; None for zeros.

    Parameters: `input.kernel` `[D, 3H]`, `input.bias` `[3H]`, in the order i, f, g. The state is the array h
    `[*batch, H]`.

    Source: Feng, Tung, Ahmed, Bengio & Hajimirsadeghi, "Were RNNs all we needed?", 2024.

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> from lstmx.cells.minimal import MinLSTM
      >>> cell = MinLSTM(hidden_size=4)
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> state, ys = lstmx.scan(cell, params, jnp.ones((5, 2, 3)))
      >>> ys.shape, params.input["kernel"].shape
      ((5, 2, 4), (3, 12))
    """

    hidden_size: int
    candidate_activation: Literal["positive", "identity"] = "positive"
    forget_bias: float = 0.0
    use_bias: bool = True
    learn_initial_state: bool = False
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer | None = dataclasses.field(default=None, repr=False)
    bias_init: Initializer | None = dataclasses.field(default=None, repr=False)

    num_feature_axes = 1
    input_shape = staticmethod(base.dense_input_shape)
    input_map = staticmethod(base.affine)

    def __post_init__(self):
        _validate(self)

    def init(self, key: jax.Array, input_size: int) -> base.Params:
        params = _init(self, key, input_size, 3)
        if self.use_bias:
            forget = slice(self.hidden_size, 2 * self.hidden_size)
            bias = params.input["bias"]
            params.input["bias"] = initializers.changed(bias, bias.at[forget].add(self.forget_bias))
        return params

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> jax.Array:
        return _initial_state(self, batch_shape)

    def recurrent_map(self, params: base.PyTree, y: jax.Array) -> base.PyTree:
        return None

    def coefficients(self, params: base.PyTree, z: base.PyTree) -> base.PyTree:
        """`(a, b)` of `h_t = a * h_{t-1} + b`, both `[..., H]`, from the result of the input map."""
        gates = self.gates(params, None, z, None)
        return gates["f"], gates["i"] * gates["g"]

    def update(self, params: base.PyTree, state: base.State, z: base.PyTree, r: base.PyTree) -> base.State:
        a, b = self.coefficients(params, z)
        return a * state + b

    def output(self, state: base.State) -> jax.Array:
        return state.astype(self.dtype or state.dtype)

    def gates(
        self, params: base.PyTree, state: base.State, z: base.PyTree, r: base.PyTree
    ) -> dict[str, jax.Array]:
        """i and f normalised to a sum of one, and g after its activation, `[..., H]`."""
        del params, state, r
        i, f, g = jnp.split(z.astype(base.carried_dtype(z.dtype)), 3, axis=-1)
        # f / (f + i) = sigmoid(log f - log i): no 0 / 0 where both gates underflow.
        f = jax.nn.log_sigmoid(f) - jax.nn.log_sigmoid(i)
        g = _ACTIVATIONS[self.candidate_activation](g)
        return {"i": jax.nn.sigmoid(-f), "f": jax.nn.sigmoid(f), "g": g}


def _validate(cell) -> None:
    base.validate(cell)
    if cell.candidate_activation not in _ACTIVATIONS:
        raise ValueError(
            f"candidate_activation must be one of {sorted(_ACTIVATIONS)}, got {cell.candidate_activation!r}"
        )


def _init(cell, key: jax.Array, input_size: int, gates: int) -> base.Params:
    base.require_sizes(input_size=input_size)
    units, dtype = cell.hidden_size, cell.param_dtype
    kernel = initializers.input_kernel(key, input_size, units, gates, dtype, cell.kernel_init)
    input_params = {"kernel": kernel}
    if cell.use_bias:
        bias_key = jax.random.fold_in(key, 1)
        input_params["bias"] = initializers.bias(bias_key, units, gates, dtype, cell.bias_init)
    return base.Params(input_params, {}, (), base.initial_params(cell))


def _initial_state(cell, batch_shape: tuple[int, ...]) -> jax.Array:
    dtype = base.carried_dtype(cell.dtype or cell.param_dtype)
    return jnp.zeros((*batch_shape, cell.hidden_size), dtype)
