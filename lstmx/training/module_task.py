"""Tasks whose model is a Flax NNX module: for the loop its parameters are plain pytrees."""

from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING:
    # Flax takes a second to import and `--help` needs none of it: the functions below import it when called.
    from flax import nnx


class ModuleTask:
    """Base of tasks whose model is an NNX module: define `build`, and call `split_model` last in `__init__`.

    Attributes:
      model_shapes: shapes and types of the parameters.
    """

    def build(self, key: jax.Array) -> "nnx.Module":
        """Makes the module with newly initialized parameters."""
        raise NotImplementedError

    def split_model(self) -> None:
        """Makes the module without computing anything, so that its errors are raised now."""
        from flax import nnx

        module = nnx.eval_shape(lambda: self.build(jax.random.key(0)))
        module.eval()
        # Once: the loop works on plain trees, which costs a step less than modules do.
        self._graph, self.model_shapes = nnx.split(module)

    def model(self, params: Any) -> Any:
        """The module with the given parameters, in evaluation mode: a loss passes `deterministic=False`."""
        from flax import nnx

        leaves = jax.tree.leaves(params)
        return nnx.merge(self._graph, jax.tree.unflatten(jax.tree.structure(self.model_shapes), leaves))
