"""Text generation with a language model, one token at a time."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
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
    top_p: float | None = None,
    exclude: Sequence[int] = (),
) -> Iterator[int]:
    """Yields tokens that continue a prompt, each as soon as it is drawn.

    Args:
      model: the model; only its `step` is used, so memory does not grow with the text.
      prompt: at least one token.
      length: how many tokens to draw.
      key: the same key gives the same tokens.
      temperature: divides the logits; 0 always takes the most likely token.
      top_k: draw only from the k most likely tokens; None for all.
      top_p: draw only from the smallest set of most likely tokens whose probability, at this temperature and
        among the top k, reaches p (Holtzman et al. 2020); None for all.
      exclude: tokens that are never drawn.

    Yields:
      Tokens, as Python integers.

    Raises:
      ValueError: if the prompt is empty, or length, temperature, top_k, top_p or exclude is out of range.

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
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")
    count = model.embedding.num_embeddings
    if not set(exclude) < set(range(count)):
        raise ValueError(f"exclude must leave at least one of the {count} tokens, got {list(exclude)}")
    allowed = np.ones(count, bool)
    allowed[list(exclude)] = False
    # A generator function would raise these errors only when the first token is requested.
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    return _stream(model, prompt, length, key, allowed, options)


def _stream(model, prompt, length, key, allowed, options):
    graph, variables = nnx.split(model)

    @jax.jit
    def advance(variables, state, token, key, position):
        state, logits = nnx.merge(graph, variables).step(state, token)
        logits = jnp.where(allowed, logits, -jnp.inf)
        return state, choose(jax.random.fold_in(key, position), logits, **options)

    state = model.initial_state()
    for token in prompt:
        state, drawn = advance(variables, state, jnp.int32(token), key, 0)
    for position in range(1, length + 1):
        yield int(drawn)
        if position < length:
            state, drawn = advance(variables, state, drawn, key, position)


def choose(
    key: jax.Array,
    logits: jax.Array,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
) -> jax.Array:
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
    logits = logits / temperature
    if top_p is not None and top_p < 1:
        descending = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(descending, axis=-1)
        # Keeps the tokens before which less than p is accumulated: always the most likely one.
        in_nucleus = jnp.cumsum(probabilities, axis=-1) - probabilities < top_p
        least = jnp.min(descending, axis=-1, keepdims=True, where=in_nucleus, initial=jnp.inf)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)
