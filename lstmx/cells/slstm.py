"""sLSTM: the LSTM with exponential gates and a normaliser, of xLSTM (Beck et al. 2024)."""

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lstmx.cells import base, initializers
from lstmx.cells.initializers import Initializer


class SLSTMState(NamedTuple):
    """State of an sLSTM, all `[*batch, H]`: cell `c`, normaliser `n`, stabiliser `m` and output `h`.

    `c * exp(m)` and `n * exp(m)` are the cell and the normaliser of the equations without stabiliser. Where n
    is zero nothing has been stored yet, and c and m are not read.
    """

    c: jax.Array
    n: jax.Array
    m: jax.Array
    h: jax.Array


@dataclasses.dataclass(frozen=True)
class SLSTM:
    """sLSTM cell.

        i, f, g, o = split(x_t W + b + h_{t-1} U)
        c_t = F * c_{t-1} + exp(i) * tanh(g)         F = sigmoid(f), or exp(f) with forget_gate="exp"
        n_t = F * n_{t-1} + exp(i)
        h_t = sigmoid(o) * c_t / n_t

    A stabiliser, which cancels in c / n and is part of the state, keeps the exponentials in range:

        m_t = max(i, log F + m_{t-1})                i where n_{t-1} = 0: the first step, or one after a reset
        c_t = exp(log F + m_{t-1} - m_t) * c_{t-1} + exp(i - m_t) * tanh(g), and n_t alike

    From the initial state on, n_t >= 1 and |h_t| <= 1 in every step, so that nothing is divided by zero.

    Attributes:
      hidden_size: H, the number of units.
      num_heads: N; units feed back only to units of the same head.
      forget_gate: `"sigmoid"` or `"exp"`.
      forget_bias: initial value of the forget gate's bias (Jozefowicz et al. 2015: 1). The authors' code
        spreads it from 5 down to -7 over the units of a head, by a power that depends on the layer's depth.
      use_bias: whether there is a bias; without one `forget_bias` has no effect.
      dtype: type of the matmuls and of h; None promotes from parameters and inputs. c, n and m are kept in
        float32 at least.
      param_dtype: type in which the parameters are stored.
      kernel_init: initializer of `input.kernel`, called for each gate; None for the default. Initializers are
        functions `(key, shape, dtype)` such as `jax.nn.initializers.normal()`.
      recurrent_init: initializer of `recurrent.kernel`; None for zeros.
      bias_init: initializer of the bias, to which `forget_bias` is added; None for zeros.

    Parameters: `input.kernel` `[D, 4H]`, `input.bias` `[4H]`, `recurrent.kernel` `[H, 4H]`, with more than
    one head `[N, H/N, 4, H/N]`; gates in the order i, f, g, o (g is z in the paper). The recurrent kernel
    starts at zero, as in the authors' code.

    Source: Beck et al., "xLSTM: extended long short-term memory", 2024, section 2.2 and appendix A.

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> from lstmx.cells.slstm import SLSTM
      >>> cell = SLSTM(hidden_size=4, num_heads=2)
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> state, ys = lstmx.scan(cell, params, 1000 * jnp.ones((5, 2, 3)))
      >>> ys.shape, bool(jnp.all(jnp.abs(ys) <= 1)), params.recurrent["kernel"].shape
      ((5, 2, 4), True, (2, 2, 4, 2))
    """

    hidden_size: int
    num_heads: int = 1
    forget_gate: Literal["sigmoid", "exp"] = "sigmoid"
    forget_bias: float = 1.0
    use_bias: bool = True
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer | None = dataclasses.field(default=None, repr=False)
    recurrent_init: Initializer | None = dataclasses.field(default=None, repr=False)
    bias_init: Initializer | None = dataclasses.field(default=None, repr=False)

    num_feature_axes = 1
    has_candidate = True
    input_shape = staticmethod(base.dense_input_shape)
    input_map = staticmethod(base.affine)
    recurrent_map = staticmethod(base.affine)

    def __post_init__(self):
        base.validate(self)
        if self.forget_gate not in ("sigmoid", "exp"):
            raise ValueError(f'forget_gate must be "sigmoid" or "exp", got {self.forget_gate!r}')

    def init(self, key: jax.Array, input_size: int) -> base.Params:
        base.require_sizes(input_size=input_size)
        units, dtype = self.hidden_size, self.param_dtype
        kernel = initializers.input_kernel(key, input_size, units, 4, dtype, self.kernel_init)
        input_params = {"kernel": kernel}
        recurrent_key, bias_key = jax.random.split(jax.random.fold_in(key, 1))
        if self.use_bias:
            bias = initializers.bias(bias_key, units, 4, dtype, self.bias_init)
            forget = slice(units, 2 * units)
            input_params["bias"] = initializers.changed(bias, bias.at[forget].add(self.forget_bias))
        kernel = initializers.recurrent_kernel(
            recurrent_key,
            units,
            units,
            4,
            dtype,
            self.recurrent_init or jax.nn.initializers.zeros,
            self.num_heads,
        )
        return base.Params(input_params, {"kernel": kernel})

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> SLSTMState:
        shape, dtype = (*batch_shape, self.hidden_size), self.dtype or self.param_dtype
        wide = base.carried_dtype(dtype)
        # A buffer for each, so that the state can be donated.
        c, n, m = (jnp.zeros(shape, wide) for _ in range(3))
        return SLSTMState(c=c, n=n, m=m, h=jnp.zeros(shape, dtype))

    def update(
        self,
        params: base.PyTree,
        state: base.State,
        z: base.PyTree,
        r: base.PyTree,
        candidate_mask: jax.Array | None = None,
    ) -> base.State:
        del params
        c, n, m, _ = state
        a = z.astype(c.dtype) + r.astype(c.dtype)
        if candidate_mask is None:
            c, n, m, h = _plain_gates(self.forget_gate, c, n, m, a)
        else:
            c, n, m, h = _gates(self.forget_gate, c, n, m, a, candidate_mask.astype(c.dtype))
        return SLSTMState(c=c, n=n, m=m, h=h.astype(z.dtype))

    def output(self, state: base.State) -> jax.Array:
        return state.h

    def gates(
        self, params: base.PyTree, state: base.State, z: base.PyTree, r: base.PyTree
    ) -> dict[str, jax.Array]:
        """The stabilised i and f, in [0, 1], g and o; from the state before the step."""
        del params
        wide = state.c.dtype
        gates = _activate(self.forget_gate, state.n, state.m, z.astype(wide) + r.astype(wide))
        return dict(zip("ifgo", gates[:4], strict=True))


def _gates(forget_gate, c, n, m, a, candidate_mask=1):
    """`(c_t, n_t, m_t, h_t)` from those of t-1, `[..., H]`, and the pre-activations `a` `[..., 4H]`."""
    i, f, g, o, m, _ = _activate(forget_gate, n, m, a)
    c, n = f * c + i * (g * candidate_mask), f * n + i
    return c, n, m, o * (c / n)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _plain_gates(forget_gate, c, n, m, a):
    return _gates(forget_gate, c, n, m, a)


@_plain_gates.defjvp
def _plain_gates_jvp(forget_gate, primals, tangents):
    # As in the LSTM: one coefficient per tangent, and nine arrays stored for the reverse pass, not nineteen.
    c, n, m, a = primals
    i, f, g, o, m, admits = _activate(forget_gate, n, m, a)
    slopes = jnp.where(admits, f * c, -i * g), jnp.where(admits, f * n, -i)
    c, n = f * c + i * g, f * n + i
    dc, dn, dm, da = tangents
    di, df, dg, do = jnp.split(da, 4, axis=-1)
    # The stabiliser is the larger of two exponents; the gates depend only on their difference.
    if forget_gate == "sigmoid":
        df = jax.nn.sigmoid(-jnp.split(a, 4, axis=-1)[1]) * df
    difference = df + dm - di
    dm = di + jnp.where(admits, 0, difference)
    dc = f * dc + slopes[0] * difference + (i * (1 - g * g)) * dg
    dn = f * dn + slopes[1] * difference
    ratio = c / n
    dh = (o * (1 - o) * ratio) * do + (o / n) * dc - (o * ratio / n) * dn
    return (c, n, m, o * ratio), (dc, dn, dm, dh)


def _activate(forget_gate, n, m, a):
    """Stabilised i and f, tanh(g), sigmoid(o), the next stabiliser, and whether it is the new input's."""
    i, f, g, o = jnp.split(a, 4, axis=-1)
    decayed = m + (jax.nn.log_sigmoid(f) if forget_gate == "sigmoid" else f)
    starts = n == 0
    admits = starts | (i >= decayed)
    m = jnp.where(admits, i, decayed)
    # Where the cell starts there is nothing to keep, and exp(decayed - i) and its derivative may be infinite.
    f = jnp.where(starts, 0, jnp.exp(jnp.where(starts, 0, decayed - m)))
    return jnp.exp(i - m), f, jnp.tanh(g), jax.nn.sigmoid(o), m, admits
