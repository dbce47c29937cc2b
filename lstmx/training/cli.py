"""The command line of training: an experiment and its config in, a run folder out."""

import contextlib
import dataclasses
import difflib
import hashlib
import io
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

from lstmx.training.checkpoint import CheckpointError
from lstmx.training.config import config_differences, config_to_dict
from lstmx.training.digest import saved_steps
from lstmx.training.loop import NonFiniteError, train_in
from lstmx.training.metrics import is_finite
from lstmx.training.optimizer import make_schedule
from lstmx.training.progress import format_numbers, format_seconds
from lstmx.training.result import Result
from lstmx.training.run import Run, claim_run
from lstmx.training.signals import stop_on_signals

DEFAULT = "default"


class Arguments(NamedTuple):
    """What the command line asked for.

    Attributes:
        experiment: name or path, as given.
        config: the experiment's config.
        workdir: the run folder.
        json: whether to end with one line of JSON.
    """

    experiment: str
    config: Any
    workdir: Path
    json: bool


def main(load: Callable[[str], ModuleType], names: Sequence[str], argv: Sequence[str] | None = None) -> int:
    """The whole of `scripts/train.py`.

    Args:
        load: gives the module of an experiment by name or path; a ValueError of it is shown as a message.
        names: the experiments known by name, for the help.
        argv: arguments; those of the process by default.

    Returns:
        The exit code: 0 finished, 1 failed on the way, 2 asked for something impossible, 128 + the number of
        the signal that stopped it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0].startswith("-"):
        wants_help = bool({"-h", "--help"} & set(argv))
        usage = (
            f"usage: train.py EXPERIMENT [--workdir RUN] [--preset NAME] [--json] [OPTIONS]\n{_known(names)}"
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
        SystemExit: 0 after `--help`, 2 after a message on what is wrong.
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
                "json",
                Annotated[
                    bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="End with one line of JSON.")
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
            _fail(_explain(errors.getvalue(), lambda: _flags(ask)))
        raise
    return Arguments(
        experiment,
        parsed.config,
        parsed.workdir or _default_workdir(experiment, parsed, presets),
        parsed.json,
    )


def _default_workdir(experiment: str, parsed: Any, presets: dict[str, Any]) -> Path:
    name = Path(experiment).stem
    if parsed.preset != DEFAULT:
        name += f"-{parsed.preset}"
    if parsed.config != presets[parsed.preset]:
        # The same command finds its run again, and another config does not run into it.
        preset, config = map(config_to_dict, (presets[parsed.preset], parsed.config))
        digest = hashlib.sha256(json.dumps(config_differences(preset, config)).encode()).hexdigest()
        name += f"-{digest[:8]}"
    return Path("runs", name)


def _flags(ask: Callable[..., Any]) -> list[str]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        ask("--help")
    return sorted(set(re.findall(r"(?<!\S)--[a-z][\w.-]*", text.getvalue())))


def _explain(box: str, flags: Callable[[], list[str]]) -> str:
    """Turns tyro's framed message into one line, with the option that was probably meant."""
    # The frame is drawn with lines, or with ASCII where the terminal has no others.
    lines = [re.sub(r"^[│|] ?| ?[│|]$", "", line).strip() for line in box.splitlines()]
    ends = [i for i, line in enumerate(lines) if re.match(r"[╭╰+]|[─-]{10}", line)]
    message = " ".join(lines[ends[0] + 1 : ends[1]]) if len(ends) > 1 else " ".join(lines)
    message = re.sub(r"^Error parsing (config\.?)?", "", message)
    if not message.startswith("Unrecognized options"):
        return message.removeprefix(": ")
    given = next((word for word in re.split(r"[,\s]+", message) if word.startswith("--")), "")
    meant = closest_flag(given.split("=")[0], flags()) if given else None
    unknown = f"unknown option {given}" if given else message
    return unknown + (f"; did you mean {meant}?" if meant else "; --help lists them all")


def closest_flag(given: str, flags: Sequence[str]) -> str | None:
    """The option that was probably meant, by spelling, by part of its name, or by its initials.

    Example:
        >>> flags = ["--steps", "--optimizer.learning-rate", "--optimizer.clip-norm"]
        >>> [closest_flag(given, flags) for given in ("--optimizer.lr", "--setps", "--clip", "--zzz")]
        ['--optimizer.learning-rate', '--steps', '--optimizer.clip-norm', None]
    """
    given = given.lstrip("-").replace("_", "-")
    last = given.rpartition(".")[2]

    def likeness(flag: str) -> float:
        name = flag.lstrip("-")
        field = name.rpartition(".")[2]
        initials = "".join(word[0] for word in field.split("-") if word)
        score = max(difflib.SequenceMatcher(None, given, name).ratio(), _ratio(last, field))
        if last and (last == initials or last in field.split("-") or field == last):
            score = max(score, 0.9)
        return score

    best = max(flags, key=likeness, default=None)
    return best if best is not None and likeness(best) >= 0.6 else None


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def _run(module: ModuleType, arguments: Arguments, command: str) -> int:
    config, folder = arguments.config, arguments.workdir
    experiment = arguments.experiment
    if Path(experiment).is_file():
        experiment = str(Path(experiment).resolve())
    with contextlib.ExitStack() as stack:
        with clean_errors():
            make_schedule(config.optimizer, config.steps)  # refuses what contradicts, before anything is made
            run = stack.enter_context(claim_run(folder, experiment, config))
            finished = _read_result(run)
            if finished is None:
                task = module.make_task(config)
        if finished is not None:
            print(f"already finished: {folder}")
            return _report(finished, folder, command, arguments.json)
        result = _train(run, task, config)
    return _report(result.summary(), folder, command, arguments.json)


def _train(run: Run, task: Any, config: Any) -> Result:
    try:
        with stop_on_signals() as stop:
            return train_in(
                run,
                task,
                steps=config.steps,
                seed=config.seed,
                optimizer=config.optimizer,
                loop=config.loop,
                stop=stop,
            )
    except (CheckpointError, NonFiniteError, OSError) as error:
        _fail(str(error), code=1)


def _read_result(run: Run) -> dict[str, Any] | None:
    try:
        return None if run.is_new else json.loads((run.folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # it is made again from the last checkpoint


def _report(result: dict[str, Any], folder: Path, command: str, as_json: bool) -> int:
    if result["status"] == "finished":
        print(f"finished {result['steps']:,} steps in {format_seconds(result['seconds'])}")
        best = result["best"]
        if best:
            hidden = ("step", "split", "elapsed_s")
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
            f"go on with\n  {command}"
        )
        code = 128 + result["signal"]
    if as_json:
        print(json.dumps({"workdir": str(folder), **result}))
    sys.stdout.flush()
    return code


@contextlib.contextmanager
def clean_errors() -> Iterator[None]:
    """Shows what a person can put right as a message; anything else is a bug and keeps its traceback.

    Ends quietly, as if killed by the signal, where what was written to has been closed, as by `| head`.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer would raise again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except (CheckpointError, ValueError, OSError) as error:
        _fail(str(error))


def _fail(message: str, code: int = 2) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)
