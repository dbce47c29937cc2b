#!/usr/bin/env python3
"""Translates sentences by a run: translate.py RUN "a sentence", or --file FILE, or lines on stdin."""

import json as json_format
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

import experiments
from experiments.datasets.compressed import read_utf8
from experiments.tasks import text_lines
from lstmx.training import read_assets, restore_params, terminal

# Lines that are translated together: enough to be quick, few enough for answers to come soon.
_TOGETHER = 256


def translate(
    run: tyro.conf.Positional[Path],
    sentences: tyro.conf.Positional[tuple[str, ...]] = (),
    file: Path | None = None,
    references: Path | None = None,
    attention: Path | None = None,
    beam_size: int | None = None,
    length_penalty: float | None = None,
    checkpoint: str = "best",
    json: tyro.conf.FlagCreatePairsOff[bool] = False,
    debug: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Translates sentences with a run, one per line.

    Lines that cannot be translated (empty, not UTF-8, too long where that is refused) are reported on stderr
    by their numbers and answered by an empty line, so that the lines stay aligned; the exit code is then 1.

    Args:
        run: the run folder.
        sentences: the sentences; if there are none and no file, the lines of the standard input.
        file: a text file, one sentence per line.
        references: a text file of translations, line by line: BLEU and chrF against them on stderr.
        attention: a folder for a picture of each translation's attention.
        beam_size: open sentences of the beam search, 1 for greedy search; the run's if not given.
        length_penalty: alpha of the beam search; the run's if not given.
        checkpoint: best (by validation loss), latest, or the number of a step.
        json: one line of JSON for each sentence instead, with score, tokens and attention.
        debug: show tracebacks of errors.
    """
    with terminal.clean_errors(debug):
        module, config = experiments.reopen(run)
        if not hasattr(module, "make_translator"):
            raise ValueError(f"{run} is a run of {module.__name__}, which does not translate")
        task = module.make_translator(config, read_assets(run))
        params = restore_params(run, task, checkpoint).items["params"]
        options = {"beam_size": beam_size, "length_penalty": length_penalty}
        given = None if references is None else _read_references(references)
        sentences = [text.encode(errors="surrogateescape") for text in sentences]
        lines = sentences or text_lines.read_lines(file or sys.stdin.buffer)
        # At a terminal each line is answered at once.
        together = 1 if not sentences and file is None and sys.stdin.isatty() else _TOGETHER
        skipped, scored, count = 0, [], 0
        for group in text_lines.in_groups(lines, together):
            good, problems = text_lines.decode_lines(group, task.check)
            for number, problem in problems.items():
                print(f"line {number} skipped: {problem}", file=sys.stderr)
            skipped, count = skipped + len(problems), group[-1][0]
            translated = dict(zip(good, task.translate(params, list(good.values()), **options), strict=True))
            for number, _ in group:
                _show(number, good.get(number), translated.get(number), json)
                if number in translated and attention is not None:
                    _draw(translated[number], attention / f"{number}.png")
            scored += [(number, result.text) for number, result in translated.items()]
        if given is not None:
            _score(task, scored, given, count, references)
    if skipped:
        print(f"{terminal.count_of(skipped, 'line')} skipped", file=sys.stderr)
        raise SystemExit(1)


def _read_references(path: Path) -> list[str]:
    try:
        return read_utf8(path).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error.reason} at offset {error.start}") from error


def _show(number: int, text: str | None, result, json: bool) -> None:
    if result is not None and result.left_out:
        print(f"line {number} is too long: its last {result.left_out} pieces were not read", file=sys.stderr)
    if not json:
        print("" if result is None else result.text, flush=True)
    elif result is not None:
        values = {**result._asdict(), "attention": result.attention.round(4).tolist()}
        print(json_format.dumps({"line": number, "source": text, **values}, ensure_ascii=False), flush=True)


def _draw(result, path: Path) -> None:
    from experiments.tasks.translation.attention_picture import draw_attention

    if draw_attention(result, path) is None:
        raise ValueError("--attention needs matplotlib, which is not installed")


def _score(task, scored: list[tuple[int, str]], references: list[str], count: int, path: Path) -> None:
    references = references[:-1] if references[-1] == "" else references
    if len(references) != count:
        raise ValueError(
            f"{path} has {terminal.count_of(len(references), 'line')} for "
            f"{terminal.count_of(count, 'sentence')}"
        )
    translations = [text for _, text in scored]
    scores, signatures = task.scores(translations, [references[number - 1] for number, _ in scored])
    if not signatures:
        raise ValueError("--references needs sacrebleu, which is not installed")
    for name, score in scores.items():
        print(f"{name} {score:.2f}  {signatures.get(name, '')}".rstrip(), file=sys.stderr)


if __name__ == "__main__":
    tyro.cli(translate)
