"""What the tasks of this folder share: an NNX module whose parameters the loop knows as plain trees."""

from typing import Any

import jax
from flax import nnx


class ModuleTask:
    """A task whose model is an NNX module: `build` makes it, `split_model` comes last in the construction.

    Attributes:
      model_shapes: shapes and types of the parameters.
    """

    def build(self, key: jax.Array) -> nnx.Module:
        """The module with fresh parameters."""
        raise NotImplementedError

    def split_model(self) -> None:
        """Makes the module without computing anything; what it refuses is refused now."""
        # Once: the loop works on plain trees, which costs a step less than modules do.
        self._graph, self.model_shapes = nnx.split(nnx.eval_shape(lambda: self.build(jax.random.key(0))))

    def model(self, params) -> Any:
        """The module with the given parameters."""
        leaves = jax.tree.leaves(params)
        return nnx.merge(self._graph, jax.tree.unflatten(jax.tree.structure(self.model_shapes), leaves))
