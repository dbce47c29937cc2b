#!/usr/bin/env python3
"""Perplexity of a language model, also adapting to the text: perplexity.py RUN [--cache] [--dynamic]."""

import json as json_format
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

import experiments
from lstmx.training import check_assets, cli, read_assets, restore_params, terminal
from lstmx.training.progress import format_table


def perplexity(
    run: tyro.conf.Positional[Path],
    split: str = "test",
    file: Path | None = None,
    cache: tyro.conf.FlagCreatePairsOff[bool] = False,
    cache_size: int = 500,
    cache_theta: float = 0.5,
    cache_weight: float = 0.1,
    dynamic: tyro.conf.FlagCreatePairsOff[bool] = False,
    dynamic_rate: float = 0.002,
    dynamic_decay: float = 0.02,
    dynamic_epsilon: float = 1e-3,
    dynamic_segment: int = 5,
    dynamic_batches: int | None = None,
    checkpoint: str = "best",
    json: tyro.conf.FlagCreatePairsOff[bool] = False,
    debug: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Perplexity of a run's language model on a text, without and with adaptation to the text.

    Choose the options of the adaptation on the validation split: see --split.

    Args:
        run: the run folder.
        split: train, validation or test.
        file: a text file to evaluate on instead, with the vocabulary of the run.
        cache: mix recent words into the predictions (Grave et al. 2017).
        cache_size: number of words in the cache.
        cache_theta: weight of the similarity of states.
        cache_weight: the cache's share of a prediction.
        dynamic: keep learning from the text after predicting it (Krause et al. 2018).
        dynamic_rate: the learning rate.
        dynamic_decay: how fast the parameters return to those of the training.
        dynamic_epsilon: avoids division by a small gradient.
        dynamic_segment: words that are predicted, then learnt from.
        dynamic_batches: training batches that the gradients' scale is measured on; all if not given.
        checkpoint: best (by validation loss), latest, or the number of a step.
        json: end with one line of JSON.
        debug: show tracebacks of errors.
    """
    from experiments.datasets.text_corpus import read_text
    from experiments.tasks.language_model.adaptive_evaluation import evaluate_dynamically, evaluate_with_cache
    from experiments.tasks.language_model.task import LanguageModelTask

    with terminal.clean_errors(debug):
        module, config = experiments.reopen(run)
        needs_texts = file is None or dynamic
        if not needs_texts and hasattr(module, "make_generator"):
            task = module.make_generator(config, read_assets(run))
        else:
            task = cli.make_run_task(module, config, run)
        if not isinstance(task, LanguageModelTask):
            raise ValueError(f"{run} is a run of {module.__name__}, which is not a language model")
        if needs_texts:
            check_assets(run, task.assets())
        tokens = task.tokens(split) if file is None else task.units.encode(read_text(file))
        if len(tokens) < 2:
            raise ValueError(f"{file or split} has {len(tokens)} {task.unit}, a perplexity needs 2 at least")
        restored = restore_params(run, task, checkpoint)
        params = restored.items["params"]
        results = {"plain": task.evaluate_tokens(params, tokens)}
        if cache:
            options = {"size": cache_size, "theta": cache_theta, "weight": cache_weight}
            results["cache"] = evaluate_with_cache(task, params, tokens, **options)
        if dynamic:
            results["dynamic"] = evaluate_dynamically(
                task, params, tokens, segment=dynamic_segment, rate=dynamic_rate, decay=dynamic_decay,
                epsilon=dynamic_epsilon, statistics_batches=dynamic_batches,
            )  # fmt: skip
    print(f"{file or split}, {len(tokens):,} {task.unit}, checkpoint of step {restored.step}")
    print(format_table({f"  {kind}": metrics for kind, metrics in results.items()}))
    if json:
        where = {"workdir": str(run), "step": restored.step, "split": split, "file": file and str(file)}
        print(json_format.dumps({**where, **results}))


if __name__ == "__main__":
    tyro.cli(perplexity)
