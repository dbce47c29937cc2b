"""Processes of one machine that train trials, and the one that watches them."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from lstmx.sweeps.journal import SweepError
from lstmx.sweeps.study import Study
from lstmx.sweeps.trial import train_trial
from lstmx.training.signals import StopRequest, stop_on_signals

# Deaths of workers in a row, without a trial finished in between, after which the sweep stops.
_MOST_DEATHS = 8
_PERIOD = 0.3


def work(study: Study, trials: int, module: ModuleType, experiment: str, base: Any) -> StopRequest:
    """Trains trials until none is left or a signal comes.

    Args:
        study: the study.
        trials: how many the sweep has.
        module: the experiment.
        experiment: its name or path.
        base: the config that the space's values are put into.

    Returns:
        The request to stop, true if there was one.
    """
    with stop_on_signals() as stop:
        while not stop and (claim := study.next(trials)):
            print(f"trial {claim.number}: {claim.values}", flush=True)
            if not train_trial(study, claim, module, experiment, base, stop):
                break
    return stop


def share_cores(worker: int, workers: int) -> None:
    """Gives this process its part of the cores; with more workers than cores, one each in turn.

    Without this, each worker's threads would wait for those of the others.
    """
    if workers == 1 or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    own = cores[worker * len(cores) // workers : (worker + 1) * len(cores) // workers]
    os.sched_setaffinity(0, own or {cores[worker % len(cores)]})


def end_with_parent() -> None:
    """Ends this process, as SIGTERM does, when the other end of its standard input is closed."""

    def watch() -> None:
        # Not sys.stdin, whose lock Python needs when it ends.
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def supervise(
    study: Study, trials: int, commands: Sequence[Sequence[str]], show: Callable[[], None]
) -> StopRequest:
    """Starts workers and waits for the end of all trials; a worker that dies is replaced.

    Args:
        study: the study.
        trials: how many the sweep has.
        commands: the command of each worker.
        show: called several times a second.

    Returns:
        The request to stop, true if a signal came; the workers have then saved checkpoints.

    Raises:
        SweepError: a worker says that the sweep cannot go on, or the workers die again and again.
    """
    logs = study.folder / "workers"
    logs.mkdir(exist_ok=True)
    with stop_on_signals() as stop:
        running = {k: _start(command, logs / f"{k}.log") for k, command in enumerate(commands)}
        deaths = finished = 0
        told = False
        try:
            while running:
                time.sleep(_PERIOD)
                if stop and not told:
                    told = True
                    for process in running.values():
                        process.terminate()
                for k, process in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[k]
                    if process.returncode == 2:
                        raise SweepError(_last_line(logs / f"{k}.log"))
                    if process.returncode == 0 or stop:
                        continue
                    done = sum(record.state.is_finished() for record in study.trials)
                    deaths, finished = (1, done) if done > finished else (deaths + 1, finished)
                    if deaths >= _MOST_DEATHS:
                        raise SweepError(f"the workers end again and again: see {logs / f'{k}.log'}")
                    running[k] = _start(commands[k], logs / f"{k}.log")
                show()
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
    return stop


def _start(command: Sequence[str], log: Path) -> subprocess.Popen:
    with log.open("a", encoding="utf-8") as file:
        # A session of its own: Ctrl-C reaches the supervisor alone, which tells the workers once.
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=file, start_new_session=True
        )


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    begin = max((k for k, line in enumerate(lines) if line.startswith("error: ")), default=len(lines) - 1)
    return "\n".join(lines[begin:]).removeprefix("error: ") if lines else f"a worker failed: see {log}"
