"""The command line of training: takes an experiment and its config, makes a run folder."""

import contextlib
import dataclasses
import difflib
import hashlib
import inspect
import io
import json
import re
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, NamedTuple

from lstmx.training.checkpoint import CheckpointError, restore_params
from lstmx.training.config import config_differences, config_to_dict
from lstmx.training.digest import saved_steps
from lstmx.training.loop import NonFiniteError, train_in
from lstmx.training.metrics import is_finite
from lstmx.training.optimizer import make_schedule
from lstmx.training.progress import format_numbers, format_seconds
from lstmx.training.result import Result, read_result
from lstmx.training.run import Run, claim_run, open_run, read_assets
from lstmx.training.signals import stop_on_signals
from lstmx.training.terminal import clean_errors, fail, plain_messages, reported_errors
from lstmx.training.timing import TIMES

DEFAULT = "default"


class Arguments(NamedTuple):
    """The parsed command line.

    Attributes:
        experiment: name or path, as given.
        config: the experiment's config.
        workdir: the run folder.
        json: whether to end with one line of JSON.
        debug: whether to show tracebacks.
        init_from: folder of the run whose weights to start from, or None.
    """

    experiment: str
    config: Any
    workdir: Path
    json: bool
    debug: bool
    init_from: Path | None


def main(load: Callable[[str], ModuleType], names: Sequence[str], argv: Sequence[str] | None = None) -> int:
    """The whole of `scripts/train.py`.

    Args:
        load: gives the module of an experiment by name or path; a ValueError of it is shown as a message.
        names: the experiments known by name, for the help.
        argv: the arguments; by default those of the process.

    Returns:
        The exit code: 0 finished, 1 failed during training, 2 cannot be done as requested, 128 + the number
        of the signal that stopped it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0].startswith("-"):
        wants_help = bool({"-h", "--help"} & set(argv))
        usage = (
            "usage: train.py EXPERIMENT [--workdir RUN] [--preset NAME] [--init-from RUN] [--json] [--debug] "
            f"[OPTIONS]\n{_known(names)}"
        )
        print(usage, file=sys.stdout if wants_help else sys.stderr)
        return 0 if wants_help else 2
    with clean_errors():
        module = load(argv[0])
    arguments = parse(module, argv[0], argv[1:])
    command = shlex.join(["python", sys.argv[0], *argv])
    if "--workdir" not in command:
        command += f" --workdir {shlex.quote(str(arguments.workdir))}"
    return _run(module, arguments, command)


def _known(names: Sequence[str]) -> str:
    return (
        f"experiments: {', '.join(names) or 'none'}, or the path of a file of your own\n"
        "train.py EXPERIMENT --help lists the options of one"
    )


def parse(module: ModuleType, experiment: str, argv: Sequence[str]) -> Arguments:
    """Parses the options of an experiment.

    Args:
        module: the experiment: `Config`, and perhaps `PRESETS`.
        experiment: its name or path as given.
        argv: the options after it.

    Returns:
        The arguments.

    Raises:
        SystemExit: 0 after `--help`, 2 after an error message.
    """
    import tyro

    presets = {DEFAULT: module.Config(), **getattr(module, "PRESETS", {})}
    # The defaults of all options depend on the preset, so it has to be known before they are parsed.
    chosen = re.search(r"(?:^|\n)--preset(?:\n|=)([^\n]*)", "\n".join(argv))
    preset = presets.get(chosen[1] if chosen else DEFAULT, presets[DEFAULT])
    options = dataclasses.make_dataclass(
        "Options",
        [
            ("config", Annotated[module.Config, tyro.conf.arg(name="")], dataclasses.field(default=preset)),
            (
                "preset",
                Annotated[Literal[tuple(presets)], tyro.conf.arg(help="Where the defaults come from.")],
                DEFAULT,
            ),
            (
                "workdir",
                Annotated[
                    Path | None, tyro.conf.arg(help="The run folder; runs/NAME if not given.", metavar="RUN")
                ],
                None,
            ),
            (
                "init_from",
                Annotated[
                    Path | None,
                    tyro.conf.arg(
                        help="Start from the best weights of this run and keep its vocabulary.", metavar="RUN"
                    ),
                ],
                None,
            ),
            (
                "json",
                Annotated[
                    bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="End with one line of JSON.")
                ],
                False,
            ),
            (
                "debug",
                Annotated[
                    bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="Show tracebacks of errors.")
                ],
                False,
            ),
        ],
        frozen=True,
    )

    def ask(*arguments: str) -> Any:
        description = (module.__doc__ or "").strip()
        return tyro.cli(options, prog=f"train.py {experiment}", description=description, args=arguments)

    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed = ask(*argv)
    except SystemExit as end:
        if end.code not in (0, None):
            fail(_explain(errors.getvalue(), lambda: _flags(ask)))
        raise
    return Arguments(
        experiment,
        parsed.config,
        parsed.workdir or _default_workdir(experiment, parsed, presets),
        parsed.json,
        parsed.debug,
        parsed.init_from,
    )


def _default_workdir(experiment: str, parsed: Any, presets: dict[str, Any]) -> Path:
    name = Path(experiment).stem
    if parsed.preset != DEFAULT:
        name += f"-{parsed.preset}"
    if parsed.config != presets[parsed.preset] or parsed.init_from is not None:
        # The same command finds its run again, and another config does not run into it.
        preset, config = map(config_to_dict, (presets[parsed.preset], parsed.config))
        text = json.dumps(config_differences(preset, config))
        if parsed.init_from is not None:
            text += str(parsed.init_from.resolve())
        digest = hashlib.sha256(text.encode()).hexdigest()
        name += f"-{digest[:8]}"
    return Path("runs", name)


def _flags(ask: Callable[..., Any]) -> list[str]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        ask("--help")
    return sorted(set(re.findall(r"(?<!\S)--[a-z][\w.-]*", text.getvalue())))


def _explain(box: str, flags: Callable[[], list[str]]) -> str:
    """Turns tyro's framed message into one line, with the option that was probably intended."""
    # The frame is drawn with lines, or with ASCII where the terminal has no others.
    lines = [re.sub(r"^[│|] ?| ?[│|]$", "", line).strip() for line in box.splitlines()]
    ends = [i for i, line in enumerate(lines) if re.match(r"[╭╰+]|[─-]{10}", line)]
    message = " ".join(lines[ends[0] + 1 : ends[1]]) if len(ends) > 1 else " ".join(lines)
    message = re.sub(r"^Error parsing (config\.?)?", "", message)
    if not message.startswith("Unrecognized options"):
        return message.removeprefix(": ")
    given = next((word for word in re.split(r"[,\s]+", message) if word.startswith("--")), "")
    intended = closest_flag(given.split("=")[0], flags()) if given else None
    unknown = f"unknown option {given}" if given else message
    return unknown + (f"; did you mean {intended}?" if intended else "; --help lists them all")


def closest_flag(given: str, flags: Sequence[str]) -> str | None:
    """The option that was probably intended, by spelling, by part of its name, or by its initials.

    Example:
        >>> flags = ["--steps", "--optimizer.learning-rate", "--optimizer.clip-norm"]
        >>> [closest_flag(given, flags) for given in ("--optimizer.lr", "--setps", "--clip", "--zzz")]
        ['--optimizer.learning-rate', '--steps', '--optimizer.clip-norm', None]
    """
    given = given.lstrip("-").replace("_", "-")
    last = given.rpartition(".")[2]

    def similarity(flag: str) -> float:
        name = flag.lstrip("-")
        field = name.rpartition(".")[2]
        initials = "".join(word[0] for word in field.split("-") if word)
        score = max(difflib.SequenceMatcher(None, given, name).ratio(), _ratio(last, field))
        if last and (last == initials or last in field.split("-") or field == last):
            score = max(score, 0.9)
        return score

    best = max(flags, key=similarity, default=None)
    return best if best is not None and similarity(best) >= 0.6 else None


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def _run(module: ModuleType, arguments: Arguments, command: str) -> int:
    config, folder, debug = arguments.config, arguments.workdir, arguments.debug
    experiment = arguments.experiment
    if Path(experiment).is_file():
        experiment = str(Path(experiment).resolve())
    with contextlib.ExitStack() as stack:
        stack.enter_context(plain_messages(debug))
        with reported_errors(debug, _advice):
            make_schedule(config.optimizer, config.steps)  # refuses contradictions before anything is written
            if arguments.init_from is not None:
                _require_source(arguments.init_from, folder)
            run = stack.enter_context(claim_run(folder, experiment, config, arguments.init_from))
            finished = _read_result(run)
            if finished is None:
                task, params = _prepare(module, config, run)
        if finished is not None:
            print(f"already finished: {folder}")
            return _report(finished, folder, command, arguments.json)
        result = _train(run, task, config, params, debug)
    return _report(result.summary(), folder, command, arguments.json)


def _require_source(source: Path, folder: Path) -> None:
    open_run(source)
    if source.resolve() == folder.resolve():
        raise ValueError(
            f"a run cannot start from its own weights: {folder} is both --init-from and --workdir"
        )


def _prepare(module: ModuleType, config: Any, run: Run) -> tuple[Any, Any]:
    """The task, and the parameters to start from, None for new ones."""
    source = run.record.init_from
    if source is None:
        return module.make_task(config), None
    task = make_task_like(module, config, read_assets(source if run.is_new else run.folder))
    if not run.is_new and saved_steps(run.folder):
        return task, None
    try:
        return task, restore_params(source, task).items["params"]
    except CheckpointError as error:
        raise CheckpointError(f"cannot start from {source}: {error}") from error


def make_task_like(module: ModuleType, config: Any, assets: Mapping[str, str]) -> Any:
    """The task of a config with the vocabulary of a run, where the experiment's `make_task` can keep it.

    Args:
        module: the experiment.
        config: its config.
        assets: those of the run, as from `lstmx.training.read_assets`.
    """
    takes = "assets" in inspect.signature(module.make_task).parameters
    return module.make_task(config, assets=assets) if takes else module.make_task(config)


def make_run_task(module: ModuleType, config: Any, folder: Path) -> Any:
    """The task of an existing run, which has the vocabulary of another if it started from its weights.

    Args:
        module: the experiment.
        config: the config of the run.
        folder: the run folder.
    """
    if open_run(folder).init_from is None:
        return module.make_task(config)
    return make_task_like(module, config, read_assets(folder))


def _train(run: Run, task: Any, config: Any, params: Any, debug: bool) -> Result:
    try:
        with stop_on_signals() as stop:
            return train_in(
                run,
                task,
                steps=config.steps,
                seed=config.seed,
                optimizer=config.optimizer,
                loop=config.loop,
                params=params,
                stop=stop,
            )
    except (CheckpointError, NonFiniteError, OSError) as error:
        if debug:
            raise
        fail(str(error) + _advice(error), code=1)


def _advice(error: Exception) -> str:
    """What to change, in the options of the command line."""
    if isinstance(error, NonFiniteError):
        return (
            "; start another\nwith a smaller --optimizer.learning-rate or --optimizer.clip-norm, or with "
            "--optimizer.warmup-steps"
        )
    advice: dict[Any, str] = {
        "config": "\nask for the same to resume it, or choose another --workdir",
        "steps": "\nchoose another --workdir, and --init-from to start from its weights",
        "start": "\ngive the same --init-from to resume it, or choose another --workdir",
    }
    return advice.get(getattr(error, "cause", None), "")


def _read_result(run: Run) -> dict[str, Any] | None:
    if run.is_new or run.is_prolonged:
        return None
    return read_result(run.folder)


def _report(result: dict[str, Any], folder: Path, command: str, as_json: bool) -> int:
    if result["status"] == "finished":
        print(f"finished {result['steps']:,} steps in {format_seconds(result['seconds'])}")
        best = result["best"]
        if best:
            hidden = ("step", "split", *TIMES)
            numbers = {name: value for name, value in best.items() if name not in hidden and is_finite(value)}
            print(f"best validation: {format_numbers(numbers)} at step {best['step']}")
        steps = ", ".join(map(str, saved_steps(folder)))
        print(f"checkpoints: {folder / 'checkpoints'} (steps {steps})")
        print(f"next: python scripts/evaluate.py {shlex.quote(str(folder))}")
        code = 0
    else:
        name = signal.Signals(result["signal"]).name
        print(
            f"stopped by {name} after step {result['step']} of {result['steps']}, saved; "
            f"resume with\n  {command}"
        )
        code = 128 + result["signal"]
    if as_json:
        print(json.dumps({"workdir": str(folder), **result}))
    sys.stdout.flush()
    return code
