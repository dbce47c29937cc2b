"""The pages of scripts/report.py: what they say, and what they refuse."""

import html.parser
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from reported_folders import (
    HOSTILE,
    LOSSES,
    PIXEL,
    make_sweep,
    page_of,
    report,
    train_toy,
    write_leaderboard,
    write_metrics,
    write_record,
)

from lstmx.training import read_metrics
from scripts.reporting import curves, markup


def refusal(folder, output, capsys):
    """The message with which a page is refused; nothing is written."""
    with pytest.raises(SystemExit) as end:
        report(folder, output)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not output.is_file()
    return error


class Words(html.parser.HTMLParser):
    """The text of a page without markup, style and script; and its elements by name."""

    def __init__(self, page):
        super().__init__()
        self.words, self.elements, self._skipped = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._skipped = tag in ("style", "script")

    def handle_endtag(self, tag):
        self._skipped = False

    def handle_data(self, data):
        if not self._skipped:
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))

    def count(self, name):
        return sum(element == name for element, _ in self.elements)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "first"
    train_toy(folder)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def sweep(tmp_path):
    make_sweep(tmp_path / "wide")
    return tmp_path / "wide"


def test_the_page_of_a_run(trained, tmp_path, capsys):
    page = page_of(trained, tmp_path / "report.html")
    assert capsys.readouterr().out == f"page: {tmp_path / 'report.html'}\n"
    words = Words(page)
    assert "toy_experiment finished run first · all steps are done" in words.text
    best = min(r["loss"] for r in read_metrics(trained / "metrics.jsonl") if r["split"] == "validation")
    assert f"best validation loss {best:#.4g} at step 20" in words.text
    assert re.search(r"steps 20 of 20 time \d", words.text)
    titles = re.findall(r'<svg [^>]*aria-label="(\w+) against the step"', page)
    # For windows of several widths; the last three are those of training alone.
    assert list(dict.fromkeys(titles)) == ["loss", "root", "grad_norm", "learning_rate", "output"]
    assert "Marked where it differs from the default of the experiment: 1 field. " in words.text
    assert "features 5 default 4" in words.text
    assert words.text.index("step 20 bias ") < words.text.index("step 10 bias ")
    for name in ("jax", "flax", "git commit", "python"):
        assert f" {name} " in words.text.split("Environment")[1]


def test_a_page_needs_nothing_else(run, sweep, tmp_path):
    (run / "plots").mkdir()
    (run / "plots" / "curves.png").write_bytes(PIXEL)
    (run / "plots" / "map.svg").write_text(
        "<svg xmlns='http://www.w3.org/2000/svg'><script>x()</script></svg>"
    )
    for folder in (run, sweep):
        page = page_of(folder, tmp_path / "report.html")
        words = Words(page)
        loaded = [v for _, given in words.elements for name, v in given.items() if name in ("src", "href")]
        assert loaded
        assert all(address.startswith("data:image/") for address in loaded)
        assert "http" not in re.sub(r"http-equiv", "", page)
        assert words.count("script") == 1
        assert "default-src 'none'" in dict(words.elements[4][1])["content"].replace("&#x27;", "'")
        assert str(tmp_path) not in page


def test_time_by_part_adds_up(trained, tmp_path):
    words = Words(page_of(trained, tmp_path / "report.html"))
    times = words.text.split(" Time ")[1].split(" Samples ")[0]
    shares = [float(share) for share in re.findall(r"([\d.]+)%", times)]
    assert len(shares) == 5
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert "evaluations and samples" in times
    assert "Up to the record of step 20." in times


def test_a_run_whose_records_have_no_times_has_a_page(run, tmp_path):
    write_metrics(run, [2.0, 1.0])
    (run / "result.json").unlink()
    words = Words(page_of(run, tmp_path / "report.html"))
    assert "Up to the record of" not in words.text
    assert "best validation loss 1.000 at step 20" in words.text


@pytest.mark.parametrize(
    ("lock", "status"), [("", "interrupted"), ("process 7 on x", "unfinished"), (None, "unfinished")]
)
def test_the_status_of_a_run_that_has_not_finished(run, tmp_path, lock, status):
    (run / "result.json").unlink()
    (run / "lock").unlink()
    if lock is not None:
        (run / "lock").write_text(lock)
    assert f"toy_experiment {status} run run" in Words(page_of(run, tmp_path / "report.html")).text


def test_a_run_without_records_says_so(tmp_path):
    write_record(tmp_path / "run")
    words = Words(page_of(tmp_path / "run", tmp_path / "report.html"))
    assert "There are no records yet" in words.text
    assert words.count("svg") == 0
    assert "What differs from the default is not known: no experiment named toy" in words.text


def test_texts_are_escaped(run, tmp_path):
    record = json.loads((run / "config.json").read_text())
    record["config"]["data"] = HOSTILE
    record["config"][HOSTILE] = {"inner": HOSTILE, "half": "\ud800", "bell": "\x07"}
    record["versions"]["jax"] = record["git"] = HOSTILE
    (run / "config.json").write_text(json.dumps(record))
    (run / "samples" / "30.txt").write_bytes(HOSTILE.encode() + b"\xff\x00")
    hostile = {"step": 30, "split": "validation", "loss": 1.0, f'"{HOSTILE}': 2.0}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(hostile) + "\n")
    folder = run.rename(tmp_path / "<script>alert(2)<")
    words = Words(page_of(folder, tmp_path / "report.html"))
    assert words.count("script") == 1
    assert words.text.count(HOSTILE) >= 6
    assert not any(name.startswith("on") for _, given in words.elements for name in given)


def test_values_that_are_not_finite_interrupt_a_curve(run, tmp_path):
    write_metrics(run, [None, 3.0, None, 2.0, 1.0, math.nan, math.inf])
    page = page_of(run, tmp_path / "report.html")
    assert page.count("step 30: not finite") == 3  # in the pictures for windows of three widths
    assert page.count("step 60: not finite") == 3
    assert "crosses: not finite" in page
    paths = re.findall(r'<path d="([^"]*)" class="line"', page)
    assert [path.count("M") for path in paths] == [2, 2, 2]
    assert not re.search(r"\b(nan|inf)\b", "".join(paths))
    write_metrics(run, [None, None])
    assert "step 10: not finite" in page_of(run, tmp_path / "report.html")


NUMBERS = [
    [1.0],
    [0.0, 0.0],
    [-5.0, -5.0],
    [1e-12, 1e12],
    [1e308, -1e308],
    [5e-324, 1e-320],
    [123456.0, 123456.5],
    [2.0, 2.0 + 1e-15],
]


@pytest.mark.parametrize("values", NUMBERS, ids=str)
def test_any_finite_values_have_axes(values):
    points = [(step, value) for step, value in enumerate(values)]
    picture = curves.chart("loss", [curves.Line("train", points, "train")])
    places = [float(number) for number in re.findall(r' [xy]\d?="([^"]+)"', picture)]
    assert np.isfinite(places).all()
    assert min(places) >= -10
    assert max(places) <= 520
    assert picture.count("<text") >= 3


def test_thinned_curves_keep_their_shape():
    values = np.random.default_rng(0).normal(size=50_000).cumsum()
    points = list(enumerate(values.tolist()))
    kept = curves.thinned(points, 800)
    assert len(kept) < 1000
    assert set(kept) <= set(points)
    assert {kept[0], kept[-1]} == {points[0], points[-1]}
    assert min(v for _, v in kept) == values.min()
    assert max(v for _, v in kept) == values.max()
    picture = curves.chart("loss", [curves.Line("train", points, "train")])
    assert len(picture) < 40_000


def test_the_page_of_a_sweep(sweep, tmp_path):
    page = page_of(sweep, tmp_path / "report.html")
    words = Words(page)
    assert "toy_experiment sweep wide · 2 complete, 1 pruned, 1 failed" in words.text
    assert "best validation loss 1.250 trial 0007" in words.text
    assert "time of all trials 1 min 30 s" in words.text
    assert "--features 8 --optimizer.learning-rate 0.01" in words.text
    columns = [given["data-column"] for _, given in words.elements if "data-column" in given]
    # The spread of a single seed is empty in all rows.
    rest = ["steps", "seconds", "optimizer.learning_rate", "features", "error"]
    assert columns == ["rank", "trial", "state", "loss", *rest]
    assert "optimizer.learning_rate 0.001 to 0.1, logarithmic 0.05 0.01235" in words.text
    assert "features 2 to 8 8" in words.text
    trials = [given["data-trial"] for name, given in words.elements if name == "g" and "data-trial" in given]
    assert trials == ["0002", "0010", "0007"] * 3  # the best over the others
    assert " 1 0007 complete 1.2500 30 1 min 16 s 0.01235 8 2 0002 complete" in words.text
    assert f"Errors of 1 trial 0003 not finite at step 3 {HOSTILE}" in words.text
    assert "Environment of the best trial, 0007" in words.text
    assert [given["alt"] for name, given in words.elements if name == "img"] == ["importance"]


def test_a_sweep_of_several_seeds(sweep, tmp_path):
    trial = sweep / "trials" / "0007"
    shutil.rmtree(trial)
    for seed in range(2):
        write_record(trial / f"seed-{seed}")
        write_metrics(trial / f"seed-{seed}", LOSSES[7])
    settings = json.loads((sweep / "sweep.json").read_text())
    (sweep / "sweep.json").write_text(json.dumps({**settings, "seeds": 2}))
    row = ("1", "0007", "complete", "1.25", "0.05", "30", "75.5", "0.01", "8", "")
    write_leaderboard(sweep, settings["space"], [row])
    words = Words(page_of(sweep, tmp_path / "report.html"))
    assert "spread of its seeds 0.05000" in words.text
    assert "of 2 seeds each" in words.text
    assert sum(given.get("data-trial") == "0007" for name, given in words.elements if name == "g") == 6


def test_a_sweep_that_has_just_begun(sweep, tmp_path):
    (sweep / "best.txt").unlink()
    shutil.rmtree(sweep / "trials")
    space = json.loads((sweep / "sweep.json").read_text())["space"]
    write_leaderboard(sweep, space, [("", "0", "running", "", "", "", "", "0.1", "4", "")])
    words = Words(page_of(sweep, tmp_path / "report.html"))
    assert "toy_experiment running sweep wide · 1 running" in words.text
    assert "No trial has been evaluated yet." in words.text
    (sweep / "leaderboard.csv").unlink()
    words = Words(page_of(sweep, tmp_path / "report.html"))
    assert "No trial has been recorded yet." in words.text


def test_folders_that_are_neither_are_refused(tmp_path, capsys):
    output = tmp_path / "report.html"
    assert "there is no such folder" in refusal(tmp_path / "none", output, capsys)
    assert "is neither a run nor a sweep" in refusal(tmp_path, output, capsys)
    (tmp_path / "file").write_text("")
    assert "it is a file" in refusal(tmp_path / "file", output, capsys)


DAMAGE = {
    "config.json": ["{", "[]", '{"experiment": "toy", "config": 5}', "\xff"],
    "metrics.jsonl": ["{\n{}\n", "5\n", '{"step": 1}\n', '{"step": "1", "split": "train"}\n', "\xff\n\n"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in DAMAGE.items() for text in texts])
def test_damaged_files_of_a_run_are_named(run, tmp_path, capsys, name, text):
    (run / name).write_bytes(text.encode("latin-1"))
    assert str(run / name) in refusal(run, tmp_path / "report.html", capsys)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sweep.json", "{"),
        ("sweep.json", "[]"),
        ("leaderboard.csv", "rank,trial\n1,2\n"),
        ("leaderboard.csv", "rank,trial,state,loss,steps,seconds\n1,2\n"),
        ("leaderboard.csv", "\xff"),
        ("trials/0007/metrics.jsonl", "{\n{}\n"),
        ("trials/0007/config.json", "{"),
    ],
)
def test_damaged_files_of_a_sweep_are_named(sweep, tmp_path, capsys, name, text):
    (sweep / name).write_bytes(text.encode("latin-1"))
    assert str(sweep / name) in refusal(sweep, tmp_path / "report.html", capsys)


def test_a_page_that_cannot_be_written(trained, tmp_path, capsys):
    assert "cannot write" in refusal(trained, tmp_path / "none" / "report.html", capsys)
    assert "cannot write" in refusal(trained, tmp_path, capsys)
    assert list(tmp_path.iterdir()) == []


def test_by_default_the_page_is_in_the_folder(run, capsys):
    report(run)
    assert (run / "report.html").is_file()
    report(run)
    assert list(run.glob("*.tmp")) == []


@pytest.mark.parametrize("name", ["../../wide/trials/0002", "..", ""])
def test_a_trial_does_not_lead_out_of_its_sweep(sweep, tmp_path, capsys, name):
    row = ("1", name, "complete", "1.25", "", "30", "1", "0.01", "8", "")
    write_leaderboard(sweep, json.loads((sweep / "sweep.json").read_text())["space"], [row])
    error = refusal(sweep, tmp_path / "report.html", capsys)
    assert f"leaderboard.csv is damaged: a trial cannot be named {name!r}" in error


def test_markup_escapes_what_is_not_markup():
    link = markup.tag("a", 1, "<", None, title='"', data_x=None, open=True)
    assert link == '<a title="&quot;" open>1&lt;</a>'
