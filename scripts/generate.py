#!/usr/bin/env python3
"""Generates text from a run: generate.py RUN --prompt "ROMEO:" --length 500 --temperature 0.8."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import tyro

import experiments
from lstmx.training import cli, read_assets, restore_params


def generate(
    run: tyro.conf.Positional[Path],
    prompt: str = "\n",
    length: int = 500,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    checkpoint: str = "best",
) -> None:
    """Generates text from a run, shown as it is made; the same seed gives the same text.

    Args:
        run: the run folder.
        prompt: the text to go on from.
        length: characters, or words, to generate.
        temperature: below 1 more likely, above 1 more surprising; 0 for the likeliest always.
        top_k: draw from the k likeliest only.
        top_p: draw from the fewest likeliest only that are as probable as this together.
        seed: of the draws.
        checkpoint: best (by validation loss), latest, or the number of a step.
    """
    with cli.clean_errors():
        module, config = experiments.reopen(run)
        if not hasattr(module, "make_generator"):
            raise ValueError(f"{run} is a run of {module.__name__}, which does not generate text")
        task = module.make_generator(config, read_assets(run))
        params = restore_params(run, task, checkpoint).items["params"]
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
