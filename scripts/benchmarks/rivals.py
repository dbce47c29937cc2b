"""The rivals: the implementations of lstmx, flax, torch and onnxruntime, each in its fastest form."""

import functools
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import lstmx
from lstmx.convert import cudnn as convert_cudnn
from lstmx.convert import onnx as convert_onnx
from lstmx.implementations import choice
from scripts.benchmarks import problems, timing
from scripts.benchmarks.paired import PairedProcess
from scripts.benchmarks.problems import Mode, Shape
from scripts.benchmarks.timing import Rival, Run

OWN = "lstmx"
FLUSH = "torch, denormals flushed"
COMPILED = "lstmx.compile_step"
JAX_RNN = "jax.experimental.rnn"
FLAX_UNROLLS = {"cpu": (1, 4), "gpu": (1, 8)}
Builders = dict[str, Callable[[], Rival]]


@dataclass(frozen=True)
class Field:
    """The device and options of a comparison, and the available rivals.

    Attributes:
        device: `"cpu"` or `"gpu"`.
        dtype: type of inputs, weights and matmuls.
        rounds: how often to time each rival.
        quick: tiny problems, for the tests.
        torch: whether torch can run on the device.
        onnxruntime: whether onnx and onnxruntime can run on the device.
        paired: the process that runs torch with denormals flushed; None if unavailable.
        only: the requested rivals, including implementations; None for all.
    """

    device: str = "cpu"
    dtype: str = "float32"
    rounds: int = 9
    quick: bool = False
    torch: bool = False
    onnxruntime: bool = False
    paired: PairedProcess | None = None
    only: tuple[str, ...] | None = None

    @property
    def torch_device(self) -> str:
        """The name of the device in torch."""
        return "cuda" if self.device == "gpu" else "cpu"

    @property
    def present(self) -> tuple[str, ...]:
        """The rivals of this comparison: flax, torch, onnxruntime and "flush" for torch's second process."""
        flax = self.only is None or "flax" in self.only
        there = {"flax": flax, "torch": self.torch, "flush": self.paired, "onnxruntime": self.onnxruntime}
        return tuple(name for name, is_there in there.items() if is_there)

    def asked(self, builders: Builders) -> Builders:
        """The requested rivals, and lstmx itself."""
        if self.only is None:
            return builders
        return {name: build for name, build in builders.items() if owner(name) in (OWN, *self.only)}


def names() -> list[str]:
    """The names of all rivals that can be requested."""
    return [*choice.IMPLEMENTATIONS, "flax", "jax", "torch", "onnxruntime"]


def owner(column: str) -> str:
    """The library or implementation of a column.

    Example:
      >>> owner("torch, denormals flushed"), owner("lstmx.step")
      ('torch', 'lstmx')
    """
    return re.split("[ ,.]", column)[0]


@contextmanager
def field(device: str, only: tuple[str, ...] | None, **options: Any) -> Iterator[Field]:
    """The comparison on a device with the installed rivals; reports missing ones on stderr."""
    asked = names() if only is None else only
    has_torch = "torch" in asked and _installed("torch")
    has_onnx = "onnxruntime" in asked and device == "cpu" and _installed("onnxruntime", "onnx")
    options |= {"only": only, "torch": has_torch, "onnxruntime": has_onnx}
    if has_torch and device == "gpu":
        import torch

        has_torch = torch.cuda.is_available()
        if not has_torch:
            print("torch has no GPU: left out", file=sys.stderr)
        options["torch"] = has_torch
    if not (has_torch and device == "cpu"):
        yield Field(device, **options)
        return
    with PairedProcess(flush=True) as paired:
        flushes = paired.flushes_denormals()
        if not flushes:
            print("torch cannot flush denormals here: left out", file=sys.stderr)
        yield Field(device, paired=paired if flushes else None, **options)


def _installed(*packages: str) -> bool:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        print(f"{' and '.join(missing)} not installed: {packages[0]} is left out", file=sys.stderr)
    return not missing


def layers(shape: Shape, mode: Mode, field: Field) -> Builders:
    """The rivals for a layer, by the names of their columns."""
    builders: Builders = {OWN: lambda: timing.rival(lstmx_layer(shape, mode, field.dtype))}
    for name in implementations(shape, field.dtype):
        builders[name] = functools.partial(_named_layer, shape, mode, field.dtype, name)
    unrolls = FLAX_UNROLLS[field.device][: 1 if field.quick else 2]
    builders["flax"] = lambda: _fastest_flax(
        {str(unroll): flax_layer(shape, mode, field.dtype, unroll) for unroll in unrolls}
    )
    if field.device == "gpu" and field.dtype == "float32":
        builders[JAX_RNN] = lambda: timing.rival(jax_rnn_layer(shape, mode))
    arguments = (tuple(shape), mode, field.torch_device, field.dtype)
    builders |= torch_pair("layer", arguments, field)
    if "torch" in builders and field.device == "gpu" and field.dtype == "bfloat16":
        # torch has cuDNN's persistent kernels in float16 only.
        builders["torch, float16"] = torch_pair("layer", (*arguments[:3], "float16"), field)["torch"]
    if field.onnxruntime and mode == "forward" and field.dtype == "float32":
        builders["onnxruntime"] = lambda: timing.rival(onnx_layer(shape))
    return field.asked(builders)


def torch_pair(function: str, arguments: tuple, field: Field) -> Builders:
    """torch in this process, and with denormals flushed in the paired one."""
    builders: Builders = {}
    if field.torch:
        from scripts.benchmarks import torch_rivals

        builders["torch"] = lambda: timing.rival(torch_rivals.named(function)(*arguments))
    if field.paired is not None:
        builders[FLUSH] = lambda: field.paired.rival(function, *arguments)
    return builders


def steps(shape: Shape, field: Field) -> Builders:
    """The rivals for one streaming step, with the state carried over."""
    builders: Builders = {OWN: lambda: timing.rival(lstmx_step(shape, "scan"))}
    for name in implementations(shape, "float32"):
        builders[name] = functools.partial(_named_step, shape, name)
    builders["lstmx.step"] = lambda: timing.rival(lstmx_step(shape, "step"))
    builders[COMPILED] = lambda: timing.rival(compiled_step(shape))
    builders["flax"] = lambda: timing.rival(flax_step(shape))
    if field.device == "cpu":
        for module in ("LSTM", "LSTMCell"):
            pair = torch_pair("step", (tuple(shape), module), field)
            builders |= {name.replace("torch", f"torch {module}"): build for name, build in pair.items()}
    if field.onnxruntime:
        builders["onnxruntime"] = lambda: timing.rival(onnx_step(shape))
    return field.asked(builders)


def implementations(shape: Shape, dtype: str) -> list[str]:
    """The implementations that can run a shape, except for the default one."""
    cell, xs = _cell(shape, dtype), _abstract(shape, dtype)
    default = lstmx.which_implementation(cell, xs=xs)
    able = []
    for name in choice.IMPLEMENTATIONS:
        try:
            lstmx.which_implementation(cell, name, xs=xs)
        except NotImplementedError:
            continue
        able.append(name)
    return [name for name in able if name != default]


def default_implementation(shape: Shape, dtype: str = "float32") -> str:
    """The implementation that lstmx uses by default."""
    return lstmx.which_implementation(_cell(shape, dtype), xs=_abstract(shape, dtype))


def warm_up() -> None:
    """Runs each implementation once, so that builds at first use are not timed."""
    shape = problems.TINY[0]
    for name in (default_implementation(shape), *implementations(shape, "float32")):
        lstmx_layer(shape, "training", "float32", implementation=name)()


def lstmx_layer(shape: Shape, mode: Mode, dtype: str, **options: Any) -> Run:
    """A run of `lstmx.scan`."""
    call, params, xs = _lstmx(shape, dtype, **options)
    return _run(compiled(call, mode), params, xs)


def flax_layer(shape: Shape, mode: Mode, dtype: str, unroll: int = 1) -> Run:
    """A run of Flax's fastest: the cell with fused matmuls, in its RNN, time-major."""
    call, params, xs = flax_call(shape, dtype, unroll)
    return _run(compiled(call, mode), params, xs)


def jax_rnn_layer(shape: Shape, mode: Mode) -> Run:
    """A run of JAX's own LSTM by cuDNN, batch first, as it takes its inputs; it computes in float32 only."""
    from jax.experimental import rnn

    batch, steps, features, units = shape
    cell, params = lstmx_params(shape)
    weights = convert_cudnn.to_blob(cell, params)
    xs = jnp.swapaxes(jnp.asarray(problems.arrays(shape).xs), 0, 1)
    zeros = jnp.zeros((1, batch, units))
    lengths = jnp.full(batch, steps, jnp.int32)

    def call(weights, xs):
        ys, h, c = rnn.lstm(xs, zeros, zeros, weights, lengths, features, units, 1, 0.0, False)
        return (h, c), ys

    return _run(compiled(call, mode), weights, xs)


def program(rival: str, shape: Shape, mode: Mode, dtype: str, **options: Any) -> tuple[Callable, Any, Any]:
    """The jitted function of lstmx or flax and its arguments, for inspection."""
    make = {OWN: _lstmx, "flax": flax_call}[rival]
    call, params, xs = make(shape, dtype, **options)
    return compiled(call, mode), params, xs


def lstmx_params(shape: Shape, dtype: str = "float32") -> tuple[lstmx.LSTM, lstmx.Params]:
    """The cell of a shape with the shape's weights."""
    cell = _cell(shape, dtype)
    _, kernel, recurrent, bias = (jnp.asarray(array, dtype) for array in problems.arrays(shape))
    empty = jax.eval_shape(lambda: cell.init(jax.random.key(0), shape.features))
    return cell, empty._replace(input={"kernel": kernel, "bias": bias}, recurrent={"kernel": recurrent})


def flax_params(rnn: nnx.Module, shape: Shape, dtype: str = "float32") -> tuple[Any, list[jax.Array]]:
    """A function from leaves to the module, and the leaves: the weights of the shape in Flax's order."""
    _, kernel, recurrent, bias = (jnp.asarray(array, dtype) for array in problems.arrays(shape))
    graph, state = nnx.split(rnn)
    structure = jax.tree.structure(state)
    # dense_h comes before dense_i, and bias before kernel.
    return lambda leaves: nnx.merge(graph, jax.tree.unflatten(structure, leaves)), [bias, recurrent, kernel]


def lstmx_step(shape: Shape, function: str, **options: Any) -> Run:
    """A run of one streaming step, by a `"scan"` of one step or by `"step"`."""
    cell, params = lstmx_params(shape)
    x = jnp.asarray(problems.arrays(shape).xs)
    if function == "step":
        move, x = jax.jit(lambda params, state, x: lstmx.step(cell, params, state, x)), x[0]
    else:
        move = jax.jit(lambda params, state, x: lstmx.scan(cell, params, x, state, **options))
    return _stream(move, params, cell.initial_state((shape.batch,)), x)


def compiled_step(shape: Shape) -> Run:
    """A run of one streaming step by `lstmx.compile_step`."""
    cell, params = lstmx_params(shape)
    step = lstmx.compile_step(cell, params, (shape.batch,))
    x, state = problems.arrays(shape).xs[0], step.initial_state()

    def run():
        nonlocal state
        state, y = step(state, x)
        return jax.block_until_ready(y)

    return run


def flax_step(shape: Shape) -> Run:
    """The same with Flax's cell."""
    cell = nnx.OptimizedLSTMCell(shape.features, shape.units, rngs=nnx.Rngs(0))
    module, leaves = flax_params(cell, shape)
    move = jax.jit(lambda leaves, carry, x: module(leaves)(carry, x))
    return _stream(move, leaves, _flax_carry(shape), jnp.asarray(problems.arrays(shape).xs[0]))


def onnx_layer(shape: Shape) -> Run:
    """A run of onnxruntime's LSTM."""
    xs = problems.arrays(shape).xs
    session = _onnx_session(shape, carries=False)
    return lambda: session.run(None, {"X": xs})


def onnx_step(shape: Shape) -> Run:
    """The same for one step, with the state passed in and out."""
    session, xs = _onnx_session(shape, carries=True), problems.arrays(shape).xs
    h = c = jnp.zeros((1, shape.batch, shape.units)).__array__()

    def run():
        nonlocal h, c
        y, h, c = session.run(None, {"X": xs, "initial_h": h, "initial_c": c})
        return y

    return run


def _onnx_session(shape: Shape, carries: bool):
    import onnxruntime

    cell, params = lstmx_params(shape)
    state = cell.initial_state((shape.batch,)) if carries else None
    model = convert_onnx.to_model([convert_onnx.to_node(cell, params, initial_state=state)])
    for name in ("initial_h", "initial_c") if carries else ():
        # Turn stored values into inputs of the same names.
        stored = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        value = model.graph.input.add()
        value.name = name
        value.type.tensor_type.elem_type = stored.data_type
        for size in stored.dims:
            value.type.tensor_type.shape.dim.add().dim_value = size
        model.graph.initializer.remove(stored)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = problems.threads()
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _fastest_flax(runs: dict[str, Run]) -> Rival:
    first = timing.rival(runs["1"])
    best = runs[timing.fastest(runs)]
    return first._replace(time=lambda n: timing.seconds(best, n))


def _named_layer(shape: Shape, mode: Mode, dtype: str, name: str) -> Rival:
    return timing.rival(lstmx_layer(shape, mode, dtype, implementation=name))


def _named_step(shape: Shape, name: str) -> Rival:
    return timing.rival(lstmx_step(shape, "scan", implementation=name))


def _cell(shape: Shape, dtype: str) -> lstmx.LSTM:
    return lstmx.LSTM(shape.units, dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype))


def _abstract(shape: Shape, dtype: str) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((shape.steps, shape.batch, shape.features), dtype)


def _lstmx(shape: Shape, dtype: str, **options: Any):
    cell, params = lstmx_params(shape, dtype)
    xs = jnp.asarray(problems.arrays(shape).xs, dtype)
    return lambda params, xs: lstmx.scan(cell, params, xs, **options), params, xs


def flax_call(shape: Shape, dtype: str = "float32", unroll: int = 1) -> tuple[Callable, Any, jax.Array]:
    """A function of leaves and time-major inputs, the leaves, and the inputs."""
    dtype = jnp.dtype(dtype)
    # The recurrent kernel is replaced; drawing an orthogonal one is not possible in half precision.
    zeros = nnx.initializers.zeros_init()
    cell = nnx.OptimizedLSTMCell(
        shape.features,
        shape.units,
        recurrent_kernel_init=zeros,
        dtype=dtype,
        param_dtype=dtype,
        rngs=nnx.Rngs(0),
    )
    rnn = nnx.RNN(cell, time_major=True, return_carry=True, unroll=unroll, rngs=False)
    module, leaves = flax_params(rnn, shape, dtype)
    carry = _flax_carry(shape, dtype)

    def call(leaves, xs, **options):
        # Without a carry it would draw one, which is not possible in a jitted function.
        return module(leaves)(xs, initial_carry=carry, **options)

    return call, leaves, jnp.asarray(problems.arrays(shape).xs, dtype)


def _flax_carry(shape: Shape, dtype: Any = "float32"):
    return (jnp.zeros((shape.batch, shape.units), dtype),) * 2


def compiled(call: Callable, mode: Mode) -> Callable:
    """The call itself, or a training step: a loss and its gradients with respect to parameters and inputs."""
    if mode == "forward":
        return jax.jit(call)

    def loss(params, xs):
        _, ys = call(params, xs)
        return jnp.mean(ys.astype(jnp.float32) ** 2)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def _run(function: Callable, *arguments: Any) -> Run:
    return lambda: jax.block_until_ready(function(*arguments))


def _stream(move: Callable, params: Any, state: Any, x: jax.Array) -> Run:
    def run():
        nonlocal state
        state, y = jax.block_until_ready(move(params, state, x))
        return y

    return run
