"""What a cell may offer besides the protocol `Cell`, and what makes a network: each a protocol of its own.

Nothing is inherited. `has` tells whether an object offers what a protocol describes, and is the only place
that looks; wrappers may pass on what the cell inside of them offers.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeGuard, TypeVar

import jax
from jax.typing import DTypeLike

PyTree = Any
Capability = TypeVar("Capability")


class HasOutputSize(Protocol):
    """A cell whose outputs do not have `hidden_size` features."""

    output_size: int


class LearnsInitialState(Protocol):
    """A cell whose `init` fills `Params.initial`, if `learn_initial_state` is True."""

    learn_initial_state: bool


class HasGates(Protocol):
    """A cell whose gates have names, for `return_states="gates"`."""

    def gates(self, params: PyTree, state: PyTree, z: PyTree, r: PyTree) -> dict[str, jax.Array]:
        """The gates of a step by name."""


class HasCandidate(Protocol):
    """A cell whose `update` takes a `candidate_mask`, for update dropout, if `has_candidate` is True."""

    has_candidate: bool


class MasksByGate(Protocol):
    """A cell each of whose gates can read a recurrent input of its own; not if `num_gates_masked` is None."""

    num_gates_masked: int | None

    def recurrent_map_by_gate(self, params: PyTree, ys: list[jax.Array]) -> PyTree:
        """`recurrent_map` with one output for each gate."""


class IsLinear(Protocol):
    """A cell that is linear in its state, for `implementation="associative"`."""

    def coefficients(self, params: PyTree, z: PyTree) -> tuple[PyTree, PyTree]:
        """a and b of `s_t = a_t s_{t-1} + b_t`."""


class SetsOwnDtype(Protocol):
    """A wrapper of a cell, which has no field `dtype` of its own."""

    def with_dtype(self, dtype: DTypeLike) -> Any:
        """The same, its cell computing in `dtype`."""


class DrawsNoise(Protocol):
    """A wrapper that draws noise before the loop (`lstmx.Regularized`).

    Both `recurrent_map` and `update` then take it as a last argument.
    """

    def noise(self, key: jax.Array, steps: int, batch_shape: tuple[int, ...]) -> Any:
        """The noise of one run, a `Noise`."""


class Network(Protocol):
    """Cells composed: `lstmx.Stack`, `lstmx.Bidirectional` and `lstmx.Regularized`.

    A network runs itself, by calls of `lstmx.scan` and `lstmx.step` for its parts.
    """

    @property
    def num_feature_axes(self) -> int:
        """The number of feature axes of an input."""

    @property
    def dtype(self) -> DTypeLike | None:
        """The compute type."""

    @property
    def parts(self) -> tuple[Any, ...]:
        """Its cells and networks, in the order of its parameters and states."""

    @property
    def scan(self) -> Callable[..., Any]:
        """See `lstmx.scan`; the first argument is `params`."""

    @property
    def step(self) -> Callable[..., Any]:
        """See `lstmx.step`; the first argument is `params`."""

    @property
    def init(self) -> Callable[[jax.Array, int], PyTree]:
        """Draws the parameters of all cells."""

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> PyTree:
        """The states of all cells before the first step."""

    @property
    def start(self) -> Callable[..., Any]:
        """The state before the first step, learned where it is, from `params` and `batch_shape`."""


class IsStochastic(Protocol):
    """A network that computes something else when it is given a key, if `is_stochastic` is True."""

    is_stochastic: bool


def has(cell: Any, capability: type[Capability]) -> TypeGuard[Capability]:
    """Whether a cell or network has all members of one of the protocols above.

    Args:
      cell: the cell or network.
      capability: the protocol.

    Example:
      >>> import lstmx
      >>> has(lstmx.LSTM(4), HasGates), has(lstmx.LSTM(4), IsLinear), has(lstmx.MinLSTM(4), IsLinear)
      (True, False, True)
    """
    # Not isinstance: from Python 3.12 on it does not see what `__getattr__` passes on.
    return all(hasattr(cell, name) for name in _members(capability))


def _members(capability: type) -> list[str]:
    names = [*capability.__annotations__, *vars(capability)]
    return [name for name in names if not name.startswith("_")]
