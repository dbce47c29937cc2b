"""Weights to and from other systems, as pure functions of arrays; none needs the other framework.

    net, params = lstmx.convert.torch.from_state_dict(state_dict)
    state_dict = lstmx.convert.torch.to_state_dict(net, params)

A module for each system: `torch`, `keras`, `flax` (nnx and linen), `haiku`, `cudnn` (the packed blob of
`jax.experimental.rnn`) and `onnx`. Each is imported when it is first used.

Weights keep every bit on their way out and back, with two exceptions that are documented where they occur:
biases of which only the sum matters are added up, and haiku's forget gate has a bias that differs from ours
by 1. What no weights tell (`dtype`, `forget_bias`, `chrono`, dropout) has its default on the way back.
"""

import importlib

__all__ = ["cudnn", "flax", "haiku", "keras", "onnx", "torch"]


def __getattr__(name: str):
    if name in __all__:
        return importlib.import_module(f"lstmx.convert.{name}")
    raise AttributeError(f"module 'lstmx.convert' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
