"""The pages of scripts/report.py as a browser shows them."""

import re
import shutil
import subprocess

import matplotlib.image
import numpy as np
import pytest
from reported_folders import make_sweep, page_of, train_toy


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"no browser to look at the page with: none of {', '.join(names)}")
    return path


def look(browser, address, profile, *options):
    """What a browser without a window says: the DOM, after scripts have run."""
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command += ["--allow-file-access-from-files", "--virtual-time-budget=3000", *options, address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


# A window of a browser cannot be narrower than about 500 pixels, but a frame can.
FRAME = """<iframe src="report.html" style="width: {width}px; height: 900px; border: 0"></iframe>
<script>onload = () => {{
  const page = frames[0].document;
  const shown = [...page.querySelectorAll("svg")].filter((svg) => svg.checkVisibility());
  const sizes = shown.flatMap((svg) => [...svg.querySelectorAll("text")].map(
    (text) => text.getBoundingClientRect().height));
  document.title = [page.documentElement.scrollWidth, shown.length, Math.min(...sizes)].join(" ");
}}</script>"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run and a sweep, by kind."""
    home = tmp_path_factory.mktemp("report")
    train_toy(home / "run")
    make_sweep(home / "sweep")
    return {"run": home / "run", "sweep": home / "sweep"}


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_a_browser_shows_the_page(browser, folders, tmp_path, kind, width):
    page_of(folders[kind], tmp_path / "report.html")
    (tmp_path / "frame.html").write_text(FRAME.format(width=width))
    profile, picture = tmp_path / "profile", tmp_path / "page.png"
    dom = look(browser, (tmp_path / "frame.html").as_uri(), profile, "--dump-dom", "--window-size=1500,1000")
    whole, shown, letters = map(float, re.search(r"<title>([^<]*)</title>", dom)[1].split())
    assert whole <= width
    assert shown == {"run": 2, "sweep": 1}[kind]
    assert letters >= 11
    address = (tmp_path / "frame.html").as_uri()
    look(browser, address, profile, f"--screenshot={picture}", f"--window-size={width + 100},1000")
    pixels = matplotlib.image.imread(picture)[..., :3]
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_a_browser_sorts_the_leaderboard(browser, folders, tmp_path):
    page_of(folders["sweep"], tmp_path / "report.html")
    address = (tmp_path / "report.html").as_uri()

    def trials(order):
        dom = look(browser, f"{address}#sort={order}", tmp_path / "profile", "--dump-dom")
        head = re.search(r'<th[^>]*data-column="([^"]*)"[^>]*aria-sort="(\w+)"', dom)
        return re.findall(r'<tr[^>]*data-trial="(\w+)"', dom), head[1], head[2]

    # By value and not by letters, and what is empty comes last in either direction.
    assert trials("seconds") == (["0010", "0002", "0007", "0003"], "seconds", "ascending")
    assert trials("-seconds") == (["0007", "0002", "0010", "0003"], "seconds", "descending")
    assert trials("optimizer.learning_rate")[0] == ["0007", "0002", "0003", "0010"]
    assert trials("-trial")[0] == ["0010", "0007", "0003", "0002"]
    assert trials("none")[1:] == ("rank", "ascending")
    clicks = "<script>document.querySelector('[data-column=features] button').click()</script>"
    page = (tmp_path / "report.html").read_text()
    # The page's own policy would not run a script that is not its own.
    page = re.sub(r"<meta http-equiv[^>]*>", "", page).replace("</body>", f"{clicks}</body>")
    (tmp_path / "report.html").write_text(page)
    assert trials("") == (["0002", "0010", "0007", "0003"], "features", "ascending")
