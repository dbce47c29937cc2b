"""A classifier from its data to its verdicts, by the commands that a person would use."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, load

import experiments
from lstmx.training import cli


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on a file whose labels are easy."""
    folder = tmp_path_factory.mktemp("classify")
    pairs = (("fine", "yes"), ("poor", "no"))
    rows = [f"this film is {word} {n},{label}\n" for n in range(30) for word, label in pairs]
    (folder / "films.csv").write_text("text,label\n" + "".join(rows))
    options = ["--preset", "tiny", "--loop.no-tensorboard", "--steps", "60", "--data.limit", "6"]
    options += ["--loop.eval-every", "0", "--loop.checkpoint-every", "0"]
    options += ["--data.path", folder / "films.csv", "--data.data-dir", folder / "data"]
    command = ["sentiment", "--workdir", folder / "run", *options]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main(experiments.load, [], [str(word) for word in command]) == 0
    assert "parameters" in printed.getvalue().split("step 5/60")[0]
    assert ", predicted " in printed.getvalue()
    return folder / "run"


def test_evaluate_ends_with_accuracy(run, capsys):
    load("evaluate")(run, split="test", json=True)
    printed = capsys.readouterr().out.splitlines()
    result = json.loads(printed[-1])
    assert result["split"] == "test"
    assert 0 <= result["f1"] <= 1
    matrix = result["confusion"]
    assert sum(map(sum, matrix)) == 6
    assert result["accuracy"] == pytest.approx((matrix[0][0] + matrix[1][1]) / 6)
    if result["baseline"] is not None:
        assert result["baseline"]["accuracy"] == 1.0
        assert any(line.startswith("baseline, logistic regression on") for line in printed)
    for picture in [line.split(": ")[1] for line in printed if line.startswith("picture")]:
        assert Path(picture).read_bytes().startswith(b"\x89PNG")


def test_a_text_gets_probabilities_and_saliency(run, capsys):
    load("classify")(run, ("this film is fine 1", "poor film this is"))
    first, tokens, second, _ = capsys.readouterr().out.splitlines()
    assert first.split("\t")[0] == "yes"
    assert second.split("\t")[0] == "no"
    assert second.split("\t")[2] == "poor film this is"
    assert [token.split("(")[0] for token in tokens.split()] == ["this", "film", "is", "fine", "1"]


def test_bad_lines_are_reported_and_left_out(run):
    lines = b"this film is fine\n\ncaf\xe9\n   \nan extraordinarily long but not at all poor film\n"
    command = [sys.executable, str(ROOT / "scripts" / "classify.py"), str(run), "--json"]
    done = subprocess.run(command, input=lines, capture_output=True, cwd=ROOT)
    assert done.returncode == 1
    verdicts = [json.loads(line) for line in done.stdout.splitlines()]
    assert [verdict["line"] for verdict in verdicts] == [1, 5]
    assert sum(verdicts[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert (len(verdicts[1]["saliency"]), verdicts[1]["left_out"]) == (6, 3)
    assert done.stderr.decode().splitlines() == [
        "line 2 skipped: there is nothing to classify in ''",
        "line 3 skipped: not UTF-8: byte 0xe9 at offset 3",
        "line 4 skipped: there is nothing to classify in ''",
        "1 text cut to 6 tokens",
        "3 lines skipped",
    ]


def test_a_file_is_read_line_by_line(run, capsys):
    file = run.parent / "lines.txt"
    file.write_bytes(b"\xef\xbb\xbfthis film is fine\r\nthis is poor\r\n")
    load("classify")(run, file=file, saliency=False)
    printed = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [(label, text) for label, _, text in printed] == [
        ("yes", "this film is fine"),
        ("no", "this is poor"),
    ]
    with pytest.raises(SystemExit, match="2"):
        load("classify")(run, file=run / "none")
    assert "error: " in capsys.readouterr().err


def test_a_vocabulary_of_another_size_is_named(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "assets" / "vocabulary.json"
    kept = json.loads(path.read_text())
    kept["tokens"].pop()
    path.write_text(json.dumps(kept))
    with pytest.raises(SystemExit, match="2"):
        load("classify")(tmp_path / "run", ("fine",))
    assert "embedding" in capsys.readouterr().err
