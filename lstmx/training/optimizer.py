"""Optimizers and learning rate schedules: a config in, an optax transformation out."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax

from lstmx.training.averaging import averaged

if TYPE_CHECKING:
    # optax takes a second to import and `--help` needs none of it: the functions below import it when called.
    import optax


@dataclass(frozen=True)
class OptimizerConfig:
    """How parameters are updated.

    Attributes:
        name: the rule. Weight decay is decoupled in all of them (added to the update, not to the gradient).
        learning_rate: the peak learning rate.
        schedule: the course of the learning rate after the warmup, from the peak to `final_fraction` of it;
            "constant" stays at the peak, "staircase" goes down in steps.
        warmup_steps: steps of linear warmup; the first update uses learning_rate / warmup_steps.
        stages: equal parts that a staircase has, epochs say; the rate is constant in each.
        constant_stages: how many of them are at the peak.
        stage_factor: the rate of each further one as a fraction of the one before, in (0, 1].
        final_fraction: last learning rate as a fraction of the peak, in [0, 1]; above 0 for "exponential".
        weight_decay: decay of matrices (two axes or more); biases, gains and other vectors are not decayed.
        momentum: momentum of sgd and rmsprop; 0 for none.
        b1: decay of the first moment of adam, adamw, nadamw, lamb and lion.
        b2: decay of the second moment of the same, and of the squared gradient of rmsprop.
        eps: term that keeps the division by the second moment finite.
        average_patience: evaluate the mean of the parameters instead of the last ones (averaged SGD), from
            when a validation loss is above the lowest of those before the last `average_patience` ones; None
            for never, or from the first step if there is a horizon.
        average_horizon: steps that this mean reaches back, exponentially; None for all since it began.
        clip_norm: largest global norm of the gradient; larger ones are scaled down to it. None to switch off.
    """

    name: Literal["adamw", "adam", "nadamw", "lamb", "lion", "rmsprop", "adagrad", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "linear", "exponential", "staircase"] = "constant"
    warmup_steps: int = 0
    stages: int = 10
    constant_stages: int = 1
    stage_factor: float = 0.5
    final_fraction: float = 0.1
    weight_decay: float = 0.0
    momentum: float = 0.9
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float | None = 1.0
    average_patience: int | None = None
    average_horizon: int | None = None

    def __post_init__(self):
        names = OptimizerConfig.__annotations__
        for field in ("name", "schedule"):
            allowed = names[field].__args__
            _require(
                field, getattr(self, field), getattr(self, field) in allowed, f"one of {', '.join(allowed)}"
            )
        _require(
            "learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf, "positive and finite"
        )
        _require("warmup_steps", self.warmup_steps, self.warmup_steps >= 0, "at least 0")
        _require("stages", self.stages, self.stages >= 1, "at least 1")
        within = 1 <= self.constant_stages <= self.stages
        if self.schedule == "staircase":
            _require("constant_stages", self.constant_stages, within, f"between 1 and stages, {self.stages}")
        _require("stage_factor", self.stage_factor, 0 < self.stage_factor <= 1, "above 0 and at most 1")
        _require("final_fraction", self.final_fraction, 0 <= self.final_fraction <= 1, "between 0 and 1")
        if self.schedule == "exponential":
            _require("final_fraction", self.final_fraction, self.final_fraction > 0, "above 0 if exponential")
        _require(
            "weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "at least 0 and finite"
        )
        if self.name == "adam":
            rule = "0 for adam; adamw is adam with weight decay"
            _require("weight_decay", self.weight_decay, self.weight_decay == 0, rule)
        for field in ("momentum", "b1", "b2"):
            _require(field, getattr(self, field), 0 <= getattr(self, field) < 1, "at least 0 and below 1")
        _require("eps", self.eps, 0 < self.eps < math.inf, "positive and finite")
        for field in ("average_patience", "average_horizon"):
            value = getattr(self, field)
            _require(field, value, value is None or value >= 1, "at least 1, or None")
        if self.clip_norm is not None:
            positive = 0 < self.clip_norm < math.inf
            _require("clip_norm", self.clip_norm, positive, "positive and finite, or None for no clipping")


def _require(field: str, value: Any, holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(f"{field} must be {rule}, got {value!r}")


class Numbers(NamedTuple):
    """Numbers of an optimizer that may be arrays, so that one compiled step serves several values.

    Attributes:
        learning_rate: the peak.
        weight_decay: 0 for none.
        clip_norm: infinite for none.
    """

    learning_rate: Any
    weight_decay: Any
    clip_norm: Any


def numbers_of(config: OptimizerConfig) -> Numbers:
    """The numbers of a config.

    Example:
        >>> numbers_of(OptimizerConfig("adamw", 1e-3, clip_norm=None))
        Numbers(learning_rate=0.001, weight_decay=0.0, clip_norm=inf)
    """
    clip_norm = math.inf if config.clip_norm is None else config.clip_norm
    return Numbers(config.learning_rate, config.weight_decay, clip_norm)


def make_schedule(config: OptimizerConfig, steps: int, peak: Any = None) -> "optax.Schedule":
    """The learning rate as a function of the step, counted from 0.

    Args:
        config: the optimizer.
        steps: length of the training in steps; the decay ends there.
        peak: the learning rate in place of the config's, which may be an array.

    Returns:
        An optax schedule.

    Raises:
        ValueError: there are no steps, or the warmup is not shorter than the training.

    Example:
        >>> config = OptimizerConfig(learning_rate=1.0, schedule="linear", warmup_steps=4, final_fraction=0.0)
        >>> schedule = make_schedule(config, steps=8)
        >>> [round(float(schedule(step)), 3) for step in (0, 1, 3, 4, 6, 8)]
        [0.25, 0.5, 1.0, 1.0, 0.5, 0.0]
    """
    import optax

    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if config.warmup_steps >= steps:
        raise ValueError(f"warmup_steps must be below steps, got {config.warmup_steps} of {steps}")
    peak, warmup = config.learning_rate if peak is None else peak, config.warmup_steps
    decay_steps = steps - warmup
    if config.schedule == "constant":
        decay = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, decay_steps, alpha=config.final_fraction)
    elif config.schedule == "linear":
        decay = optax.linear_schedule(peak, peak * config.final_fraction, decay_steps)
    elif config.schedule == "exponential":
        decay = optax.exponential_decay(peak, decay_steps, config.final_fraction)
    else:
        begins = [
            round(k * decay_steps / config.stages) for k in range(config.constant_stages, config.stages)
        ]
        # Of fewer steps than stages several begin at once.
        factors = {begin: config.stage_factor ** begins.count(begin) for begin in begins}
        decay = optax.piecewise_constant_schedule(peak, factors)
    if warmup == 0:
        return decay
    # From peak / warmup and not from 0: an update with learning rate 0 would waste the first batch.
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, decay], [warmup])


def decay_mask(params: Any) -> Any:
    """Which parameters weight decay applies to: those with two axes or more.

    Example:
        >>> import numpy as np
        >>> decay_mask({"kernel": np.ones((2, 3)), "bias": np.ones(3)})
        {'bias': False, 'kernel': True}
    """
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


def make_optimizer(
    config: OptimizerConfig, steps: int
) -> tuple["optax.GradientTransformation", "optax.Schedule"]:
    """Builds the optax transformation of a config and its learning rate schedule.

    Args:
        config: the optimizer.
        steps: length of the training in steps.

    Returns:
        (transformation, schedule): the schedule is part of the transformation and given for the log.

    Raises:
        ValueError: the warmup is not shorter than the training.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer, _ = make_optimizer(OptimizerConfig("sgd", 0.5, momentum=0.0, clip_norm=None), steps=10)
        >>> params = {"w": jnp.ones(2)}
        >>> updates, _ = optimizer.update({"w": jnp.ones(2)}, optimizer.init(params), params)
        >>> updates["w"].tolist()
        [-0.5, -0.5]
    """
    return build_optimizer(config, steps, numbers_of(config))


def build_optimizer(
    config: OptimizerConfig, steps: int, numbers: Numbers, clips: bool = True, decays: bool = True
) -> tuple["optax.GradientTransformation", "optax.Schedule"]:
    """`make_optimizer` with numbers of its own in place of the config's.

    Args:
        config: the rule and all other options.
        steps: length of the training in steps.
        numbers: the numbers; as arrays they may differ between calls of one compiled function.
        clips: whether there is clipping, asked of arrays.
        decays: whether there is weight decay, asked of arrays.
    """
    import optax

    schedule = make_schedule(config, steps, numbers.learning_rate)
    known = isinstance(numbers.clip_norm, float)
    clips, decays = (numbers.clip_norm < math.inf, numbers.weight_decay > 0) if known else (clips, decays)
    parts = [optax.clip_by_global_norm(numbers.clip_norm)] if clips else []
    parts += _direction(config)
    if decays:
        parts.append(optax.add_decayed_weights(numbers.weight_decay, mask=decay_mask))
    if config.name == "lamb":
        parts.append(optax.scale_by_trust_ratio())
    parts.append(optax.scale_by_learning_rate(schedule))
    optimizer = optax.chain(*parts)
    if config.average_patience is not None or config.average_horizon is not None:
        optimizer = averaged(optimizer, config.average_patience, config.average_horizon or math.inf)
    return optimizer, schedule


def _direction(config: OptimizerConfig) -> list["optax.GradientTransformation"]:
    import optax

    momentum = [optax.trace(config.momentum)] if config.momentum else []
    match config.name:
        case "adamw" | "adam" | "lamb":
            return [optax.scale_by_adam(config.b1, config.b2, config.eps)]
        case "nadamw":
            return [optax.scale_by_adam(config.b1, config.b2, config.eps, nesterov=True)]
        case "lion":
            return [optax.scale_by_lion(config.b1, config.b2)]
        case "rmsprop":
            return [optax.scale_by_rms(config.b2, config.eps), *momentum]
        case "adagrad":
            return [optax.scale_by_rss(eps=config.eps)]
        case "sgd":
            return momentum
