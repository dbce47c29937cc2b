"""A linear regression with momentum in its carry: the smallest experiment that has all parts.

It is also what a person's own experiment file looks like.
"""

import hashlib
import time
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from lstmx.training import LoopConfig, OptimizerConfig


@dataclass(frozen=True)
class Config:
    """The toy.

    Attributes:
        steps: number of updates.
        seed: seed of all randomness.
        features: input features.
        pause: seconds that each batch takes to come.
        nan_at: step, counted from 1, whose batch holds a NaN; 0 for none.
        data: path of a data file that must exist; empty for none.
        optimizer: the optimizer.
        loop: evaluation and checkpoints.
    """

    steps: int = 20
    seed: int = 0
    features: int = 4
    pause: float = 0.0
    nan_at: int = 0
    data: str = ""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig("adamw", 0.05, weight_decay=0.01)
    )
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(eval_every=10, checkpoint_every=5, log_every=1, tensorboard=False)
    )


PRESETS = {"tiny": Config(steps=6)}


class Toy:
    unit = "rows"
    units_per_step = 8
    splits = ("train", "validation")

    def __init__(self, config):
        self.config = config
        self.traces = 0
        self.validation_losses = None  # a test may set {step of evaluation: loss}

    def init(self, key):
        params = {
            "linear": {"kernel": jax.random.normal(key, (self.config.features, 3)), "bias": jnp.zeros(3)}
        }
        return params, {"average": jnp.zeros(3), "key": jax.random.key(7)}

    def loss(self, params, carry, batch, key):
        self.traces += 1
        noise = 0.01 * jax.random.uniform(key, batch["x"].shape)
        y = (batch["x"] + noise) @ params["linear"]["kernel"] + params["linear"]["bias"]
        loss = jnp.mean((y - batch["y"]) ** 2) + 1e-3 * jnp.sum(carry["average"] ** 2)
        average = 0.9 * carry["average"] + 0.1 * jax.lax.stop_gradient(jnp.mean(y, axis=0))
        return loss, ({"average": average, "key": carry["key"]}, {"output": jnp.mean(y)})

    def _rows(self, seed, count):
        x = np.random.default_rng(seed).normal(size=(count, self.config.features)).astype(np.float32)
        return {"x": x, "y": np.stack([x.sum(1), x[:, 0], 1 + x[:, 1]], axis=1)}

    def batch(self, step):
        time.sleep(self.config.pause)
        rows = self._rows(1000 + step, self.units_per_step)
        if step + 1 == self.config.nan_at:
            rows["x"][0, 0] = np.nan
        return rows

    def evaluate(self, params, split):
        rows = self._rows(0, 64)
        y = rows["x"] @ np.asarray(params["linear"]["kernel"]) + np.asarray(params["linear"]["bias"])
        loss = float(np.mean((y - rows["y"]) ** 2))
        if self.validation_losses is not None:
            loss = self.validation_losses.pop(0)
        return {"loss": loss, "root": abs(loss) ** 0.5}

    def display(self, metrics):
        return {"loss": metrics["loss"], "root": metrics["loss"] ** 0.5}

    def sample(self, params, key):
        return f"bias {float(params['linear']['bias'][0]):.3f}\nnoise {float(jax.random.normal(key)):.3f}"

    def describe(self):
        return f"toy regression: {self.config.features} features, {3 * self.config.features + 3} parameters"


def make_task(config):
    if config.data:
        raise ValueError(f"data: no file at {config.data}; get it with scripts/prepare.py")
    return Toy(config)


def fingerprint(tree):
    """SHA-256 of all bits of a pytree, with its structure, shapes and dtypes."""
    digest = hashlib.sha256(str(jax.tree.structure(tree)).encode())
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
