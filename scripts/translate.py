#!/usr/bin/env python3
"""Translates sentences by a run: translate.py RUN "a sentence", or --file FILE, or lines on stdin."""

import itertools
import json as json_format
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

import experiments
from lstmx.training import cli, read_assets, restore_params

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
) -> None:
    """Translates sentences by a run, a line each.

    Lines that cannot be translated (empty, not UTF-8, too long where that is refused) are reported on stderr
    by their numbers and answered by an empty line, so that the lines stay aligned; the exit code is then 1.

    Args:
        run: the run folder.
        sentences: sentences; without any, and without a file, the lines of the standard input.
        file: a text file, one sentence a line.
        references: a text file of translations, line by line: BLEU and chrF against them on stderr.
        attention: a folder, made if there is none, for a picture of each translation's attention.
        beam_size: open sentences of the beam search, 1 for greedy search; the run's if not given.
        length_penalty: alpha of the beam search; the run's if not given.
        checkpoint: best (by validation loss), latest, or the number of a step.
        json: one line of JSON for each sentence instead, with score, tokens and attention.
    """
    with cli.clean_errors():
        module, config = experiments.reopen(run)
        if not hasattr(module, "make_translator"):
            raise ValueError(f"{run} is a run of {module.__name__}, which does not translate")
        task = module.make_translator(config, read_assets(run))
        params = restore_params(run, task, checkpoint).items["params"]
        options = {"beam_size": beam_size, "length_penalty": length_penalty}
        given = None if references is None else references.read_text(encoding="utf-8").split("\n")
        lines = (text.encode(errors="surrogateescape") for text in sentences) if sentences else _lines(file)
        # At a terminal each line is answered at once.
        together = 1 if not sentences and file is None and sys.stdin.isatty() else _TOGETHER
        bad, scored, count = 0, [], 0
        for group in _groups(enumerate(lines, 1), together):
            good, problems = _sorted_out(task, group)
            for number, problem in problems.items():
                print(f"line {number} left out: {problem}", file=sys.stderr)
            bad, count = bad + len(problems), group[-1][0]
            found = dict(zip(good, task.translate(params, list(good.values()), **options), strict=True))
            for number, _ in group:
                _show(number, good.get(number), found.get(number), json)
                if number in found and attention is not None:
                    _draw(found[number], attention / f"{number}.png")
            scored += [(number, one.text) for number, one in found.items()]
        if given is not None:
            _score(task, scored, given, count, references)
    if bad:
        print(f"{bad} lines left out", file=sys.stderr)
        raise SystemExit(1)


def _lines(file: Path | None) -> Iterator[bytes]:
    with sys.stdin.buffer if file is None else file.open("rb") as source:
        yield from source


def _groups(lines: Iterator[tuple[int, bytes]], most: int) -> Iterator[list[tuple[int, bytes]]]:
    while group := list(itertools.islice(lines, most)):
        yield group


def _sorted_out(task, group: list[tuple[int, bytes]]) -> tuple[dict[int, str], dict[int, str]]:
    good, problems = {}, {}
    for number, line in group:
        try:
            text = line.decode("utf-8").strip()
            task.check(text)
        except UnicodeDecodeError as error:
            problems[number] = f"not UTF-8: byte 0x{line[error.start]:02x} at offset {error.start}"
        except ValueError as error:
            problems[number] = str(error)
        else:
            good[number] = text
    return good, problems


def _show(number: int, text: str | None, found, json: bool) -> None:
    if found is not None and found.left_out:
        print(f"line {number} is too long: its last {found.left_out} pieces were not read", file=sys.stderr)
    if not json:
        print("" if found is None else found.text, flush=True)
    elif found is not None:
        values = {**found._asdict(), "attention": found.attention.round(4).tolist()}
        print(json_format.dumps({"line": number, "source": text, **values}, ensure_ascii=False), flush=True)


def _draw(found, path: Path) -> None:
    from experiments.tasks.translation.attention_picture import draw_attention

    if draw_attention(found, path) is None:
        raise ValueError("--attention needs matplotlib, which is not installed")


def _score(task, scored: list[tuple[int, str]], references: list[str], count: int, path: Path) -> None:
    references = references[:-1] if references[-1] == "" else references
    if len(references) != count:
        raise ValueError(f"{path} has {len(references)} lines for {count} sentences")
    translations = [text for _, text in scored]
    scores, signatures = task.scores(translations, [references[number - 1] for number, _ in scored])
    if not signatures:
        raise ValueError("--references needs sacrebleu, which is not installed")
    for name, score in scores.items():
        print(f"{name} {score:.2f}  {signatures.get(name, '')}".rstrip(), file=sys.stderr)


if __name__ == "__main__":
    tyro.cli(translate)
