"""Minimal gated unit (Zhou et al. 2016)."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lstmx.cells import activations, base, initializers
from lstmx.cells.activations import Activation, resolve
from lstmx.cells.initializers import Initializer

_RESETS = ("after", "before", "none")


@dataclasses.dataclass(frozen=True)
class MGU:
    """Minimal gated unit: a GRU with one gate that both resets and updates.

        f   = sigmoid(x_t W_f + b_f + h_{t-1} U_f)
        n   = tanh(x_t W_n + b_n + f * (h_{t-1} U_n + b'))   reset="after"
            = tanh(x_t W_n + b_n + (f * h_{t-1}) U_n)        reset="before"
            = tanh(x_t W_n + b_n + h_{t-1} U_n)              reset="none"
        h_t = (1 - f) * n + f * h_{t-1}                      gate_keeps=True
            = (1 - f) * h_{t-1} + f * n                      gate_keeps=False

    The paper's unit is `MGU(H, reset="before", gate_keeps=False)`. The defaults are those of Flax, whose
    `reset_gate=False` is `reset="none"`. With a reset the two rules for h_t are different models: no choice
    of weights turns one into the other.

    Attributes:
      hidden_size: H, the number of units.
      reset: where the gate resets the candidate: `"after"` or `"before"` the recurrent matmul, or `"none"`.
      gate_keeps: whether an open gate keeps the old state (True) or admits the candidate.
      forget_bias: initial value of b_f.
      use_bias: whether there are biases; without them `forget_bias` has no effect.
      gate_activation: of f: a name, or a name with numbers (`lstmx.cells.activations`).
      candidate_activation: of n.
      learn_initial_state: whether the initial state is a parameter (initially zero).
      dtype: type of the matmuls; None promotes from parameters and inputs. The state is kept in float32 at
        least, since it integrates over time.
      param_dtype: type in which the parameters are stored.
      kernel_init: initializer of `input.kernel`, called for each gate; None for the default. Initializers are
        functions `(key, shape, dtype)` such as `jax.nn.initializers.normal()`.
      recurrent_init: initializer of `recurrent.kernel` and U_n; None for orthogonal.
      bias_init: initializer of all biases; `forget_bias` is added to b_f. None for zeros.

    Parameters: `input.kernel` `[D, 2H]`, `input.bias` `[2H]`, `recurrent.kernel` `[H, 2H]`, in the order f,
    n, and b', `recurrent.bias` `[H]`, only with `reset="after"`. With `reset="before"` U_f is
    `recurrent.kernel` `[H, H]` and U_n is `update.kernel` `[H, H]`. The state is the array h `[*batch, H]`.

    Source: Zhou, Wu, Zhang & Zhou, "Minimal gated unit for recurrent neural networks", 2016.

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> from lstmx.cells.mgu import MGU
      >>> cell = MGU(hidden_size=4)
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> state, ys = lstmx.scan(cell, params, jnp.ones((5, 2, 3)))
      >>> ys.shape, state.shape
      ((5, 2, 4), (2, 4))
    """

    hidden_size: int
    reset: Literal["after", "before", "none"] = "after"
    gate_keeps: bool = True
    forget_bias: float = 1.0
    use_bias: bool = True
    gate_activation: Activation = "sigmoid"
    candidate_activation: Activation = "tanh"
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
        if self.reset not in _RESETS:
            raise ValueError(f"reset must be one of {_RESETS}, got {self.reset!r}")

    def init(self, key: jax.Array, input_size: int) -> base.Params:
        base.require_sizes(input_size=input_size)
        units, dtype = self.hidden_size, self.param_dtype
        input_key, recurrent_key = jax.random.split(key)
        kernel = initializers.input_kernel(input_key, input_size, units, 2, dtype, self.kernel_init)
        input_params = {"kernel": kernel}
        bias_keys = jax.random.split(jax.random.fold_in(key, 2))
        if self.use_bias:
            bias = initializers.bias(bias_keys[0], units, 2, dtype, self.bias_init)
            input_params["bias"] = initializers.changed(bias, bias.at[:units].add(self.forget_bias))
        kernel = initializers.recurrent_kernel(recurrent_key, units, units, 2, dtype, self.recurrent_init)
        recurrent = {"kernel": kernel}
        update: base.PyTree = ()
        if self.reset == "before":
            of_gate, of_candidate = (
                initializers.changed(kernel, half) for half in jnp.split(kernel, 2, axis=1)
            )
            recurrent, update = {"kernel": of_gate}, {"kernel": of_candidate}
        elif self.reset == "after" and self.use_bias:
            recurrent["bias"] = initializers.bias(bias_keys[1], units, 1, dtype, self.bias_init)
        return base.Params(input_params, recurrent, update, base.initial_params(self))

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> jax.Array:
        dtype = base.carried_dtype(self.dtype or self.param_dtype)
        return jnp.zeros((*batch_shape, self.hidden_size), dtype)

    def recurrent_map(self, params: base.PyTree, y: jax.Array) -> base.PyTree:
        if "bias" in params:  # of the candidate: one of the gate would duplicate the input bias
            bias = params["bias"]
            params = {"kernel": params["kernel"], "bias": jnp.concatenate([jnp.zeros_like(bias), bias])}
        r = base.affine(params, y)
        # The candidate's matmul has the same input as this one: y, or y with a regularizer's mask.
        return (r, y) if self.reset == "before" else r

    def update(
        self,
        params: base.PyTree,
        state: base.State,
        z: base.PyTree,
        r: base.PyTree,
        candidate_mask: jax.Array | None = None,
    ) -> base.State:
        gates = self.gates(params, state, z, r)
        n = gates["n"] if candidate_mask is None else gates["n"] * candidate_mask.astype(state.dtype)
        kept, admitted = (state, n) if self.gate_keeps else (n, state)
        return admitted + gates["f"] * (kept - admitted)

    def output(self, state: base.State) -> jax.Array:
        return state.astype(self.dtype or state.dtype)

    def gates(
        self, params: base.PyTree, state: base.State, z: base.PyTree, r: base.PyTree
    ) -> dict[str, jax.Array]:
        """f and n after their activations, `[..., H]`, from the state before the step."""
        wide = state.dtype
        z_f, z_n = jnp.split(z.astype(wide), 2, axis=-1)
        r_f, r_n = r if self.reset == "before" else jnp.split(r, 2, axis=-1)
        f = resolve(self.gate_activation)(z_f + r_f.astype(wide))
        if self.reset == "before":
            r_n = base.matmul(params["kernel"], f.astype(r_n.dtype) * r_n)
        r_n = r_n.astype(wide)
        candidate = f * r_n if self.reset == "after" else r_n
        return {"f": f, "n": resolve(self.candidate_activation)(z_n + candidate)}
