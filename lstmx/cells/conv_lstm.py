"""Convolutional LSTM (Shi et al. 2015), in one, two or three dimensions."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from lstmx.cells import activations, base, initializers, lstm
from lstmx.cells.activations import Activation, resolve
from lstmx.cells.initializers import Initializer
from lstmx.cells.lstm import LSTMState

_AXES = {1: "W", 2: "HW", 3: "DHW"}


@dataclasses.dataclass(frozen=True)
class ConvLSTM:
    """ConvLSTM cell: an LSTM at every point of a grid, connected to its neighbours.

        i, f, g, o = split(W * x_t + b + U * h_{t-1})       * is a convolution
        i += p_i c_{t-1},  f += p_f c_{t-1},  o += p_o c_t   with peephole=True
        c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)
        h_t = sigmoid(o) tanh(c_t)

    Inputs are `[*batch, *spatial_shape, D]`, channels last, outputs and both leaves of the state
    `[*batch, *output_shape, H]`.

    Attributes:
      hidden_size: H, the number of channels of the state.
      spatial_shape: one, two or three sizes, of the inputs.
      kernel_size: of both convolutions, a number or one for each dimension.
      strides: of the convolution of the inputs; that of the states has stride 1.
      dilation: of the convolution of the inputs; that of the states has none.
      padding: of the convolution of the inputs, `"same"` or `"valid"`; that of the states is padded with
        zeros to keep their shape.
      peephole: whether the gates read the cell, with a weight for each place, as in the paper.
      forget_bias: initial value of the forget gate's bias (Jozefowicz et al. 2015: 1).
      use_bias: whether there is a bias; without one `forget_bias` has no effect.
      gate_activation: of i, f and o: a name, or a name with numbers (`lstmx.cells.activations`).
      candidate_activation: of g.
      output_activation: of c_t in h_t.
      learn_initial_state: whether the initial state is a parameter (initially zero).
      dtype: type of the convolutions; None promotes from parameters and inputs. `c` is kept in float32 at
        least.
      param_dtype: type in which the parameters are stored.
      kernel_init: initializer of `input.kernel`, called for each gate; None for the default. Initializers are
        functions `(key, shape, dtype)` such as `jax.nn.initializers.normal()`.
      recurrent_init: initializer of `recurrent.kernel`; None for orthogonal.
      bias_init: initializer of the bias, to which `forget_bias` is added; None for zeros.

    Parameters: `input.kernel` `[*kernel_size, D, 4H]`, `input.bias` `[4H]`, `recurrent.kernel`
    `[*kernel_size, H, 4H]`, gates in the order i, f, g, o; `update.peephole` with `i`, `f` and `o`, each
    `[*output_shape, H]`.

    Source: Shi et al., "Convolutional LSTM network: a machine learning approach for precipitation
    nowcasting", 2015, eq. 3.

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> from lstmx.cells.conv_lstm import ConvLSTM
      >>> cell = ConvLSTM(hidden_size=4, spatial_shape=(8, 6), kernel_size=3, strides=2)
      >>> params = cell.init(jax.random.key(0), input_size=1)
      >>> state, ys = lstmx.scan(cell, params, jnp.ones((5, 2, 8, 6, 1)))  # T=5, B=2
      >>> ys.shape, state.c.shape
      ((5, 2, 4, 3, 4), (2, 4, 3, 4))
    """

    hidden_size: int
    spatial_shape: tuple[int, ...]
    kernel_size: int | tuple[int, ...] = 3
    strides: int | tuple[int, ...] = 1
    dilation: int | tuple[int, ...] = 1
    padding: Literal["same", "valid"] = "same"
    peephole: bool = False
    forget_bias: float = 1.0
    use_bias: bool = True
    gate_activation: Activation = "sigmoid"
    candidate_activation: Activation = "tanh"
    output_activation: Activation = "tanh"
    learn_initial_state: bool = False
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer | None = dataclasses.field(default=None, repr=False)
    recurrent_init: Initializer | None = dataclasses.field(default=None, repr=False)
    bias_init: Initializer | None = dataclasses.field(default=None, repr=False)

    has_candidate = True

    def __post_init__(self):
        base.validate(self)
        activations.check(self, "gate_activation", "candidate_activation", "output_activation")
        sizes = _sizes("spatial_shape", self.spatial_shape)
        if len(sizes) not in _AXES:
            raise ValueError(f"spatial_shape must have 1, 2 or 3 sizes, got {sizes}")
        object.__setattr__(self, "spatial_shape", sizes)
        for name in ("kernel_size", "strides", "dilation"):
            object.__setattr__(self, name, _sizes(name, getattr(self, name), len(sizes)))
        if self.padding not in ("same", "valid"):
            raise ValueError(f'padding must be "same" or "valid", got {self.padding!r}')
        if min(self.output_shape) < 1:
            raise ValueError(
                f"spatial_shape {sizes} is smaller than the kernel: kernel_size {self.kernel_size} with "
                f'dilation {self.dilation} and padding "valid" leaves {self.output_shape}'
            )

    @property
    def num_feature_axes(self) -> int:
        """The spatial axes and the channels."""
        return len(self.spatial_shape) + 1

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The spatial axes of the state and of the outputs."""
        axes = zip(
            self.spatial_shape, *map(self._by_axis, ("kernel_size", "strides", "dilation")), strict=True
        )
        if self.padding == "same":
            return tuple(-(-n // stride) for n, _, stride, _ in axes)
        return tuple(max(0, (n - (k - 1) * d - 1) // stride + 1) for n, k, stride, d in axes)

    def _by_axis(self, name: str) -> tuple[int, ...]:
        """A size that was given for all axes or for each, which `__post_init__` has made one for each."""
        return getattr(self, name)

    def init(self, key: jax.Array, input_size: int) -> base.Params:
        base.require_sizes(input_size=input_size)
        units, dtype = self.hidden_size, self.param_dtype
        input_key, recurrent_key = jax.random.split(key)
        rows = (*self._by_axis("kernel_size"), input_size)
        kernel = initializers.input_kernel(input_key, rows, units, 4, dtype, self.kernel_init)
        input_params = {"kernel": kernel}
        if self.use_bias:
            bias_key = jax.random.fold_in(key, 2)
            bias = initializers.bias(bias_key, units, 4, dtype, self.bias_init)
            forget = slice(units, 2 * units)
            input_params["bias"] = initializers.changed(bias, bias.at[forget].add(self.forget_bias))
        rows = (*self._by_axis("kernel_size"), units)
        kernel = initializers.recurrent_kernel(recurrent_key, rows, units, 4, dtype, self.recurrent_init)
        recurrent = {"kernel": kernel}
        update: base.PyTree = ()
        if self.peephole:
            shape = (*self.output_shape, units)
            # A buffer for each gate, so that the parameters can be donated.
            update = {"peephole": {name: jnp.zeros(shape, dtype) for name in "ifo"}}
        return base.Params(input_params, recurrent, update, base.initial_params(self))

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> LSTMState:
        shape, dtype = (*batch_shape, *self.output_shape, self.hidden_size), self.dtype or self.param_dtype
        return LSTMState(c=jnp.zeros(shape, base.carried_dtype(dtype)), h=jnp.zeros(shape, dtype))

    def input_shape(self, params: base.Params) -> tuple[int, ...]:
        return (*self.spatial_shape, params.input["kernel"].shape[-2])

    def input_map(self, params: base.PyTree, x: jax.Array) -> base.PyTree:
        return _convolve(params, x, self.strides, self.dilation, self.padding)

    def recurrent_map(self, params: base.PyTree, y: jax.Array) -> base.PyTree:
        ones = (1,) * len(self.spatial_shape)
        return _convolve(params, y, ones, ones, "same")

    def update(
        self,
        params: base.PyTree,
        state: base.State,
        z: base.PyTree,
        r: base.PyTree,
        candidate_mask: jax.Array | None = None,
    ) -> base.State:
        wide = state.c.dtype
        if candidate_mask is None and self._is_plain:
            c, h = lstm.plain_gates(state.c, z.astype(wide) + r.astype(wide))
            return LSTMState(c=c, h=h.astype(z.dtype))
        gates, c = self._gates_and_cell(params, state, z, r, candidate_mask)
        h = gates["o"] * resolve(self.output_activation)(c)
        return LSTMState(c=c, h=h.astype(z.dtype))

    def output(self, state: base.State) -> jax.Array:
        return state.h

    def gates(
        self, params: base.PyTree, state: base.State, z: base.PyTree, r: base.PyTree
    ) -> dict[str, jax.Array]:
        """i, f, g, o after their activations, of the shape of c, from the state before the step."""
        return self._gates_and_cell(params, state, z, r)[0]

    @property
    def _is_plain(self) -> bool:
        functions = self.gate_activation, self.candidate_activation, self.output_activation
        return functions == ("sigmoid", "tanh", "tanh") and not self.peephole

    def _gates_and_cell(self, params, state, z, r, candidate_mask=None):
        """The gates by name, and c_t."""
        wide = state.c.dtype
        a = dict(zip("ifgo", jnp.split(z.astype(wide) + r.astype(wide), 4, axis=-1), strict=True))

        def gate(name, c):
            peephole = params["peephole"][name].astype(wide) * c if self.peephole else 0
            return resolve(self.gate_activation)(a[name] + peephole)

        i, f = gate("i", state.c), gate("f", state.c)
        g = resolve(self.candidate_activation)(a["g"])
        c = f * state.c + i * (g if candidate_mask is None else g * candidate_mask.astype(wide))
        return {"i": i, "f": f, "g": g, "o": gate("o", c)}, c


def _sizes(name: str, value, count: int | None = None) -> tuple[int, ...]:
    """`value` as a tuple of `count` sizes; a single number stands for all."""
    single = not isinstance(value, tuple | list)
    sizes = (value,) * (count or 1) if single else tuple(value)
    for size in sizes:
        if not base.is_integer(size):
            raise TypeError(f"{name} must consist of integers, got {value!r}")
        if size < 1:
            raise ValueError(f"{name} must be at least 1 in every dimension, got {value!r}")
    if count is not None and len(sizes) != count:
        raise ValueError(
            f"{name} must be a number or have {count} of them, as spatial_shape has, got {value!r}"
        )
    return tuple(map(int, sizes))


def _convolve(params, x, strides, dilation, padding) -> jax.Array:
    """`[*rows, *spatial, D]` to `[*rows, *spatial, K]`, in the type of `x`, with the bias if there is one."""
    kernel = params["kernel"].astype(x.dtype)
    axes = _AXES[len(strides)]
    features = len(strides) + 1
    rows, shape = x.shape[: x.ndim - features], x.shape[x.ndim - features :]
    z = lax.conv_general_dilated(
        x.reshape(math.prod(rows), *shape),
        kernel,
        strides,
        padding.upper(),
        rhs_dilation=dilation,
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
    )
    if "bias" in params:
        wide = base.carried_dtype(z.dtype)
        z = (z.astype(wide) + params["bias"].astype(wide)).astype(z.dtype)
    return z.reshape(*rows, *z.shape[1:])
