"""The command line of sweeps: what is swept, and by which engine."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from lstmx.sweeps import leaderboard
from lstmx.sweeps.engines import population, workers
from lstmx.sweeps.engines.members import may_vary
from lstmx.sweeps.journal import SweepError
from lstmx.sweeps.sampling import PRUNERS, SAMPLERS
from lstmx.sweeps.space import Space, parse_space, parse_values, split_assignments
from lstmx.sweeps.study import Spec, Study
from lstmx.training import cli as training_cli
from lstmx.training.config import config_to_dict
from lstmx.training.optimizer import make_schedule
from lstmx.training.signals import StopRequest
from lstmx.training.terminal import clean_errors, count_of

DESCRIPTION = """Sweeps the hyperparameters of an experiment, or continues the sweep found in the folder.

    python scripts/sweep.py char_lm --workdir SWEEP --trials 16 \\
        --space optimizer.learning_rate=log:1e-4:1e-2 model.dropout_rate=0:0.6 model.cell=lstm,gru

All options of train.py set the config that each trial starts from. Without --space, the experiment's own
space is taken, from its function sweep().
"""


class Sweep(NamedTuple):
    """A parsed command line.

    Attributes:
        options: the options of the sweep itself.
        module: the experiment.
        base: the config that each trial starts from.
        space: the ranges and choices.
        spec: what makes it the same sweep.
        first: configs to try first, as values by field.
        settings: the options of the base config, as given.
    """

    options: argparse.Namespace
    module: ModuleType
    base: Any
    space: Space
    spec: Spec
    first: list[dict[str, Any]]
    settings: list[str]


def main(load: Callable[[str], ModuleType], names: Sequence[str], argv: Sequence[str] | None = None) -> int:
    """The whole of `scripts/sweep.py`.

    Args:
        load: gives the module of an experiment by name or path.
        names: the experiments known by name, for the help.
        argv: the arguments; by default those of the process.

    Returns:
        The exit code: 0 finished, 1 no trial is complete, 2 cannot be done as requested, 128 + the number of
        the signal that stopped it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    with clean_errors(debug):
        sweep = parse(load, names, argv)
        if sweep.options.worker is not None:
            return _work(sweep)
        return _run(sweep, argv)


def _parser(names: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sweep.py",
        description=DESCRIPTION,
        epilog=f"experiments: {', '.join(names)}, or the path of a file of your own",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("experiment", metavar="EXPERIMENT")
    add("--workdir", type=Path, metavar="SWEEP", help="the sweep's folder; sweeps/NAME if not given")
    add("--trials", type=_positive, default=16, help="how many configs to train (16); more continue a sweep")
    add(
        "--space",
        nargs="+",
        default=[],
        metavar="FIELD=VALUES",
        help="LOW:HIGH, log:LOW:HIGH, LOW:HIGH:STEP, or A,B,C",
    )
    add("--seeds", type=_positive, default=1, help="trainings of each config, ranked by their mean loss (1)")
    add(
        "--enqueue", nargs="+", action="append", default=[], metavar="FIELD=VALUE",
        help="try this config first; may be given several times",
    )  # fmt: skip
    add("--sampler", choices=SAMPLERS, default="tpe", help="how configs are chosen (tpe)")
    add("--pruner", choices=PRUNERS, default="none", help="which trials are ended early (none)")
    add("--workers", type=_positive, default=1, help="processes on this machine, which share its cores (1)")
    add("--population", type=_positive, metavar="N", help="train N trials at once, in one compiled step")
    add("--storage", metavar="URL", help="a database for the study, for many machines; else a file in SWEEP")
    add("--json", action="store_true", help="end with one line of JSON")
    add("--worker", type=int, help=argparse.SUPPRESS)
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text}")
    return int(text)


def parse(load: Callable[[str], ModuleType], names: Sequence[str], argv: Sequence[str]) -> Sweep:
    """Reads a command line, and checks the space against the experiment's config.

    Args:
        load: gives the module of an experiment by name or path.
        names: the experiments known by name, for the help.
        argv: the arguments.

    Returns:
        The sweep.

    Raises:
        SystemExit: after `--help`, or for an option that does not exist.
        ValueError: it cannot be done as requested.
    """
    options, settings = _parser(names).parse_known_args(argv)
    module = load(options.experiment)
    arguments = training_cli.parse(module, options.experiment, settings)
    if arguments.init_from is not None:
        raise SweepError("--init-from cannot be swept: trials start from new weights")
    base, texts = arguments.config, split_assignments(options.space)
    if not texts:
        if not hasattr(module, "sweep"):
            raise SweepError(
                "the space is empty: give --space FIELD=VALUES, or the experiment a function sweep()"
            )
        texts = dict(module.sweep())
    space = parse_space(base, texts, lambda config: make_schedule(config.optimizer, config.steps))
    if options.seeds > 1 and "seed" in space:
        raise SweepError("--seeds and a range of seed in the space contradict each other")
    if options.population:
        _require_population(options, space)
    first = [parse_values(space, split_assignments(group), base) for group in options.enqueue]
    experiment = options.experiment
    if Path(experiment).is_file():
        experiment = str(Path(experiment).resolve())
    spec = Spec(experiment, config_to_dict(base), texts, options.seeds)
    if options.workdir is None:
        options.workdir = Path("sweeps", Path(experiment).stem)
    return Sweep(options, module, base, space, spec, first, settings)


def _require_population(options: argparse.Namespace, space: Space) -> None:
    fixed = [name for name in space if not may_vary(name)]
    if fixed:
        raise SweepError(
            "--population trains configs that differ in numbers alone (seed, learning rate, weight decay, "
            "clip, rates of dropout, init_scale), and the space has "
            f"{', '.join(fixed)}: leave it out, or the option"
        )
    if options.seeds > 1:
        raise SweepError("--population trains each config once: vary seed in the space in place of --seeds")
    if options.pruner != "none":
        raise SweepError(f"--population trains all to the end: it cannot have --pruner {options.pruner}")


def _study(sweep: Sweep) -> Study:
    options = sweep.options
    return Study(
        options.workdir,
        sweep.spec,
        sweep.space,
        storage=options.storage,
        sampler=options.sampler,
        pruner=options.pruner,
    )


def _work(sweep: Sweep) -> int:
    workers.end_with_parent()
    workers.share_cores(sweep.options.worker, sweep.options.workers)
    study = _study(sweep)
    trials, size, experiment = sweep.options.trials, sweep.options.population, sweep.spec.experiment
    if size:
        stop = population.work(study, trials, size, sweep.module, experiment, sweep.base)
    else:
        stop = workers.work(study, trials, sweep.module, experiment, sweep.base)
    return 0 if stop.signal is None else 128 + stop.signal


def _run(sweep: Sweep, argv: list[str]) -> int:
    options, study = sweep.options, _study(sweep)
    for values in sweep.first:
        study.enqueue(values)
    fields = ", ".join(f"{name}={text}" for name, text in sweep.spec.space.items())
    print(
        f"{count_of(options.trials, 'trial')} of {options.experiment} in {options.workdir}, "
        f"{count_of(options.workers, 'worker')}: {fields}",
        flush=True,
    )
    stop = StopRequest()
    if not study.is_complete(options.trials):
        start = [sys.executable, sys.argv[0], *argv, "--worker"]
        commands = [[*start, str(k)] for k in range(options.workers)]
        with _Display(sweep, study) as display:
            try:
                stop = workers.supervise(study, options.trials, commands, display.show)
            finally:
                display.show()
    return _conclude(sweep, study, stop, shlex.join(["python", sys.argv[0], *argv]))


def _best_command(sweep: Sweep, board: Sequence[leaderboard.Entry]) -> str:
    if not board or board[0].rank != 1:
        return ""
    train = str(Path(sys.argv[0]).with_name("train.py"))
    start = ["python", train, sweep.options.experiment, *(s for s in sweep.settings if s != "--debug")]
    return shlex.join(leaderboard.command_of(board[0].values, start))


def _conclude(sweep: Sweep, study: Study, stop: StopRequest, command: str) -> int:
    board = leaderboard.entries(study)
    best = _best_command(sweep, board)
    leaderboard.write(study, best)
    for path in leaderboard.draw(study):
        print(f"picture: {path}")
    if sys.stdout.isatty() or not sweep.options.json:
        from rich.console import Console

        Console(width=None if sys.stdout.isatty() else 160).print(leaderboard.as_table(board))
    counts = leaderboard.summary(board)
    if best:
        print(f"best: {best}")
        print(f"next: python scripts/evaluate.py {shlex.quote(str(_run_of(study, board[0].trial)))}")
    if stop.signal is not None:
        print(f"stopped, all trials saved; continue with\n  {command}")
    if sweep.options.json:
        print(json.dumps({"workdir": str(study.folder), **counts}))
    sys.stdout.flush()
    if stop.signal is not None:
        return 128 + stop.signal
    return 0 if best else 1


def _run_of(study: Study, number: int) -> Path:
    path = study.path(number)
    return path if study.spec.seeds == 1 else path / "seed-0"


class _Display:
    """The leaderboard while the sweep runs: a table in a terminal, otherwise a line for each trial."""

    def __init__(self, sweep: Sweep, study: Study):
        self._sweep, self._study = sweep, study
        self._live: Any = None
        self._seen: Mapping[int, str] = {}

    def __enter__(self) -> "_Display":
        self._seen = {entry.trial: entry.state for entry in leaderboard.entries(self._study)}
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(leaderboard.as_table([]), refresh_per_second=2, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        if self._live is not None:
            self._live.__exit__(*exception)

    def show(self) -> None:
        """Shows what has changed."""
        board = leaderboard.entries(self._study)
        if self._live is not None:
            self._live.update(leaderboard.as_table(board))
        states = {entry.trial: entry.state for entry in board}
        if states == self._seen:
            return
        for entry in board:
            changed = self._seen.get(entry.trial) != entry.state
            if self._live is None and changed and entry.state != "running":
                values = ", ".join(
                    f"{name}={leaderboard.shown(value)}" for name, value in entry.values.items()
                )
                what = entry.error.partition("\n")[0] or f"loss {leaderboard.shown(entry.loss)}"
                print(f"trial {entry.trial} {entry.state}: {what}  ({values})", flush=True)
        self._seen = states
        leaderboard.write(self._study, _best_command(self._sweep, board))
