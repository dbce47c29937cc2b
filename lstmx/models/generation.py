"""Text from a language model, one token at a time."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from lstmx.models.language_model import LanguageModel


def generate(
    model: LanguageModel,
    prompt: Sequence[int],
    *,
    length: int,
    key: jax.Array,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Iterator[int]:
    """Yields the tokens that follow a prompt, each as soon as it is drawn.

    Args:
      model: the model; only its `step` is used, so that memory does not grow with the text.
      prompt: at least one token.
      length: how many tokens to draw.
      key: the same key gives the same tokens.
      temperature: divides the logits; 0 takes the likeliest token always.
      top_k: draw from the k likeliest tokens only; None for all.

    Yields:
      Tokens, as Python integers.

    Raises:
      ValueError: if the prompt is empty, or length, temperature or top_k is out of range.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> model = LanguageModel(5, embedding_size=4, hidden_size=8, rngs=nnx.Rngs(0))
      >>> len(list(generate(model, [1, 2], length=3, key=jax.random.key(0))))
      3
    """
    if len(prompt) == 0:
        raise ValueError("prompt must hold at least one token, got none")
    if length < 0:
        raise ValueError(f"length must be at least 0, got {length}")
    if temperature < 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    # A generator function would raise all this only when the first token is asked for.
    return _stream(model, prompt, length, key, temperature, top_k)


def _stream(model, prompt, length, key, temperature, top_k):
    graph, variables = nnx.split(model)

    @jax.jit
    def advance(variables, state, token, key, position):
        state, logits = nnx.merge(graph, variables).step(state, token)
        return state, choose(jax.random.fold_in(key, position), logits, temperature, top_k)

    state = model.initial_state()
    for token in prompt:
        state, drawn = advance(variables, state, jnp.int32(token), key, 0)
    for position in range(1, length + 1):
        yield int(drawn)
        if position < length:
            state, drawn = advance(variables, state, drawn, key, position)


def choose(key: jax.Array, logits: jax.Array, temperature: float, top_k: int | None = None) -> jax.Array:
    """Draws a token from logits `[..., V]`; see `generate` for the arguments.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> int(choose(jax.random.key(0), jnp.array([0.0, 3.0, 1.0]), temperature=0.0))
      1
    """
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if top_k is not None and top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.random.categorical(key, logits / temperature, axis=-1).astype(jnp.int32)
