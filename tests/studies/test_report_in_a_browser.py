"""The report in Chromium, where it is installed: no error, nothing wider than a phone, a print that is not empty."""

import html
import re
import shutil
import subprocess

import pytest
from made_up_study import ARMS, make_analysis, make_study
from PIL import Image

from hf_salguide.studies.report.page import report_html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium)"),
]
# The page stands in frames, because a headless window is never as narrow as a phone; what was measured becomes text.
WIDTHS = (360, 768, 1280)
FRAMES = """<!doctype html><title>frames</title><link rel="icon" href="data:,"><pre id="found"></pre>
<script>
const found = (frame) => {{
  const view = frame.contentDocument, root = view.documentElement, width = Number(frame.width);
  const box = (element) => element.getBoundingClientRect();
  const wide = [...view.querySelectorAll("main *")].filter((element) =>
    box(element).right > width + 0.5 && !element.closest(".scroll"));
  const shown = [...view.querySelectorAll("svg.plot")].filter((element) =>
    box(element).width > 100 && box(element).height > 50);
  document.getElementById("found").textContent +=
    `${{width}}: ${{root.scrollWidth - root.clientWidth}} ${{wide.length}} ${{shown.length}};`;
}};
</script>
{frames}"""
FRAME = '<iframe width="{width}" height="900" srcdoc="{page}" onload="found(this)"></iframe>'


def browse(folder, page, *options):
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", *options, path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout


@pytest.fixture(scope="module")
def page():
    study = make_study(arms=(*ARMS[:3], *ARMS[-1:]), seeds=3, failing=(("cyborg", 1),))
    return report_html(study, make_analysis(study))


def test_nothing_is_wider_than_the_window(page, tmp_path):
    frames = [FRAME.format(page=html.escape(page), width=width) for width in WIDTHS]
    content = browse(tmp_path, FRAMES.format(frames="".join(frames)), "--dump-dom", "--window-size=1400,1000")
    measured = re.findall(r"(\d+): (\d+) (\d+) (\d+);", content)
    # Two plots, each shown in one of its widths.
    assert sorted(measured) == sorted((str(width), "0", "0", "2") for width in WIDTHS)


def test_it_prints(page, tmp_path):
    target = tmp_path / "report.pdf"
    browse(tmp_path, page, f"--print-to-pdf={target}", "--no-pdf-header-footer")
    content = target.read_bytes()
    assert content.startswith(b"%PDF-")
    pages = len(re.findall(rb"/Type /Page\b", content))
    assert 3 <= pages <= 8


def test_the_dark_theme_is_dark(page, tmp_path):
    target = tmp_path / "dark.png"
    browse(tmp_path, page, f"--screenshot={target}", "--blink-settings=preferredColorScheme=0")
    with Image.open(target) as picture:
        grey = picture.convert("L").histogram()
    assert sum(grey[:64]) > 0.6 * sum(grey)
