"""The page as a browser without a screen shows it."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from logs import report, write_log
from matplotlib.image import imread

from sage_keras.analysis import read_log, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CURVE = {"fraction": np.array([0.0, 0.5]), "loss": np.array([0.4, 0.9])}

pytestmark = [
    pytest.mark.backend_agnostic,
    pytest.mark.extended,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no chromium on the path; on Debian, `apt install chromium`"
    ),
]

# Tells the frame's owner what the browser made of the page.
PROBE = """<script>
addEventListener("load", () => {
  const visible = (element) => element.getBoundingClientRect().height > 0;
  parent.postMessage({
    pictures: [...document.images].map((image) => image.naturalWidth * image.naturalHeight),
    width: innerWidth,
    wider: document.documentElement.scrollWidth > innerWidth,
    rows: [...document.querySelectorAll("tbody tr")].filter(visible).map((row) => row.innerText),
    requests: performance.getEntriesByType("resource").map((one) => one.name),
  }, "*");
});
</script>"""
# A window cannot be as narrow as a telephone, and a frame can.
FRAME = """<script>
addEventListener("message", (message) => {{
  document.getElementById("seen").textContent = JSON.stringify(message.data);
}});
</script>
<pre id="seen"></pre><iframe src="probed.html" width="{width}" height="2000"></iframe>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    names = ("embeddings", "<script>console.error('harm')</script>", "a_long_name/" * 12 + "query")
    logs = {
        name: read_log(write_log(folder / name, *(report(step, names) for step in (2, 4, 8))))
        for name in ("AdamW", "Sage")
    }
    return write_report(logs, folder / "report.html", {"AdamW": CURVE, "Sage": CURVE})


def browse(folder, address, *options):
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += [f"--user-data-dir={folder}/profile", "--window-size=1200,2400"]
    command += ["--enable-logging=stderr", *options, address]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    console = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    return run.stdout, console


@pytest.mark.parametrize("width", [1200, 400])
def test_shows_every_picture_and_row_and_no_error(page, tmp_path, width):
    content = page.read_text(encoding="utf-8")
    probed = content.replace("</body>", f"{PROBE}</body>")
    (tmp_path / "probed.html").write_text(probed, encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width=width), encoding="utf-8")
    dom, console = browse(tmp_path, frame.as_uri(), "--dump-dom")
    assert console == []
    seen = json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', dom)[1]))
    assert len(seen["pictures"]) == content.count("<img ") == 7
    assert min(seen["pictures"]) > 1000 * 500
    assert seen["width"] == width
    assert not seen["wider"]  # than the window
    assert len(seen["rows"]) == 2 + 3
    assert seen["rows"][0].split("\t")[:2] == ["AdamW", "Sage (β₃ 0.75)"]
    assert seen["requests"] == []


def test_console_errors_would_be_seen(page, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text("<script>console.error('harm')</script>", encoding="utf-8")
    _, console = browse(tmp_path, broken.as_uri(), "--dump-dom")
    assert len(console) == 1 and "harm" in console[0]


def test_screenshot_is_a_page_with_something_on_it(page, tmp_path):
    picture = tmp_path / "page.png"
    browse(tmp_path, page.as_uri(), "--hide-scrollbars", f"--screenshot={picture}")
    pixels = imread(picture)
    assert pixels.shape[:2] == (2400, 1200)
    # The left picture of each pair, the right one, and the heading are not blank.
    for part in (pixels[300:900, :600], pixels[300:900, 600:], pixels[:100]):
        assert part[..., :3].std() > 0.05
