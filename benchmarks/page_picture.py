"""The picture of the page that README and gallery show: ``python -m benchmarks.page_picture runs/digits``."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import sync_playwright

from results.report.page import page as page_of
from results.report.runs import report_json
from results.run.folder import Run
from tests.browsers import Visit, open_browser

PICTURE = Path(__file__).parent.parent / "docs" / "report.png"
WIDTH, HEIGHT, COLOURS = 1080, 1290, 255


def draw(run: Run) -> None:
    """What a reader sees first of the page of a run, in few colours."""
    with TemporaryDirectory() as home, sync_playwright() as playwright, open_browser(playwright) as browser:
        path = Path(home) / "report.html"
        path.write_text(page_of(report_json([run])), encoding="utf-8")
        page = Visit(browser, viewport={"width": WIDTH, "height": HEIGHT}).open(path)
        page.mouse.move(5, 5)
        page.wait_for_timeout(500)
        shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    shot.quantize(COLOURS, dither=Image.Dither.NONE).save(PICTURE, optimize=True)


if __name__ == "__main__":
    draw(Run.open(sys.argv[1]))
