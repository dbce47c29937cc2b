"""Translation: what is counted, what is searched, and that it learns; the scripts on a run of its own."""

import dataclasses
import json
import math
import random
import subprocess
import sys

import jax
import numpy as np
import pytest
from commands import ROOT, load

import experiments
from experiments import translation
from experiments.tasks.translation.task import read_vocabularies
from lstmx.training import CheckpointError, cli, restore_params

WORDS = {"eins": "one", "zwei": "two", "drei": "three", "vier": "four", "fünf": "five", "sechs": "six"}


def write_pairs(folder, sizes):
    """Counting rhymes, translated word by word."""
    chance = random.Random(0)
    for name, count in sizes.items():
        rhymes = [chance.choices(list(WORDS), k=chance.choice((4, 5))) for _ in range(count)]
        (folder / f"{name}.de").write_text("\n".join(" ".join(rhyme).title() for rhyme in rhymes))
        (folder / f"{name}.en").write_text("\n".join(" ".join(WORDS[w] for w in rhyme) for rhyme in rhymes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rhymes")
    write_pairs(folder, {"train": 120, "val": 10, "test": 10})
    return folder


def options(folder):
    return (
        "--preset", "tiny", "--loop.no-tensorboard", "--data.path", folder,
        "--data.data-dir", folder / "data", "--data.source-language", "de", "--data.target-language", "en",
        "--data.lower-case", "--data.vocabulary-size", 290,
    )  # fmt: skip


def configured(folder, *, data=None, **others):
    """The config of the options, and others."""
    arguments = list(map(str, options(folder)))
    config = cli.parse(translation, "translation", arguments).config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **(data or {})), **others)


@pytest.fixture(scope="module")
def run(folder):
    """A run that is long enough to learn the rhymes."""
    longer = (
        "--steps", 250, "--data.batch-size", 24, "--model.hidden-size", 48, "--model.embedding-size", 24,
        "--label-smoothing", 0.1, "--optimizer.learning-rate", 0.02, "--optimizer.schedule", "cosine",
        "--loop.eval-every", 0, "--loop.checkpoint-every", 0,
    )  # fmt: skip
    arguments = ["translation", "--workdir", folder / "run", *options(folder), *longer]
    assert cli.main(experiments.load, [], list(map(str, arguments))) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def trained(run):
    """Its task and its parameters."""
    module, config = experiments.reopen(run)
    task = module.make_task(config)
    return task, restore_params(run, task).items["params"]


def test_it_learns(trained):
    task, params = trained
    metrics = task.evaluate(params, "test")
    assert metrics["BLEU"] > 90
    assert metrics["chrF"] > 90
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    (found,) = task.translate(params, ["Sechs Fünf Vier Eins"])
    assert found.text == "six five four one"
    assert found.target_tokens[-1] == "<eos>"
    assert "".join(found.target_tokens[:-1]).strip() == found.text
    assert found.attention.shape == (len(found.target_tokens), len(found.source_tokens))
    assert np.allclose(found.attention.sum(axis=1), 1, atol=1e-5)


def test_a_sentence_is_translated_as_if_it_were_alone(trained):
    task, params = trained
    sentences = ["eins", "zwei drei", "sechs " * 9, "vier fünf sechs eins", "drei", "fünf fünf"]
    for beam_size in (1, 3):
        together = task.translate(params, sentences, beam_size=beam_size)
        for sentence, found in zip(sentences, together, strict=True):
            (alone,) = task.translate(params, [sentence], beam_size=beam_size)
            assert alone.text == found.text
            assert alone.score == pytest.approx(found.score, abs=1e-5)


def test_the_loss_is_the_smoothed_cross_entropy(trained):
    task, params = trained
    batch = task.batch(0)
    loss, (_, metrics) = jax.jit(task.loss)(params, (), batch, jax.random.key(0))
    call = jax.jit(lambda params, *arguments: task.model(params)(*arguments))
    logits = np.asarray(call(params, batch["source"], batch["lengths"], batch["before"]), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    smooth = nats = count = 0
    for row, length in enumerate(batch["target_lengths"]):
        own, target = log_probs[row, :length], batch["target"][row, :length]
        assert batch["before"][row, 0] == 2
        assert np.array_equal(batch["before"][row, 1:length], target[:-1])
        assert target[-1] == 3
        wanted = 0.9 * np.eye(own.shape[-1])[target] + 0.1 / own.shape[-1]
        smooth -= (wanted * own).sum()
        nats -= own[np.arange(length), target].sum()
        count += length
    assert float(loss) == pytest.approx(smooth / count, rel=1e-5)
    assert float(metrics["nats"]) == pytest.approx(nats / count, rel=1e-5)


def test_scores_are_those_of_sacrebleu(trained):
    import sacrebleu

    task, _ = trained
    translations, references = (
        ["The cat sat on the mat", "a dog runs now", "A bird", "b"],
        ["the cat sat on a mat", "a dog ran", "a bird", "c"],
    )
    scores, signatures = task.scores(translations, references)
    bleu = sacrebleu.corpus_bleu(translations, [references], lowercase=True)
    assert scores["BLEU"] == pytest.approx(bleu.score)
    assert scores["chrF"] < 100
    assert scores["exact"] == 25
    assert all("case:lc" in signature and "version:" in signature for signature in signatures.values())


def test_a_translator_needs_no_data(trained, run, folder):
    task, params = trained
    config = dataclasses.replace(task.config, data=dataclasses.replace(task.config.data, path="gone"))
    translator = translation.make_translator(config, task.assets())
    assert translator.translate(params, ["zwei"])[0].text == task.translate(params, ["zwei"])[0].text
    with pytest.raises(ValueError, match=r"assets lack target\.json"):
        read_vocabularies({"source.json": task.assets()["source.json"]})
    # The vocabulary of another run: the checkpoint's embeddings have other sizes.
    other = translation.make_task(configured(folder, data={"shared_vocabulary": True, "limit": 5}))
    wrong = translation.make_translator(config, other.assets())
    with pytest.raises(CheckpointError, match="embedding"):
        restore_params(run, wrong, "latest")


def test_the_report_draws_pictures(trained, tmp_path):
    task, params = trained
    text, values = task.report(params, "test", tmp_path)
    assert "BLEU: nrefs:1|case:lc" in text
    assert values["chrF signature"].startswith("nrefs:1")
    drawn = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert drawn == [f"attention_test_{n}.png" for n in (1, 2, 3)]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in (tmp_path / "plots").iterdir())


def test_assets_tell_data_apart(folder, tmp_path):
    one = translation.make_task(configured(folder))
    two = translation.make_task(configured(folder, data={"limit": 100}))
    assert one.assets()["pairs.json"] != two.assets()["pairs.json"]
    assert one.assets() == translation.make_task(configured(folder)).assets()


def test_long_sentences_are_cut_and_counted_or_refused(folder):
    with pytest.warns(UserWarning, match=r"\d+ of 120 train pairs are longer than 2 pieces"):
        task = translation.make_task(configured(folder, data={"max_length": 2}))
    assert task.batch(0)["source"].shape[1] == 3
    params, _ = jax.jit(task.init)(jax.random.key(0))
    assert task.translate(params, ["eins zwei drei"])[0].left_out > 0
    with pytest.raises(ValueError, match=r"are longer than 2 pieces, the first is pair \d"):
        translation.make_task(configured(folder, data={"max_length": 2, "too_long": "refuse"}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": translation.ModelConfig(shared=True)}, "a shared embedding needs a shared vocabulary"),
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\), got 1.0"),
        ({"data": {"batch_size": 0}}, "batch_size must be at least 1"),
    ],
)
def test_bad_options_are_named(folder, options, message):
    with pytest.raises(ValueError, match=message):
        translation.make_task(configured(folder, **options))


def test_no_split_and_nothing_to_translate(trained):
    task, params = trained
    with pytest.raises(ValueError, match="no split dev: this run has train, validation, test"):
        task.evaluate(params, "dev")
    with pytest.raises(ValueError, match="nothing to translate"):
        task.translate(params, ["eins", " "])


@pytest.fixture(scope="module")
def translate():
    """The function of scripts/translate.py."""
    return load("translate")


def test_a_run_prints_its_plan_and_samples(run):
    assert "    translation: " in (run / "samples" / "250.txt").read_text()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"BLEU", "chrF", "loss"} <= records[-1].keys()


def test_translate_lines_and_report_bad_ones(run, translate, tmp_path, capsys):
    lines, references = tmp_path / "lines.txt", tmp_path / "references.txt"
    lines.write_bytes(b"eins zwei drei vier\n\ncaf\xe9\n" + b"drei " * 200 + b"\nvier\n")
    references.write_text("one two three four\n\n\nthree\nfour\n")
    with pytest.raises(SystemExit) as end:
        translate(run, file=lines, references=references, attention=tmp_path / "maps")
    assert end.value.code == 1
    printed = capsys.readouterr()
    answers = printed.out.split("\n")
    assert answers[:3] == ["one two three four", "", ""]
    assert len(answers) == 6
    for message in (
        "line 2 skipped: there is nothing to translate",
        "line 3 skipped: not UTF-8: byte 0xe9 at offset 3",
        "line 4 is too long: its last ",
        "2 lines skipped",
        "BLEU ",
        "|tok:13a|",
    ):
        assert message in printed.err
    assert {path.name for path in (tmp_path / "maps").iterdir()} <= {"1.png", "4.png", "5.png"}


def test_translate_arguments_and_json(run, translate, capsys):
    translate(run, ("zwei drei vier fünf", "eins eins zwei zwei"))
    assert capsys.readouterr().out == "two three four five\none one two two\n"
    translate(run, ("zwei drei vier fünf",), beam_size=1, json=True)
    printed = json.loads(capsys.readouterr().out)
    assert (printed["line"], printed["text"]) == (1, "two three four five")
    assert np.shape(printed["attention"]) == (len(printed["target_tokens"]), len(printed["source_tokens"]))


def test_translate_is_a_command(run):
    command = [sys.executable, str(ROOT / "scripts" / "translate.py"), str(run), "--beam-size", "1"]
    done = subprocess.run(command, input=b"eins zwei drei vier\n", capture_output=True)
    assert (done.stdout, done.returncode) == (b"one two three four\n", 0), done.stderr


def test_what_translate_refuses(run, translate, tmp_path, capsys):
    (tmp_path / "short.txt").write_text("one\n")
    for message, (folder, options) in {
        "there is no such folder": (run / "none", {}),
        "has 1 line for 2 sentences": (
            run, {"sentences": ("eins", "zwei"), "references": tmp_path / "short.txt"},
        ),
        "gone.txt": (run, {"file": tmp_path / "gone.txt"}),
        "beam_size must be at least 1, got 0": (run, {"sentences": ("eins",), "beam_size": 0}),
    }.items():  # fmt: skip
        with pytest.raises(SystemExit) as end:
            translate(folder, **options)
        printed = capsys.readouterr().err
        assert end.value.code == 2
        assert "error: " in printed
        assert message in printed
