"""The Mogrifier (Melis et al. 2020): input and state gate each other before the cell reads them."""

import dataclasses
from typing import Any, cast

import jax
from jax.typing import DTypeLike

from lstmx.cells import base, initializers
from lstmx.cells.capabilities import HasCandidate, LearnsInitialState, Network, has
from lstmx.cells.initializers import Initializer


@dataclasses.dataclass(frozen=True)
class Mogrifier:
    """A cell whose input and previous output modulate each other in several rounds.

        x <- 2 sigmoid(h Q_1 + b_1) * x
        h <- 2 sigmoid(x R_2 + b_2) * h
        x <- 2 sigmoid(h Q_3 + b_3) * x     and so on, `rounds` times

    and then the cell, applied to the modulated x_t and h_{t-1}. All maps depend on the state and run inside
    of the loop: a step costs `rounds` additional matmuls.

    Attributes:
      cell: any cell with dense inputs, without regularizers (wrap the Mogrifier in those).
      rounds: the number of rounds; the paper finds 5 best.
      rank: of the factorised Q and R; None for full matrices.
      use_bias: whether rounds have biases (not in the paper's equations, but in its code).
      kernel_init: initializer of the rounds' matrices; None for that of input kernels. The cell has its own.
      bias_init: initializer of the rounds' biases; None for zeros.

    Parameters: `update.cell`, those of the cell, and `update.rounds`, for each round `kernel` `[H, D]` or
    `[D, H]` (with a rank `down` and `kernel`) and `bias`.

    Source: Melis, Kocisky & Blunsom, "Mogrifier LSTM", 2020 (eq. 1, 2).

    Example:
      >>> import jax, jax.numpy as jnp, lstmx
      >>> cell = lstmx.Mogrifier(lstmx.LSTM(4), rounds=5, rank=2)
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> state, ys = lstmx.scan(cell, params, jnp.ones((5, 2, 3)))
      >>> ys.shape
      (5, 2, 4)
    """

    cell: base.Cell
    rounds: int = 5
    rank: int | None = None
    use_bias: bool = True
    kernel_init: Initializer | None = dataclasses.field(default=None, repr=False)
    bias_init: Initializer | None = dataclasses.field(default=None, repr=False)

    num_feature_axes = 1

    def __post_init__(self):
        base.require_sizes(rounds=self.rounds, **({} if self.rank is None else {"rank": self.rank}))
        initializers.check(self)
        if has(self.cell, Network):
            raise TypeError(f"a Mogrifier wraps a cell, got the network {type(self.cell).__name__}")
        if self.cell.num_feature_axes != 1:
            raise ValueError(
                f"a Mogrifier needs a cell with one feature axis, {type(self.cell).__name__} has "
                f"{self.cell.num_feature_axes}"
            )

    @property
    def hidden_size(self) -> int:
        """H of the cell."""
        return self.cell.hidden_size

    @property
    def output_size(self) -> int:
        """The features of an output."""
        return base.output_size(self.cell)

    @property
    def dtype(self) -> DTypeLike | None:
        """The compute type of the cell."""
        return self.cell.dtype

    @property
    def param_dtype(self) -> DTypeLike:
        """The stored type of the cell's parameters."""
        return self.cell.param_dtype

    @property
    def learn_initial_state(self) -> bool:
        """Whether the cell's initial state is a parameter."""
        return has(self.cell, LearnsInitialState) and self.cell.learn_initial_state

    @property
    def has_candidate(self) -> bool:
        """Whether the cell has a candidate that a regularizer can drop."""
        return has(self.cell, HasCandidate) and self.cell.has_candidate

    def with_dtype(self, dtype: DTypeLike) -> "Mogrifier":
        """The same, computing in `dtype`."""
        inits: dict[str, Any] = dict.fromkeys(initializers.names_in(self))
        return dataclasses.replace(self, cell=base.with_dtype(self.cell, dtype), **inits)

    def init(self, key: jax.Array, input_size: int) -> base.Params:
        cell_key, *keys = jax.random.split(key, 1 + self.rounds)
        inner = self.cell.init(cell_key, input_size)
        sizes = (self.output_size, input_size)
        rounds = tuple(self._round(k, *(sizes if n % 2 == 0 else sizes[::-1])) for n, k in enumerate(keys))
        update = {"cell": inner._replace(initial=()), "rounds": rounds}
        return base.Params(input=(), recurrent=(), update=update, initial=inner.initial)

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> base.State:
        return self.cell.initial_state(batch_shape)

    def input_shape(self, params: base.Params) -> tuple[int, ...]:
        return self.cell.input_shape(params.update["cell"])

    def input_map(self, params: base.PyTree, x: jax.Array) -> base.PyTree:
        return x

    def recurrent_map(self, params: base.PyTree, y: jax.Array) -> base.PyTree:
        return y

    def update(
        self, params: base.PyTree, state: base.State, z: base.PyTree, r: base.PyTree, **options: Any
    ) -> base.State:
        x, h = self._mogrified(params["rounds"], z, r)
        inner = params["cell"]
        z, r = self.cell.input_map(inner.input, x), self.cell.recurrent_map(inner.recurrent, h)
        return self.cell.update(inner.update, state, z, r, **options)

    def output(self, state: base.State) -> jax.Array:
        return self.cell.output(state)

    def gates(
        self, params: base.PyTree, state: base.State, z: base.PyTree, r: base.PyTree
    ) -> dict[str, jax.Array]:
        """Those of the cell."""
        x, h = self._mogrified(params["rounds"], z, r)
        inner = params["cell"]
        z, r = self.cell.input_map(inner.input, x), self.cell.recurrent_map(inner.recurrent, h)
        return cast(Any, self.cell).gates(inner.update, state, z, r)

    def _mogrified(self, rounds, x, h):
        for n, params in enumerate(rounds):
            if n % 2 == 0:
                x = _modulation(params, h) * x
            else:
                h = _modulation(params, x) * h
        return x, h

    def _round(self, key, size, to_size):
        def kernel(key, size, to_size):
            return initializers.input_kernel(key, size, to_size, 1, self.param_dtype, self.kernel_init)

        params = {}
        if self.use_bias:
            bias_key = jax.random.fold_in(key, 2)
            params["bias"] = initializers.bias(bias_key, to_size, 1, self.param_dtype, self.bias_init)
        if self.rank is None:
            return {"kernel": kernel(key, size, to_size), **params}
        down_key, up_key = jax.random.split(key)
        return {
            "down": kernel(down_key, size, self.rank),
            "kernel": kernel(up_key, self.rank, to_size),
            **params,
        }


def _modulation(params, x):
    if "down" in params:
        x = base.matmul(params["down"], x)
    a = base.affine({name: params[name] for name in params if name != "down"}, x)
    wide = base.carried_dtype(a.dtype)
    return (2 * jax.nn.sigmoid(a.astype(wide))).astype(a.dtype)
