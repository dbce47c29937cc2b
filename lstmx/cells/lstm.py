"""Long short-term memory and its variants."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lstmx.cells import activations, base, initializers
from lstmx.cells.activations import Activation, resolve
from lstmx.cells.initializers import Initializer


class LSTMState(NamedTuple):
    """State of an LSTM: cell `c` `[*batch, H]` and output `h` `[*batch, H or P]`; a Flax carry `(c, h)`."""

    c: jax.Array
    h: jax.Array


class LSTMGatesState(NamedTuple):
    """State of an LSTM with gate recurrence: also its gates i, f, o, `[*batch, G * H]`."""

    c: jax.Array
    gates: jax.Array
    h: jax.Array


@dataclasses.dataclass(frozen=True)
class LSTM:
    """LSTM cell.

        i, f, g, o = split(x_t W + b + h_{t-1} U)
        c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g)
        h_t = sigmoid(o) * tanh(c_t)

    and its variants, options that combine freely (equations in docs/cells.md).

    Attributes:
      hidden_size: H, the number of units.
      forget_bias: initial value of the forget gate's bias (Jozefowicz et al. 2015: 1). It is added only by
        `init`, never at run time.
      use_bias: whether there is a bias; without one `forget_bias` has no effect.
      peephole: whether i and f read c_{t-1} and o reads c_t, unit by unit (Gers et al. 2002).
      input_gate: `"full"`, `"coupled"` (i = 1 - f; Greff et al. 2015: CIFG), `"capped"` (min(i, 1 - f), which
        bounds c; Melis et al. 2018) or `"none"` (i = 1).
      forget_gate: False for f = 1, the LSTM of 1997.
      output_gate: False for o = 1.
      gate_recurrence: whether i, f and o read the gates of t-1 through matrices (Greff et al. 2015: FGR).
      gate_activation: of i, f and o; a name, or a name with numbers (`lstmx.cells.activations`).
      candidate_activation: of g; `"identity"` for none.
      output_activation: of c_t on its way to h_t; `"identity"` for none.
      layer_norm: `"ba"` (Ba et al. 2016: over all gates jointly, x_t W and h_{t-1} U separately; c normalised
        only in h), `"fastrnns"` (as in torch's benchmark and TensorFlow Addons: c carried over normalised),
        `"per_gate"` (as in TFLite: the pre-activation of each gate; c not normalised), or None.
      layer_norm_epsilon: added to variances.
      projection_size: P, for h_t = (o * tanh(c_t)) R (Sak et al. 2014); None for no projection.
      gate_clip: limit of the magnitude of the pre-activations (ONNX's `clip`).
      cell_clip: limit of the magnitude of c_t (TensorFlow's `cell_clip`).
      projection_clip: limit of the magnitude of the projected h_t.
      num_heads: N blocks on the diagonal of U; units of different heads interact only in the next layer.
      chrono: T_max, for biases drawn so that memories last from 1 to T_max steps:
        b_f = log(Uniform(1, T_max - 1)), b_i = -b_f (Tallec & Ollivier 2018); None for `forget_bias`.
      learn_initial_state: whether the initial state is a parameter (initially zero).
      dtype: type of the matmuls; None promotes from parameters and inputs. `c` is kept in float32 at least.
      param_dtype: type in which the parameters are stored.
      kernel_init: initializer of `input.kernel`, called for each gate, and of `projection`; None for the
        default. Initializers are functions `(key, shape, dtype)` such as `jax.nn.initializers.normal()`.
      recurrent_init: initializer of `recurrent.kernel` (None for orthogonal) and `gate_recurrence` (None for
        that of kernels).
      bias_init: initializer of the bias, to which `forget_bias` is added; `chrono` draws b_f and b_i instead.
        None for zeros.

    Parameters: `input.kernel` `[D, K]`, `input.bias` `[K]`, `recurrent.kernel` `[H, K]`; K = 4H, gates in the
    order i, f, g, o, without those that an option removes. With heads `recurrent.kernel` is
    `[N, H/N, K/H, H/N]`, one block per head. In `update`, depending on the options: `peephole.i`, `.f`, `.o`
    `[H]`, `projection` `[H, P]` (`recurrent.kernel` is then `[P, K]`), `gate_recurrence` `[G * H, G * H]`,
    and the layer norms' scales and biases.

    Raises:
      ValueError: if options contradict each other, with the reason.

    Source: Hochreiter & Schmidhuber, "Long short-term memory", 1997; Gers, Schmidhuber & Cummins,
    "Learning to forget", 2000; Greff et al., "LSTM: a search space odyssey", 2015.

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> cell = lstmx.LSTM(hidden_size=4, peephole=True)
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> state, ys = lstmx.scan(cell, params, jnp.ones((5, 2, 3)))  # T=5, B=2, D=3
      >>> ys.shape, state.c.shape
      ((5, 2, 4), (2, 4))
    """

    hidden_size: int
    forget_bias: float = 1.0
    use_bias: bool = True
    peephole: bool = False
    input_gate: Literal["full", "coupled", "capped", "none"] = "full"
    forget_gate: bool = True
    output_gate: bool = True
    gate_recurrence: bool = False
    gate_activation: Activation = "sigmoid"
    candidate_activation: Activation = "tanh"
    output_activation: Activation = "tanh"
    layer_norm: Literal["ba", "fastrnns", "per_gate"] | None = None
    layer_norm_epsilon: float = 1e-5
    projection_size: int | None = None
    gate_clip: float | None = None
    cell_clip: float | None = None
    projection_clip: float | None = None
    num_heads: int = 1
    chrono: float | None = None
    learn_initial_state: bool = False
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer | None = dataclasses.field(default=None, repr=False)
    recurrent_init: Initializer | None = dataclasses.field(default=None, repr=False)
    bias_init: Initializer | None = dataclasses.field(default=None, repr=False)

    num_feature_axes = 1
    has_candidate = True
    input_shape = staticmethod(base.dense_input_shape)
    recurrent_map = staticmethod(base.affine)
    recurrent_map_by_gate = staticmethod(base.affine_by_gate)

    def __post_init__(self):
        base.validate(self)
        activations.check(self, "gate_activation", "candidate_activation", "output_activation")
        _refuse_contradictions(self)

    @property
    def gate_names(self) -> tuple[str, ...]:
        """The gates that have parameters, in their order: i, f, g, o or fewer."""
        absent = {
            "i": self.input_gate in ("coupled", "none"),
            "f": not self.forget_gate,
            "o": not self.output_gate,
        }
        return tuple(name for name in "ifgo" if not absent.get(name, False))

    @property
    def output_size(self) -> int:
        """The features of an output: P if there is a projection, else H."""
        return self.projection_size or self.hidden_size

    @property
    def num_gates_masked(self) -> int | None:
        """The number of gates that can each read a separately masked h; None with heads."""
        return len(self.gate_names) if self.num_heads == 1 else None

    def init(self, key: jax.Array, input_size: int) -> base.Params:
        base.require_sizes(input_size=input_size)
        units, gates, dtype = self.hidden_size, len(self.gate_names), self.param_dtype
        input_key, recurrent_key = jax.random.split(key)
        bias_key, extra_key = jax.random.split(jax.random.fold_in(key, 2))
        kernel = initializers.input_kernel(input_key, input_size, units, gates, dtype, self.kernel_init)
        input_params = {"kernel": kernel}
        bias = {"bias": self._bias(bias_key)} if self.use_bias else {}
        update = self._update_params(extra_key)
        if self.layer_norm == "per_gate":
            update |= {"scale": jnp.ones(gates * units, dtype), **bias}
        else:
            input_params |= bias
        if self.layer_norm in ("ba", "fastrnns"):
            input_params["scale"] = jnp.ones(gates * units, dtype)
        kernel = initializers.recurrent_kernel(
            recurrent_key, self.output_size, units, gates, dtype, self.recurrent_init, self.num_heads
        )
        return base.Params(input_params, {"kernel": kernel}, update or (), base.initial_params(self))

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> LSTMState | LSTMGatesState:
        dtype = self.dtype or self.param_dtype
        wide = base.carried_dtype(dtype)
        c = jnp.zeros((*batch_shape, self.hidden_size), wide)
        h = jnp.zeros((*batch_shape, self.output_size), dtype)
        if not self.gate_recurrence:
            return LSTMState(c=c, h=h)
        size = self.hidden_size * len(self._gates_proper)
        return LSTMGatesState(c=c, h=h, gates=jnp.zeros((*batch_shape, size), dtype))

    def input_map(self, params: base.PyTree, x: jax.Array) -> base.PyTree:
        if self.layer_norm not in ("ba", "fastrnns"):
            return base.affine(params, x)
        z = base.matmul(params["kernel"], x)
        # Independent of time: normalised here, outside of the loop, like the matmul.
        wide = z.astype(base.carried_dtype(z.dtype))
        return self._normalised(wide, params["scale"], params.get("bias")).astype(z.dtype)

    def update(
        self,
        params: base.PyTree,
        state: base.State,
        z: base.PyTree,
        r: base.PyTree,
        candidate_mask: jax.Array | None = None,
    ) -> base.State:
        wide = state.c.dtype
        if candidate_mask is None and self.is_plain:
            c, h = plain_gates(state.c, z.astype(wide) + r.astype(wide))
            return LSTMState(c=c, h=h.astype(z.dtype))
        gates, c = self._gates_and_cell(params, state, z, r, candidate_mask)
        visible = c
        if self.layer_norm == "ba":
            visible = self._normalised(c, params["cell_scale"], params["cell_bias"])
        h = (gates["o"] * resolve(self.output_activation)(visible)).astype(z.dtype)
        if self.projection_size is not None:
            h = _clipped(base.matmul(params["projection"], h), self.projection_clip)
        if not self.gate_recurrence:
            return LSTMState(c=c, h=h)
        proper = [gates[name].astype(z.dtype) for name in self._gates_proper]
        return LSTMGatesState(c=c, h=h, gates=jnp.concatenate(proper, axis=-1))

    def output(self, state: base.State) -> jax.Array:
        return state.h

    def gates(
        self, params: base.PyTree, state: base.State, z: base.PyTree, r: base.PyTree
    ) -> dict[str, jax.Array]:
        """i, f, g, o after their activations, `[..., H]`, from the state before the step."""
        gates, _ = self._gates_and_cell(params, state, z, r)
        return {name: jnp.broadcast_to(gate, state.c.shape) for name, gate in gates.items()}

    @property
    def _gates_proper(self) -> tuple[str, ...]:
        return tuple(name for name in self.gate_names if name != "g")

    @property
    def is_plain(self) -> bool:
        """Whether a step is that of Gers et al. 2000."""
        plain = LSTM(self.hidden_size, num_heads=self.num_heads)
        shape = ["forget_bias", "use_bias", "chrono", "learn_initial_state", "dtype", "param_dtype"]
        shape += initializers.FIELDS
        return dataclasses.replace(plain, **{name: getattr(self, name) for name in shape}) == self

    def _gates_and_cell(self, params, state, z, r, candidate_mask=None):
        """The gates by name, and c_t."""
        wide = state.c.dtype
        z, r = z.astype(wide), r.astype(wide)
        if self.layer_norm in ("ba", "fastrnns"):
            r = self._normalised(r, params["recurrent_scale"], params.get("recurrent_bias"))
        a = dict(zip(self.gate_names, jnp.split(z + r, len(self.gate_names), axis=-1), strict=True))
        if self.gate_recurrence:
            recurrence = base.matmul(params["gate_recurrence"], state.gates).astype(wide)
            for name, part in zip(
                self._gates_proper, jnp.split(recurrence, len(self._gates_proper), axis=-1), strict=True
            ):
                a[name] += part

        def gate(name, c):
            if self.peephole and name in params["peephole"]:
                a[name] += params["peephole"][name].astype(wide) * c
            if self.layer_norm == "per_gate":
                a[name] = self._normalised(a[name], *self._part_of(name, params))
            activation = self.candidate_activation if name == "g" else self.gate_activation
            return resolve(activation)(_clipped(a[name], self.gate_clip))

        one = jnp.ones((), wide)
        f = gate("f", state.c) if self.forget_gate else one
        i = gate("i", state.c) if "i" in a else 1 - f if self.input_gate == "coupled" else one
        if self.input_gate == "capped":
            i = jnp.minimum(i, 1 - f)
        g = gate("g", state.c)
        c = f * state.c + i * (g if candidate_mask is None else g * candidate_mask.astype(wide))
        if self.layer_norm == "fastrnns":
            c = self._normalised(c, params["cell_scale"], params["cell_bias"])
        c = _clipped(c, self.cell_clip)
        return {"i": i, "f": f, "g": g, "o": gate("o", c) if self.output_gate else one}, c

    def _normalised(self, x, scale, bias):
        """Layer norm over the last axis."""
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.layer_norm_epsilon)
        x = x * scale.astype(x.dtype)
        return x if bias is None else x + bias.astype(x.dtype)

    def _part_of(self, name, params):
        """Scale and bias of one gate's layer norm."""
        first = self.gate_names.index(name) * self.hidden_size
        rows = slice(first, first + self.hidden_size)
        return params["scale"][rows], params["bias"][rows] if "bias" in params else None

    def _bias(self, key):
        names, dtype = self.gate_names, self.param_dtype
        drawn_key = jax.random.fold_in(key, 1)
        drawn = initializers.bias(drawn_key, self.hidden_size, len(names), dtype, self.bias_init)
        bias = dict(zip(names, jnp.split(drawn, len(names)), strict=True))
        if self.chrono is not None:
            draw = jax.random.uniform(key, (self.hidden_size,), minval=1.0, maxval=self.chrono - 1)
            memory = jnp.log(draw).astype(dtype)
            bias["f"] = memory
            if "i" in bias:
                bias["i"] = -memory
        elif self.forget_gate:
            bias["f"] = bias["f"] + jnp.asarray(self.forget_bias, dtype)
        return initializers.changed(drawn, jnp.concatenate(list(bias.values())))

    def _update_params(self, key):
        units, dtype = self.hidden_size, self.param_dtype
        projection_key, gates_key = jax.random.split(key)
        params = {}
        if self.peephole:
            params["peephole"] = {name: jnp.zeros(units, dtype) for name in self._gates_proper}
        if self.projection_size is not None:
            params["projection"] = initializers.input_kernel(
                projection_key, units, self.projection_size, 1, dtype, self.kernel_init
            )
        if self.gate_recurrence:
            count = len(self._gates_proper)
            draw = initializers.input_kernel if self.recurrent_init is None else initializers.recurrent_kernel
            params["gate_recurrence"] = draw(
                gates_key, count * units, units, count, dtype, self.recurrent_init
            )
        if self.layer_norm in ("ba", "fastrnns"):
            params["recurrent_scale"] = jnp.ones(len(self.gate_names) * units, dtype)
            params |= {"cell_scale": jnp.ones(units, dtype), "cell_bias": jnp.zeros(units, dtype)}
        if self.layer_norm == "fastrnns" and self.use_bias:
            params["recurrent_bias"] = jnp.zeros(len(self.gate_names) * units, dtype)
        return params


def _refuse_contradictions(cell: LSTM) -> None:
    """Raises ValueError for options that contradict each other."""
    if cell.input_gate not in ("full", "coupled", "capped", "none"):
        raise ValueError(f'input_gate must be "full", "coupled", "capped" or "none", got {cell.input_gate!r}')
    if cell.layer_norm not in (None, "ba", "fastrnns", "per_gate"):
        raise ValueError(f'layer_norm must be None, "ba", "fastrnns" or "per_gate", got {cell.layer_norm!r}')
    if not cell.layer_norm_epsilon >= 0:
        raise ValueError(f"layer_norm_epsilon must be at least 0, got {cell.layer_norm_epsilon}")
    if not cell.forget_gate and cell.input_gate in ("coupled", "capped"):
        raise ValueError(
            f"input_gate={cell.input_gate!r} needs the forget gate, which forget_gate=False removes"
        )
    for option in ("peephole", "gate_recurrence"):
        if getattr(cell, option) and cell.gate_names == ("g",):
            raise ValueError(f"{option}=True needs a gate with parameters; all three are removed")
    if cell.projection_clip is not None and cell.projection_size is None:
        raise ValueError(f"projection_clip={cell.projection_clip} needs a projection_size")
    if cell.chrono is None:
        return
    if not cell.forget_gate or not cell.use_bias:
        raise ValueError("chrono draws the forget gate's bias: it needs forget_gate=True and use_bias=True")
    if not cell.chrono > 2:
        raise ValueError(f"chrono, the longest memory in steps, must be more than 2, got {cell.chrono}")
    if cell.forget_bias != 1.0:
        raise ValueError(f"chrono draws the forget gate's bias: forget_bias={cell.forget_bias} has no effect")


def _clipped(x: jax.Array, limit: float | None) -> jax.Array:
    return x if limit is None else jnp.clip(x, -limit, limit)


@jax.custom_jvp
def plain_gates(c: jax.Array, a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`(c_t, h_t)` from `c_{t-1}` `[..., H]` and the pre-activations `a` `[..., 4H]`."""
    i, f, g, o = _activate(a)
    c = f * c + i * g
    return c, o * jnp.tanh(c)


@plain_gates.defjvp
def _plain_gates_jvp(primals, tangents):
    # Written so that every tangent is multiplied by one coefficient. Autodiff then stores these six arrays of
    # H for the reverse pass instead of eleven, and a backward step is six multiplications and the matmul.
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
    sigmoid = activations.sigmoid_of_tanh
    return sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o)
