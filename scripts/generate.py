#!/usr/bin/env python3
"""Generates text from a run: generate.py RUN --prompt "ROMEO:" --length 500 --temperature 0.8."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import tyro

import experiments
from lstmx.training import read_assets, restore_params, terminal


def generate(
    run: tyro.conf.Positional[Path],
    prompt: str | None = None,
    length: int = 500,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    checkpoint: str = "best",
    debug: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Generates text from a run, printed as it is made; the same seed gives the same text.

    Args:
        run: the run folder.
        prompt: the text to continue; the start of a line if not given, or a space or the first character of
            the vocabulary if that has no line ends.
        length: number of characters, or words, to generate.
        temperature: below 1 for likelier text, above 1 for more surprising text; 0 is greedy.
        top_k: draw only from the k likeliest tokens.
        top_p: draw only from the smallest set of tokens whose probabilities sum to this.
        seed: seed of the draws.
        checkpoint: best (by validation loss), latest, or the number of a step.
        debug: show tracebacks of errors.
    """
    with terminal.clean_errors(debug):
        module, config = experiments.reopen(run)
        if not hasattr(module, "make_generator"):
            raise ValueError(f"{run} is a run of {module.__name__}, which does not generate text")
        task = module.make_generator(config, read_assets(run))
        params = restore_params(run, task, checkpoint).items["params"]
        prompt = task.units.default_prompt() if prompt is None else prompt
        try:
            task.units.prompt(prompt)
        except ValueError as error:
            raise ValueError(f"--prompt {prompt!r} cannot be continued: {error}") from error
        pieces = task.generate(
            params, prompt, length=length, key=jax.random.key(seed),
            temperature=temperature, top_k=top_k, top_p=top_p,
        )  # fmt: skip
    print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    tyro.cli(generate)
