#!/usr/bin/env python3
"""Classifies texts by a run: classify.py RUN "some text", or --file FILE, or lines on stdin."""

import json as json_format
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

import experiments
from experiments.tasks import text_lines
from lstmx.training import read_assets, restore_params, terminal

# Lines that are classified together: enough to be quick, few enough for answers to come soon.
_TOGETHER = 64


def classify(
    run: tyro.conf.Positional[Path],
    texts: tyro.conf.Positional[tuple[str, ...]] = (),
    file: Path | None = None,
    saliency: bool = True,
    checkpoint: str = "best",
    json: tyro.conf.FlagCreatePairsOff[bool] = False,
    debug: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Classifies texts by a run, with probabilities and the contribution of each token.

    Lines that cannot be classified (empty, not UTF-8, without a token, too long where that is refused) are
    reported on stderr by their numbers and skipped; the exit code is then 1.

    Args:
        run: the run folder.
        texts: the texts; if there are none and no file, the lines of the standard input.
        file: a text file, one text per line.
        saliency: whether to show the contribution of each token, in log-odds.
        checkpoint: best (by validation loss), latest, or the number of a step.
        json: one line of JSON for each text instead.
        debug: show tracebacks of errors.
    """
    with terminal.clean_errors(debug):
        if texts and file is not None:
            raise ValueError("give texts or --file, not both")
        module, config = experiments.reopen(run)
        if not hasattr(module, "make_classifier"):
            raise ValueError(f"{run} is a run of {module.__name__}, which does not classify texts")
        task = module.make_classifier(config, read_assets(run))
        params = restore_params(run, task, checkpoint).items["params"]
        given = [text.encode(errors="surrogateescape") for text in texts]
        lines = given if texts else text_lines.read_lines(file or sys.stdin.buffer)
        skipped = shortened = 0
        # At a terminal each line is answered at once.
        together = 1 if not texts and file is None and sys.stdin.isatty() else _TOGETHER
        for group in text_lines.in_groups(lines, together):
            good, problems = text_lines.decode_lines(group, task.check)
            for number, problem in problems.items():
                print(f"line {number} skipped: {problem}", file=sys.stderr)
            skipped += len(problems)
            verdicts = task.classify(params, list(good.values()), explain=saliency)
            for (number, text), verdict in zip(good.items(), verdicts, strict=True):
                shortened += verdict.left_out > 0
                print(_as_json(number, text, verdict) if json else _as_text(text, verdict), flush=True)
    if shortened:
        texts_cut = terminal.count_of(shortened, "text")
        print(f"{texts_cut} cut to {config.data.limit} tokens", file=sys.stderr)
    if skipped:
        print(f"{terminal.count_of(skipped, 'line')} skipped", file=sys.stderr)
        raise SystemExit(1)


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
