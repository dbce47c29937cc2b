"""Compiling quickly: the tests' loops are tiny, and most of their time is the compiler's."""

import functools

import jax

# These options save four fifths of it.
_OPTIONS = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):
    _OPTIONS["xla_cpu_use_fusion_emitters"] = False

jit = functools.partial(jax.jit, compiler_options=_OPTIONS)
