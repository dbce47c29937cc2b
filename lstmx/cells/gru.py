"""Gated recurrent unit (Cho et al. 2014), in both published forms."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lstmx.cells import activations, base, initializers
from lstmx.cells.activations import Activation, resolve
from lstmx.cells.initializers import Initializer


@dataclasses.dataclass(frozen=True)
class GRU:
    """GRU cell.

        z = x_t W + b,  r = h_{t-1} U + b'
        reset  = sigmoid(z_r + r_r)
        update = sigmoid(z_u + r_u)
        n      = tanh(z_n + reset * r_n)                   reset_after=True
        n      = tanh(z_n + (reset * h_{t-1}) U_n)         reset_after=False
        h_t    = (1 - update) * n + update * h_{t-1}

    Attributes:
      hidden_size: H, the number of units.
      reset_after: whether the reset gate acts on the result of the recurrent matmul, as in cuDNN, torch and
        Keras, or on its input, which costs a second matmul in the loop.
      use_bias: whether there are biases.
      gate_activation: of reset and update; a name, or a name with numbers (`lstmx.cells.activations`).
      candidate_activation: of n.
      gate_clip: limit of the magnitude of the pre-activations (ONNX's `clip`).
      num_heads: N blocks on the diagonal of U.
      learn_initial_state: whether the initial state is a parameter (initially zero).
      dtype: type of the matmuls; None promotes from parameters and inputs. The state is kept in float32 at
        least, since it integrates over time.
      param_dtype: type in which the parameters are stored.
      kernel_init: initializer of `input.kernel`, called for each gate; None for the default. Initializers are
        functions `(key, shape, dtype)` such as `jax.nn.initializers.normal()`.
      recurrent_init: initializer of `recurrent.kernel` and U_n; None for orthogonal.
      bias_init: initializer of all biases; None for zeros.

    Parameters: `input.kernel` `[D, 3H]`, `input.bias` `[3H]`, `recurrent.kernel` `[H, 3H]`,
    `recurrent.bias` `[3H]`, gates in the order reset, update, n. Only the last third of the recurrent bias
    cannot be merged into the input bias; all of it exists so that weights of cuDNN, torch and Keras fit.
    With `reset_after=False` `recurrent.kernel` is `[H, 2H]`, has no bias, and U_n is `update.kernel`
    `[H, H]`. With heads, kernels are `[N, H/N, gates, H/N]`, one block per head.

    The state is the array h `[*batch, H]`.

    Source: Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014 (eq. 5-8; version 1
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
    reset_after: bool = True
    use_bias: bool = True
    gate_activation: Activation = "sigmoid"
    candidate_activation: Activation = "tanh"
    gate_clip: float | None = None
    num_heads: int = 1
    learn_initial_state: bool = False
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer | None = dataclasses.field(default=None, repr=False)
    recurrent_init: Initializer | None = dataclasses.field(default=None, repr=False)
    bias_init: Initializer | None = dataclasses.field(default=None, repr=False)

    num_feature_axes = 1
    has_candidate = True
    input_shape = staticmethod(base.dense_input_shape)
    input_map = staticmethod(base.affine)

    def __post_init__(self):
        base.validate(self)
        activations.check(self, "gate_activation", "candidate_activation")

    @property
    def num_gates_masked(self) -> int | None:
        """The number of gates that can each read a separately masked h; None with heads."""
        return 3 if self.num_heads == 1 else None

    def init(self, key: jax.Array, input_size: int) -> base.Params:
        base.require_sizes(input_size=input_size)
        units, dtype = self.hidden_size, self.param_dtype
        input_key, recurrent_key = jax.random.split(key)
        bias_keys = jax.random.split(jax.random.fold_in(key, 2))

        def bias(key):
            return {"bias": initializers.bias(key, units, 3, dtype, self.bias_init)} if self.use_bias else {}

        def kernel(key, gates):
            return initializers.recurrent_kernel(
                key, units, units, gates, dtype, self.recurrent_init, self.num_heads
            )

        input_kernel = initializers.input_kernel(input_key, input_size, units, 3, dtype, self.kernel_init)
        input_params = {"kernel": input_kernel, **bias(bias_keys[0])}
        update: base.PyTree = ()
        if self.reset_after:
            recurrent = {"kernel": kernel(recurrent_key, 3), **bias(bias_keys[1])}
        else:
            gates_key, candidate_key = jax.random.split(recurrent_key)
            recurrent, update = {"kernel": kernel(gates_key, 2)}, {"kernel": kernel(candidate_key, 1)}
        return base.Params(input_params, recurrent, update, base.initial_params(self))

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> jax.Array:
        dtype = base.carried_dtype(self.dtype or self.param_dtype)
        return jnp.zeros((*batch_shape, self.hidden_size), dtype)

    def recurrent_map(self, params: base.PyTree, y: jax.Array) -> base.PyTree:
        r = base.affine(params, y)
        # The candidate's matmul has the same input as this one: y, or y with a regularizer's mask.
        return r if self.reset_after else (r, y)

    def recurrent_map_by_gate(self, params: base.PyTree, ys: base.PyTree) -> base.PyTree:
        """`recurrent_map` with a separate h for each gate, in the order reset, update, n."""
        if self.reset_after:
            return base.affine_by_gate(params, ys)
        return base.affine_by_gate(params, ys[:2]), ys[2]

    def update(
        self,
        params: base.PyTree,
        state: base.State,
        z: base.PyTree,
        r: base.PyTree,
        candidate_mask: jax.Array | None = None,
    ) -> base.State:
        if candidate_mask is None and self.is_plain:
            return _plain_gates(state, z.astype(state.dtype), r.astype(state.dtype))
        gates = self.gates(params, state, z, r)
        n = gates["n"] if candidate_mask is None else gates["n"] * candidate_mask.astype(state.dtype)
        return n + gates["update"] * (state - n)

    def output(self, state: base.State) -> jax.Array:
        return state.astype(self.dtype or state.dtype)

    def gates(
        self, params: base.PyTree, state: base.State, z: base.PyTree, r: base.PyTree
    ) -> dict[str, jax.Array]:
        """reset, update, n after their activations, `[..., H]`, from the state before the step."""
        z_r, z_u, z_n = jnp.split(z.astype(state.dtype), 3, axis=-1)
        y = None
        if not self.reset_after:
            r, y = r
        r_r, r_u, *r_n = jnp.split(r.astype(state.dtype), 3 if self.reset_after else 2, axis=-1)
        activate = resolve(self.gate_activation)
        reset, update = activate(self._clipped(z_r + r_r)), activate(self._clipped(z_u + r_u))
        if y is None:
            candidate = reset * r_n[0]
        else:
            candidate = base.affine(params, reset.astype(y.dtype) * y).astype(state.dtype)
        n = resolve(self.candidate_activation)(self._clipped(z_n + candidate))
        return {"reset": reset, "update": update, "n": n}

    @property
    def is_plain(self) -> bool:
        """Whether a step is that of cuDNN and torch."""
        default = (self.gate_activation, self.candidate_activation) == ("sigmoid", "tanh")
        return default and self.reset_after and self.gate_clip is None

    def _clipped(self, a):
        return a if self.gate_clip is None else jnp.clip(a, -self.gate_clip, self.gate_clip)


@jax.custom_jvp
def _plain_gates(h: jax.Array, z: jax.Array, r: jax.Array) -> jax.Array:
    """`h_t` `[..., H]` from `h_{t-1}` `[..., H]` and the two maps' results `[..., 3H]`."""
    _, update, n, _ = _activate(z, r)
    return n + update * (h - n)


@_plain_gates.defjvp
def _plain_gates_jvp(primals, tangents):
    # As in the LSTM: one coefficient per tangent, five arrays stored for the reverse pass.
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
    reset = activations.sigmoid_of_tanh(z_r + r_r)
    return reset, activations.sigmoid_of_tanh(z_u + r_u), jnp.tanh(z_n + reset * r_n), r_n
