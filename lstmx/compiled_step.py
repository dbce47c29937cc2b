"""A step that is compiled ahead of time and owns its weights, for streams."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from lstmx.cells import base
from lstmx.cells.base import Cell, PyTree, State
from lstmx.cells.capabilities import Network, has
from lstmx.implementations import choice
from lstmx.networks import Stack, start
from lstmx.regularizers import Regularized
from lstmx.scan import step


class CompiledStep:
    """A step of a network with fixed parameters, made by `lstmx.compile_step`.

    Attributes:
      batch_shape: the batch axes of inputs, outputs and states.
      input_shape: the shape of an input, `(*batch, D)`.
      dtype: the type of an input.

    Example:
      >>> import lstmx
      >>> cell = lstmx.GRU(4)
      >>> step = lstmx.compile_step(cell, cell.init(jax.random.key(0), input_size=3), batch_shape=(2,))
      >>> step.input_shape, step.dtype
      ((2, 3), dtype('float32'))
    """

    def __init__(
        self,
        run: Callable[[State, Any], tuple[State, Any]],
        initial_state: State,
        batch_shape: tuple[int, ...],
        x: jax.ShapeDtypeStruct,
    ):
        self._run, self._initial = run, initial_state
        self.batch_shape, self.input_shape, self.dtype = batch_shape, x.shape, np.dtype(x.dtype)

    def initial_state(self) -> State:
        """The state before the first step: the learned one where there is one."""
        return self._initial

    def __call__(self, state: State, x: Any) -> tuple[State, Any]:
        """One step.

        Args:
          state: as `initial_state` or the previous call returned it; it is not changed.
          x: `[*batch, D]`, an array of NumPy or JAX.

        Returns:
          `(state, y)`: the state after the step, and the output `[*batch, H]`; arrays of NumPy where the
          step makes no use of XLA (`lstmx.compile_step`), else of JAX.

        Raises:
          ValueError: if a shape or type is not that for which the step is compiled, or the state is that of
            another network.
        """
        try:
            fits = x.shape == self.input_shape and x.dtype == self.dtype
        except AttributeError:
            raise TypeError(f"x must be an array, got {base.described(x)}") from None
        if not fits:
            raise ValueError(
                f"x must have the shape and type that the step is compiled for, {list(self.input_shape)} in "
                f"{self.dtype.name}, got {list(x.shape)} in {x.dtype}"
            )
        try:
            return self._run(state, x)
        except Exception:
            self._check_state(state)
            raise

    def _check_state(self, state: State) -> None:
        wanted, given = (_signature(tree) for tree in (self._initial, state))
        if wanted != given:
            raise ValueError(
                f"state must be one that this step returned, or its initial state: {wanted}, got {given}"
            ) from None


def compile_step(
    network: Cell | Network,
    params: PyTree,
    batch_shape: tuple[int, ...] = (1,),
    *,
    dtype: DTypeLike | None = None,
) -> CompiledStep:
    """Compiles one step of a cell or network with fixed parameters, for streams.

    The numbers are those of `lstmx.step`, but a call takes less time: the weights are handed over once, and
    for plain layers of LSTM, GRU or Elman cells on a CPU with `"native"` kernels the call does not go through
    XLA. It cannot be differentiated, mapped or called in a jitted function.

    Args:
      network: the cell, or a network without a backward direction.
      params: its parameters, which are copied: later changes have no effect.
      batch_shape: the batch axes of x; `()` for a single sequence without a batch axis.
      dtype: the type of x; None for that of the parameters.

    Returns:
      `step` with `state = step.initial_state()` and `state, y = step(state, x)`.

    Raises:
      ValueError: if the batch shape is wrong.
      TypeError: if the parameters are not those of the network, or the network reads whole sequences, as a
        `Bidirectional` does.

    Example:
      >>> import jax, numpy as np, lstmx
      >>> cell = lstmx.LSTM(4)
      >>> step = lstmx.compile_step(cell, cell.init(jax.random.key(0), input_size=3))
      >>> state = step.initial_state()
      >>> for x in np.ones((5, 1, 3), np.float32):
      ...     state, y = step(state, x)
      >>> y.shape
      (1, 4)
    """
    batch_shape = _checked(batch_shape)
    if dtype is None:
        dtype = jnp.result_type(*jax.tree.leaves(params))
    if not has(network, Network):
        base.require_params_type(cast(Cell, network), params)
    features = cast(Any, network).input_shape(params)
    x = jax.ShapeDtypeStruct((*batch_shape, *features), dtype)
    state = start(network, params, batch_shape)
    # Refuses what has no step, and brings the state to the types that a step returns.
    after, _ = jax.eval_shape(lambda state, x: step(network, params, state, x), state, x)
    state = jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), state, after)
    run = _outside_of_xla(network, params, x)
    if run is not None:
        state = jax.tree.map(np.asarray, state)
    else:
        function = jax.jit(lambda state, x: step(network, params, state, x))
        run = function.lower(state, x).compile()
    return CompiledStep(run, state, batch_shape, x)


def _outside_of_xla(network: Cell | Network, params: PyTree, x: jax.ShapeDtypeStruct) -> Callable | None:
    """A step by an implementation that has its own, for plain layers."""
    stack = network if isinstance(network, Stack) else None
    if stack is not None and stack.connections != "plain" and len(stack.layers) > 1:
        return None
    cells, parts = ((network,), (params,)) if stack is None else (stack.layers, tuple(params))
    # Without noise most regularizers leave the cell itself.
    cells = tuple(cell.parts[0] if isinstance(cell, Regularized) else cell for cell in cells)
    if any(has(cell, Network) for cell in cells) or x.dtype != jnp.float32:
        return None
    cells = tuple(base.resolved(cell, p, jnp.float32(0)) for cell, p in zip(cells, parts, strict=True))
    xs = jax.ShapeDtypeStruct((1, *x.shape), x.dtype)
    return choice.stepper(cells, parts, xs, stack is not None)


def _checked(batch_shape: Any) -> tuple[int, ...]:
    if not isinstance(batch_shape, tuple) or not all(base.is_integer(n) and n > 0 for n in batch_shape):
        raise ValueError(f"batch_shape must be a tuple of positive integers, got {batch_shape!r}")
    return tuple(map(int, batch_shape))


def _signature(tree: PyTree) -> str:
    """Structure, shapes and types in words."""

    def leaf_in_words(leaf):
        return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else repr(leaf)

    return str(jax.tree.map(leaf_in_words, tree)).replace("'", "")
