"""Several trainings as one task: the members of a population, which differ in numbers alone.

The gradient of a sum of losses that do not share parameters is the gradient of each, so the training loop is
the same as for one training; only the clipping and the update are made for each member by `vmap`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstmx.sweeps.journal import SweepError
from lstmx.training.config import config_differences, config_to_dict
from lstmx.training.optimizer import Numbers, build_optimizer, numbers_of
from lstmx.training.state import TrainState, init_state, make_keys
from lstmx.training.task import PyTree

_NUMBERS = ("optimizer.learning_rate", "optimizer.weight_decay", "optimizer.clip_norm")
_RATE = re.compile(r"(^|[._])(dropout|weight_drop)($|_rate$)|_dropout(_rate)?$")


def may_vary(field: str) -> bool:
    """Whether members of a population may differ in a field.

    Example:
        >>> [may_vary(name) for name in ("seed", "model.dropout_rate", "model.hidden_size")]
        [True, True, False]
    """
    return field == "seed" or field in _NUMBERS or is_rate(field) or field.endswith("init_scale")


def is_rate(field: str) -> bool:
    """Whether a field is a rate of dropout.

    Example:
        >>> [is_rate(name) for name in ("model.word_dropout_rate", "model.weight_drop", "model.tied")]
        [True, True, False]
    """
    return bool(_RATE.search(field))


class Rate(float):
    """A rate of dropout that is an array in computations, and an ordinary number in comparisons.

    Models decide by comparisons whether there is dropout at all, and compute with `1 - rate`.
    """

    array: Any

    @classmethod
    def of(cls, nominal: float, array: Any) -> "Rate":
        """A rate that compares like `nominal`."""
        rate = cls(nominal)
        rate.array = array
        return rate

    def __rsub__(self, other):
        return other - self.array

    # Not by value: a compiled function must never be found under another array.
    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other if isinstance(other, Rate) else float(self) == other


class MembersState(NamedTuple):
    """State of the optimizer of a population.

    Attributes:
        numbers: learning rate, weight decay and largest norm of each member, `[N]`.
        inner: the states of the members' optimizers, stacked.
    """

    numbers: Numbers
    inner: PyTree


class Members:
    """N trainings as one task of the training loop.

    Args:
        module: the experiment.
        configs: one for each member.

    Raises:
        SweepError: they differ in more than numbers.
    """

    def __init__(self, module: ModuleType, configs: Sequence[Any]):
        self.configs = list(configs)
        self._module, self._base = module, configs[0]
        fields = {
            name
            for config in configs[1:]
            for name in config_differences(config_to_dict(configs[0]), config_to_dict(config))
        }
        _require_numbers(fields)
        optimizer = configs[0].optimizer
        if optimizer.average_patience is not None or optimizer.average_horizon is not None:
            raise SweepError("a population does not average parameters: train its members one by one")
        # A task holds its data, which depend on the seed alone.
        made: dict[Any, Any] = {}
        self.tasks = []
        scales = [name for name in sorted(fields) if name.endswith("init_scale")]
        for config in configs:
            key = (config.seed, *(_get(config, name) for name in scales))
            if key not in made:
                made[key] = module.make_task(config)
            self.tasks.append(made[key])
        first = self.tasks[0]
        self._shares_batches = len({config.seed for config in configs}) == 1
        self._rates = {
            name: [_get(config, name) for config in configs] for name in sorted(fields) if is_rate(name)
        }
        _require_all_or_none(self._rates)
        self.unit, self.splits = first.unit, tuple(first.splits)
        self.units_per_step = len(self.configs) * first.units_per_step
        self._keys = [make_keys(config.seed) for config in configs]

    def __len__(self) -> int:
        return len(self.configs)

    def init_state(self) -> TrainState:
        """The members' states before the first step, stacked."""
        states = []
        for k, (task, keys) in enumerate(zip(self.tasks, self._keys, strict=True)):
            optimizer, _ = self.solo_optimizer(k)
            states.append(init_state(task, optimizer, keys.init))
        return self.stacked(states)

    def stacked(self, states: Sequence[TrainState]) -> TrainState:
        """The state of the population, of those of its members at the same step."""
        both = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        numbers = [Numbers(*map(jnp.float32, numbers_of(config.optimizer))) for config in self.configs]
        return TrainState(
            both.step[0],
            both.params,
            MembersState(jax.tree.map(lambda *leaves: jnp.stack(leaves), *numbers), both.opt_state),
            {"members": both.carry, "alive": jnp.ones(len(self), bool)},
        )

    def member(self, state: TrainState, k: int) -> TrainState:
        """The state of one member, as its own training would have it."""
        pick = lambda tree: jax.tree.map(lambda leaf: leaf[k], tree)  # noqa: E731
        return TrainState(
            state.step, pick(state.params), pick(state.opt_state.inner), pick(state.carry["members"])
        )

    def solo_optimizer(self, k: int) -> Any:
        """The optimizer of one member, with the parts that all have, and its schedule."""
        return self._solo(self.configs[k], numbers_of(self.configs[k].optimizer))

    def _solo(self, config: Any, numbers: Numbers) -> Any:
        clips = any(other.optimizer.clip_norm is not None for other in self.configs)
        decays = any(other.optimizer.weight_decay > 0 for other in self.configs)
        if isinstance(numbers.clip_norm, float):
            # An array of known value, so that all members have the same parts.
            numbers = Numbers(*map(jnp.float32, numbers))
        return build_optimizer(config.optimizer, config.steps, numbers, clips, decays)

    def optimizer(self) -> Any:
        """The members' optimizers as one optax transformation."""
        import optax

        def init(params):
            raise NotImplementedError("the state comes from `init_state`")

        def update(grads, state, params):
            def one(grads, state, params, numbers):
                optimizer, _ = self._solo(self._base, numbers)
                updates, changed = optimizer.update(grads, state, params)
                # `loss` gives a member that has diverged no gradient at all.
                moves = optax.tree.norm(grads) > 0
                keep = lambda new, old: jnp.where(moves, new, old)  # noqa: E731
                return jax.tree.map(lambda u: jnp.where(moves, u, 0), updates), jax.tree.map(
                    keep, changed, state
                )

            updates, inner = jax.vmap(one)(grads, state.inner, params, state.numbers)
            return updates, MembersState(state.numbers, inner)

        return optax.GradientTransformation(init, update)

    def batch(self, step: int) -> PyTree:
        """The batch of a step: one for all members of the same seed, or theirs stacked."""
        if self._shares_batches:
            return {"data": self.tasks[0].batch(step), "step": np.int32(step)}
        batches = [task.batch(step) for task in self.tasks]
        return {"data": jax.tree.map(lambda *leaves: np.stack(leaves), *batches), "step": np.int32(step)}

    def loss(
        self, params: PyTree, carry: PyTree, batch: PyTree, key: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, dict[str, jax.Array]]]:
        """The mean loss of the members that have not diverged; metrics are named NAME/MEMBER."""
        import optax

        keys = jnp.stack([keys.step for keys in self._keys])
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, batch["step"])
        rates = {name: jnp.float32(values) for name, values in self._rates.items()}

        def one(params, carry, data, key, rates):
            return self._traced(rates).loss(params, carry, data, key)

        graded = jax.vmap(
            jax.value_and_grad(one, has_aux=True), (0, 0, None if self._shares_batches else 0, 0, 0)
        )
        # The gradients are here already: nothing of this is differentiated again.
        held = jax.lax.stop_gradient(params)
        (values, (after, metrics)), grads = graded(held, carry["members"], batch["data"], keys, rates)
        norms = jax.vmap(optax.tree.norm)(grads)
        alive = carry["alive"] & jnp.isfinite(values) & jnp.isfinite(norms)

        def keep(new, old):
            if jax.dtypes.issubdtype(new.dtype, jax.dtypes.prng_key):
                return new
            return jnp.where(alive.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        grads = jax.tree.map(lambda leaf: keep(leaf, jnp.zeros_like(leaf)), grads)
        after = jax.tree.map(keep, after, carry["members"])
        total = jnp.sum(jnp.where(alive, values, 0)) / jnp.sum(alive)
        named = {**metrics, "loss": values, "grad_norm": norms, "alive": alive.astype(jnp.float32)}
        flat = {f"{name}/{k}": column[k] for name, column in named.items() for k in range(len(self))}
        return _with_gradient(params, total, grads), ({"members": after, "alive": alive}, flat)

    def _traced(self, rates: Mapping[str, Any]) -> Any:
        """A task whose rates of dropout are arrays."""
        if not rates:
            return self.tasks[0]
        nominal = {name: values[0] for name, values in self._rates.items()}
        config = self._base
        for name, array in rates.items():
            config = _set(config, name, Rate.of(nominal[name], array))
        return self._module.make_task(config)

    def evaluate(self, params: PyTree, split: str) -> dict[str, float]:
        """The metrics of each member, named NAME/MEMBER, and the lowest loss."""
        found: dict[str, float] = {}
        host = jax.device_get(params)
        for k in range(len(self)):
            metrics = self.tasks[0].evaluate(jax.tree.map(lambda leaf, k=k: leaf[k], host), split)
            found |= {f"{name}/{k}": value for name, value in metrics.items()}
        finite = [found[f"loss/{k}"] for k in range(len(self)) if np.isfinite(found[f"loss/{k}"])]
        return {"loss": min(finite, default=float("nan")), **found}

    def display(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Nothing: members are shown by the sweep."""
        return {}

    def sample(self, params: PyTree, key: jax.Array) -> None:
        """No sample."""

    def init(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """Never called: the state comes from `init_state`."""
        raise NotImplementedError

    def describe(self) -> str:
        """The first member, and how many there are."""
        return f"{len(self)} members at once; the first:\n{self.tasks[0].describe()}"


@jax.custom_vjp
def _with_gradient(params: PyTree, value: jax.Array, grads: PyTree) -> jax.Array:
    """The value, whose gradient with respect to params is `grads`."""
    return value


def _forward(params, value, grads):
    return value, grads


def _backward(grads, g):
    return jax.tree.map(lambda leaf: g * leaf, grads), None, None


_with_gradient.defvjp(_forward, _backward)


def _require_numbers(fields: set[str]) -> None:
    fixed = sorted(name for name in fields if not may_vary(name))
    if fixed:
        raise SweepError(
            f"the members of a population differ in numbers alone (seed, learning rate, weight decay, clip, "
            f"rates of dropout, init_scale), not in {', '.join(fixed)}: train them one by one"
        )


def _require_all_or_none(rates: Mapping[str, Sequence[float]]) -> None:
    for name, values in rates.items():
        if 0 in values and any(values):
            raise SweepError(f"{name} is 0 for some members of the population: begin its range above 0")


def _get(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _set(config: Any, name: str, value: Any) -> Any:
    """Like `replace_fields`, which would turn a rate into a plain number."""
    first, _, rest = name.partition(".")
    return replace(config, **{first: _set(getattr(config, first), rest, value) if rest else value})
