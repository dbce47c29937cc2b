#!/usr/bin/env python3
"""Classifies texts by a run: classify.py RUN "some text", or --file FILE, or lines on stdin."""

import contextlib
import json as json_format
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

import experiments
from lstmx.training import cli, read_assets, restore_params

# Lines that are classified together: enough to be quick, few enough for answers to come soon.
_TOGETHER = 64


def classify(
    run: tyro.conf.Positional[Path],
    texts: tyro.conf.Positional[tuple[str, ...]] = (),
    file: Path | None = None,
    saliency: bool = True,
    checkpoint: str = "best",
    json: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Classifies texts by a run, with probabilities and how much each token speaks for or against the class.

    Lines that cannot be classified (empty, not UTF-8, without a token, too long where that is refused) are
    reported on stderr by their numbers and left out; the exit code is then 1.

    Args:
        run: the run folder.
        texts: texts; without any, and without a file, the lines of the standard input.
        file: a text file, one text a line.
        saliency: whether to tell what each token contributes, in log-odds.
        checkpoint: best (by validation loss), latest, or the number of a step.
        json: one line of JSON for each text instead.
    """
    with cli.clean_errors():
        if texts and file is not None:
            raise ValueError("give texts or --file, not both")
        module, config = experiments.reopen(run)
        if not hasattr(module, "make_classifier"):
            raise ValueError(f"{run} is a run of {module.__name__}, which does not classify texts")
        task = module.make_classifier(config, read_assets(run))
        params = restore_params(run, task, checkpoint).items["params"]
        source = contextlib.nullcontext(sys.stdin.buffer) if file is None else file.open("rb")
    with source as stream:
        lines = [text.encode(errors="surrogateescape") for text in texts] if texts else stream
        bad = shortened = 0
        # At a terminal each line is answered at once.
        together = 1 if not texts and file is None and sys.stdin.isatty() else _TOGETHER
        for group in _groups(enumerate(lines, 1), together):
            good, problems = _sorted_out(task, group)
            for number, problem in problems:
                print(f"line {number} left out: {problem}", file=sys.stderr)
            bad += len(problems)
            verdicts = task.classify(params, [text for _, text in good], explain=saliency)
            for (number, text), verdict in zip(good, verdicts, strict=True):
                shortened += verdict.left_out > 0
                print(_as_json(number, text, verdict) if json else _as_text(text, verdict), flush=True)
    if shortened:
        many = f"{shortened} texts longer than {config.data.limit} tokens were"
        few = f"1 text longer than {config.data.limit} tokens was"
        print(f"{few if shortened == 1 else many} cut", file=sys.stderr)
    if bad:
        print(f"{bad} lines left out", file=sys.stderr)
        raise SystemExit(1)


def _groups(lines: Iterator[tuple[int, bytes]], most: int) -> Iterator[list[tuple[int, bytes]]]:
    group: list[tuple[int, bytes]] = []
    for line in lines:
        group.append(line)
        if len(group) == most:
            yield group
            group = []
    if group:
        yield group


def _sorted_out(task, group: list[tuple[int, bytes]]) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    good, problems = [], []
    for number, line in group:
        try:
            text = line.decode("utf-8").lstrip("\ufeff").strip()
            task.check(text)
        except UnicodeDecodeError as error:
            problems.append((number, f"not UTF-8: byte 0x{line[error.start]:02x} at offset {error.start}"))
        except ValueError as error:
            problems.append((number, str(error)))
        else:
            good.append((number, text))
    return good, problems


def _as_text(text: str, verdict) -> str:
    probabilities = "  ".join(f"{name} {value:.4f}" for name, value in verdict.probabilities.items())
    shown = f"{verdict.label}\t{probabilities}\t{text}"
    if verdict.saliency is not None:
        tokens = zip(verdict.tokens, verdict.saliency, strict=True)
        shown += "\n  " + " ".join(f"{token.strip() or repr(token)}({value:+.2f})" for token, value in tokens)
    return shown


def _as_json(number: int, text: str, verdict) -> str:
    return json_format.dumps({"line": number, "text": text, **verdict._asdict()}, ensure_ascii=False)


if __name__ == "__main__":
    tyro.cli(classify)
