"""Dynamic evaluation: a model keeps learning from the text that it is evaluated on (Krause et al. 2018).

Each segment of the text is first predicted, then learned from, so that no token is predicted by a model that
was trained on it. These are plain functions of pytrees, independent of the model.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def gradient_scale(gradients: Iterable[PyTree]) -> PyTree:
    """The root mean square of each parameter's gradient over batches of the training text.

    Args:
      gradients: the gradient of each batch, at least one.

    Returns:
      A pytree of the same shapes.

    Raises:
      ValueError: if there are no gradients.

    Example:
      >>> import jax.numpy as jnp
      >>> scale = gradient_scale([jnp.array([3.0, 0.0]), jnp.array([-3.0, 2.0])])
      >>> [round(float(s), 2) for s in scale]
      [3.0, 1.41]
    """
    add = jax.jit(lambda total, gradient: jax.tree.map(lambda t, g: t + g * g, total, gradient))
    total, count = None, 0
    for gradient in gradients:
        total = jax.tree.map(jnp.square, gradient) if total is None else add(total, gradient)
        count += 1
    if count == 0:
        raise ValueError("dynamic evaluation needs the gradient of at least one batch, got none")
    return jax.tree.map(lambda leaf: jnp.sqrt(leaf / count), total)


def adapter(
    trained: PyTree, scale: PyTree, *, rate: float, decay: float, epsilon: float = 1e-3
) -> Callable[[PyTree, PyTree], PyTree]:
    """The update of dynamic evaluation:

        params <- params - rate g / (scale + epsilon) + min(decay scale / mean(scale), 1) (trained - params)

    The mean is the mean of the means of all arrays, as in the authors' program.

    Args:
      trained: the parameters after training, to which the decay returns.
      scale: `gradient_scale` on the training text.
      rate: the learning rate, eta of the paper.
      decay: how fast the parameters return, lambda of the paper.
      epsilon: keeps the division finite.

    Returns:
      A function `(params, gradient) -> params`.

    Raises:
      ValueError: if a number is negative, or epsilon is 0.

    Source: Krause, Kahembwe, Murray and Renals, "Dynamic evaluation of neural sequence models", 2018.

    Example:
      >>> import jax.numpy as jnp
      >>> trained, scale = jnp.zeros(2), jnp.array([1.0, 3.0])
      >>> update = adapter(trained, scale, rate=0.1, decay=0.5, epsilon=1.0)
      >>> [round(float(p), 3) for p in update(jnp.ones(2), jnp.array([0.0, 4.0]))]
      [0.75, 0.15]
    """
    for name, value in {"rate": rate, "decay": decay}.items():
        if not value >= 0:
            raise ValueError(f"{name} must be at least 0, got {value}")
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    leaves = jax.tree.leaves(scale)
    mean = sum(jnp.mean(leaf) for leaf in leaves) / len(leaves)
    decays = jax.tree.map(lambda leaf: jnp.minimum(decay * leaf / mean, 1.0), scale)

    def update(params: PyTree, gradient: PyTree) -> PyTree:
        return jax.tree.map(
            lambda p, g, s, b, t: p - rate * g / (s + epsilon) + b * (t - p),
            params, gradient, scale, decays, trained,
        )  # fmt: skip

    return update
