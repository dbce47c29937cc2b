"""Values and gradients of every implementation on the device, compared with float64 on the host.

The standard is `implementation="reference"` in float64 on a CPU, which the tests compare with loops in NumPy.
All numbers are drawn such that bfloat16 can hold them, so that every type starts from the same problem.
"""

import contextlib
import functools
import threading
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lstmx
from lstmx.implementations import choice, pallas

# The largest relative error in the norm of any array: of float32 with products in full precision; with TF32,
# which keeps 10 bits of each factor; and of bfloat16, which keeps 8 and rounds the states as well.
TOLERANCES = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 2e-2}

DEFAULT = "default"  # the implementation that is chosen
_BASIC = ("reference", "fused")
_LSTM = (*_BASIC, "native", "cudnn")


class Case(NamedTuple):
    """A problem, and what to run it with.

    Attributes:
      label: what it is about.
      make: makes the cell or network from the options `dtype` and `param_dtype`.
      sizes: B, T, D.
      implementations: the implementations to try; those that cannot run it are skipped.
      types: keys of `TOLERANCES`.
      options: of `lstmx.scan`.
      members: how many sets of parameters `vmap` maps over, 0 for no `vmap`.
    """

    label: str
    make: Any
    sizes: tuple[int, int, int]
    implementations: tuple[str, ...] = _LSTM
    types: tuple[str, ...] = ("float32",)
    options: Mapping[str, Any] = {}
    members: int = 0


def cases(quick: bool) -> list[Case]:
    """The cases except for those of "pallas", the most important ones first."""
    lstm = functools.partial(lstmx.LSTM, 64)
    ragged = {"lengths": _lengths(5, 40)}
    resets = {"resets": np.random.default_rng(1).random((40, 5)) < 0.1}
    found = [
        Case("LSTM", lstm, (5, 40, 24), types=("float32", "tf32", "bfloat16")),
        Case("LSTM, ragged", lstm, (5, 40, 24), options=ragged, types=("float32", "bfloat16")),
        Case("LSTM, ragged, reverse", lstm, (5, 40, 24), options={**ragged, "reverse": True}),
        Case("LSTM, resets", lstm, (5, 40, 24), _BASIC, options=resets),
        Case(
            "two layers, both directions, ragged",
            _two_layers,
            (5, 40, 24),
            types=("float32", "tf32"),
            options=ragged,
        ),
        Case("LSTM of odd sizes", functools.partial(lstmx.LSTM, 37), (3, 11, 5)),
        Case("LSTM, one row", functools.partial(lstmx.LSTM, 128), (1, 100, 64)),
        Case("LSTM of 650 units", functools.partial(lstmx.LSTM, 650), (20, 16, 200)),
        Case("LSTM, default", lstm, (5, 40, 24), (DEFAULT,), ("float32", "bfloat16")),
        Case("LSTM, 3 sets of parameters", lstm, (4, 9, 8), members=3),
        Case('LSTM, remat="sqrt"', lstm, (5, 40, 24), options={"remat": "sqrt"}),
        Case('LSTM, remat="gates"', lstm, (5, 40, 24), _BASIC, options={"remat": "gates"}),
    ]
    others = ("reference", "fused", "associative", "native")
    cells = {
        "LSTM with layer norm and peepholes": functools.partial(
            lstmx.LSTM, 32, layer_norm="per_gate", peephole=True, projection_size=16
        ),
        "GRU": functools.partial(lstmx.GRU, 32),
        "GRU, reset before": functools.partial(lstmx.GRU, 32, reset_after=False),
        "Elman": functools.partial(lstmx.Elman, 32),
        "MinLSTM": functools.partial(lstmx.MinLSTM, 32),
        "MinGRU": functools.partial(lstmx.MinGRU, 32),
        "IndRNN": functools.partial(lstmx.IndRNN, 32),
        "MGU": functools.partial(lstmx.MGU, 32),
        "sLSTM": functools.partial(lstmx.SLSTM, 32),
    }
    found += [Case(name, make, (5, 40, 12), others, options=ragged) for name, make in cells.items()]
    return found[:2] if quick else found


def pallas_cases(quick: bool) -> list[Case]:
    """The cases of "pallas", in bfloat16: from one multiprocessor to clusters, one row to several tiles."""
    found = []
    for units, rows, steps, options in (
        (64, 8, 20, {}),
        (64, 5, 40, {"lengths": _lengths(5, 40)}),
        (256, 20, 200, {"return_states": True}),
        (320, 8, 20, {}),
        (256, 5, 40, {"lengths": _lengths(5, 40), "reverse": True}),
        (128, 9, 20, {}),
        (192, 8, 20, {}),
        (256, 16, 20, {}),
        (100, 1, 20, {"reverse": True}),
        (64, 1, 1, {}),
    ):
        label = ", ".join([f"LSTM of {units} units, {rows} rows, {steps} steps", *options])
        make = functools.partial(lstmx.LSTM, units)
        found.append(Case(label, make, (rows, steps, 24), ("reference", "pallas"), ("bfloat16",), options))
    make = functools.partial(lstmx.LSTM, 128)
    found.append(
        Case(
            "LSTM of 128 units, 3 sets of parameters",
            make,
            (9, 20, 24),
            ("pallas",),
            ("bfloat16",),
            members=3,
        )
    )
    return found[:1] if quick else found


def compared(case: Case, implementation: str, kind: str) -> dict[str, Any] | None:
    """The largest relative errors of a case; None if the implementation cannot run it.

    Returns:
      {"values": of outputs and final states, "gradients": of parameters, inputs and initial state,
      "worst": the array with the largest error, "tolerance": the largest that passes}
    """
    dtype = "bfloat16" if kind == "bfloat16" else "float32"
    cell = case.make(dtype=jnp.dtype(dtype), param_dtype=jnp.float32)
    problem = arrays(case)
    options = {**case.options, "implementation": None if implementation == DEFAULT else implementation}
    names = tuple(name for name in case.options if name not in ("reverse", "remat"))
    shape = jax.ShapeDtypeStruct(problem[1].shape[-3:], dtype)
    try:
        lstmx.which_implementation(
            cell, options["implementation"], xs=shape, remat=case.options.get("remat"), options=names
        )
    except NotImplementedError:
        return None
    with jax.default_matmul_precision("highest" if kind == "float32" else "default"):
        found = _graded(cell, problem, options, case.members)
    errors = jax.tree.map(_error, found, _exact(case))
    paths = {jax.tree_util.keystr(path): error for path, error in jax.tree.leaves_with_path(errors)}
    worst = max(paths, key=lambda path: np.nan_to_num(paths[path], nan=np.inf))
    values, gradients = (max(jax.tree.leaves(part)) for part in errors)
    return {"values": values, "gradients": gradients, "worst": worst, "tolerance": TOLERANCES[kind]}


def interpreting(needed: bool) -> contextlib.AbstractContextManager:
    """Where Pallas's kernels are interpreted, if needed."""
    return pallas.interpreted() if needed else contextlib.nullcontext()


def items(quick: bool, of_pallas: bool) -> Iterator[tuple[str, str, Case]]:
    """Implementation, type and case of each comparison."""
    for case in pallas_cases(quick) if of_pallas else cases(quick):
        for kind in case.types:
            for implementation in case.implementations:
                if implementation in (DEFAULT, *choice.IMPLEMENTATIONS):
                    yield implementation, kind, case


def arrays(case: Case) -> tuple[Any, np.ndarray, Any]:
    """Parameters, inputs `[T, B, D]` and an initial state, in float32."""
    rows, steps, features = case.sizes
    rng = np.random.default_rng(zlib.crc32(case.label.encode()))
    cell = case.make(dtype=jnp.float32, param_dtype=jnp.float32)
    abstract = jax.eval_shape(lambda: cell.init(jax.random.key(0), features))

    def draw(shape, scale):
        return np.asarray(jnp.asarray(rng.normal(size=shape) * scale, jnp.bfloat16).astype(jnp.float32))

    def weights(leaf):
        sizes = ((case.members,) if case.members else ()) + leaf.shape
        return draw(sizes, 0.25 if leaf.ndim == 1 else leaf.shape[0] ** -0.5)

    def begin(leaf):
        # Positive, because the normalizer of an sLSTM is.
        return np.abs(draw(leaf.shape, 0.5)) + np.float32(0.125)

    state = jax.tree.map(begin, jax.eval_shape(lambda: cell.initial_state((rows,))))
    return jax.tree.map(weights, abstract), draw((steps, rows, features), 1.0), state


def _two_layers(dtype: Any, param_dtype: Any) -> lstmx.Stack:
    return lstmx.networks.stacked(lstmx.LSTM(32, dtype=dtype, param_dtype=param_dtype), 2, bidirectional=True)


def _lengths(rows: int, steps: int) -> np.ndarray:
    """Lengths `[B]` from 0 to T."""
    return np.linspace(0, steps, rows).astype(np.int32)


def _graded(cell: Any, problem: tuple, options: Mapping[str, Any], members: int) -> tuple[Any, Any]:
    """Final state and outputs; and gradients of a loss that depends on all of them."""
    params, xs, state = problem
    like = jax.eval_shape(lambda: cell.initial_state(xs.shape[1:2]))
    state = jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), state, like)

    def loss(params, xs, state):
        results = lstmx.scan(cell, params, xs, state, **options)
        total = 0.0
        for leaf in jax.tree.leaves(results):
            wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
            # Shifted, so that the cotangent of a zero is not zero; every number has a weight of its own.
            weights = jnp.cos(jnp.arange(leaf.size, dtype=wide.dtype)).reshape(leaf.shape)
            total = total + jnp.sum(jnp.sin(wide + 1) * weights)
        return total, results

    compute = jax.grad(loss, (0, 1, 2), has_aux=True)
    if members:
        compute = jax.vmap(compute, (0, None, None))
    gradients, results = jax.jit(compute)(params, jnp.asarray(xs, cell.dtype), state)
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (results, gradients))


def _error(found: np.ndarray, exact: np.ndarray) -> float:
    """|found - exact| / |exact|."""
    size = float(np.linalg.norm(exact))
    error = float(np.linalg.norm(found - exact))
    return error / size if size else error


# Computed once for all implementations; `compared` runs in several threads.
_EXACT: dict[str, Any] = {}
_LOCK = threading.Lock()


def _exact(case: Case) -> Any:
    with _LOCK:
        if case.label not in _EXACT:
            with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
                cell = case.make(dtype=jnp.float64, param_dtype=jnp.float64)
                problem = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), arrays(case))
                options = {**case.options, "implementation": "reference"}
                _EXACT[case.label] = _graded(cell, problem, options, case.members)
        return _EXACT[case.label]
