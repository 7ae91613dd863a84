"""The page in a real browser, without a display and without a network."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bsgal_train.inspect.report import run_report, write_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Presses the heading with the given text as often as told.
PRESS = """
<script>
const headings = [...document.querySelectorAll("#categories th")];
const heading = headings.find(one => one.innerText.trim() === "{title}");
for (let i = 0; i < {times}; i++) heading.querySelector("button").click();
</script></body>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"needs a browser to open the page with: one of {', '.join(BROWSERS)}")
    return found


@pytest.fixture
def page(run_folder: Path) -> Path:
    return write_page(run_report(run_folder), run_folder / "report.html")


def opened(browser: str, page: Path, tmp_path: Path) -> str:
    """Return the document after its scripts have run."""
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            # No name resolves: whatever the page fetched would fail.
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def shown_categories(document: str) -> list[str]:
    table = document[document.index('id="categories"') :]
    return re.findall(r"<tr><td>(\w+)</td>", table)


@pytest.mark.parametrize(
    ("title", "times", "expected"),
    [
        ("mask AP", 1, ["red_box", "green_box", "kite"]),
        ("mask AP", 2, ["green_box", "kite", "red_box"]),
        ("category", 1, ["green_box", "kite", "red_box"]),
        # `kite` has no share accepted: it stays last in both orders.
        ("accepted", 2, ["green_box", "red_box", "kite"]),
    ],
)
def test_a_pressed_heading_sorts_the_categories(
    title: str, times: int, expected: list[str], browser: str, page: Path, tmp_path: Path
) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("</body>") == 1
    pressed = tmp_path / "pressed.html"
    pressed.write_text(
        text.replace("</body>", PRESS.format(title=title, times=times)), encoding="utf-8"
    )

    document = opened(browser, pressed, tmp_path)

    assert shown_categories(document) == expected
    order = "descending" if times == 1 and title != "category" else "ascending"
    assert re.findall(r'<th[^>]*aria-sort="(\w+)"', document) == [order]
